"""Deciding what a sweep tries, before anything is started; and asking it to stop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.errors import JobError, SpecError
from launcher.observe.metrics import metric_of
from launcher.runspec.reading import find_spec
from launcher.sweeps.record import LOST, MAX, MIN, RUNNING, Sweep, SweepPaths, Trial, new_paths, read, write
from launcher.sweeps.runner import JobTrials, Runner, prepare_trial
from launcher.sweeps.sampling import check_installed
from launcher.sweeps.space import all_settings, axes_to_json, parse_axes

# Of the metrics that a run reports, those of which more is better.
_MORE_IS_BETTER = ("tokens-per-second", "samples-per-second", "mfu")

# Trials that run are stopped one after another, each within its grace.
_STOP_S = 60.0
_POLL_S = 0.2


def plan_sweep(
    spec: str | None,
    *,
    jobs_dir: Path,
    asked: Mapping[str, Any],
    grid: Sequence[str],
    count: int | None = None,
    seed: int = 0,
    parallel: int = 1,
    metric: str | None = None,
    goal: str | None = None,
    prune: bool = True,
    sampler: str = "",
) -> tuple[SweepPaths, Sweep]:
    """Return the sweep and where it will be; nothing is written. Every trial's settings are checked.

    ``sampler``: what chooses the settings of each of ``count`` trials when it begins; as many are drawn and checked.

    Raises SpecError for a grid, a sampler or a metric that there is not; what a trial's run would raise, of the first
    that does.
    """
    if spec is not None:
        find_spec(spec)  # first: it may be a misspelt command
    axes = parse_axes(grid)
    settings = all_settings(axes, count=count, seed=seed)
    if sampler:
        check_sampler(count)
    trials = tuple(Trial(number=number, settings=values) for number, values in enumerate(settings, start=1))
    sweep = Sweep(
        sweep_id="new", created=jobs.now(), spec=spec, metric="loss", goal=MIN, parallel=parallel, prune=prune,
        trials=trials, asked=asked,
    )  # fmt: skip
    runs = [prepare_trial(sweep, trial, jobs_dir) for trial in trials]
    evaluates = runs[0].plan.spec.evaluation is not None
    chosen = metric_of((metric or ("eval-loss" if evaluates else "loss")).replace("_", "-")).key
    if chosen in ("eval-loss", "perplexity") and not evaluates:
        raise SpecError(f"--metric {chosen}: the run evaluates nothing", hint="--set evaluation.fraction=0.1")
    better = goal or (MAX if chosen in _MORE_IS_BETTER else MIN)
    if sampler:
        blank = tuple(replace(trial, settings={}) for trial in trials)
        sweep = replace(sweep, trials=blank, sampler=sampler, seed=seed, axes=axes_to_json(axes))
    paths = new_paths(jobs_dir, runs[0].plan.spec.name)
    # Queued jobs of the CPU run one by one; of cards each takes its own.
    queue = parallel == 1 or runs[0].plan.cluster.target != "CPU"
    return paths, replace(sweep, sweep_id=paths.root.name, metric=chosen, goal=better, asked={**asked, "queue": queue})


def check_sampler(count: int | None) -> None:
    """Raise SpecError when a sampler has no number of trials, or is not installed."""
    if count is None:
        raise SpecError("--sampler chooses settings for a number of trials", hint="add --random N")
    check_installed()


def stop_sweep(paths: SweepPaths) -> Sweep:
    """Ask the runner to stop its trials and itself, and return the sweep when it has; stop them here if it is gone.

    Raises JobError when the sweep does not run, or does not stop in time.
    """
    sweep = read(paths)
    if sweep.state not in (RUNNING, LOST):
        raise JobError(f"sweep {sweep.sweep_id} is not running: {sweep.state}", hint="launcher sweep status")
    if sweep.state == LOST:
        return _stop_here(paths, sweep)
    paths.stop.touch()
    deadline = time.monotonic() + _STOP_S * max(1, sweep.parallel)
    while time.monotonic() < deadline:
        sweep = read(paths)
        if sweep.state != RUNNING:
            return sweep if sweep.state != LOST else _stop_here(paths, sweep)
        time.sleep(_POLL_S)
    raise JobError(f"sweep {sweep.sweep_id} has not stopped yet", hint=f"launcher sweep status; {paths.log}")


def _stop_here(paths: SweepPaths, sweep: Sweep) -> Sweep:
    """Stop the jobs of a sweep whose runner is gone."""
    runner = Runner(
        sweep, JobTrials(sweep=sweep, jobs_dir=paths.jobs_dir), keep=lambda found: write(paths, found),
        stopping=lambda: True,
    )  # fmt: skip
    return runner.run()
