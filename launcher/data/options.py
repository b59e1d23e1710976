"""The options of preprocessing. What makes rows (``preprocess``) is not imported with them: a plan may make none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.data.files import Found, InputFile, find_files
from launcher.data.reading import DataSource, Given, sources_of

if TYPE_CHECKING:
    from launcher.data.encode import TooLong, TrainOn


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What weights are ratios of, when an epoch ends, and the seed of the draw."""

    by: Literal["samples", "tokens"] = "samples"
    until: Literal["all", "first"] = "all"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """Options of preprocessing.

    ``source``: a path, or sources with their weights; if one has a weight, all have, 1 by default, and ``mix`` says
    what they mean. ``seq_length`` in tokens, rows are one longer. ``kind``: "chat" for conversations in any format that
    ``convert`` knows, "text" for plain text or {"text": ...}. ``eval_fraction`` of the records, chosen by a
    hash of their id, goes to ``eval_path(target)``. ``packing``: samples share rows (``packing``). The last three
    options do not affect the rows.
    """

    source: Given
    tokenizer: Path
    target: Path
    seq_length: int
    template: str
    kind: Literal["chat", "text"] = "chat"
    overflow: TooLong = "truncate"
    shards: int = 1
    eval_fraction: float = 0.0
    dedup: bool = False
    packing: bool = False
    train_on: TrainOn = "all"
    mix: Mix = field(default_factory=Mix)
    max_rejects: int = 0
    processes: int = 0
    resume: bool = False

    @property
    def sources(self) -> Sequence[DataSource]:
        """Return the sources, one if ``source`` is a path."""
        return sources_of(self.source)

    @cached_property
    def found(self) -> Found:
        """Return the files of the sources. Raises DataError."""
        return find_files(self.sources, text=self.kind == "text")

    @property
    def files(self) -> tuple[InputFile, ...]:
        return self.found.files

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Return the weight of each source; None when none has any."""
        given = [source.weight for source in self.sources]
        return None if all(weight is None for weight in given) else tuple(1.0 if w is None else w for w in given)


def overflow_of(too_long: str) -> TooLong:
    """Return what --too-long or --overflow names: "cut" is "truncate"."""
    names: dict[str, TooLong] = {"cut": "truncate", "drop": "drop", "split": "split", "error": "error"}
    return names.get(too_long, "truncate")


def eval_path(target: Path) -> Path:
    """Return the path of the validation split of ``target``: train.eval.mindrecord for train.mindrecord."""
    return target.with_name(f"{target.stem}.eval{target.suffix}")
