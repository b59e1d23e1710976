"""Qwen3 without experts, 0.6B to 32B: no biases, a norm on each head of q and k, heads with a dimension of their own.

Qwen Team, "Qwen3 Technical Report", arXiv:2505.09388; transformers 4.57, models/qwen3/modeling_qwen3.py; mindformers
1.9.0, models/qwen3 on parallel_core/training_graph: q, k and v are one weight, woven by groups of query heads that
share a key (attention.py, SelfAttention), gate and up another, woven row by row (mlp.py, MLPInterleaved).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.models.base import Shape, Shapes, Sizes
from launcher.models.hf_config import HfConfig
from launcher.models.names import MCORE, SCHEMES, num_layers

_QKV, _FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
_LINEAR = {
    "linear_qkv": _QKV,
    "linear_proj": "self_attention.linear_proj",
    "linear_fc1": _FC1,
    "linear_fc2": "mlp.linear_fc2",
}
_LAYER_NAMES = {
    "self_attention.linear_proj": "self_attn.o_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "mlp.linear_fc2": "mlp.down_proj",
    "input_layernorm": "input_layernorm",
    "pre_mlp_layernorm": "post_attention_layernorm",
}
_FUSED = {
    _QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    _FC1: ("mlp.gate_proj", "mlp.up_proj"),
}
# tensor_parallel/layers.py: ColumnParallelLinear cuts the outputs, RowParallelLinear the inputs.
_CUT_AXES = {_QKV: 0, "self_attention.linear_proj": 1, _FC1: 0, "mlp.linear_fc2": 1}


@dataclass(frozen=True, kw_only=True)
class Qwen3Shape:
    """A family of MindFormers' GPTModel with norms on q and k. ``models.base.Family`` documents its parts."""

    name: str
    title: str
    config: HfConfig
    template: str = "chatml"
    tokenizer_file: str = "tokenizer.json"
    route: str = MCORE
    linear_layers: tuple[str, ...] = tuple(_LINEAR)
    readers: tuple[tuple[str, ...], ...] = (("linear_qkv",), ("linear_proj",), ("linear_fc1",), ("linear_fc2",))
    lora_default: str = "linear_qkv|linear_proj"
    layer_names: Mapping[str, str] = field(default_factory=lambda: _LAYER_NAMES)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _FUSED)
    cut_axes: Mapping[str, int] = field(default_factory=lambda: _CUT_AXES)

    def path_of(self, linear_layer: str) -> str:
        return _LINEAR[linear_layer]

    def layer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        hidden, width = sizes.hidden, sizes.intermediate
        return {
            "input_layernorm.weight": (hidden,),
            f"{_QKV}.weight": (sizes.q_size + 2 * sizes.kv_size, hidden),
            "self_attention.q_layernorm.weight": (sizes.head,),
            "self_attention.k_layernorm.weight": (sizes.head,),
            "self_attention.linear_proj.weight": (hidden, sizes.q_size),
            "pre_mlp_layernorm.weight": (hidden,),
            f"{_FC1}.weight": (2 * width, hidden),
            "mlp.linear_fc2.weight": (hidden, width),
        }

    def runs(self, path: str, sizes: Sizes) -> tuple[int, ...]:
        if path == _FC1:
            return 1, 1
        return sizes.q_size // (sizes.kv_size // sizes.head), sizes.head, sizes.head

    def sizes_in(self, found: Shapes) -> Sizes:
        names, first = SCHEMES[self.route], "decoder.layers.0."
        vocab, hidden = (*found[names.embedding], 0)[:2]
        queries = (*found.get(first + "self_attention.linear_proj.weight", ()), 0, 0)[1]
        return Sizes(
            hidden=hidden,
            layers=num_layers(found),
            kv_size=max(0, found.get(first + f"{_QKV}.weight", (0,))[0] - queries) // 2,
            intermediate=(*found.get(first + "mlp.linear_fc2.weight", ()), 0, 0)[1],
            vocab=vocab,
            tied=names.head not in found,
            head=found.get(first + "self_attention.q_layernorm.weight", (0,))[0],
            queries=queries,
        )

    def is_of(self, weights: Iterable[str]) -> bool:
        return any(name.startswith(SCHEMES[self.route].layers) for name in weights)

    def network_settings(self) -> dict[str, Any]:
        return {}


QWEN3 = Qwen3Shape(
    name="qwen3",
    title="Qwen3",
    config=HfConfig(
        family="qwen3",
        architectures={"qwen3": "Qwen3ForCausalLM"},
        plain=dict.fromkeys(("attention_bias", "qkv_bias"), (False,)),
        written={"use_sliding_window": False, "attention_bias": False},
        defaults={
            "qwen3": {
                "num_key_value_heads": 32,
                "head_dim": 128,
                "max_position_embeddings": 32768,
                "use_sliding_window": False,
                "sliding_window": 4096,
            },
        },
        own_head_dim=True,
        scales_rope=False,
    ),
)
