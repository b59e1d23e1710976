"""A sweep's folder: ``jobs/sweeps/ID/sweep.json``, which its runner alone writes while it lives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.common.atomic import write_atomic
from launcher.common.processes import ProcessId
from launcher.errors import JobError
from launcher.jobs.record import known_keys
from launcher.jobs.store import new_token

# States of a sweep: a running one whose runner is gone is LOST, and can be resumed.
RUNNING, DONE, STOPPED, LOST = "running", "done", "stopped", "lost"
# States of a trial besides those of its job: it waits, or it was hopeless.
WAITING, PRUNED, REFUSED = "waiting", "pruned", "refused"

MAX, MIN = "max", "min"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial. ``value``: of the metric, by which trials are compared; ``note``: why it was refused or pruned."""

    number: int
    settings: Mapping[str, Any]
    job_id: str = ""
    state: str = WAITING
    value: float | None = None
    step: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep. ``asked``: what each trial is submitted with; ``parallel``: how many trials run at a time.

    ``sampler``: what chooses the settings of a trial when it begins, from ``axes`` with ``seed``; "" where all are
    chosen beforehand.
    """

    sweep_id: str
    created: str
    spec: str | None
    metric: str
    goal: str
    parallel: int
    prune: bool
    trials: tuple[Trial, ...]
    asked: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = ""
    seed: int = 0
    axes: Mapping[str, Any] = field(default_factory=dict)
    state: str = RUNNING
    runner: ProcessId | None = None

    @property
    def best(self) -> Trial | None:
        """Return the trial with the best value among those that ran to their end; None when there is none."""
        ended = [trial for trial in self.trials if trial.value is not None and trial.state == "succeeded"]
        return min(ended, key=self.rank, default=None)

    def rank(self, trial: Trial) -> float:
        """Return a number that is lower for a better trial."""
        value = float("inf") if trial.value is None else trial.value
        return -value if self.goal == MAX and trial.value is not None else value

    @property
    def ended(self) -> int:
        """Return how many trials have ended, in whatever way."""
        going = (WAITING, STOPPED, "planned", "starting", "running", "stopping")
        return sum(trial.state not in going for trial in self.trials)

    @property
    def keys(self) -> list[str]:
        """Return the keys that are varied."""
        return list(self.axes) or (list(self.trials[0].settings) if self.trials else [])

    def with_trial(self, trial: Trial) -> Sweep:
        trials = tuple(trial if one.number == trial.number else one for one in self.trials)
        return replace(self, trials=trials)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"


@dataclass(frozen=True, kw_only=True)
class SweepPaths:
    """The files of a sweep."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "sweep.json"

    @property
    def log(self) -> Path:
        return self.root / "runner.log"

    @property
    def stop(self) -> Path:
        """The file that asks the runner to stop."""
        return self.root / "stop"

    @property
    def jobs_dir(self) -> Path:
        return self.root.parents[1]


def new_paths(jobs_dir: Path, name: str) -> SweepPaths:
    """Return paths for a new sweep; nothing is made."""
    folder = jobs_dir.absolute() / "sweeps"
    return SweepPaths(root=folder / f"{new_token(folder)}-{name}")


def write(paths: SweepPaths, sweep: Sweep) -> None:
    write_atomic(paths.record, sweep.to_json())


def read(paths: SweepPaths) -> Sweep:
    """Return the sweep, LOST if its runner is gone without having ended it. Raises JobError when it cannot be read."""
    try:
        raw = known_keys(Sweep, json.loads(paths.record.read_text(encoding="utf-8")))
        raw["trials"] = tuple(Trial(**known_keys(Trial, trial)) for trial in raw["trials"])
        raw["runner"] = ProcessId.from_dict(raw["runner"]) if raw.get("runner") else None
        sweep = Sweep(**raw)
    # A damaged record may be any JSON, as a job's.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise JobError(f"{paths.record} is missing or damaged: {error}", hint="launcher sweep status") from error
    gone = sweep.runner is not None and not sweep.runner.is_alive()
    return replace(sweep, state=LOST) if sweep.state == RUNNING and gone else sweep


def all_paths(jobs_dir: Path) -> list[SweepPaths]:
    """Return every sweep, oldest first."""
    found = [SweepPaths(root=file.parent.absolute()) for file in (jobs_dir / "sweeps").glob("*/sweep.json")]
    return sorted(found, key=lambda paths: (_created(paths), paths.root.name))


def _created(paths: SweepPaths) -> str:
    try:
        return read(paths).created
    except JobError:
        return ""


def find(reference: str, jobs_dir: Path) -> SweepPaths:
    """Return the sweep of an id, a unique prefix of one, or "last". Raises JobError when there is none, or several."""
    every = all_paths(jobs_dir)
    if reference == "last" and every:
        return every[-1]
    fits = [paths for paths in every if reference and paths.root.name.startswith(reference)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise JobError(f"{reference!r} fits {len(fits)} sweeps", hint="type a letter more")
    if not every:
        begin = "launcher sweep SPEC --grid KEY=VALUE,VALUE begins one"
        raise JobError(f"no sweep {reference!r}: there are no sweeps in {jobs_dir}", hint=begin)
    known = ", ".join(paths.root.name for paths in every[-5:])
    raise JobError(f"no sweep {reference!r} in {jobs_dir}", hint=f"sweeps: {known}")
