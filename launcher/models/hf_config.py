"""The config.json of transformers and the model section of a run spec, both ways, for decoders of LLaMA's structure.

What it says that would change the computation is refused by its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
class HfConfig:
    """The config.json of one family.

    model_types: accepted values; the first is written unless the model came with another. architectures: by
    model_type. plain: values that it may have beside those common to families of this structure. written: keys for a
    config.json that the base did not come with. defaults: transformers' defaults for keys that it leaves out, by
    model_type. own_head_dim: whether a head may have another dimension than hidden_size / num_attention_heads.
    scales_rope: whether positions may be stretched as in Llama 3.1.
    """

    family: str
    architectures: Mapping[str, str]
    plain: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own_head_dim: bool = False
    scales_rope: bool = True

    @property
    def model_types(self) -> tuple[str, ...]:
        return tuple(self.architectures)

    def model_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        config = {**self.defaults.get(str(config.get("model_type")), {}), **config}
        problems = list(self._problems(config))
        if problems:
            raise ValueError("; ".join(problems))
        heads = config["num_attention_heads"]
        rope = config.get("rope_parameters") or {}  # transformers 5
        longest = config.get("max_position_embeddings", 2048)
        return {
            "family": self.family,
            "hidden_size": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "n_kv_heads": config.get("num_key_value_heads") or heads,
            **({"head_dim": config.get("head_dim")} if self.own_head_dim else {}),
            "intermediate_size": config["intermediate_size"],
            "vocab_size": config["vocab_size"],
            "seq_length": longest,
            "max_position_embedding": longest,
            "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
            "rope_theta": rope.get("rope_theta") or config.get("rope_theta", 10000.0),
            "rope_scaling": self._rope_scaling(config.get("rope_scaling") or rope),
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
            **{key: first_id(config.get(key), default) for key, default in SPECIAL_IDS.items()},
        }

    def _problems(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield the settings of ``config`` that make it another computation, each by its key."""
        size = config["hidden_size"] // config["num_attention_heads"]
        if not self.own_head_dim and config.get("head_dim") not in (None, size):
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
            **({"head_dim": head_size(model)} if self.own_head_dim else {}),
            "vocab_size": model["vocab_size"],
            "max_position_embeddings": model.get("max_position_embedding") or model["seq_length"],
            "rms_norm_eps": model["rms_norm_eps"],
            "rope_theta": model["rope_theta"],
            "rope_scaling": _rope_scaling_back(model.get("rope_scaling")),
        }

    def _rope_scaling(self, scaling: Mapping[str, Any]) -> dict[str, Any] | None:
        """Convert rope_scaling of config.json. Raises ValueError for a kind that a run spec cannot express."""
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind == "default":
            return None
        if kind != "llama3" or not self.scales_rope:
            only = ", only llama3" if self.scales_rope else f" for {self.family}"
            raise ValueError(f"rope_scaling of type {kind!r} is not supported{only}")
        factors: dict[str, Any] = {key: scaling[key] for key in ROPE_FACTORS}
        return {**factors, "original_max_position_embedding": scaling["original_max_position_embeddings"]}


def head_size(model: Mapping[str, Any]) -> int:
    """Return the dimension of a head of a model section: its own, else hidden_size / num_heads."""
    return int(model.get("head_dim") or model["hidden_size"] // model["num_heads"])


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


def _rope_scaling_back(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    factors = {key: scaling[key] for key in ROPE_FACTORS}
    return {
        "rope_type": "llama3",
        **factors,
        "original_max_position_embeddings": scaling["original_max_position_embedding"],
    }
