"""The tensors of a model as arrays: memory-mapped where they lie whole in one file, with LoRA folded in on reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from launcher.checkpoint.dtypes import Array, numpy_dtype
from launcher.checkpoint.huggingface import PEFT_PREFIX, parts_of
from launcher.checkpoint.tensors import Fold, Output, Whole
from launcher.errors import CheckpointError
from launcher.models import names
from launcher.models.registry import family_of, part_shapes, shapes_of
from launcher.runspec.sections import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """The tensors to load into a network, by the names of ``in_parts``. ``adapters``: unfolded LoRA; ``scale``: its
    alpha / r."""

    weights: Mapping[str, Output]
    adapters: Mapping[str, Whole] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Return LoRA's r. Raises StopIteration when there are no adapters."""
        return next(whole.shape[0] for name, whole in self.adapters.items() if name.endswith(names.LORA_A))

    @property
    def adapted(self) -> frozenset[str]:
        """Return the layers that have adapters: wq, wv, ..."""
        return frozenset(name.rsplit(".", 2)[1] for name in self.adapters)


OpenTensors = Callable[[ExitStack], Tensors]


def check(tensors: Tensors, model: ModelSpec, where: str) -> None:
    """Raise CheckpointError when names or shapes are not those of ``model``, before anything is loaded."""
    wrong = list(_misfits(tensors, model))
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{where} is not the model it is said to be: {'; '.join(wrong[:3])}{more}",
            hint="give the config.json or launcher_model.json that belongs to it: --config FILE",
        )


def in_parts(tensors: Tensors, model: Mapping[str, Any]) -> Tensors:
    """Return ``tensors`` by the names of the network that computes the model section ``model``.

    They are MindFormers', and transformers' and peft's where the family fuses layers: its network has them apart.
    """
    if not family_of(model).fused:
        return tensors
    weights = (part for output in tensors.weights.values() for part in parts_of(output, model))
    adapters = (Output(name=name, dtype=whole.dtype, whole=whole) for name, whole in tensors.adapters.items())
    apart = (part for output in adapters for part in parts_of(output, model))
    return replace(
        tensors, weights={part.name: part for part in weights}, adapters={part.name: part.whole for part in apart}
    )


def with_folds(tensors: Tensors) -> Tensors:
    """Return ``tensors`` with the adapters in the weights, as merging does."""
    weights = dict(tensors.weights)
    for name, whole in tensors.adapters.items():
        if name.endswith(names.LORA_A):
            lora_b = tensors.adapters[_partner(name)]
            weight = _weight_of(name)
            weights[weight] = replace(weights[weight], fold=Fold(lora_a=whole, lora_b=lora_b, scale=tensors.scale))
    return replace(tensors, weights=weights, adapters={})


def _weight_of(adapter: str) -> str:
    return names.weight_of(adapter.removeprefix(PEFT_PREFIX))


def _partner(adapter: str) -> str:
    """Return the name of the other adapter of the same weight."""
    ends: list[tuple[str, str]] = [
        *zip(names.LORA_A, names.LORA_B, strict=True),
        *zip(names.LORA_B, names.LORA_A, strict=True),
    ]
    return next(adapter.removesuffix(end) + other for end, other in ends if adapter.endswith(end))


def expected_shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of the network; without the head where it is the embedding."""
    section = model.model_dump()
    shapes = shapes_of(section)
    if not model.architecture.fused:
        return shapes
    return {part: shape for name, whole in shapes.items() for part, shape in part_shapes(name, whole, section).items()}


def _misfits(tensors: Tensors, model: ModelSpec) -> Iterator[str]:
    shapes = expected_shapes(model)
    for name, shape in shapes.items():
        found = tensors.weights.get(name)
        if found is None:
            yield f"{name} is missing"
        elif found.shape != shape:
            yield f"{name} is {list(found.shape)}, the model needs {list(shape)}"
    yield from (f"{name} is unknown" for name in tensors.weights if name not in shapes and name not in names.HEADS)
    for name, whole in tensors.adapters.items():
        axis, shape = 1 if name.endswith(names.LORA_A) else 0, shapes.get(_weight_of(name), ())
        if (*shape, 0, 0)[axis] != whole.shape[axis]:
            yield f"adapter {name} is {list(whole.shape)}, its weight {list(shape)}"
        if _partner(name) not in tensors.adapters:
            yield f"adapter {_partner(name)} is missing"


def read(output: Output) -> Array:
    """Read the tensor of ``output`` in its dtype; a view of the file where nothing has to be computed."""
    array = whole_array(output.whole)
    if output.fold is not None:
        lora_a, lora_b = (whole_array(part).astype(np.float32) for part in (output.fold.lora_a, output.fold.lora_b))
        array = array.astype(np.float32) + np.float32(output.fold.scale) * (lora_b @ lora_a)
        array = array.astype(numpy_dtype(output.whole.dtype))
    return array.astype(numpy_dtype(output.dtype), copy=False)


def whole_array(whole: Whole) -> Array:
    """Return all of ``whole``; memory-mapped where its bytes are contiguous."""
    piece = whole.pieces[0]
    if len(whole.pieces) > 1 or len(piece.entry.extents) > 1 or piece.entry.shape != whole.shape or not whole.nbytes:
        return whole.read()
    offset, _ = piece.entry.extents[0]
    # Copy-on-write: MindSpore wants arrays that it may write to, and the file stays as it is.
    return np.memmap(piece.file.path, numpy_dtype(whole.dtype), mode="c", offset=offset, shape=whole.shape or (1,))
