"""Metrics as text: OpenMetrics 1.0, and Prometheus' older text format 0.0.4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = Mapping[str, str]

_SUFFIXES = {"counter": "_total", "info": "_info"}


@dataclass(kw_only=True)
class Family:
    """Samples of one name, which is without the suffix that ``kind`` (gauge, counter, info, histogram) adds."""

    name: str
    kind: str
    about: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, labels: Labels, value: float | None) -> None:
        """Add a sample, unless its value is not known."""
        if value is not None:
            self.samples.append((_SUFFIXES.get(self.kind, ""), labels, float(value)))

    def add_histogram(self, labels: Labels, found: Histogram) -> None:
        """Add the samples of a histogram."""
        bounds = [*(repr(float(bound)) for bound in found.bounds), "+Inf"]
        for bound, count in zip(bounds, found.cumulated(), strict=True):
            self.samples.append(("_bucket", {**labels, "le": bound}, count))
        self.samples += [("_count", labels, sum(found.counts)), ("_sum", labels, found.total)]

    @property
    def sample_name(self) -> str:
        return self.name + _SUFFIXES.get(self.kind, "")

    def lines(self, *, older: bool) -> Iterator[str]:
        """Yield the family's lines; none without samples. ``older``: in Prometheus' text format 0.0.4."""
        if not self.samples:
            return
        name, kind = (
            (self.sample_name, "gauge" if self.kind == "info" else self.kind) if older else (self.name, self.kind)
        )
        yield f"# HELP {name} {self.about}"
        yield f"# TYPE {name} {kind}"
        for suffix, labels, value in self.samples:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"{self.name}{suffix}{f'{{{shown}}}' if shown else ''} {_number(value)}"


class Histogram:
    """Counts of values by upper bounds, which ascend."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        place = next((place for place, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    def cumulated(self) -> list[int]:
        """Return how many values are at most each bound, and how many there are."""
        return [sum(self.counts[: place + 1]) for place in range(len(self.counts))]


def metrics_text(families: Iterable[Family], *, older: bool = False) -> str:
    """Return the text of ``families``. ``older``: in Prometheus' text format 0.0.4 in place of OpenMetrics."""
    lines = [line for family in families for line in family.lines(older=older)]
    return "\n".join([*lines, *([] if older else ["# EOF"])]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
