"""The registry of known families, and functions that dispatch to the family of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.errors import CheckpointError
from launcher.models import base, names
from launcher.models.base import Family, Shape, Sizes
from launcher.models.hf_config import head_size
from launcher.models.llama import LLAMA
from launcher.models.names import LAYER, SCHEMES
from launcher.models.qwen2 import QWEN2
from launcher.models.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, QWEN2, QWEN3)}
DEFAULT = LLAMA.name
# Families that MindFormers 1.9.0 trains too, for which the launcher has no module.
_NOT_YET = {
    "qwen3_moe": "Qwen3 with experts: only the dense ones, model_type qwen3, are supported",
    "deepseek_v3": "a mixture of experts",
    "mixtral": "a mixture of experts",
    "qwen2_moe": "a mixture of experts",
}


def known_text() -> str:
    """Return the families as text, with the model_type that each is recognised by."""
    return "; ".join(
        f"{family.name} (model_type {', '.join(family.config.model_types)})" for family in FAMILIES.values()
    )


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
    found = next((one for one in FAMILIES.values() if kind in one.config.model_types), None)
    if found is None:
        why = f" ({_NOT_YET[kind]})" if isinstance(kind, str) and kind in _NOT_YET else ""
        raise ValueError(f"model_type is {kind!r}, of no known family{why}; known are {known_text()}")
    return found


def family_of_weights(weights: Iterable[str]) -> Family:
    """Return the family of weights by MindFormers' names: the most specific one that fits, LLaMA if none does."""
    found = list(weights)
    return next((one for one in reversed(FAMILIES.values()) if one.is_of(found)), LLAMA)


# --------------------------------------------------------------------------------------------------- names

_OUTER_NAMES = {
    name: theirs
    for scheme in SCHEMES.values()
    for name, theirs in (
        (scheme.embedding, "model.embed_tokens.weight"),
        (scheme.norm, "model.norm.weight"),
        (scheme.head, "lm_head.weight"),
    )
}
# Families of one route share names, and no path is of two routes: one table answers for all.
_PARTS = {
    path: theirs
    for one in FAMILIES.values()
    for path, theirs in (*((path, (name,)) for path, name in one.layer_names.items()), *one.fused.items())
}
# Family -> path in transformers -> path of the weight that it is, or is a part of.
_PATHS = {
    one.name: {theirs: path for path in (*one.layer_names, *one.fused) for theirs in _PARTS[path]}
    for one in FAMILIES.values()
}
_CUT_AXES = {path: axis for one in FAMILIES.values() for path, axis in one.cut_axes.items()}
# Every layer that LoRA may be put on in some family.
LINEAR_LAYERS = tuple(dict.fromkeys(name for one in FAMILIES.values() for name in one.linear_layers))
_HF_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ENDS = (".weight", ".bias")


def linear_parts(family: Family, name: str) -> tuple[str, ...]:
    """Return what transformers and peft call one of ``linear_layers``: q_proj for wq; several for a fused one."""
    return tuple(theirs.rpartition(".")[2] for theirs in _PARTS[family.path_of(name)])


def hf_linear(name: str) -> str:
    """Return what transformers and peft call LLaMA's layer ``name``: q_proj for wq; another name as it is."""
    return linear_parts(LLAMA, name)[0] if name in LLAMA.linear_layers else name


def hf_names(name: str) -> tuple[str, ...]:
    """Return transformers' names of what the MindFormers weight ``name`` is made of: one, unless it is fused.

    Raises KeyError when no family has it.
    """
    match = LAYER.fullmatch(name)
    if match is None:
        return (_OUTER_NAMES[name],)
    end = next((end for end in _ENDS if match[2].endswith(end)), "")
    return tuple(f"model.layers.{match[1]}.{theirs}{end or '.weight'}" for theirs in _PARTS[match[2].removesuffix(end)])


def hf_name(name: str) -> str:
    """Return transformers' name of the MindFormers weight ``name``. Raises KeyError for a fused or unknown one."""
    found = hf_names(name)
    if len(found) > 1:
        raise KeyError(name)
    return found[0]


def mindspore_name(family: Family, name: str) -> str:
    """Return MindFormers' name of the weight that the transformers weight ``name`` is, or is a part of.

    Raises KeyError when ``family`` has none.
    """
    scheme, match = SCHEMES[family.route], _HF_LAYER.fullmatch(name)
    if match is None:
        return {_OUTER_NAMES[ours]: ours for ours in (scheme.embedding, scheme.norm, scheme.head)}[name]
    end = next((end for end in _ENDS if match[2].endswith(end)), "")
    path = _PATHS[family.name][match[2].removesuffix(end)]
    return f"{scheme.layers}.{match[1]}.{path}{end or '.weight'}"


def is_hf_name(name: str) -> bool:
    """Return whether ``name`` is transformers' name of a weight of some family, and not MindFormers' too."""
    if name in _OUTER_NAMES or name in _OUTER_NAMES.values():
        return name not in _OUTER_NAMES
    match = _HF_LAYER.fullmatch(name)
    return match is not None and any(names.module_of(match[2]) in paths for paths in _PATHS.values())


def hf_modules(module: str) -> tuple[str, ...]:
    """Return transformers' names of the modules that the MindFormers ``module`` is made of; else ``module``."""
    match = LAYER.fullmatch(module)
    return (
        tuple(f"model.layers.{match[1]}.{theirs}" for theirs in _PARTS.get(match[2], (match[2],)))
        if match
        else (module,)
    )


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
    if model.get("head_dim") is not None:
        _check_count("head_dim", model["head_dim"])
    for key in ("rms_norm_eps", "rope_theta"):
        if not isinstance(model[key], (int, float)):
            raise TypeError(f"{key} is {model[key]!r}")
    return model


def _check_count(key: str, value: Any) -> None:
    if type(value) is not int or not 0 < value < _MAX_COUNT:
        raise ValueError(f"{key} is {value!r}")


def sizes_of(model: Mapping[str, Any]) -> Sizes:
    """Return the sizes of a model section of a run spec."""
    head = head_size(model)
    return Sizes(
        hidden=model["hidden_size"],
        layers=model["num_layers"],
        kv_size=head * (model.get("n_kv_heads") or model["num_heads"]),
        intermediate=model["intermediate_size"],
        vocab=model["vocab_size"],
        tied=bool(model.get("tie_word_embeddings")),
        head=head,
        queries=head * model["num_heads"],
    )


def runs_of(name: str, model: Mapping[str, Any]) -> tuple[int, ...]:
    """Return how the fused weight ``name`` is woven: how many rows of each part a group has."""
    match = LAYER.fullmatch(names.module_of(name))
    if match is None:
        raise KeyError(name)
    return family_of(model).runs(match[2], sizes_of(model))


def part_shapes(name: str, shape: Shape, model: Mapping[str, Any]) -> dict[str, Shape]:
    """Return transformers' name and shape of each weight that ``name`` of ``shape`` is made of."""
    theirs = hf_names(name)
    runs = (1,) if len(theirs) == 1 else runs_of(name, model)
    return {part: (shape[0] // sum(runs) * run, *shape[1:]) for part, run in zip(theirs, runs, strict=True)}


def shapes_of(model: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name and shape of every weight of a model section; MindFormers has no head for a tied one."""
    return base.shapes(family_of(model), sizes_of(model))


def inferred_shapes(found: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return name and shape of every weight of the model that ``found`` (with the embedding) appears to be.

    Without a head it is taken for a model whose head is tied to the embedding. Raises CheckpointError when a layer's
    number is higher than there are tensors.
    """
    sizes = inferred_sizes(found)
    if sizes.layers > len(found):
        raise CheckpointError(
            f"a tensor of layer {sizes.layers - 1} is there, and {len(found)} weights in all",
            hint="the shards are not all there, or the model is another one",
        )
    return base.shapes(family_of_weights(found), sizes)


def inferred_sizes(found: Mapping[str, Shape]) -> Sizes:
    """Infer the sizes of a model from the shapes of its weights, complete or not, with the embedding."""
    return family_of_weights(found).sizes_in(found)


def model_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model section of a run spec for a transformers config.json, with the largest seq_length.

    Raises KeyError, TypeError or ValueError when it is invalid, or describes a model that no family computes.
    """
    return check_model(family_of_config(config).config.model_of_config(config))
