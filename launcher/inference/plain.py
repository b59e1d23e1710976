"""Qwen3 on the host's processor, in numpy: MindFormers' own cells for its inference have kernels on Ascend alone.

A decoder with a norm on each head of queries and keys. transformers 4.57, models/qwen3/modeling_qwen3.py, whose names
its weights have. Verified by equal logits. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from launcher.checkpoint.dtypes import Array
from launcher.inference.model import Model
from launcher.inference.weights import read, with_folds
from launcher.runspec.sections import ModelSpec


class PlainSteps:
    """The layers of a model in numpy; ``cached.Steps`` documents its parts."""

    def __init__(self, weights: Mapping[str, Array], spec: ModelSpec) -> None:
        """Take ``weights`` by transformers' names, float32."""
        self._weights, self._eps = weights, np.float32(spec.rms_norm_eps)
        self.layers, self.heads, self.head_size = spec.num_layers, spec.kv_heads, spec.head_size
        self._repeats = spec.num_heads // spec.kv_heads
        frequencies = spec.rope_theta ** -(np.arange(0, self.head_size, 2) / self.head_size)
        angles = np.arange(spec.max_position_embedding or spec.seq_length)[:, None] * np.tile(frequencies, 2)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def tensor(self, array: Any) -> Any:
        return array

    def array(self, tensor: Any) -> Any:
        return tensor

    def run(self, tokens: Any, cos: Any, sin: Any, mask: Any, wanted: Any, keys: Any, values: Any) -> Any:
        hidden, all_keys, all_values = self._weights["model.embed_tokens.weight"][tokens], [], []
        for number in range(self.layers):
            layer = f"model.layers.{number}."
            x = self._norm(hidden, f"{layer}input_layernorm")
            query, key = (self._heads_of(x, f"{layer}self_attn.{name}") for name in ("q", "k"))
            query, key = (_rotated(part, cos, sin) for part in (query, key))
            value = self._split(self._linear(x, f"{layer}self_attn.v_proj"))
            key, value = np.concatenate([keys[number], key], 2), np.concatenate([values[number], value], 2)
            all_keys.append(key)
            all_values.append(value)
            hidden = hidden + self._linear(self._attention(query, key, value, mask), f"{layer}self_attn.o_proj")
            hidden = hidden + self._feed_forward(self._norm(hidden, f"{layer}post_attention_layernorm"), f"{layer}mlp.")
        # The head is the largest product of all: it only runs on the wanted tokens.
        last = self._norm(hidden.reshape(-1, hidden.shape[-1])[wanted], "model.norm")
        head = "lm_head" if "lm_head.weight" in self._weights else "model.embed_tokens"
        return self._linear(last, head), tuple(all_keys), tuple(all_values)

    def _linear(self, x: Array, name: str) -> Array:
        rows: Array = x.reshape(-1, x.shape[-1]) @ self._weights[f"{name}.weight"].T
        return rows.reshape(*x.shape[:-1], -1)

    def _norm(self, x: Array, name: str) -> Array:
        scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + self._eps)
        normed: Array = x * scale * self._weights[f"{name}.weight"]
        return normed

    def _split(self, x: Array) -> Array:
        """Return (rows, heads, new, head_size) of (rows, new, heads * head_size)."""
        return x.reshape(*x.shape[:2], -1, self.head_size).transpose(0, 2, 1, 3)

    def _heads_of(self, x: Array, name: str) -> Array:
        return self._norm(self._split(self._linear(x, f"{name}_proj")), f"{name}_norm")

    def _attention(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        """Return (rows, new, query heads * head_size)."""
        rows, _, new, size = query.shape
        # Query heads that share a key are rows of one product.
        grouped = query.reshape(rows, self.heads, self._repeats * new, size)
        scores = (grouped @ key.transpose(0, 1, 3, 2)).reshape(rows, self.heads, self._repeats, new, -1)
        scores = scores * np.float32(size**-0.5) + mask[:, :, None]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed: Array = weights.reshape(rows, self.heads, self._repeats * new, -1) @ value
        return mixed.reshape(rows, -1, new, size).transpose(0, 2, 1, 3).reshape(rows, new, -1)

    def _feed_forward(self, x: Array, layer: str) -> Array:
        gate = self._linear(x, f"{layer}gate_proj")
        with np.errstate(over="ignore"):  # far below zero silu is zero
            gate = gate / (1 + np.exp(-gate))
        return self._linear(gate * self._linear(x, f"{layer}up_proj"), f"{layer}down_proj")


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    turned: Array = x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin
    return turned


def load(model: Model) -> PlainSteps:
    """Load the weights of ``model``, adapters folded in. Raises CheckpointError when a file is damaged."""
    with ExitStack() as stack:
        tensors = with_folds(model.open(stack))
        weights = {name: read(output).astype(np.float32, copy=False) for name, output in tensors.weights.items()}
    return PlainSteps(weights, model.spec)
