"""What differs between jobs: their results, specs, data and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.common.clock import seconds_text
from launcher.observe import facts
from launcher.observe.history import History
from launcher.observe.summary import Summary


@dataclass(frozen=True, kw_only=True)
class Column:
    """A result of all jobs. ``best``: the number of the job whose value is best; None where none is, or two are."""

    name: str
    values: tuple[float | int | str | None, ...]
    texts: tuple[str, ...]
    best: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A key with its value in each job."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Keys of one kind that differ. ``same``: how many do not."""

    name: str
    rows: tuple[Row, ...]
    same: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of jobs, in their order."""

    job_ids: tuple[str, ...]
    results: tuple[Column, ...]
    groups: tuple[Group, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for programs."""
        return {
            "jobs": list(self.job_ids),
            "results": {column.name: list(column.values) for column in self.results},
            "differences": {
                group.name: {row.key: list(row.values) for row in group.rows} for group in self.groups
            },
        }  # fmt: skip


def compare(histories: Sequence[History], summaries: Sequence[Summary]) -> Comparison:
    """Compare jobs by what they gave, and by what they were asked to do."""
    specs = [_without_name(facts.flat(history.spec)) for history in histories]
    data = [_data(history) for history in histories]
    versions = [dict(history.record.versions) for history in histories]
    groups = [_group("Spec", specs), _group("Data", data), _group("Versions", versions)]
    # Earlier versions kept neither.
    for name, known in (
        ("Origin", [history.record.origin for history in histories]),
        ("Packages", _packages(histories)),
    ):
        groups += [_group(name, known)] if any(known) else []
    return Comparison(
        job_ids=tuple(history.record.job_id for history in histories),
        results=tuple(_results(histories, summaries)),
        groups=tuple(groups),
    )


def _packages(histories: Sequence[History]) -> list[dict[str, Any]]:
    """Return the versions of the packages that each job was submitted with; none where not all jobs have kept them."""
    found = [_listed(history.paths.packages) for history in histories]
    return found if all(found) else []


def _listed(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: version for name, equals, version in (line.partition("==") for line in lines) if equals}


def _without_name(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "name"}


def _data(history: History) -> dict[str, Any]:
    """Return what a job trained on. A file that is gone is known by its path alone."""
    training = facts.datasets(history).get("Training rows")
    known: dict[str, Any] = {"dataset": history.plan.get("dataset"), "rows": history.plan.get("rows")}
    if training is not None and training.stats:
        known |= {"fingerprint": training.stats.get("fingerprint"), "template": training.stats.get("template")}
        known |= {name: training.count(name) for name in ("tokens", "loss_tokens", "padding")}
    return known


def _group(name: str, values: Sequence[Mapping[str, Any]]) -> Group:
    keys = list(dict.fromkeys(key for one in values for key in one))
    rows = [Row(key=key, values=tuple(one.get(key) for one in values)) for key in keys]
    differing = tuple(row for row in rows if len({_comparable(value) for value in row.values}) > 1)
    return Group(name=name, rows=differing, same=len(rows) - len(differing))


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _results(histories: Sequence[History], summaries: Sequence[Summary]) -> list[Column]:
    lowest, highest = min, max
    best_held_out = [summary.best_held_out.loss if summary.best_held_out else None for summary in summaries]
    return [
        _column("Outcome", [history.record.state for history in histories], str),
        _column("Steps", [summary.done_steps for summary in summaries], "{:,}".format),
        _column("Loss", [summary.last_loss for summary in summaries], "{:.4f}".format, lowest),
        _column("Best held-out loss", best_held_out, "{:.4f}".format, lowest),
        _column("Step time", [summary.step_s for summary in summaries], seconds_text, lowest),
        _column("Throughput", [summary.tokens_per_s for summary in summaries], "{:,.0f} tokens/s".format, highest),
        _column("Running time", [summary.goodput.running_s for summary in summaries], seconds_text, lowest),
        _column("Goodput", [summary.goodput.ratio for summary in summaries], "{:.0%}".format, highest),
        _column("Peak memory", [summary.memory_mib for summary in summaries], "{:,.0f} MiB".format, lowest),
        _column("Attempts", [summary.attempts for summary in summaries], str),
    ]


def _column(name: str, values: Sequence[Any], form: Any, choose: Any = None) -> Column:
    known = [value for value in values if isinstance(value, (int, float))]
    best = None
    if choose is not None and len(known) > 1 and known.count(choose(known)) == 1:
        best = values.index(choose(known))
    texts = tuple("" if value is None else form(value) for value in values)
    return Column(name=name, values=tuple(values), texts=texts, best=best)
