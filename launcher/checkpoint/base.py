"""Check weights against the model of a run spec by names, shapes and dtypes; all differences are reported at once.

Only headers are read, so a base of any size is checked in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.checkpoint import huggingface
from launcher.checkpoint.dtypes import FLOATS
from launcher.checkpoint.model_files import MODEL_CONFIG
from launcher.checkpoint.tensorfile import TensorFile
from launcher.errors import CheckpointError
from launcher.models import names
from launcher.models.base import Sizes
from launcher.models.registry import (
    check_model,
    family_of,
    family_of_weights,
    inferred_shapes,
    inferred_sizes,
    is_hf_name,
    model_of_config,
    shapes_of,
)

Shape = tuple[int, ...]
# Name -> shape and dtype of a whole tensor.
Tensors = Mapping[str, tuple[Shape, str]]

_SHOWN = 3
_RANK_FOLDER = re.compile(r"rank_\d+")
# What shapes do not say, and what training on another value would do to the base.
_BESIDE_SHAPES = ("num_heads", "rms_norm_eps", "rope_theta", "rope_scaling")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base that fits: its path, the dtypes of its weights, and notes for the user."""

    path: Path
    dtypes: tuple[str, ...]
    notes: tuple[str, ...]


def check_file(path: Path, model: Mapping[str, Any]) -> Base:
    """Check the weights file ``path`` against ``model``, the model section of a run spec.

    The model description beside the file (launcher_model.json, config.json) is checked too. Raises
    CheckpointError with everything that differs, or when the file is damaged.
    """
    with TensorFile(path) as file:
        found = {name: (entry.shape, entry.dtype) for name, entry in file.entries.items()}
    base = check_tensors(found, model, path)
    _check_heads(path, model)
    return replace(base, notes=(*base.notes, *_notes_of_description(path, model)))


def check_folder(folder: Path, found: Tensors, model: Mapping[str, Any]) -> Base:
    """Check tensors ``found`` of a Hugging Face folder, by MindFormers' names, and its config.json against ``model``.

    Raises CheckpointError with everything that differs.
    """
    base = check_tensors(found, model, folder)
    _check_heads(folder / huggingface.CONFIG, model)
    return replace(base, notes=(*base.notes, *_notes_of_description(folder / huggingface.CONFIG, model)))


def check_tensors(found: Tensors, model: Mapping[str, Any], path: Path) -> Base:
    """Check whole tensors by name against ``model``; ``path`` appears in messages.

    Raises CheckpointError with everything that differs, and what to type.
    """
    if _by_their_names(found):
        raise _huggingface(found, path)
    weights = {name: shape for name, (shape, _) in found.items() if names.is_weight(name)}
    if not set(weights) & set(shapes_of(model)):
        raise CheckpointError(
            f"{path} holds no weight of a {family_of(model).title}; its {len(found)} tensor(s): {_some(found)}",
            hint=f"MindFormers' names are expected, such as {_scheme(model).embedding}; "
            "launcher convert-ckpt DIR -o base converts a Hugging Face model",
        )
    problems = list(problems_of(found, model))
    if problems:
        text = listed(f"{path} is not the base of this model", problems)
        raise CheckpointError(text, hint=_hint(found, weights, model, path))
    dtypes = tuple(sorted({found[name][1] for name in weights}))
    return Base(path=path, dtypes=dtypes, notes=tuple(_notes(found, path)))


def _scheme(model: Mapping[str, Any]) -> names.Scheme:
    return names.SCHEMES[family_of(model).route]


def problems_of(found: Tensors, model: Mapping[str, Any]) -> Iterator[str]:
    """Return the problems of whole tensors, by MindFormers' names, that should be those of ``model``."""
    yield from _adapter_problems(found)
    yield from _dtype_problems(found)
    yield from _shape_problems({name: shape for name, (shape, _) in found.items() if names.is_weight(name)}, model)


def listed(heading: str, problems: Iterable[str]) -> str:
    """Return a message with a line for each problem."""
    return "\n".join([heading, *(f"  - {problem}" for problem in problems)])


# --------------------------------------------------------------------------------------------------- other layouts


def _by_their_names(found: Tensors) -> list[str]:
    """Return the names in ``found`` that are transformers' names of weights and not MindFormers'."""
    return [name for name in found if is_hf_name(name)]


def _huggingface(found: Tensors, path: Path) -> CheckpointError:
    source = path.parent if (path.parent / huggingface.CONFIG).is_file() else path
    lacks_config = f"launcher convert-ckpt {path} --config config.json -o base; then --checkpoint base"
    return CheckpointError(
        f"{path} has Hugging Face's names: {_some(_by_their_names(found))}",
        hint=lacks_config if source == path else f"give the folder as it is: --checkpoint {source}",
    )


# --------------------------------------------------------------------------------------------------- problems


def _adapter_problems(found: Tensors) -> Iterator[str]:
    adapters = [name for name in found if names.is_adapter(name)]
    if adapters:
        yield f"it holds {len(adapters)} LoRA adapters beside its weights, which are not folded in: {_some(adapters)}"


def _dtype_problems(found: Tensors) -> Iterator[str]:
    wrong = {name: dtype for name, (_, dtype) in found.items() if names.is_weight(name) and dtype not in FLOATS}
    if wrong:
        yield f"{len(wrong)} weights are no floating-point numbers: {_some(f'{n} {d}' for n, d in wrong.items())}"


def _shape_problems(weights: Mapping[str, Shape], model: Mapping[str, Any]) -> Iterator[str]:
    """Yield differing sizes by their spec keys, then the shapes that do not fit even the other model, by name."""
    if not _has_sizes(weights):
        yield from _name_problems(weights, shapes_of(model))
        return
    head = _scheme(model).head
    for key, (has, wants) in _other_sizes(weights, model).items():
        if key == "tie_word_embeddings":
            with_head = f"with an {head} of its own" if wants else f"without {head}: the embedding is its head"
            yield f"it is {with_head}; tie_word_embeddings is {_text(wants)}"
            continue
        yield f"{key}: the weights have {_text(has)}, the model {_text(wants)}"
    yield from _name_problems(weights, inferred_shapes(weights))


def _has_sizes(weights: Mapping[str, Shape]) -> bool:
    """Return whether the shapes of ``weights`` can be read as a model's; layer numbers in names are ignored."""
    embedding = names.embedding_in(weights)
    return embedding is not None and len(weights[embedding]) == 2 and 0 < names.num_layers(weights) <= len(weights)


def _name_problems(weights: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> Iterator[str]:
    missing = [name for name in shapes if name not in weights]
    unknown = [name for name in weights if name not in shapes]
    wrong = [
        f"{name} is {list(weights[name])}, not {list(shape)}"
        for name, shape in shapes.items()
        if weights.get(name, shape) != shape
    ]
    if missing:
        yield f"{len(missing)} weights are missing: {_some(missing)}"
    if unknown:
        yield f"{len(unknown)} weights are of no {family_of_weights(weights).title}: {_some(unknown)}"
    if wrong:
        yield f"{len(wrong)} weights have another shape: {_some(wrong)}"


def _sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the sizes that follow from the shapes of a model, complete or not; kv_size: the rows of wk."""
    sizes = inferred_sizes(shapes)
    return {
        "family": family_of_weights(shapes).name,
        "hidden_size": sizes.hidden,
        "num_layers": sizes.layers,
        **_heads(sizes),
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocab,
        "tie_word_embeddings": sizes.tied,
    }


def _heads(sizes: Sizes) -> dict[str, int]:
    """Return what the shapes say of the heads: their numbers only where a weight has the dimension of one."""
    if not sizes.head:
        return {"kv_size": sizes.kv_size}
    numbers = {"num_heads": sizes.q_size // sizes.head, "n_kv_heads": sizes.kv_size // sizes.head}
    return {"head_dim": sizes.head, **numbers}


def _other_sizes(weights: Mapping[str, Shape], model: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (the base's, the spec's) value of every size that differs, by the spec's key."""
    has, wants = _sizes(weights), _sizes(shapes_of(model))
    differ = {key: (has[key], wants[key]) for key in has if key in wants and has[key] != wants[key]}
    head = model["hidden_size"] // model["num_heads"]
    if "kv_size" in differ and "hidden_size" not in differ:
        rows, asked = differ.pop("kv_size")
        differ["n_kv_heads"] = (rows // head, asked // head)
    return {"rows of wk and wv" if key == "kv_size" else key: pair for key, pair in differ.items()}


# --------------------------------------------------------------------------------------------------- what to type


def _hint(found: Tensors, weights: Mapping[str, Shape], model: Mapping[str, Any], path: Path) -> str:
    if _RANK_FOLDER.fullmatch(path.parent.name):
        return f"it is what one rank saved; launcher merge-ckpt {_merged_by(path)} makes a whole base of them"
    if any(names.is_adapter(name) for name in found):
        return "launcher merge-ckpt JOB folds them in; train from what it writes"
    if _has_sizes(weights):
        return _hint_of_sizes(weights, model)
    return "give the whole base; launcher merge-ckpt and launcher convert-ckpt make one"


def _merged_by(path: Path) -> str:
    """Return the job that the rank folder of ``path`` belongs to, else the folder that holds all ranks."""
    folder = path.parent.parent
    return folder.parent.name if folder.name == "checkpoint" else str(folder)


def _hint_of_sizes(weights: Mapping[str, Shape], model: Mapping[str, Any]) -> str:
    """Return a hint with the preset, or the keys, that describe the base."""
    differ = _other_sizes(weights, model)
    from launcher.runspec.presets import all_presets  # which reads YAML, and a base that fits needs none

    same = [preset.name for preset in all_presets() if _sizes(shapes_of(preset.model)) == _sizes(weights)]
    sets = " ".join(f"--set model.{key}={_text(has)}" for key, (has, _) in differ.items())
    if not differ:
        return "give a whole base: launcher merge-ckpt and launcher convert-ckpt make one"
    other_model = "hidden_size" in differ
    if same:
        what = f"--set model.preset={same[0]}" if other_model else sets
        return f"give the base of this model; this one has the shapes of model.preset {' and '.join(same)}: {what}"
    if other_model:
        return "describe the base in the spec's model section; launcher convert-ckpt prints it for what it converts"
    return f"give the base of this model, or: {sets}"


# --------------------------------------------------------------------------------------------------- beside the header


def _described(path: Path) -> dict[str, Any]:
    """Return the model description in the base's own folder; empty when there is none."""
    for name in (MODEL_CONFIG, huggingface.CONFIG):
        if (path.parent / name).is_file():
            read = huggingface.read_json(path.parent / name)
            try:
                return check_model(read["model"]) if "model" in read else model_of_config(read)
            except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError):
                return {}
    return {}


def _check_heads(path: Path, model: Mapping[str, Any]) -> None:
    """Raise CheckpointError for another number of heads: the shapes are the same, the model is not."""
    heads = _described(path).get("num_heads", model["num_heads"])
    if heads != model["num_heads"]:
        raise CheckpointError(
            f"{path} belongs to a model with num_heads {heads}, as its folder says; the spec has {model['num_heads']}",
            hint=f"--set model.num_heads={heads}",
        )


def _notes_of_description(path: Path, model: Mapping[str, Any]) -> Iterator[str]:
    described = _described(path)
    for key in _BESIDE_SHAPES:
        if key in described and described[key] != model.get(key):
            yield f"base: its folder says {key} {_text(described[key])}, the spec {_text(model.get(key))}"


def _notes(found: Tensors, path: Path) -> Iterator[str]:
    beside = [name for name in found if not names.is_weight(name)]
    if beside:
        yield f"base: {len(beside)} tensors of {path.name} are no weights and are not used, such as {beside[0]}"


def _some(items: Iterable[str]) -> str:
    shown = list(items)
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
