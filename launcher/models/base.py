"""The Protocol of a model family: its config.json, its tensor names in both layouts, its layers for LoRA.

A family is data with a few functions, below run specs: it takes and returns the model section as a mapping.
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
    """The sizes that decide a model's shapes. ``kv_size``: rows of wk and wv. ``tied``: the embedding is the head."""

    hidden: int
    layers: int
    kv_size: int
    intermediate: int
    vocab: int
    tied: bool = False


class Family(Protocol):
    """One architecture, known by its config.json, not by the names of checkpoints.

    Names of weights are MindFormers' unless stated otherwise: ``model.layers.0.attention.wq.weight``; a path is such a
    name within its layer without the suffix: ``attention.wq``.
    """

    @property
    def name(self) -> str:
        """The key in run specs: ``model.family``."""

    @property
    def title(self) -> str:
        """The name for messages."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """Accepted ``model_type`` values of config.json; the first is written unless the model came with another."""

    @property
    def template(self) -> str:
        """The prompt template of a new run spec."""

    @property
    def tokenizer_file(self) -> str:
        """The usual name of its tokenizer's file."""

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """The layers that LoRA may be applied to, by their names in target_modules."""

    @property
    def layer_names(self) -> Mapping[str, str]:
        """Path -> its path in transformers and peft."""

    @property
    def outer_names(self) -> Mapping[str, str]:
        """Weights that are in no layer -> their names in transformers."""

    @property
    def cut_axes(self) -> Mapping[str, int]:
        """Path -> the axis of its weight that tensor parallel cuts; a bias is cut along with the outputs."""

    def path_of(self, linear_layer: str) -> str:
        """Return the path of one of ``linear_layers``."""

    def layer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Return name within the layer (with .weight or .bias) -> shape, for one layer."""

    def outer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Return name -> shape of every weight outside of layers."""

    def is_of(self, weights: Iterable[str]) -> bool:
        """Return whether weights by MindFormers' names are of this family and not of one with fewer tensors."""

    def network_settings(self) -> dict[str, Any]:
        """Return the settings of MindFormers' model_config beside the sizes, for each rank's YAML and for inference."""

    def model_of_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model section for a config.json of one of ``model_types``.

        Raises KeyError, TypeError or ValueError when it is damaged, or describes another computation.
        """

    def config_of_model(self, model: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
        """Return the architecture's part of config.json; ``origin``: the config.json that the base came with."""


def shapes(family: Family, sizes: Sizes) -> dict[str, Shape]:
    """Return name and shape of every weight."""
    layer = family.layer_shapes(sizes).items()
    found = family.outer_shapes(sizes)
    for number in range(sizes.layers):
        found |= {f"model.layers.{number}.{name}": shape for name, shape in layer}
    return found


def linear_shapes(family: Family, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each layer that LoRA may be applied to."""
    layer = family.layer_shapes(sizes)
    matrices = {name: layer[f"{family.path_of(name)}.weight"] for name in family.linear_layers}
    return {name: (outputs, inputs) for name, (outputs, inputs) in matrices.items()}


def parameter_count(family: Family, sizes: Sizes) -> int:
    """Return the number of parameters of all weights."""
    layer = sum(math.prod(shape) for shape in family.layer_shapes(sizes).values())
    return sizes.layers * layer + sum(math.prod(shape) for shape in family.outer_shapes(sizes).values())
