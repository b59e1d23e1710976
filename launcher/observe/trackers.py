"""Trackers: what a job did, given on to programs that people watch runs with.

A tracker is told everything again after it was away: it keeps in the job's folder up to where it has been told. It
reads the folder like every other part of this room, so it can run beside the job, later, or on another host, and
nothing that goes wrong in it touches the job.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from launcher.common.atomic import write_atomic
from launcher.common.json_files import json_or_empty
from launcher.common.nearest import nearest
from launcher.errors import JobError, SpecError
from launcher.jobs import JobPaths, JobRecord, read_record
from launcher.observe.columns import Floats
from launcher.observe.facts import flat
from launcher.observe.history import History, read_history
from launcher.observe.metrics import METRICS, rows_per_step, step_flops
from launcher.upstream.light_imports import without

# The group of entry points in which packages offer trackers: name = module:class, called without arguments.
GROUP = "launcher.trackers"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job as trackers know it. ``folder``: where they may keep files; ``settings``: its spec, flat."""

    job_id: str
    name: str
    folder: Path
    settings: dict[str, Any]


class Tracker(Protocol):
    """A tracker's four hooks. ``begin`` may come again for the same job: after a resume, or when more is told."""

    def begin(self, run: Run, first_step: int) -> None:
        """Open the run. What was told of ``first_step`` and later ones no longer holds."""

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        """Take the values of a step, by MindFormers' own tags, and when it ended (seconds since the epoch)."""

    def evaluation(self, step: int, when: float, loss: float) -> None:
        """Take a held-out loss."""

    def end(self, state: str) -> None:
        """Write what is not written yet; ``state`` is the job's."""


class TensorBoard:
    """Event files in ``tensorboard/rank_0`` of the job's folder, with the tags of MindFormers' own."""

    def __init__(self) -> None:
        self._writer: Any = None

    def begin(self, run: Run, first_step: int) -> None:
        self._close()
        # Its own names have seconds, in which two runs of this program may fall; readers go by the order of names.
        own, folder = f".{time.time_ns()}", run.folder / "tensorboard" / "rank_0"
        self._writer = _summary_writer()(str(folder), purge_step=first_step, filename_suffix=own, flush_secs=2)
        for key, value in run.settings.items():
            self._writer.add_text(key, str(value), global_step=0)

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step, walltime=when)

    def evaluation(self, step: int, when: float, loss: float) -> None:
        self._writer.add_scalar("eval-loss", loss, step, walltime=when)

    def end(self, state: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer() -> Any:
    """Return tensorboardX's SummaryWriter, imported without torch, which is not used and costs 180 MiB."""
    with without("torch"):
        from tensorboardX import SummaryWriter
    return SummaryWriter


_OWN: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard}


def names() -> list[str]:
    """Return the trackers that are installed."""
    return sorted({*_OWN, *(entry.name for entry in entry_points(group=GROUP))})


def find(name: str) -> Tracker:
    """Return a new tracker. Raises SpecError when none has the name, or its package cannot be imported."""
    if name in _OWN:
        return _OWN[name]()
    for entry in entry_points(group=GROUP, name=name):
        try:
            found: Tracker = entry.load()()
        except Exception as error:
            raise SpecError(
                f"tracker {name} cannot be used: {error}", hint=f"pip install 'launcher[{name}]'"
            ) from error
        return found
    raise _no_tracker(name)


def check(name: str) -> None:
    """Raise SpecError when no tracker has the name or its package is not installed; import none of it."""
    if name in _OWN:
        return
    entries = entry_points(group=GROUP, name=name)
    if not entries:
        raise _no_tracker(name)
    try:
        package = getattr(next(iter(entries)).load(), "package", None)
    except Exception as error:
        raise SpecError(f"tracker {name} cannot be used: {error}", hint="install its package again") from error
    if package and find_spec(package) is None:
        raise SpecError(f"tracker {name} needs the package {package}", hint=f"pip install 'launcher[{name}]'")


def _no_tracker(name: str) -> SpecError:
    near = nearest(name, names())
    return SpecError(
        f"there is no tracker {name!r}",
        hint=f"did you mean {near}?" if near else f"trackers: {', '.join(names())}",
    )


# --------------------------------------------------------------------------------------------------------- telling


def tell(tracker: Tracker, name: str, paths: JobPaths, record: JobRecord) -> int:
    """Tell ``tracker`` what is new of a job since it was told last; return the number of steps. Ends the run."""
    telling = Telling(tracker, name, paths)
    told = telling.tell(record)
    telling.end(record.state)
    return told


def follow(
    tracker: Tracker, name: str, paths: JobPaths, record: JobRecord, *, every_s: float = 5.0,
    sleep: Callable[[float], None] = time.sleep,
) -> int:  # fmt: skip
    """Tell ``tracker`` what is new every few seconds until the job has ended; return the number of steps."""
    telling, told = Telling(tracker, name, paths), 0
    while True:
        record = read_record(paths) or record
        told += telling.tell(record)
        if record.is_final:
            telling.end(record.state)
            return told
        sleep(every_s)


class Telling:
    """What one tracker has been told of a job, kept in the job's folder. Only one process at a time may tell it."""

    def __init__(self, tracker: Tracker, name: str, paths: JobPaths) -> None:
        self._tracker, self._paths = tracker, paths
        self._file = paths.root / "trackers" / f"{name}.json"
        # Held until the process ends, or this is given up.
        self._lock = _locked(self._file.with_suffix(".lock"), name, paths.job_id)
        self._told = json_or_empty(self._file)
        self._open = False

    def tell(self, record: JobRecord) -> int:
        """Tell what is new and return the number of steps."""
        history = read_history(self._paths, record)
        told_until = float(self._told.get("time", 0.0))
        new = list(points(history, after=told_until))
        held_out = [one for one in history.held_out if one.time > told_until]
        if not new and not held_out:
            return 0
        known = int(self._told.get("step", 0))
        first = new[0].step if new else known + 1
        if not self._open or first <= known:
            self._tracker.begin(_run(history), first)
            self._open = True
        for point in new:
            self._tracker.step(point.step, point.when, point.values)
        for one in held_out:
            self._tracker.evaluation(one.step, one.time, one.loss)
        last = max([point.when for point in new] + [one.time for one in held_out])
        self._told = {"step": new[-1].step if new else known, "time": last}
        write_atomic(self._file, json.dumps(self._told) + "\n")
        return len(new)

    def end(self, state: str) -> None:
        """End the run, if anything was told."""
        if self._open:
            self._tracker.end(state)
        self._lock.close()


def _locked(file: Path, name: str, job_id: str) -> IO[str]:
    """Return ``file``, locked. Raises JobError when another process has it, which tells all that there is to tell."""
    file.parent.mkdir(exist_ok=True)
    lock = file.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise JobError(
            f"{name} is being told of {job_id} by another process", hint="the job's own follower does so to its end"
        ) from error
    except OSError:
        pass  # a file system without locks, where nobody else is found out
    return lock


def _run(history: History) -> Run:
    record = history.record
    return Run(job_id=record.job_id, name=record.name, folder=history.paths.root, settings=flat(history.spec))


@dataclass(frozen=True, kw_only=True)
class Point:
    """The values of a step by MindFormers' tags; ``when`` it ended."""

    step: int
    when: float
    values: dict[str, float]


def points(history: History, *, after: float) -> Iterator[Point]:
    """Yield the steps of ``history`` that ended ``after`` a time, with the values that are known and finite."""
    new = history.times > after
    columns = {tag: values[new].tolist() for tag, values in _tags(history).items()}
    for place, (step, when) in enumerate(zip(history.steps[new].tolist(), history.times[new].tolist(), strict=True)):
        known = {tag: values[place] for tag, values in columns.items() if abs(values[place]) < float("inf")}
        yield Point(step=int(step), when=when, values=known)


def _tags(history: History) -> dict[str, Floats]:
    """Return a value a step by the tags of MindFormers' MFLossMonitor (mindformers 1.9.0, core/callback), in its units.

    Its twins over samples ("loss vs samples") are left out: after a resume TensorBoard drops the later steps of every
    tag, by one number, and counted in samples nearly all of theirs would be later.
    """
    read = {tag: METRICS[key].read(history).values for tag, key in _PLAIN.items()}
    seconds, cards = METRICS["step-time"].read(history).values, history.record.cards or 1
    seconds = np.where(seconds > 0, seconds, np.nan)
    read["iteration-time"] = np.trunc(seconds * 1000)
    rows, flops = rows_per_step(history), step_flops(history)
    if rows is not None:
        read["batch-size"] = np.full(len(seconds), float(rows))
        read["throughput"] = rows / seconds / cards
        read["B-samples-per-day"] = rows / seconds * 86400 / 1e9
    if flops is not None:
        read["model-flops-throughput-per-npu"] = flops / seconds / cards / 1e12
    return read


_PLAIN = {"loss": "loss", "learning-rate": "learning-rate", "grad-norm": "grad-norm", "loss-scale": "loss-scale",
          "input-wait": "input-wait"}  # fmt: skip
