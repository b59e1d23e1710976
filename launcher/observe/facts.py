"""What lies around a job's curves: data, samples, merge, evaluation, settings. What is gone is said, never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.common.json_files import json_or_empty
from launcher.errors import LauncherError
from launcher.observe.history import History, value_at

_SAMPLE_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a sample row's text; ``in_loss``: it is trained on."""

    text: str
    in_loss: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row of a dataset, decoded."""

    row: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of the data. ``share``: of the tokens of all (0 to 1); ``passes``: how often a record of a mixture is
    used on average, ``unused``: how many are not. None: not known, or not a mixture."""

    path: str
    share: float | None
    samples: int | None = None
    tokens: int | None = None
    passes: float | None = None
    unused: int | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of a job. ``found``: it is still there. ``stats``: its statistics, empty where there are none."""

    path: str
    found: bool
    rows: int | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    samples: tuple[Sample, ...] = ()

    def count(self, name: str) -> int | None:
        """Return a count of preprocessing."""
        found = value_at(self.stats, "counts", name)
        return found if isinstance(found, int) else None

    @property
    def lengths(self) -> Mapping[str, Any]:
        """Return median, p95, max and histogram of the lengths of samples; empty where one is missing."""
        found = self.stats.get("lengths")
        known = isinstance(found, Mapping) and {"median", "p95", "max", "histogram"} <= set(found)
        return found if isinstance(found, Mapping) and known else {}

    @property
    def histogram(self) -> list[tuple[str, int, float]]:
        """Return bins of lengths: their name, their count, and this in parts of the largest."""
        bins = self.lengths.get("histogram") or []
        most = max((count for _, _, count in bins), default=0) or 1
        return [(f"{first}–{last}", count, count / most) for first, last, count in bins]

    @property
    def is_mixture(self) -> bool:
        """Return whether weights said how often each source is used."""
        return any(source.passes is not None for source in self.sources)

    @property
    def padding_share(self) -> float | None:
        tokens, padding = self.count("tokens"), self.count("padding")
        return padding / (tokens + padding) if padding is not None and tokens else None


def datasets(history: History) -> dict[str, Dataset]:
    """Return the datasets of a job by their use: Training rows, and Held-out rows if it has some."""
    named = {
        "Training rows": history.plan.get("dataset"),
        "Held-out rows": history.plan.get("evaluation") or value_at(history.spec, "evaluation", "data"),
    }
    # A path of the spec is relative to where the job was submitted.
    folder = Path(history.record.origin.get("folder", "."))
    found = {use: _dataset(str(folder / path), samples=use == "Training rows") for use, path in named.items() if path}
    if _is_split(found):
        # Its statistics have the sources of the training rows that it is held out from.
        found["Held-out rows"] = replace(found["Held-out rows"], sources=())
    return found


def _is_split(found: Mapping[str, Dataset]) -> bool:
    from launcher.data.options import eval_path

    training, held_out = found.get("Training rows"), found.get("Held-out rows")
    return bool(training and held_out and Path(held_out.path) == eval_path(Path(training.path)))


def _dataset(path: str, *, samples: bool) -> Dataset:
    from launcher.data.info import read_info

    try:
        info = read_info(Path(path))
    except (OSError, ValueError, KeyError, TypeError, LauncherError):
        info = None
    if info is None:
        return Dataset(path=path, found=False)
    shown = tuple(_samples(Path(path), info.rows)) if samples else ()
    return Dataset(path=path, found=True, rows=info.rows, stats=info.stats, sources=_sources(info.stats), samples=shown)


def _sources(stats: Mapping[str, Any]) -> tuple[Source, ...]:
    from launcher.data.stats import source_names

    listed = stats.get("sources")
    if _all_have(listed, ("path", "share")):
        return tuple(Source(**{key: source.get(key) for key in _OF_A_SOURCE}) for source in listed or ())
    # Earlier versions kept the names alone.
    names = source_names(stats)
    return tuple(Source(path=name, share=1.0 if len(names) == 1 else None) for name in names)


_OF_A_SOURCE = ("path", "share", "samples", "tokens", "passes", "unused")


def _samples(path: Path, rows: int) -> Iterator[Sample]:
    """Yield rows from all over the file, as far as they can be decoded."""
    from launcher.data.show import row_values

    for number in sorted({0, rows // 2, rows - 1} if rows > _SAMPLE_ROWS else set(range(rows))):
        try:
            tokens = row_values(path, number)["segments"]
        except (LauncherError, OSError, ValueError, KeyError, TypeError):
            return
        yield Sample(row=number, parts=tuple(Part(**segment) for segment in tokens))


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merged model in a job's folder and its merge.json."""

    folder: str
    record: Mapping[str, Any]


def merges(history: History) -> list[Merge]:
    """Return the merged models in the job's folder, whatever their layout."""
    from launcher.checkpoint.record import MERGE_RECORD

    files = sorted(history.paths.root.glob(f"merged*/{MERGE_RECORD}"))
    found = [Merge(folder=str(file.parent), record=json_or_empty(file)) for file in files]
    return [merge for merge in found if merge.record]


def evaluation(history: History) -> dict[str, Any]:
    """Return what ``launcher eval`` wrote into the job's folder; empty if it never ran, or wrote something else."""
    found = json_or_empty(history.paths.evaluation)
    models, answers = found.get("models"), found.get("answers", [])
    if not _all_have(models, _OF_A_MODEL) or not _all_have(answers, _OF_AN_ANSWER):
        return {}
    if not all(_all_have(one["answers"], ("role", "text")) for one in answers):
        return {}
    return {"models": models, "answers": answers, "data": found.get("data", ""), "rows": found.get("rows")}


def answers(history: History) -> list[dict[str, Any]]:
    """Return what ``launcher eval --ask`` wrote into the job's folder, by file of questions."""
    every = (json_or_empty(file) for file in sorted(history.paths.answers.glob("*.json")))
    return [found for found in every if _is_asked(found)]


def _is_asked(found: Mapping[str, Any]) -> bool:
    models, questions = found.get("models"), found.get("questions")
    if (
        not set(_OF_ASKED) <= set(found)
        or not all(isinstance(found[key], int) for key in _COUNTS)
        or not found["asked"]
    ):
        return False
    if not _all_have(models, ("role", "model", "right")) or not _all_have(questions, ("id", *_OF_AN_ANSWER)):
        return False
    count = len(models) if isinstance(models, list) else 0
    rows = questions if isinstance(questions, list) else []
    return all(_all_have(one["answers"], ("text", "right")) and len(one["answers"]) == count for one in rows)


_COUNTS = ("asked", "differing", "questions_left_out")
_OF_ASKED = ("data", "score", "models", "questions", *_COUNTS)
_OF_A_MODEL = ("role", "model", "loss", "perplexity", "right", "asked")
_OF_AN_ANSWER = ("question", "expected", "answers")


def _all_have(items: Any, keys: Sequence[str]) -> bool:
    return isinstance(items, list) and all(isinstance(item, Mapping) and set(keys) <= set(item) for item in items)


# --------------------------------------------------------------------------------------------------------- settings


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested sections by their dotted names."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def preset_differences(history: History) -> tuple[str, list[tuple[str, Any, Any]]] | None:
    """Return the preset's name with (key, its value, this run's) where they differ; None for a run without one."""
    from launcher.runspec import presets

    name = value_at(history.spec, "model", "preset")
    if not isinstance(name, str):
        return None
    try:
        model = presets.get(name).model
    except LauncherError:
        return None
    own = history.spec["model"]
    return name, [(f"model.{key}", value, own.get(key)) for key, value in model.items() if own.get(key) != value]


def hosts(history: History) -> dict[int, tuple[str, str]]:
    """Return host and device of each rank, as planned."""
    ranks = history.plan.get("ranks")
    listed = ranks if isinstance(ranks, list) else []
    return {rank["rank_id"]: (str(rank.get("host", "")), str(rank.get("device_id", "")))
            for rank in listed if isinstance(rank, Mapping) and "rank_id" in rank}  # fmt: skip
