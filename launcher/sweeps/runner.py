"""The runner of a sweep: starts trials, watches them, stops hopeless ones. One that fails stops no other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from launcher import jobs
from launcher.common.processes import ProcessId, environment_of_ours
from launcher.control import prepare, start, stop
from launcher.errors import LauncherError
from launcher.jobs import JobPaths, JobRecord, JobStore, planned_steps, read_record
from launcher.observe.history import read_history
from launcher.observe.metrics import metric_of
from launcher.plan.launch import Limits
from launcher.plan.placement import RunOptions
from launcher.runspec.layers import Override
from launcher.schedulers import registry
from launcher.sweeps.pruning import Curve, hopeless
from launcher.sweeps.record import (
    DONE,
    LOST,
    PRUNED,
    REFUSED,
    RUNNING,
    STOPPED,
    WAITING,
    Sweep,
    SweepPaths,
    Trial,
    read,
    write,
)
from launcher.sweeps.sampling import suggest

_POLL_S = 1.0
# What a trial that is hopeless, or whose sweep is stopped, gets to end in order.
_GRACE_S = 5.0


class Trials(Protocol):
    """How a trial becomes a job, and what is known of it."""

    def start(self, trial: Trial) -> str:
        """Start it and return its job's id. Raises LauncherError when it is refused."""

    def start_together(self, trials: Sequence[Trial]) -> dict[int, str]:
        """Start all as one array of their scheduler and return their jobs' ids; {} if it takes them one by one.

        Raises LauncherError when they are refused.
        """

    def resume(self, trial: Trial) -> None:
        """Go on with its job, which was stopped. Raises LauncherError when that cannot be."""

    def look(self, trial: Trial) -> tuple[str, Curve]:
        """Return its job's state, and the values of the metric so far."""

    def stop(self, trial: Trial) -> None:
        """Stop its job."""


class Runner:
    """Carries a sweep to its end. ``stopping`` is asked before each step of it."""

    def __init__(
        self, sweep: Sweep, trials: Trials, *, keep: Callable[[Sweep], None], stopping: Callable[[], bool]
    ) -> None:
        self.sweep, self._trials, self._keep, self._stopping = sweep, trials, keep, stopping
        self._curves: dict[int, Curve] = {}

    def run(self, sleep: Callable[[float], None] = time.sleep) -> Sweep:
        """Run all trials and return the sweep as it ended."""
        self._keep(self.sweep)
        self._look_back()
        if not self._stopping():
            self._start_together()
        while not self._stopping():
            self._look()
            self._start_some()
            if not self._running() and not self._waiting():
                return self._end(DONE)
            sleep(_POLL_S)
        for trial in self._running():
            self._stop(trial, STOPPED, "")
        return self._end(STOPPED)

    def _start_together(self) -> None:
        """Start the trials of a new sweep as one array where their scheduler has such."""
        trials = self.sweep.trials
        if self.sweep.sampler or any(trial.job_id or trial.state != WAITING for trial in trials):
            return
        try:
            for number, job_id in self._trials.start_together(trials).items():
                self._note(replace(trials[number - 1], job_id=job_id, state=jobs.PLANNED))
        except LauncherError as error:
            for trial in trials:
                self._note(replace(trial, state=REFUSED, note=error.message))

    def _look_back(self) -> None:
        """Learn what trials came to that have ended while another runner lived: running ones are compared with them."""
        running = {trial.number for trial in self._running()}
        for trial in self.sweep.trials:
            if trial.job_id and trial.number not in running:
                with contextlib.suppress(LauncherError):  # its job was removed since
                    self._curves[trial.number] = self._trials.look(trial)[1]

    def _end(self, state: str) -> Sweep:
        self.sweep = replace(self.sweep, state=state, runner=None)
        self._keep(self.sweep)
        return self.sweep

    def _running(self) -> list[Trial]:
        ended = (*jobs.FINAL_STATES, WAITING, PRUNED, REFUSED, STOPPED)
        return [trial for trial in self.sweep.trials if trial.state not in ended]

    def _waiting(self) -> list[Trial]:
        return [trial for trial in self.sweep.trials if trial.state in (WAITING, STOPPED)]

    def _note(self, trial: Trial) -> None:
        if trial != self.sweep.trials[trial.number - 1]:
            self.sweep = self.sweep.with_trial(trial)
            self._keep(self.sweep)

    def _look(self) -> None:
        """Take note of what running trials do, and stop those that are hopeless."""
        for trial in self._running():
            try:
                state, curve = self._trials.look(trial)
            except LauncherError as error:  # its job was removed
                self._note(replace(trial, state=jobs.LOST, note=error.message))
                continue
            self._curves[trial.number] = curve
            step = curve.steps[-1] if curve.steps else trial.step
            self._note(replace(trial, state=state, value=curve.value_at(), step=step))
        if self.sweep.prune:
            for trial in self._running():
                if why := hopeless(trial.number, self._curves):
                    self._stop(trial, PRUNED, why)

    def _stop(self, trial: Trial, state: str, why: str) -> None:
        try:
            self._trials.stop(trial)
        except LauncherError as error:  # it has ended by itself meanwhile, or cannot be reached
            with contextlib.suppress(LauncherError):
                found, curve = self._trials.look(trial)
                if found in jobs.FINAL_STATES:
                    self._note(replace(trial, state=found, value=curve.value_at()))
                    return
            why = f"{why}; {error.message}".lstrip("; ")
        self._note(replace(trial, state=state, note=why))

    def _start_some(self) -> None:
        for trial in self._waiting()[: max(0, self.sweep.parallel - len(self._running()))]:
            try:
                if trial.job_id:
                    self._trials.resume(trial)
                    self._note(replace(trial, state=jobs.PLANNED, note=""))
                else:
                    trial = self._with_settings(trial)
                    self._note(replace(trial, job_id=self._trials.start(trial), state=jobs.PLANNED))
            except LauncherError as error:
                self._note(replace(trial, state=REFUSED, note=error.message))

    def _with_settings(self, trial: Trial) -> Trial:
        """Return ``trial`` with settings, which a sampler chooses by what the trials before came to."""
        return (
            trial if trial.settings or not self.sweep.sampler else replace(trial, settings=suggest(self.sweep, trial))
        )


# ------------------------------------------------------------------------------------------------ jobs


@dataclass(frozen=True, kw_only=True)
class JobTrials:
    """Trials as jobs of ``jobs_dir``, submitted as ``sweep.asked`` says."""

    sweep: Sweep
    jobs_dir: Path

    def start(self, trial: Trial) -> str:
        prepared = prepare_trial(self.sweep, trial, self.jobs_dir)
        if not self.sweep.asked.get("no_preflight"):
            prepare.preflight(prepared.plan, port=None)
        started = start.begin(prepare.complete(prepared).plan)
        return started.paths.job_id

    def start_together(self, trials: Sequence[Trial]) -> dict[int, str]:
        if not registry.get(self.sweep.asked.get("scheduler", "local")).has_arrays:
            return {}
        prepared = [prepare_trial(self.sweep, trial, self.jobs_dir) for trial in trials]
        if not self.sweep.asked.get("no_preflight"):
            prepare.preflight(prepared[0].plan, port=None)
        plans = [prepare.complete(one).plan for one in prepared]
        folder = self.jobs_dir / "sweeps" / self.sweep.sweep_id
        start.begin_together(plans, folder, name=self.sweep.sweep_id, most=self.sweep.parallel)
        return {trial.number: plan.paths.job_id for trial, plan in zip(trials, plans, strict=True)}

    def resume(self, trial: Trial) -> None:
        start.begin_again(*self._job(trial))

    def look(self, trial: Trial) -> tuple[str, Curve]:
        paths, record = self._job(trial)
        history = read_history(paths, record)
        series = metric_of(self.sweep.metric).read(history)
        curve = Curve(
            metric=self.sweep.metric, goal=self.sweep.goal, steps=[int(step) for step in series.steps.tolist()],
            values=series.values.tolist(), total=planned_steps(paths) or 1,
        )  # fmt: skip
        return record.state, curve

    def stop(self, trial: Trial) -> None:
        stop.stop_job(*self._job(trial), save=False, grace_s=_GRACE_S)

    def _job(self, trial: Trial) -> tuple[JobPaths, JobRecord]:
        paths = JobPaths(root=self.jobs_dir / trial.job_id)
        record = read_record(paths)
        if record is None:
            return JobStore(self.jobs_dir).get(trial.job_id)  # raises and says why
        return paths.of_attempt(record.attempt), record


def prepare_trial(sweep: Sweep, trial: Trial, jobs_dir: Path) -> prepare.PreparedRun:
    """Return the prepared run of a trial. Raises LauncherError when its settings do not fit."""
    asked: Mapping[str, Any] = sweep.asked
    changes = [
        Override(keys=tuple(key.split(".")), value=value, origin=f"trial {trial.number}")
        for key, value in trial.settings.items()
    ]
    options = RunOptions(
        engine=asked.get("engine"), limits=Limits(**asked.get("limits", {})), wait_for_cards=asked.get("queue", False)
    )
    trial_note = f"trial {trial.number} of {sweep.sweep_id}"
    note = asked.get("note")
    return prepare.prepare(
        sweep.spec, cards=asked.get("cards"), checkpoint=asked.get("checkpoint"), port=None, jobs_dir=jobs_dir,
        sets=asked.get("sets", ()), changes=changes, model=asked.get("model"), data=asked.get("data"),
        options=options, scheduler=asked.get("scheduler", "local"), values=asked.get("values", {}),
        tags=[f"sweep-{sweep.sweep_id.split('-')[0]}", *asked.get("tags", ())],
        note=f"{trial_note}; {note}" if note else trial_note,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the process


def begin(paths: SweepPaths, sweep: Sweep) -> subprocess.Popen[bytes]:
    """Write the sweep and start its runner, in a session of its own; return the process."""
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.stop.unlink(missing_ok=True)
    # Until the runner writes itself in: a sweep whose submitter died at this point is lost.
    write(paths, replace(sweep, state=RUNNING, runner=ProcessId.current()))
    with paths.log.open("ab") as log:
        return subprocess.Popen(
            (sys.executable, "-m", "launcher.sweeps", str(paths.root)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=environment_of_ours(),
        )  # fmt: skip


def begin_again(paths: SweepPaths, sweep: Sweep) -> subprocess.Popen[bytes]:
    """Go on with a sweep that was stopped or is lost: trials that had not begun start, stopped ones are resumed."""
    trials = tuple(_to_go_on_with(trial) if sweep.state in (STOPPED, LOST) else trial for trial in sweep.trials)
    return begin(paths, replace(sweep, trials=trials))


def _to_go_on_with(trial: Trial) -> Trial:
    """Return the trial as the runner takes it up: it looks at jobs that run, or have ended, while no runner lived."""
    if trial.state == REFUSED:
        return replace(trial, state=WAITING, note="")
    return replace(trial, state=STOPPED) if trial.state == jobs.CANCELLED else trial


def run(root: Path) -> None:
    """Run the sweep in ``root`` to its end: the program of the runner's process."""
    paths = SweepPaths(root=root)
    asked_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: asked_to_stop.append(signum))
    sweep = replace(read(paths), state=RUNNING, runner=ProcessId.current())
    runner = Runner(
        sweep,
        JobTrials(sweep=sweep, jobs_dir=paths.jobs_dir),
        keep=lambda found: write(paths, found),
        stopping=lambda: bool(asked_to_stop) or paths.stop.exists() or not paths.record.exists(),
    )
    runner.run(_reaping)


def _reaping(seconds: float) -> None:
    """Sleep, and collect guards of jobs that have ended: they are this process's children."""
    time.sleep(seconds)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
