"""LLaMA and models of the same structure: Llama 1 to 3.2, CodeLlama, Yi, DeepSeek-LLM, Mistral 7B, SmolLM2.

mindformers 1.9.0, models/llama/llama.py; transformers 4.57, models/llama/modeling_llama.py and
models/mistral/modeling_mistral.py. Verified by equal logits. All weights are (out, in) in both; none is permuted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.models.base import Shape, Sizes
from launcher.models.names import EMBEDDING, HEAD, NORM

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
_OUTER_NAMES = {EMBEDDING: "model.embed_tokens.weight", NORM: "model.norm.weight", HEAD: "lm_head.weight"}
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
# The ids that a run spec has unless it says otherwise.
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROPE_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")
# Keys of a config.json that change what is computed, and the values with which it is what MindFormers computes.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rope_ratio"), (1.0,)),
    **dict.fromkeys(("logits_scaling", "logit_scale", "embedding_multiplier", "residual_multiplier"), (1.0,)),
    **dict.fromkeys(("attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping"), ()),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "no_rope_layers", "parallel_residual", "add_cross_attention"), (False,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 1)),
    **dict.fromkeys(("quantization_config", "auto_map"), ()),
}


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """A family of MindFormers' LlamaForCausalLM. ``models.base.Family`` documents its parts.

    biases: paths that have a bias. settings: the family's settings in model_config. plain: values that its config.json
    may have beside those common to families of this structure. written: keys for a config.json that the base did not
    come with. defaults: transformers' defaults for keys that config.json leaves out, by model_type.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    architectures: Mapping[str, str]
    biases: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    plain: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    template: str = "vicuna"
    tokenizer_file: str = "tokenizer.model"
    linear_layers: tuple[str, ...] = tuple(_LINEAR)
    layer_names: Mapping[str, str] = field(default_factory=lambda: _LAYER_NAMES)
    outer_names: Mapping[str, str] = field(default_factory=lambda: _OUTER_NAMES)
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

    def outer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        table = (sizes.vocab, sizes.hidden)
        return {EMBEDDING: table, NORM: (sizes.hidden,)} | ({} if sizes.tied else {HEAD: table})

    def is_of(self, weights: Iterable[str]) -> bool:
        ends = tuple(f".{path}.bias" for path in self.biases)
        return not ends or any(name.endswith(ends) for name in weights)

    def network_settings(self) -> dict[str, Any]:
        return dict(self.settings)

    # ---------------------------------------------------------------------------------------- config.json

    def model_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        config = {**self.defaults.get(str(config.get("model_type")), {}), **config}
        problems = list(self._problems(config))
        if problems:
            raise ValueError("; ".join(problems))
        heads = config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}  # transformers 5
        longest = config.get("max_position_embeddings", 2048)
        return {
            "family": self.name,
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "n_kv_heads": config.get("num_key_value_heads") or heads,
            "intermediate_size": config["intermediate_size"],
            "vocab_size": config["vocab_size"],
            "seq_length": longest,
            "max_position_embedding": longest,
            "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
            "rope_theta": rope.get("rope_theta") or config.get("rope_theta", 10000.0),
            "rope_scaling": _rope_scaling(config.get("rope_scaling") or rope),
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
            **{key: first_id(config.get(key), default) for key, default in SPECIAL_IDS.items()},
        }

    def _problems(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield the settings of ``config`` that make it another computation, each by its key."""
        size = config["hidden_size"] // config["num_attention_heads"]
        if config.get("head_dim") not in (None, size):
            yield f"head_dim is {config['head_dim']}, not {size} (hidden_size / num_attention_heads)"
        for key, good in {**_PLAIN, **self.plain}.items():
            value = config.get(key)
            if value is not None and value not in good:
                yield f"{key} is {value!r}" + (f", not {good[0]!r}" if good else ", which is not supported")
        if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
            yield f"sliding_window is {config['sliding_window']}: attention over a window is not supported"
        odd = [kind for kind in config.get("layer_types") or () if kind != "full_attention"]
        if odd:
            yield f"layer_types has {odd[0]!r}, not 'full_attention' alone"

    def config_of_model(self, model: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
        came_as = origin.get("model_type")
        model_type = came_as if came_as in self.model_types else self.model_types[0]
        # What transformers 5 calls torch_dtype and rope_theta with rope_scaling: both read the older names.
        kept = {key: value for key, value in origin.items() if key not in ("dtype", "rope_parameters")}
        return {
            "initializer_range": 0.02,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_cache": True,
            **self.written,
            **(kept if came_as in (None, *self.model_types) else {}),
            **_special_ids(model, origin),
            "architectures": [self.architectures[model_type]],
            "model_type": model_type,
            "hidden_size": model["hidden_size"],
            "intermediate_size": model["intermediate_size"],
            "num_hidden_layers": model["num_layers"],
            "num_attention_heads": model["num_heads"],
            "num_key_value_heads": model.get("n_kv_heads") or model["num_heads"],
            "vocab_size": model["vocab_size"],
            "max_position_embeddings": model.get("max_position_embedding") or model["seq_length"],
            "rms_norm_eps": model["rms_norm_eps"],
            "rope_theta": model["rope_theta"],
            "rope_scaling": _rope_scaling_back(model.get("rope_scaling")),
        }


LLAMA = LlamaShape(
    name="llama",
    title="LLaMA",
    model_types=("llama", "mistral"),
    architectures={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
    plain=dict.fromkeys(("attention_bias", "qkv_bias"), (False,)),
    written={"attention_bias": False, "mlp_bias": False},
    defaults={"mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}},
)


def first_id(value: Any, default: int) -> int:
    """Return one id from a value that transformers writes as one id, several or none."""
    found = value[0] if isinstance(value, list) and value else value
    return found if isinstance(found, int) and found >= 0 else default


def _special_ids(model: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's special ids; equivalent forms in ``origin`` are kept: several ends, a missing pad."""
    ids = {key: model.get(key, default) for key, default in SPECIAL_IDS.items()}
    same = {key for key in ids if origin and first_id(origin.get(key), SPECIAL_IDS[key]) == ids[key]}
    return {key: value for key, value in ids.items() if key not in same} | {
        key: origin[key] for key in same if key in origin
    }


def _rope_scaling(scaling: Mapping[str, Any]) -> dict[str, Any] | None:
    """Convert rope_scaling of config.json. Raises ValueError for a kind that a run spec cannot express."""
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_scaling of type {kind!r} is not supported, only llama3")
    factors: dict[str, Any] = {key: scaling[key] for key in ROPE_FACTORS}
    return {**factors, "original_max_position_embedding": scaling["original_max_position_embeddings"]}


def _rope_scaling_back(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    factors = {key: scaling[key] for key in ROPE_FACTORS}
    return {
        "rope_type": "llama3",
        **factors,
        "original_max_position_embeddings": scaling["original_max_position_embedding"],
    }
