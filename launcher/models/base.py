"""What a model family knows: how its config.json is read and written, its tensors here and there, its layers for LoRA.

A family is data with a few functions, below run specs: it reads and gives the model section as a mapping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of a model follow from. ``kv_size``: rows of wk and wv. ``tied``: the embedding is the head."""

    hidden: int
    layers: int
    kv_size: int
    intermediate: int
    vocab: int
    tied: bool = False


class Family(Protocol):
    """One architecture, known by its config.json, not by the names of checkpoints.

    Names of weights are MindFormers' where nothing else is said: ``model.layers.0.attention.wq.weight``; a path is such
    a name within its layer without the end: ``attention.wq``.
    """

    @property
    def name(self) -> str:
        """The key in run specs: ``model.family``."""

    @property
    def title(self) -> str:
        """The name in a sentence."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """Each ``model_type`` of config.json that is read; the first is written unless the model came with another."""

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """The layers that LoRA may be put on, by their names in target_modules."""

    @property
    def layer_names(self) -> Mapping[str, str]:
        """Path -> the path that transformers and peft have for it."""

    @property
    def outer_names(self) -> Mapping[str, str]:
        """Weights that are in no layer -> their names in transformers."""

    @property
    def cut_axes(self) -> Mapping[str, int]:
        """Path -> the axis of its weight that tensor parallel cuts; a bias is cut where the outputs are."""

    def path_of(self, linear_layer: str) -> str:
        """The path of one of ``linear_layers``."""

    def layer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Name within the layer (with .weight or .bias) -> shape, of one layer."""

    def outer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Name -> shape of every weight that is in no layer."""

    def is_of(self, weights: Iterable[str]) -> bool:
        """Whether weights by MindFormers' names are of this family and not of one with fewer tensors."""

    def network_settings(self) -> dict[str, Any]:
        """What MindFormers' model_config is told beside the sizes: in each rank's YAML and when a model is asked."""

    def model_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The model section for a config.json of one of ``model_types``.

        Raises KeyError, TypeError or ValueError when it is damaged, or asks for another computation than this.
        """

    def config_of_model(self, model: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
        """What config.json says of the architecture; ``origin``: the config.json that the base came with."""


def shapes(family: Family, sizes: Sizes) -> dict[str, Shape]:
    """Name and shape of every weight."""
    layer = family.layer_shapes(sizes).items()
    found = family.outer_shapes(sizes)
    for number in range(sizes.layers):
        found |= {f"model.layers.{number}.{name}": shape for name, shape in layer}
    return found


def linear_shapes(family: Family, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each of the layers that LoRA may be put on."""
    layer = family.layer_shapes(sizes)
    matrices = {name: layer[f"{family.path_of(name)}.weight"] for name in family.linear_layers}
    return {name: (outputs, inputs) for name, (outputs, inputs) in matrices.items()}


def parameter_count(family: Family, sizes: Sizes) -> int:
    """Numbers in all weights."""
    layer = sum(math.prod(shape) for shape in family.layer_shapes(sizes).values())
    return sizes.layers * layer + sum(math.prod(shape) for shape in family.outer_shapes(sizes).values())
