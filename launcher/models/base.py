"""The Protocol of a model family: its config.json, its tensor names in both layouts, its layers for LoRA.

A family is data with a few functions, below run specs: it takes and returns the model section as a mapping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.models.hf_config import HfConfig
from launcher.models.names import SCHEMES

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that decide a model's shapes. ``kv_size``: outputs of keys, and of values. ``tied``: the embedding is
    the head. ``head``: dimension of an attention head, ``queries``: outputs of queries, hidden unless given; for
    families whose heads have a dimension of their own."""

    hidden: int
    layers: int
    kv_size: int
    intermediate: int
    vocab: int
    tied: bool = False
    head: int = 0
    queries: int | None = None

    @property
    def q_size(self) -> int:
        """Return the number of outputs of queries."""
        return self.hidden if self.queries is None else self.queries


class Family(Protocol):
    """One architecture, known by its config.json, not by the names of checkpoints.

    Names of weights are MindFormers' unless stated otherwise: ``model.layers.0.attention.wq.weight``; a path is such a
    name within its layer without the suffix: ``attention.wq``.

    A fused weight is several of transformers' weights woven into one: groups of rows, each with as many rows of the
    first as ``runs`` says, then of the second, and so on.
    """

    @property
    def name(self) -> str:
        """The key in run specs: ``model.family``."""

    @property
    def title(self) -> str:
        """The name for messages."""

    @property
    def route(self) -> str:
        """The way MindFormers trains it: names.LEGACY or names.MCORE."""

    @property
    def config(self) -> HfConfig:
        """Its config.json."""

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
    def readers(self) -> tuple[tuple[str, ...], ...]:
        """``linear_layers`` by what they read: the first norm, attention, the second norm, the activation."""

    @property
    def lora_default(self) -> str:
        """The target_modules of a spec that does not name any."""

    @property
    def layer_names(self) -> Mapping[str, str]:
        """Path -> its path in transformers and peft, fused ones aside."""

    @property
    def fused(self) -> Mapping[str, tuple[str, ...]]:
        """Path of a fused weight -> the paths in transformers of the weights that it is made of, in their order."""

    @property
    def cut_axes(self) -> Mapping[str, int]:
        """Path -> the axis of its weight that tensor parallel cuts; a bias is cut along with the outputs."""

    def path_of(self, linear_layer: str) -> str:
        """Return the path of one of ``linear_layers``."""

    def layer_shapes(self, sizes: Sizes) -> dict[str, Shape]:
        """Return name within the layer (with .weight or .bias) -> shape, for one layer."""

    def runs(self, path: str, sizes: Sizes) -> tuple[int, ...]:
        """Return how many rows of each of its weights a group of the fused weight at ``path`` has."""

    def sizes_in(self, found: Shapes) -> Sizes:
        """Infer the sizes from the shapes of weights, complete or not, with the embedding."""

    def is_of(self, weights: Iterable[str]) -> bool:
        """Return whether weights by MindFormers' names are of this family and not of one with fewer tensors."""

    def network_settings(self) -> dict[str, Any]:
        """Return the settings of MindFormers' model_config beside the sizes, for each rank's YAML and for inference."""


def outer_shapes(family: Family, sizes: Sizes) -> dict[str, Shape]:
    """Return name and shape of every weight that is in no layer."""
    names, table = SCHEMES[family.route], (sizes.vocab, sizes.hidden)
    return {names.embedding: table, names.norm: (sizes.hidden,)} | ({} if sizes.tied else {names.head: table})


def shapes(family: Family, sizes: Sizes) -> dict[str, Shape]:
    """Return name and shape of every weight."""
    layer = family.layer_shapes(sizes).items()
    found, layers = outer_shapes(family, sizes), SCHEMES[family.route].layers
    for number in range(sizes.layers):
        found |= {f"{layers}.{number}.{name}": shape for name, shape in layer}
    return found


def linear_shapes(family: Family, sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each layer that LoRA may be applied to."""
    layer = family.layer_shapes(sizes)
    matrices = {name: layer[f"{family.path_of(name)}.weight"] for name in family.linear_layers}
    return {name: (outputs, inputs) for name, (outputs, inputs) in matrices.items()}


def parameter_count(family: Family, sizes: Sizes) -> int:
    """Return the number of parameters of all weights."""
    layer = sum(math.prod(shape) for shape in family.layer_shapes(sizes).values())
    return sizes.layers * layer + sum(math.prod(shape) for shape in outer_shapes(family, sizes).values())
