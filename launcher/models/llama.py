"""LLaMA and models of the same structure: Llama 1 to 3.2, CodeLlama, Yi, DeepSeek-LLM, Mistral 7B, SmolLM2.

mindformers 1.9.0, models/llama/llama.py; transformers 4.57, models/llama/modeling_llama.py and
models/mistral/modeling_mistral.py. Verified by equal logits. All weights are (out, in) in both; none is permuted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.models.base import Shape, Shapes, Sizes
from launcher.models.hf_config import HfConfig
from launcher.models.names import LEGACY, SCHEMES, num_layers

_LINEAR = {
    "wq": "attention.wq", "wk": "attention.wk", "wv": "attention.wv", "wo": "attention.wo",
    "w1": "feed_forward.w1", "w2": "feed_forward.w2", "w3": "feed_forward.w3",
}  # fmt: skip
_LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# mindformers 1.9.0, models/llama, shard() methods.
_CUT_AXES = {
    "attention.wq": 0,
    "attention.wk": 0,
    "attention.wv": 0,
    "attention.wo": 1,
    "feed_forward.w1": 0,
    "feed_forward.w2": 1,
    "feed_forward.w3": 0,
}


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """A family of MindFormers' LlamaForCausalLM. ``models.base.Family`` documents its parts.

    biases: paths that have a bias. settings: the family's settings in model_config.
    """

    name: str
    title: str
    config: HfConfig
    biases: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    template: str = "vicuna"
    tokenizer_file: str = "tokenizer.model"
    route: str = LEGACY
    linear_layers: tuple[str, ...] = tuple(_LINEAR)
    readers: tuple[tuple[str, ...], ...] = (("wq", "wk", "wv"), ("wo",), ("w1", "w3"), ("w2",))
    lora_default: str = "wq|wk|wv|wo"
    layer_names: Mapping[str, str] = field(default_factory=lambda: _LAYER_NAMES)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cut_axes: Mapping[str, int] = field(default_factory=lambda: _CUT_AXES)

    def path_of(self, linear_layer: str) -> str:
        return _LINEAR[linear_layer]

    def layer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        hidden, width = sizes.hidden, sizes.intermediate
        weights: dict[str, Shape] = {
            "attention.wq": (hidden, hidden),
            "attention.wk": (sizes.kv_size, hidden),
            "attention.wv": (sizes.kv_size, hidden),
            "attention.wo": (hidden, hidden),
            "feed_forward.w1": (width, hidden),
            "feed_forward.w2": (hidden, width),
            "feed_forward.w3": (width, hidden),
            "attention_norm": (hidden,),
            "ffn_norm": (hidden,),
        }
        biases = {f"{path}.bias": weights[path][:1] for path in self.biases}
        return {f"{path}.weight": shape for path, shape in weights.items()} | biases

    def runs(self, path: str, sizes: Sizes) -> tuple[int, ...]:
        raise KeyError(path)

    def sizes_in(self, found: Shapes) -> Sizes:
        names, first = SCHEMES[self.route], "model.layers.0."
        vocab, hidden = (*found[names.embedding], 0)[:2]
        return Sizes(
            hidden=hidden,
            layers=num_layers(found),
            kv_size=found.get(first + "attention.wk.weight", (0,))[0],
            intermediate=found.get(first + "feed_forward.w1.weight", (0,))[0],
            vocab=vocab,
            tied=names.head not in found,
        )

    def is_of(self, weights: Iterable[str]) -> bool:
        ends = tuple(f".{path}.bias" for path in self.biases)
        return not ends or any(name.endswith(ends) for name in weights)

    def network_settings(self) -> dict[str, Any]:
        return dict(self.settings)


LLAMA = LlamaShape(
    name="llama",
    title="LLaMA",
    config=HfConfig(
        family="llama",
        architectures={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
        plain=dict.fromkeys(("attention_bias", "qkv_bias"), (False,)),
        written={"attention_bias": False, "mlp_bias": False},
        defaults={"mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}},
    ),
)
