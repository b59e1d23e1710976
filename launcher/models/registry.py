"""The registry of known families, and functions that dispatch to the family of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from launcher.models import base
from launcher.models.base import Family, Shape, Sizes
from launcher.models.llama import LLAMA
from launcher.models.names import EMBEDDING, HEAD, LAYER, num_layers
from launcher.models.qwen2 import QWEN2

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, QWEN2)}
DEFAULT = LLAMA.name
# Families that MindFormers 1.9.0 trains in another way (use_legacy: False), for which the launcher has no module.
_NOT_YET = {
    "qwen3": "Qwen3 is trained by MindFormers' mcore graph, which the launcher does not render",
    "qwen3_moe": "Qwen3-MoE is trained by MindFormers' mcore graph, which the launcher does not render",
    "deepseek_v3": "DeepSeek-V3 is trained by MindFormers' mcore graph, which the launcher does not render",
    "mixtral": "a mixture of experts",
    "qwen2_moe": "a mixture of experts",
}


def known_text() -> str:
    """Return the families as text, with the model_type that each is recognised by."""
    return "; ".join(f"{family.name} (model_type {', '.join(family.model_types)})" for family in FAMILIES.values())


def family(name: str | None) -> Family:
    """Return the family ``name``, LLaMA by default. Raises ValueError, listing the known families."""
    found = FAMILIES.get(name or DEFAULT)
    if found is None:
        raise ValueError(f"there is no model family {name!r}; families are {', '.join(FAMILIES)}")
    return found


def family_of(model: Mapping[str, Any]) -> Family:
    """Return the family of a model section of a run spec, LLaMA by default."""
    return family(model.get("family"))


def family_of_config(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json of transformers. Raises ValueError, listing the known families."""
    kind = config.get("model_type")
    found = next((one for one in FAMILIES.values() if kind in one.model_types), None)
    if found is None:
        why = f" ({_NOT_YET[kind]})" if isinstance(kind, str) and kind in _NOT_YET else ""
        raise ValueError(f"model_type is {kind!r}, of no known family{why}; known are {known_text()}")
    return found


def family_of_weights(weights: Iterable[str]) -> Family:
    """Return the family of weights by MindFormers' names: the most specific one that fits, LLaMA if none does."""
    found = list(weights)
    return next((one for one in reversed(FAMILIES.values()) if one.is_of(found)), LLAMA)


# --------------------------------------------------------------------------------------------------- names

# Families that share MindFormers' network share names: one table answers for all.
_LAYER_NAMES = {path: theirs for one in FAMILIES.values() for path, theirs in one.layer_names.items()}
_OUTER_NAMES = {name: theirs for one in FAMILIES.values() for name, theirs in one.outer_names.items()}
_LAYER_BACK = {theirs: path for path, theirs in _LAYER_NAMES.items()}
_OUTER_BACK = {theirs: name for name, theirs in _OUTER_NAMES.items()}
_CUT_AXES = {path: axis for one in FAMILIES.values() for path, axis in one.cut_axes.items()}
# Every layer that LoRA may be put on in some family.
LINEAR_LAYERS = tuple(dict.fromkeys(name for one in FAMILIES.values() for name in one.linear_layers))
# What transformers and peft call such a layer -> its name here: q_proj -> wq.
OTHER_LINEAR_NAMES = {
    one.layer_names[one.path_of(name)].rpartition(".")[2]: name
    for one in FAMILIES.values()
    for name in one.linear_layers
}
_ENDS = (".weight", ".bias")


def hf_name(name: str) -> str:
    """Return transformers' name of the MindFormers weight ``name``. Raises KeyError when no family has it."""
    return _renamed(name, _OUTER_NAMES, _LAYER_NAMES)


def mindspore_name(name: str) -> str:
    """Return MindFormers' name of the transformers weight ``name``. Raises KeyError when no family has it."""
    return _renamed(name, _OUTER_BACK, _LAYER_BACK)


def _renamed(name: str, outer: Mapping[str, str], in_layer: Mapping[str, str]) -> str:
    match = LAYER.fullmatch(name)
    if match is None:
        return outer[name]
    end = next((end for end in _ENDS if match[2].endswith(end)), "")
    return f"model.layers.{match[1]}.{in_layer[match[2].removesuffix(end)]}{end or '.weight'}"


def hf_module(module: str) -> str:
    """Return transformers' name of the module of the MindFormers weight ``module`` + ".weight"; else ``module``."""
    match = LAYER.fullmatch(module)
    return f"model.layers.{match[1]}.{_LAYER_NAMES.get(match[2], match[2])}" if match else module


def cut_axis(path: str) -> int | None:
    """Return the axis of the weight at ``path`` in a layer that tensor parallel cuts; None where it cuts none."""
    return _CUT_AXES.get(path)


# --------------------------------------------------------------------------------------------------- sizes

_COUNTS = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "seq_length")
# The largest LLaMA has 126 layers and a vocabulary of 128256: what is far above is no model.
_MAX_COUNT, _MAX_LAYERS = 1 << 30, 10_000


def check_model(model: Any) -> dict[str, Any]:
    """Return ``model`` when it is a valid model section of a run spec, as far as names and shapes need it.

    Raises ValueError, KeyError or TypeError when it is not.
    """
    if not isinstance(model, dict):
        raise TypeError("it is no mapping")
    family_of(model)
    for key in _COUNTS:
        _check_count(key, model[key])
    _check_count("n_kv_heads", model.get("n_kv_heads") or model["num_heads"])
    if model["num_layers"] > _MAX_LAYERS:
        raise ValueError(f"{model['num_layers']} layers")
    if model["hidden_size"] % model["num_heads"]:
        raise ValueError(f"hidden_size {model['hidden_size']} is no multiple of num_heads {model['num_heads']}")
    for key in ("rms_norm_eps", "rope_theta"):
        if not isinstance(model[key], (int, float)):
            raise TypeError(f"{key} is {model[key]!r}")
    return model


def _check_count(key: str, value: Any) -> None:
    if type(value) is not int or not 0 < value < _MAX_COUNT:
        raise ValueError(f"{key} is {value!r}")


def sizes_of(model: Mapping[str, Any]) -> Sizes:
    """Return the sizes of a model section of a run spec."""
    heads = model["num_heads"]
    return Sizes(
        hidden=model["hidden_size"],
        layers=model["num_layers"],
        kv_size=model["hidden_size"] // heads * (model.get("n_kv_heads") or heads),
        intermediate=model["intermediate_size"],
        vocab=model["vocab_size"],
        tied=bool(model.get("tie_word_embeddings")),
    )


def shapes_of(model: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name and shape of every weight of a model section; MindFormers has no head for a tied one."""
    return base.shapes(family_of(model), sizes_of(model))


def inferred_shapes(found: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return name and shape of every weight of the model that ``found`` (with the embedding) appears to be.

    Without a head it is taken for a model whose head is tied to the embedding.
    """
    return base.shapes(family_of_weights(found), inferred_sizes(found))


def inferred_sizes(found: Mapping[str, Shape]) -> Sizes:
    """Infer the sizes of a model from the shapes of its weights, complete or not, with the embedding."""
    vocab, hidden = (*found[EMBEDDING], 0)[:2]
    first = "model.layers.0."
    return Sizes(
        hidden=hidden,
        layers=num_layers(found),
        kv_size=found.get(first + "attention.wk.weight", (0,))[0],
        intermediate=found.get(first + "feed_forward.w1.weight", (0,))[0],
        vocab=vocab,
        tied=HEAD not in found,
    )


def model_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model section of a run spec for a transformers config.json, with the largest seq_length.

    Raises KeyError, TypeError or ValueError when it is invalid, or describes a model that no family computes.
    """
    return check_model(family_of_config(config).model_of_config(config))
