"""Events of ranks: one JSON object per line in ``events/rank_<rank_id>.jsonl``, appended and never rewritten.

Every event has ``time`` (seconds since the epoch), ``rank_id`` and ``event``:

begin   pid, started, ticks, boot              the process runs; nothing is imported yet (see ProcessId)
phase   name                                   a part of the start is over: "imported", "joined" (the ranks have found
                                               each other), "loaded" (network and weights are there; compiling begins)
ready   mindspore, mindformers, from_step      the context is built, ranks have found each other; ``from_step`` steps
                                               of the run were done by attempts before this one
step    step, loss, lr, overflow, grad_norm, step_s, memory_mib, loss_scale, input_s, tokens, begun, core_wait_s
                                               after optimizer step number ``step`` (from 1)
eval    step, loss, seconds                     the held-out loss after that step; without loss: it has begun
save    step, seconds                           a checkpoint was written; without seconds: it is being written
error   type, message, traceback               a Python exception ended the rank
done                                           everything is saved; the process may now end as it likes
exit    code                                   the process has ended; -N: by signal N. Written by its parent

``events/host_<node_rank>.jsonl`` has "host", a sample of the host now and then (see HostSample), with rank_id null, and
``events/scheduler.jsonl`` has begin, error and exit of MindSpore's scheduler, with rank_id null. With restarts,
``events/supervisor.jsonl`` has "restart", the decision on another attempt after this one, with rank_id null.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from launcher.common.json_files import parse_json

# Room for more would be mapped and given back at every read (malloc: from 128 KiB on), which costs ten times the read.
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a rank, or of the scheduler (``rank_id`` None).

    Versions that share a jobs folder read each other's events: unknown keys are ignored, and keys that an earlier
    version did not write have their defaults.
    """

    kind: ClassVar[str] = ""
    # Fields that are left out of the file while they are None: their absence says that something has only begun.
    omitted: ClassVar[frozenset[str]] = frozenset()

    time: float = 0.0
    rank_id: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the event's fields without time, rank and kind, as written in the file."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("time", "rank_id")}
        return {name: value for name, value in own.items() if value is not None or name not in self.omitted}

    def to_json(self) -> dict[str, Any]:
        """Return the event's JSON object, as written in its file."""
        return {"time": self.time, "rank_id": self.rank_id, "event": self.kind, **self.fields()}


@dataclass(frozen=True, kw_only=True)
class Begin(Event):
    """The start of the process, before any import. The fields are those of ProcessId."""

    kind = "begin"

    pid: int
    started: float
    ticks: int = 0
    boot: str = ""


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """A part of the start is over: what was imported, that the ranks have joined, that the weights are loaded."""

    kind = "phase"

    name: str


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """The context is built and the ranks have found each other; ``from_step`` steps were done before."""

    kind = "ready"

    mindspore: str = ""
    mindformers: str = ""
    from_step: int = 0


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """A finished optimizer step. Numbers that are not finite are words ("nan"), because JSON has none for them.

    ``step_s``: seconds of the step alone, without saving and evaluating. ``input_s``: seconds between the step before
    and this one in which the rank waited for its rows. ``tokens``: tokens in the loss among the rows that this rank
    read; unknown where MindSpore feeds the card itself (runtime.sink_mode). ``memory_mib``: the highest so far.
    ``begun``: when the rank entered the step, by its host's clock: who comes last, the others wait for.
    ``core_wait_s``: seconds in which its threads waited for a core, since the last step that tells them.
    """

    kind = "step"
    omitted = frozenset({"loss_scale", "input_s", "tokens", "begun", "core_wait_s"})

    step: int
    loss: float | str | None = None
    lr: float | str | None = None
    overflow: bool = False
    grad_norm: float | str | None = None
    step_s: float
    memory_mib: int | None = None
    loss_scale: float | str | None = None
    input_s: float | None = None
    tokens: int | None = None
    begun: float | None = None
    core_wait_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Event):
    """The held-out rows after a step: begun while ``seconds`` is None. ``loss`` is None on ranks that have none."""

    kind = "eval"

    step: int = 0
    loss: float | str | None = None
    seconds: float | None = None

    def fields(self) -> dict[str, Any]:
        begun = {"step": self.step}
        return begun if self.seconds is None else {**begun, "loss": self.loss, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Save(Event):
    """A checkpoint: being written while ``seconds`` is None."""

    kind = "save"
    omitted = frozenset({"seconds"})

    step: int = 0
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Error(Event):
    """A Python exception ended the rank."""

    kind = "error"

    type: str = ""
    message: str = ""
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """Everything is saved; the process may now end as it likes."""

    kind = "done"


@dataclass(frozen=True, kw_only=True)
class Exit(Event):
    """The process has ended; -N: by signal N. Written by its parent."""

    kind = "exit"

    code: int


@dataclass(frozen=True, kw_only=True)
class HostSample(Event):
    """The state of a host while the job ran. ``steal``: the share of its CPU time that went to other virtual machines;
    ``throttled``: seconds a second for which the CPU limit of our cgroup held threads up, summed over CPUs. ``cards``:
    those of the job, by device_id, with what npu-smi and hccn_tool tell of each. None: not known.
    """

    kind = "host"

    host: str = ""
    steal: float | None = None
    throttled: float | None = None
    cards: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Restart(Event):
    """The decision on another attempt. ``again``: one follows; ``left_out``: a host without a part in it, whose place
    ``spare`` takes.
    """

    kind = "restart"

    again: bool = False
    why: str = ""
    left_out: str | None = None
    spare: str | None = None


_EVENTS = (Begin, Phase, Ready, Step, Evaluation, Save, Error, Done, Exit, HostSample, Restart)
_KINDS: dict[str, type[Event]] = {event.kind: event for event in _EVENTS}
_NAMES = {kind: frozenset(item.name for item in fields(cls)) for kind, cls in _KINDS.items()}
# Fields that the supervisor calculates with. A bool is an int to Python but not a number here.
_NUMBERS = {kind: names & {"time", "pid", "started", "step", "step_s", "code"} for kind, names in _NAMES.items()}


def from_json(record: dict[str, Any]) -> Event | None:
    """Return the event in ``record``; None for a kind of another version.

    Raises ValueError when a required key is missing or a numeric one is not a number.
    """
    kind = record["event"]
    names = _NAMES.get(kind)
    if names is None:
        return None
    known = {name: value for name, value in record.items() if name in names}
    for name in _NUMBERS[kind]:
        if name in known and type(known[name]) not in (int, float):
            raise ValueError(f"event {kind}: a number is none")
    try:
        return _KINDS[kind](**known)
    except TypeError as error:
        raise ValueError(f"event {kind}: {error}") from error


class EventWriter:
    """The writer of one event file. Each line is written with one call, so a reader sees whole lines.

    A full disk or a missing folder loses events but never ends a rank. Only the supervisor makes the folder: a late
    event must not bring back a job that was removed.
    """

    def __init__(self, path: Path, rank_id: int | None) -> None:
        self._rank_id = rank_id
        self._file: Any = None
        with contextlib.suppress(OSError):
            self._file = path.open("ab", buffering=0)

    def write(self, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "rank_id": self._rank_id, "event": event, **fields}
        # AttributeError: the file could not be opened. "replace": a traceback may quote names that are no UTF-8.
        with contextlib.suppress(OSError, AttributeError):
            self._file.write(json.dumps(_plain(record), ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def report(self, event: Event) -> None:
        """Append ``event`` with the current time and the writer's own rank."""
        self.write(event.kind, **event.fields())

    def close(self) -> None:
        if self._file:
            self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return ``record`` with NaN and infinity as words, because JSON has none for them."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


@dataclass(kw_only=True)
class EventReader:
    """The reader of one event file; each call continues behind the last one.

    The file stays open once it was found, so that events arrive even when the folder is deleted meanwhile.
    """

    path: Path
    damaged: int = 0  # lines that are no event; kinds of other versions are none of them
    _file: Any = field(default=None)
    _rest: bytes = field(default=b"")

    def new(self) -> Iterator[Event]:
        """Yield events not seen before. A line that is still being written waits for the next call."""
        for record in self.records():
            try:
                event = from_json(record)
            except ValueError:
                self.damaged += 1
                continue
            if event is not None:
                yield event

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of new lines, including unknown kinds."""
        if self._file is None and not self._open():
            return
        block = self._file.read(_BLOCK)
        while block:
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                try:
                    record = _parse(line)
                except ValueError:
                    self.damaged += 1
                    continue
                yield record
            # A short read came to the end: a supervisor asks hundreds of files ten times a second.
            block = self._file.read(_BLOCK) if len(block) == _BLOCK else b""

    def _open(self) -> bool:
        with contextlib.suppress(OSError):
            self._file = self.path.open("rb", buffering=0)
        return self._file is not None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _parse(line: bytes) -> dict[str, Any]:
    """Return the object in ``line``. Raises ValueError for one that is not an event of any version."""
    try:
        event = parse_json(line)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise ValueError("not an event")
    return event


# The part read at the end of a long file: about 1,500 steps.
_END_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True)
class LastEvents:
    """The events at the end of a file. ``damaged``: number of lines there that are not an event of any version."""

    events: tuple[Event, ...] = ()
    damaged: int = 0


def read_last_events(path: Path) -> LastEvents:
    """Return the last events in ``path``: all of a short file, those in the last 256 KiB of a long one."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _END_BYTES)
            file.seek(start)
            *lines, _unfinished = file.read().split(b"\n")
    except OSError:
        return LastEvents()
    events, damaged = [], 0
    # A read from the middle of the file begins inside a line.
    for line in lines[1 if start else 0 :]:
        try:
            event = from_json(_parse(line))
        except ValueError:
            damaged += 1
            continue
        if event is not None:
            events.append(event)
    return LastEvents(events=tuple(events), damaged=damaged)


def last_step(path: Path | str) -> Step | None:
    """Return the last step in ``path``, however long the file is; None without one."""
    return _last(path, Step, lambda _: True)


def last_held_out(path: Path) -> Evaluation | None:
    """Return the last evaluation in ``path`` that has a loss; None without one."""
    return _last(path, Evaluation, lambda event: isinstance(event.loss, float))


# As a rule the event that is wanted is in the last lines of a file, and a list reads those of thousands of files.
_TAIL_BYTES = 2 << 10
_MARKS: dict[type[Event], bytes] = {cls: b'"event": "%s"' % cls.kind.encode() for cls in _EVENTS}
_Kind = TypeVar("_Kind", bound=Event)


def _last(path: Path | str, kind: type[_Kind], wanted: Callable[[_Kind], bool]) -> _Kind | None:
    """Return the last event of ``kind`` in ``path`` that is ``wanted``. Only lines of its kind are parsed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        start = max(0, os.fstat(handle).st_size - _TAIL_BYTES)
        tail = os.pread(handle, _TAIL_BYTES, start)
        begin = tail.find(b"\n") + 1 if start else 0  # a read from the middle of the file begins inside a line
        found = _last_in(tail[begin:], kind, wanted)
        if found is None and start:
            with mmap.mmap(handle, start + begin, access=mmap.ACCESS_READ) as data:
                found = _last_in(data, kind, wanted)
    except (OSError, ValueError):  # it was cut short meanwhile
        return None
    finally:
        os.close(handle)
    return found


def _last_in(data: bytes | mmap.mmap, kind: type[_Kind], wanted: Callable[[_Kind], bool]) -> _Kind | None:
    """Return the same of the whole lines of ``data``."""
    mark, end = _MARKS[kind], data.rfind(b"\n")
    while (at := data.rfind(mark, 0, max(0, end))) >= 0:
        end, last = data.rfind(b"\n", 0, at), data.find(b"\n", at)
        try:
            event = from_json(_parse(data[end + 1 : last]))
        except ValueError:
            continue
        if isinstance(event, kind) and wanted(event):
            return event
    return None


class Position:
    """The step that a rank has entered last, in a file of a few bytes that is rewritten in place at little cost."""

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        with contextlib.suppress(OSError):
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def enter(self, step: int) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._handle, b"%-20d" % step, 0)


def read_position(path: Path) -> int:
    """Return the step that the rank has entered last, 0 before the first."""
    try:
        return int(path.read_bytes() or b"0")
    except (OSError, ValueError):
        return 0
