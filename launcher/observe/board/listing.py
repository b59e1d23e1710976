"""A row for each job of a folder. At each look every job.json is looked at, and only what has changed is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.jobs import UNREADABLE, JobPaths, JobRecord, loss_rank, read_record
from launcher.jobs.record import mark_lost_if_dead, unreadable_record
from launcher.observe.board.pace import Paced, Stamp, stamp
from launcher.observe.curves import make_curve
from launcher.observe.history import FOLDER_DAMAGES, read_outline, seconds_of
from launcher.observe.metrics import METRICS
from launcher.observe.summary import summarize

_SPARK = 40
# All viewers share a look; the next one comes after this time.
_LOOK_S = 0.9
# Of a large folder that is read for the first time, the rest is read at the next looks, the newest jobs first.
_READ_S = 0.5
# Above these a record is damaged: nobody has so many, and each costs a file to look at.
_MOST_CARDS, _MOST_ATTEMPTS = 100_000, 10_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job in the list. Times in seconds since the epoch. ``loss``: see ``read_outline``, "nan" where it is
    no finite number. ``spark``: the losses in a few points. None: not known."""

    job_id: str
    name: str
    state: str
    cards: int
    target: str
    owner: str
    created: float | None
    ended: float | None
    attempt: int
    done: int = 0
    total: int | None = None
    left_s: float | None = None
    loss: float | str | None = None
    spark: tuple[float | None, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(kw_only=True)
class _Known:
    """A job that was read. ``record``: as its file has it."""

    stamp: Stamp
    paths: JobPaths
    record: JobRecord
    loss_rank: int
    row: Paced[Row] = field(default_factory=Paced)


class Listing:
    """The jobs of a folder. Safe to use from several threads."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.root = root.absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._rows: dict[str, Row] = {}
        self._looked = -_LOOK_S

    def rows(self) -> dict[str, Row]:
        """Return the rows of all jobs by id, the newest first."""
        with self._lock:
            if self._clock() - self._looked >= _LOOK_S:
                self._look()
                self._looked = self._clock()
            return self._rows

    def find(self, job_id: str) -> tuple[JobPaths, JobRecord] | None:
        """Return the job of that id; None when the folder has none. What is asked for never becomes a path."""
        self.rows()
        with self._lock:
            known = self._known.get(job_id)
        return None if known is None else (known.paths, mark_lost_if_dead(known.record))

    def _look(self) -> None:
        found = {name: known for name in self._names() if (known := self._job(name)) is not None}
        self._known = found
        deadline = self._clock() + _READ_S
        newest = sorted(found.values(), key=lambda known: known.record.created, reverse=True)
        rows = [self._row(known, deadline) for known in newest]
        self._rows = {row.job_id: row for row in sorted(rows, key=lambda row: (-(row.created or 0.0), row.job_id))}

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.root.iterdir()]
        except OSError:
            return []

    def _job(self, name: str) -> _Known | None:
        paths, known = JobPaths(root=self.root / name), self._known.get(name)
        mark = stamp(paths.record)
        if mark is None or (known is not None and known.stamp == mark):
            return known if mark is not None else None
        record = _readable(paths)
        if record is None:
            return None
        return _Known(
            stamp=mark, paths=paths.of_attempt(record.attempt), record=record, loss_rank=loss_rank(paths, record.cards)
        )

    def _row(self, known: _Known, deadline: float) -> Row:
        """Return the row of a job; of one that was never read none of its progress when ``deadline`` is over."""
        record = mark_lost_if_dead(known.record)
        if known.row.is_empty and self._clock() > deadline:
            return _bare_row(known.paths, record)
        events = stamp(known.paths.rank_events(known.loss_rank))
        return known.row.get((record.state, events), lambda: _make_row(known.paths, record))


def _readable(paths: JobPaths) -> JobRecord | None:
    """Return the record of a job under the name of its folder; one of state UNREADABLE where it makes no sense."""
    record = read_record(paths) or unreadable_record(paths)
    if record is None:
        return None
    record = replace(record, job_id=paths.job_id)
    reason = _nonsense(record)
    if not reason:
        return record
    return replace(record, name=paths.job_id, state=UNREADABLE, cards=0, attempt=1, target="-", earlier=(), origin={},
                   created="", started=None, ended=None, verdict=None, warnings=(), note=reason)  # fmt: skip


def _nonsense(record: JobRecord) -> str:
    """Return why a record cannot be a job's; "" where it may be."""
    if not 0 <= record.cards <= _MOST_CARDS or not 1 <= record.attempt <= _MOST_ATTEMPTS:
        return f"job.json says {record.cards} cards, attempt {record.attempt}"
    if not _is_utf8(record.job_id):
        return "the name of its folder is not UTF-8"
    texts = (record.name, record.target, record.created, record.started or "", record.ended or "", record.note or "")
    if not all(isinstance(text, str) for text in texts):
        return "job.json has a number where a text belongs"
    shaped = isinstance(record.origin, dict) and isinstance(record.verdict or {}, dict)
    entries = all(isinstance(entry, dict) for entry in record.earlier)
    return "" if shaped and entries else "job.json has a value of another kind than it should"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bare_row(paths: JobPaths, record: JobRecord) -> Row:
    """Return what job.json says."""
    job_id = paths.job_id.encode("utf-8", "backslashreplace").decode()
    return Row(
        job_id=job_id, name=record.name, state=record.state, cards=record.cards, target=record.target,
        owner=str(record.origin.get("user", "")), created=seconds_of(record.created), ended=seconds_of(record.ended),
        attempt=record.attempt, note=record.note or "",
    )  # fmt: skip


def _make_row(paths: JobPaths, record: JobRecord) -> Row:
    row = _bare_row(paths, record)
    if record.state == UNREADABLE:
        return row
    try:
        return _with_progress(row, paths, record)
    # A damaged folder may hold anything; its job is listed all the same, and said to be damaged.
    except FOLDER_DAMAGES as error:
        return replace(row, note=f"its folder is damaged: {type(error).__name__}: {error}")


def _with_progress(row: Row, paths: JobPaths, record: JobRecord) -> Row:
    history = read_outline(paths, record)
    found, curve = summarize(history), make_curve(METRICS["loss"].read(history), _SPARK)
    loss = found.last_loss
    return replace(
        row, done=found.done_steps, total=found.total_steps, left_s=found.left_s,
        loss="nan" if loss is not None and not np.isfinite(loss) else loss,
        spark=tuple(float(f"{value:.5g}") if np.isfinite(value) else None for value in curve.mean.tolist()),
    )  # fmt: skip
