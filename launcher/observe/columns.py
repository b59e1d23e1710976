"""The events of one rank as columns of numbers.

A file of 100,000 steps is 27 MB. Files above ``LONG`` bytes are parsed by pyarrow, and what was parsed is kept in a
cache, so that the next read parses only what was appended; shorter files, and what pyarrow refuses, go line by line.
Both ways give the same columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from launcher.common.resources import cache_root

Floats = npt.NDArray[np.float64]

# Columns of a step. NaN: not reported. Infinite: reported, and no finite number.
STEP_FIELDS = ("time", "step", "loss", "lr", "grad_norm", "loss_scale", "overflow", "step_s", "input_s", "tokens",
               "memory_mib", "begun", "core_wait_s")  # fmt: skip

LONG = 1 << 20
_READERS = 8
_FEW = 16
_KEPT_FOR_S = 30 * 86400.0
# Words for numbers that JSON has not, as EventWriter writes them. An infinity stands for "not a number" too.
_WORDS = ((b'"nan"', b"Infinity"), (b'"inf"', b"Infinity"), (b'"-inf"', b"-Infinity"))
_WORD_VALUES = {"nan": math.inf, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, kw_only=True)
class RankEvents:
    """What one rank reported in one attempt.

    ``steps``: a column per name in STEP_FIELDS, all of one length. ``others``: the other events, as in the file.
    ``damaged``: lines that are no event.
    """

    rank_id: int
    steps: Mapping[str, Floats]
    others: tuple[dict[str, Any], ...] = ()
    damaged: int = 0

    @property
    def count(self) -> int:
        return len(self.steps["step"])

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of ``kind``, oldest first."""
        return [event for event in self.others if event["event"] == kind]


@dataclass(kw_only=True)
class _Parsed:
    """Columns of the first ``size`` bytes of a file."""

    steps: dict[str, Floats]
    others: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0
    size: int = 0

    def __add__(self, more: _Parsed) -> _Parsed:
        return _Parsed(
            steps={name: np.concatenate([column, more.steps[name]]) for name, column in self.steps.items()},
            others=self.others + more.others,
            damaged=self.damaged + more.damaged,
            size=self.size + more.size,
        )


def read_rank(path: Path, rank_id: int) -> RankEvents:
    """Return the events in ``path``; none when the file is missing. A line that is still being written is left out."""
    parsed = _read(path)
    return RankEvents(rank_id=rank_id, steps=parsed.steps, others=tuple(parsed.others), damaged=parsed.damaged)


def read_ranks(files: Sequence[Path]) -> tuple[RankEvents, ...]:
    """Return the events of each rank, by the places of ``files``. Many ranks are read at the same time, or long files:
    a file server answers many at once, and pyarrow lets go of the interpreter while it parses."""
    if len(files) < _FEW and not any(_is_long(file) for file in files):
        return tuple(map(read_rank, files, range(len(files))))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(read_rank, files, range(len(files))))


def _is_long(path: Path) -> bool:
    try:
        return path.stat().st_size >= LONG
    except OSError:
        return False


def _nothing() -> _Parsed:
    return _Parsed(steps={name: np.empty(0) for name in STEP_FIELDS})


def _read(path: Path) -> _Parsed:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < LONG:
                return parse_lines(_whole(file.read()))
            known = _cached(path, file)
            file.seek(known.size)
            more = parse(_whole(file.read()))
    except OSError:
        return _nothing()
    if more.size:
        known = known + more
        _keep(path, known)
    return known


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


# --------------------------------------------------------------------------------------------------------- parsing


def parse(data: bytes) -> _Parsed:
    """Return the columns of ``data``, whole lines."""
    try:
        return parse_fast(data) if len(data) >= LONG else parse_lines(data)
    except Exception:  # whatever pyarrow does not take, the other way says what is wrong with it
        return parse_lines(data)


def parse_lines(data: bytes) -> _Parsed:
    """Return the columns of ``data``, line by line."""
    steps, parsed = list[dict[str, Any]](), _nothing()
    for line in data.split(b"\n")[:-1]:
        event = _event(line)
        if event is None:
            parsed.damaged += 1
        elif event["event"] == "step":
            steps.append(event)
        else:
            parsed.others.append(event)
    parsed.steps = step_columns(steps)
    parsed.size = len(data)
    return parsed


def step_columns(steps: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """Return a column per name in STEP_FIELDS of step events as they stand in their file."""
    return {name: np.array([_number(step.get(name)) for step in steps], float) for name in STEP_FIELDS}


def _event(line: bytes) -> dict[str, Any] | None:
    """Return the event in ``line``; None for what is none, and for a step without its number or its time."""
    try:
        event = orjson.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    is_step = event["event"] == "step"
    return None if is_step and math.isnan(_number(event.get("step")) + _number(event.get("time"))) else event


def _number(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    return _WORD_VALUES.get(value, math.nan) if isinstance(value, str) else math.nan


def parse_fast(data: bytes) -> _Parsed:
    """Return the columns of ``data`` by pyarrow. Raises for lines that are no event, which ``parse_lines`` counts."""
    import pyarrow as pa
    from pyarrow import compute, json

    names = [(name, pa.bool_() if name == "overflow" else pa.float64()) for name in STEP_FIELDS]
    table = json.read_json(
        pa.BufferReader(_numbers_only(data)),
        read_options=json.ReadOptions(block_size=1 << 20),
        parse_options=json.ParseOptions(
            explicit_schema=pa.schema([("event", pa.string()), *names]), unexpected_field_behavior="ignore"
        ),
    )
    is_step = compute.equal(table["event"], "step").combine_chunks()
    chosen = table.filter(is_step)
    chosen = chosen.set_column(chosen.column_names.index("overflow"), "overflow",
                               compute.cast(chosen["overflow"], pa.float64()))  # fmt: skip
    steps: dict[str, Floats] = {name: chosen[name].to_numpy() for name in STEP_FIELDS}
    if np.isnan(steps["step"] + steps["time"]).any() or table["event"].null_count:
        raise ValueError("a step without its number")
    return _Parsed(steps=steps, others=_others(data, is_step.to_numpy(zero_copy_only=False)), size=len(data))


def _numbers_only(data: bytes) -> bytes:
    for word, number in _WORDS:
        data = data.replace(word, number) if word in data else data
    return data


def _others(data: bytes, is_step: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return the events that are no steps. Raises ValueError where lines and rows of the table do not match."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    if len(ends) != len(is_step):
        raise ValueError("an empty line")
    found = []
    for row in np.flatnonzero(~is_step):
        begin = ends[row - 1] + 1 if row else 0
        found.append(orjson.loads(data[begin : ends[row]]))
    return found


# --------------------------------------------------------------------------------------------------------- cache


def _place(path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
    return cache_root() / "events" / f"{digest}.npz"


def _mark(file: Any, size: int) -> str:
    """Return what tells whether the first ``size`` bytes of ``file`` are still those that were parsed."""
    file.seek(0)
    begin = file.read(256)
    file.seek(max(0, size - 256))
    return hashlib.sha256(begin + file.read(min(size, 256))).hexdigest()


def _cached(path: Path, file: Any) -> _Parsed:
    from zipfile import BadZipFile

    try:
        with _place(path).open("rb") as stored, np.load(stored, allow_pickle=False) as kept:
            about = orjson.loads(kept["about"].tobytes())
            if about["fields"] == list(STEP_FIELDS) and about["mark"] == _mark(file, about["size"]):
                steps = dict(zip(STEP_FIELDS, kept["steps"], strict=True))
                return _Parsed(steps=steps, others=about["others"], damaged=about["damaged"], size=about["size"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass
    return _nothing()


def _keep(path: Path, parsed: _Parsed) -> None:
    """Keep ``parsed`` for the next read; where nothing can be written, that one parses again."""
    place = _place(path)
    scratch = place.with_name(f"{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        with path.open("rb") as file:
            mark = _mark(file, parsed.size)
        about = {"fields": STEP_FIELDS, "mark": mark, "size": parsed.size, "damaged": parsed.damaged}
        place.parent.mkdir(parents=True, exist_ok=True)
        _forget_old(place.parent)
        text = orjson.dumps({**about, "others": parsed.others})
        with scratch.open("wb") as out:
            np.savez(out, steps=np.stack([parsed.steps[name] for name in STEP_FIELDS]),
                     about=np.frombuffer(text, np.uint8))  # fmt: skip
        scratch.replace(place)  # not synced: a file that is cut short is found out when it is read


def _forget_old(folder: Path) -> None:
    now = time.time()
    for file in folder.glob("*.npz"):
        with contextlib.suppress(OSError):
            if now - file.stat().st_atime > _KEPT_FOR_S:
                file.unlink()
