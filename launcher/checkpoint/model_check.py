"""Check that tensors form one whole model: every weight, of a trainable dtype, each adapter with its partner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.checkpoint.dtypes import FLOATS
from launcher.checkpoint.tensors import Whole
from launcher.checkpoint.verify import check_architecture
from launcher.errors import CheckpointError
from launcher.models import names
from launcher.models.registry import family_of, inferred_shapes, shapes_of

_Shapes = Mapping[str, tuple[int, ...]]
_MOMENTS = ("adam_m.", "adam_v.")


def check_model(folder: Path, tensors: Mapping[str, Whole], model: Mapping[str, Any] | None, *, hint: str) -> None:
    """Check names and shapes in ``tensors`` against ``model`` (a model section), or the model they appear to be.

    Raises CheckpointError, naming the first tensors that are missing, of another shape, or not floating point.
    """
    found = {name: whole.shape for name, whole in tensors.items() if names.is_weight(name)}
    if names.embedding_in(found) is None:
        wanted = (names.SCHEMES[family_of(model).route].embedding,) if model else names.EMBEDDINGS
        raise CheckpointError(
            f"{folder} has no {' or '.join(wanted)}: no model of MindFormers, or a pipeline stage is missing", hint=hint
        )
    check_architecture(found, shapes_of(model) if model else inferred_shapes(found), hint=hint)
    check_adapters(tensors, found)
    check_floats(tensors)
    _check_owners(tensors, hint)


def check_adapters(tensors: Mapping[str, Whole], weights: _Shapes | None) -> None:
    """Check that each adapter in ``tensors`` has its partner, and that both fit each other and their weight.

    weights: shapes by name; None when they are not known. Raises CheckpointError.
    """
    for weight in {names.weight_of(name): None for name in tensors if names.is_adapter(name)}:
        sides = [tensors.get(name) for name in names.adapters_of(weight)]
        lora_a, lora_b = (whole.shape if whole else None for whole in sides)
        if lora_a is None or lora_b is None:
            raise CheckpointError(f"{weight} has one LoRA adapter of two", hint="the shards are not all there")
        if weights is not None and weight not in weights:
            raise CheckpointError(f"the LoRA adapters of {weight} have no weight", hint="the shards are not all there")
        shape = weights[weight] if weights is not None else (*lora_b[:1], *lora_a[1:])
        if len(shape) != 2 or lora_a[1:] != shape[1:] or lora_b != (shape[0], lora_a[0]):
            raise CheckpointError(
                f"{weight} {list(shape)} and its adapters {list(lora_a)}, {list(lora_b)} do not fit",
                hint="give the strategy files of the run that wrote these checkpoints",
            )


def check_floats(tensors: Mapping[str, Whole]) -> None:
    """Raise CheckpointError when a weight or an adapter has an integer dtype, as quantized ones do."""
    trained = (whole for name, whole in tensors.items() if names.is_weight(name) or names.is_adapter(name))
    odd = next((whole for whole in trained if whole.dtype not in FLOATS), None)
    if odd:
        raise CheckpointError(
            f"{odd.name} is of type {odd.dtype}: quantized, or no weight", hint=f"weights are {', '.join(FLOATS)}"
        )


def _check_owners(tensors: Mapping[str, Whole], hint: str) -> None:
    """Check that every owner of optimizer state is present, so that a trained head is not taken for a tied one."""
    owners = {owner: name for name in tensors if (owner := names.owner_of_state(name))}
    lost = next((owner for owner in owners if owner not in tensors), None)
    if lost:
        raise CheckpointError(f"{lost} is missing, though {owners[lost]} is there", hint=hint)


def check_moments(tensors: Mapping[str, Whole]) -> None:
    """Raise CheckpointError when a tensor has one of Adam's two moments and not the other."""
    first, second = ({name.removeprefix(key) for name in tensors if name.startswith(key)} for key in _MOMENTS)
    odd = next(iter(sorted(first ^ second)), None)
    if odd:
        has, lacks = _MOMENTS if odd in first else reversed(_MOMENTS)
        raise CheckpointError(
            f"{has}{odd} is there and {lacks}{odd} is on no rank",
            hint="copy the ranks' files again, or leave out --with-optimizer",
        )
