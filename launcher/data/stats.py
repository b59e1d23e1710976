"""What a dataset is made of, source by source, from the table of its samples (``samples``): nothing is read twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data import samples
from launcher.data.info import DatasetInfo, no_dataset, read_info, stats_path
from launcher.data.rows import Places
from launcher.data.samples import Records
from launcher.data.tally import Tally
from launcher.errors import DataError

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """The samples of a dataset. ``sources``: the files they came from, by their numbers."""

    info: DatasetInfo
    records: Records
    sources: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> SampleTable:
        """Read the table of the dataset ``path``. Raises DataError when there is no such dataset, or no table of it."""
        info = read_info(path)
        if info is None:
            raise no_dataset(path)
        records = samples.read_samples(path)
        table, told = samples.samples_path(path), stats_path(path)
        damaged = table if records is None and table.exists() else told if not info.stats and told.exists() else None
        if damaged:
            raise DataError(
                f"{damaged} is damaged, or of other rows than {path}",
                hint="copy it again from where the rows were made, or make them again: "
                "launcher data preprocess with --force",
            )
        if records is None or not info.stats:
            raise DataError(
                f"{path} has no table of its samples ({samples.samples_path(path).name})",
                hint="launcher data preprocess writes one with the rows; make them again",
            )
        return cls(info=info, records=records, sources=source_names(info.stats))

    def place(self, record: Any) -> str:
        """Return the file and line that a record is from."""
        return place_of(self.sources, record)


def source_names(stats: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files that a dataset was made from, those below the working folder relative to it."""
    inputs = stats.get("inputs") or (stats.get("source") or {}).get("stat", ())[:1]
    return tuple(_short(str(name)) for name in inputs)


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def place_of(sources: tuple[str, ...], record: Any) -> str:
    """Return the file and line of ``record``."""
    number = int(record["source"])
    return f"{sources[number] if number < len(sources) else f'source {number + 1}'}:{record['line']}"


def stats_of(path: Path) -> dict[str, Any]:
    """Return what ``launcher data stats`` says of the dataset ``path``. Raises DataError when it is none."""
    table = SampleTable.read(path)
    info, records = table.info, table.records
    whole = records[~samples.has(records, samples.CONTINUED)]
    first = _first_alike(whole)
    return {
        "dataset": str(path),
        "rows": info.rows,
        "seq_length": info.seq_length,
        "packed": bool(info.stats["options"].get("packing")),
        "fill": info.fill,
        "samples_a_row": info.samples_a_row,
        "sources": [_source(table, number, whole, first) for number in np.unique(whole["source"]).tolist()],
        "longest": [_sample(table, record) for record in _most(whole, whole["tokens"])],
        "duplicates": _pairs(table, whole, first),
        "odd": [_sample(table, record) for record in _most(whole, whole["unknown"].astype(int) + whole["bytes"])],
        "warnings": info.stats["warnings"],
    }


def _source(table: SampleTable, number: int, whole: Records, first: Places) -> dict[str, Any]:
    mine = whole["source"] == number
    found, repeated = whole[mine], int((_is_duplicate(whole, first) & mine).sum())
    rows = table.records[(table.records["source"] == number) & ~samples.has(table.records, samples.NO_ROW)]
    tally = Tally()
    tally.add(Counter(), found["tokens"].astype(np.int32))
    tokens = int(found["tokens"].sum())
    return {
        "file": table.sources[number] if number < len(table.sources) else f"source {number + 1}",
        "samples": len(found),
        "tokens": tokens,
        "share": tokens / max(int(whole["tokens"].sum()), 1),
        "loss_tokens": int(rows["in_loss"].sum()),
        "cut": int(samples.has(found, samples.CUT).sum()),
        "left_out": int(samples.has(found, samples.NO_ROW).sum()),
        "duplicates": repeated,
        "characters": int(found["characters"].sum()),
        "unknown": int(found["unknown"].sum()),
        "bytes": int(found["bytes"].sum()),
        "lengths": tally.length_stats(),
    }


def _first_alike(whole: Records) -> Places:
    """Return for each sample the number of the first one with the same ids: its own, or that of an earlier one."""
    _, first, groups = np.unique(whole["digest"], return_index=True, return_inverse=True)
    found: Places = first[groups]
    return found


def _is_duplicate(whole: Records, first: Places) -> npt.NDArray[np.bool_]:
    """Return which samples have the ids of an earlier one from another place: a weight may take a place twice."""
    elsewhere = (whole["line"] != whole["line"][first]) | (whole["source"] != whole["source"][first])
    found: npt.NDArray[np.bool_] = elsewhere
    return found


def _most(whole: Records, by: Any) -> Records:
    order = np.argsort(-by.astype(np.int64), kind="stable")[:_SHOWN]
    most: Records = whole[order[by[order] > 0]]
    return most


def _sample(table: SampleTable, record: Any) -> dict[str, Any]:
    flags = int(record["flags"])
    return {
        "place": table.place(record),
        "tokens": int(record["tokens"]),
        "unknown": int(record["unknown"]),
        "bytes": int(record["bytes"]),
        "cut": bool(flags & samples.CUT),
        "left_out": bool(flags & samples.NO_ROW),
    }


def _pairs(table: SampleTable, whole: Records, first: Places) -> dict[str, Any]:
    """Return how many samples repeat an earlier one, and the first of them with what they repeat."""
    (again,) = np.nonzero(_is_duplicate(whole, first))
    pairs = [
        {"place": table.place(whole[number]), "of": table.place(whole[first[number]])}
        for number in again[:_SHOWN].tolist()
    ]
    return {"samples": len(again), "first": pairs}


def told(sample: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of a sample, where that is not simply a row."""
    if sample["left_out"]:
        yield "left out"
    elif sample["cut"]:
        yield "cut"
