"""The network of every family on the host's processor, in numpy and float32.

MindFormers' cells for inference have kernels on Ascend alone, and its network for training computes whole rows anew for
each token, after seconds of importing and compiling. One token of a small model is a few hundred products of a vector
and a matrix: numpy computes them as fast as the memory gives the weights.

transformers 4.57, models/llama, models/qwen2 and models/qwen3, whose names the weights have here. Verified by equal
logits of transformers and of MindFormers' network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.checkpoint.huggingface import PEFT_PREFIX
from launcher.inference.model import Model
from launcher.inference.threads import Threads
from launcher.inference.weights import Tensors, read, whole_array
from launcher.models import names
from launcher.models.registry import hf_modules, hf_name, is_hf_name
from launcher.runspec.sections import ModelSpec

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A layer of weight (out, in). lora_a (r, in), lora_b (out, r): its adapters, scaled; None without."""

    weight: Floats
    bias: Floats | None = None
    lora_a: Floats | None = None
    lora_b: Floats | None = None

    def __call__(self, x: Floats) -> Floats:
        """Return (..., out) of ``x`` (..., in)."""
        rows = x.reshape(-1, x.shape[-1])
        found: Floats = rows @ self.weight.T
        if self.lora_a is not None and self.lora_b is not None:
            found += (rows @ self.lora_a.T) @ self.lora_b.T
        if self.bias is not None:
            found += self.bias
        return found.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The parts of a decoder layer. query_norm, key_norm: of each head (Qwen3); None where there are none."""

    attention_norm: Floats
    query: Linear
    key: Linear
    value: Linear
    query_norm: Floats | None
    key_norm: Floats | None
    output: Linear
    feed_forward_norm: Floats
    gate: Linear
    up: Linear
    down: Linear


class NumpyNetwork:
    """A model in numpy. layers: how many. heads, head_size: of keys."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Floats], adapters: Mapping[str, Floats]) -> None:
        """Take arrays by transformers' and peft's names, float32; ``adapters`` with their scale in lora_B."""
        self._layers = [_layer(f"model.layers.{number}.", weights, adapters) for number in range(spec.num_layers)]
        self._embedding, self._norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self._head = Linear(weight=self._embedding if spec.tie_word_embeddings else weights["lm_head.weight"])
        self._eps = np.float32(spec.rms_norm_eps)
        self.layers, self.heads, self.head_size = spec.num_layers, spec.kv_heads, spec.head_size
        self._repeats = spec.num_heads // spec.kv_heads
        self._threads = Threads(spec.hidden_size)
        self._frequencies = frequencies(spec)

    def run(self, tokens: Ints, positions: Ints, mask: Floats | None, wanted: Any, cache: Floats) -> Floats:
        """Run new tokens and return the logits of the wanted ones.

        tokens, positions (rows, new). mask (rows, 1, 1, new, columns), added to scores; None where all may be seen.
        wanted: flat indexes of tokens. cache (layers, 2, rows, heads, columns, head_size): keys and values; those of
        the new tokens are written to its last columns.
        """
        # Far below zero silu is zero: its exp may overflow.
        with self._threads.chosen(tokens.size), np.errstate(over="ignore"):
            return self._run(tokens, positions, mask, wanted, cache)

    def _run(self, tokens: Ints, positions: Ints, mask: Floats | None, wanted: Any, cache: Floats) -> Floats:
        angles = positions[:, None, :, None].astype(np.float32) * self._frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        hidden: Floats = self._embedding[tokens]
        for layer, (keys, values) in zip(self._layers, cache, strict=True):
            hidden = hidden + self._attention(
                layer, self._normed(hidden, layer.attention_norm), cos, sin, mask, keys, values
            )
            hidden = hidden + _feed_forward(layer, self._normed(hidden, layer.feed_forward_norm))
        # The head is the largest product of all: it only runs on the wanted tokens.
        return self._head(self._normed(hidden.reshape(-1, hidden.shape[-1])[wanted], self._norm))

    def _normed(self, x: Floats, weight: Floats) -> Floats:
        squares = np.einsum("...i,...i->...", x, x)[..., None]
        normed: Floats = x * (1 / np.sqrt(squares / np.float32(x.shape[-1]) + self._eps)) * weight
        return normed

    def _attention(
        self, layer: Layer, x: Floats, cos: Floats, sin: Floats, mask: Floats | None, keys: Floats, values: Floats
    ) -> Floats:
        rows, new = x.shape[:2]
        query, key = self._heads_of(layer.query(x)), self._heads_of(layer.key(x))
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._normed(query, layer.query_norm), self._normed(key, layer.key_norm)
        keys[:, :, -new:] = _rotated(key, cos, sin)
        values[:, :, -new:] = self._heads_of(layer.value(x))
        # Query heads that share a key are rows of one product.
        grouped = _rotated(query, cos, sin).reshape(rows, self.heads, self._repeats * new, self.head_size)
        scores = grouped @ keys.transpose(0, 1, 3, 2)
        scores *= np.float32(self.head_size**-0.5)
        if mask is not None:
            scores.reshape(rows, self.heads, self._repeats, new, -1)[...] += mask
        scores -= scores.max(-1, keepdims=True)
        weights: Floats = np.exp(scores, out=scores)
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ values).reshape(rows, -1, new, self.head_size)
        return layer.output(mixed.transpose(0, 2, 1, 3).reshape(rows, new, -1))

    def _heads_of(self, x: Floats) -> Floats:
        """Return (rows, heads, new, head_size) of (rows, new, heads * head_size)."""
        return x.reshape(*x.shape[:2], -1, self.head_size).transpose(0, 2, 1, 3)


def _feed_forward(layer: Layer, x: Floats) -> Floats:
    gate = layer.gate(x)
    gate /= 1 + np.exp(-gate)
    gate *= layer.up(x)
    return layer.down(gate)


def _rotated(x: Floats, cos: Floats, sin: Floats) -> Floats:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def frequencies(spec: ModelSpec) -> Floats:
    """Return the angle of each pair of a head's numbers at position 1 (head_size / 2,), as in training.

    mindformers 1.9.0, modules/layers.py, FreqsMgr; transformers 4.57, modeling_rope_utils.py.
    """
    found = 1 / spec.rope_theta ** (np.arange(0, spec.head_size, 2, dtype=np.float32) / spec.head_size)
    scaling = spec.rope_scaling
    if scaling is None:
        return found.astype(np.float32)
    # Llama 3.1: long waves are stretched, those between two lengths in part.
    turns = scaling.original_max_position_embedding * found / (2 * np.pi)
    part = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    part = np.clip(part, 0, 1)
    return np.asarray((1 - part) * found / scaling.factor + part * found, np.float32)


def _layer(stem: str, weights: Mapping[str, Floats], adapters: Mapping[str, Floats]) -> Layer:
    def linear(name: str) -> Linear:
        module = f"{stem}{name}_proj"
        return Linear(
            weight=weights[f"{module}.weight"],
            bias=weights.get(f"{module}.bias"),
            lora_a=adapters.get(f"{module}.lora_A"),
            lora_b=adapters.get(f"{module}.lora_B"),
        )

    return Layer(
        attention_norm=weights[f"{stem}input_layernorm.weight"],
        query=linear("self_attn.q"),
        key=linear("self_attn.k"),
        value=linear("self_attn.v"),
        query_norm=weights.get(f"{stem}self_attn.q_norm.weight"),
        key_norm=weights.get(f"{stem}self_attn.k_norm.weight"),
        output=linear("self_attn.o"),
        feed_forward_norm=weights[f"{stem}post_attention_layernorm.weight"],
        gate=linear("mlp.gate"),
        up=linear("mlp.up"),
        down=linear("mlp.down"),
    )


# ------------------------------------------------------------------------------------------------ loading


def load(model: Model) -> NumpyNetwork:
    """Load the weights of ``model``. Raises CheckpointError when a file is damaged."""
    with ExitStack() as stack:
        tensors = model.open(stack)
        weights = {
            name if is_hf_name(name) else hf_name(name): np.asarray(read(output), np.float32)
            for name, output in tensors.weights.items()
        }
        return NumpyNetwork(model.spec, weights, dict(_adapters(tensors)))


def _adapters(tensors: Tensors) -> Iterator[tuple[str, Floats]]:
    for name, whole in tensors.adapters.items():
        (module,) = hf_modules(names.module_of(name.removeprefix(PEFT_PREFIX)))
        array = whole_array(whole).astype(np.float32)
        if name.endswith(names.LORA_A):
            yield f"{module}.lora_A", array
        else:
            yield f"{module}.lora_B", array * np.float32(tensors.scale)
