"""Sweeps with an engine that finishes a step of every trial at each look: 50 trials take no time."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher import jobs
from launcher.cli import main
from launcher.common.processes import ProcessId
from launcher.errors import HostError, JobError, SpecError
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
    all_paths,
    find,
    new_paths,
    read,
    write,
)
from launcher.sweeps.runner import Runner, prepare_trial

STEPS = 20


@dataclass
class FastEngine:
    """``losses``: where each trial's loss goes to; a trial fails at the step that ``fails`` gives, or is refused."""

    losses: dict[int, float]
    fails: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)
    stopped: list[int] = field(default_factory=list)
    most_at_once: int = 0
    array: bool = False

    def start(self, trial: Trial) -> str:
        if trial.number in self.refused:
            raise HostError("no room on this host")
        self.done[trial.number] = 0
        return f"job{trial.number}"

    def start_together(self, trials: Sequence[Trial]) -> dict[int, str]:
        if self.array and self.refused:
            raise HostError("sbatch refused the job")
        return {trial.number: self.start(trial) for trial in trials} if self.array else {}

    def resume(self, trial: Trial) -> None:
        self.stopped.remove(trial.number)

    def look(self, trial: Trial) -> tuple[str, Curve]:
        number = trial.number
        alive = [n for n, step in self.done.items() if step < self._last(n) and n not in self.stopped]
        self.most_at_once = max(self.most_at_once, len(alive))
        if number not in self.stopped:
            self.done[number] = min(self.done[number] + 1, self._last(number))
        steps = range(1, self.done[number] + 1)
        values = [self.losses[number] + 10 / step for step in steps]
        return self._state(number), Curve(metric="loss", goal="min", steps=list(steps), values=values, total=STEPS)

    def _last(self, number: int) -> int:
        return self.fails.get(number, STEPS)

    def _state(self, number: int) -> str:
        if number in self.stopped:
            return jobs.CANCELLED
        if self.done[number] < self._last(number):
            return jobs.RUNNING
        return jobs.FAILED if number in self.fails else jobs.SUCCEEDED

    def stop(self, trial: Trial) -> None:
        if self.done[trial.number] >= self._last(trial.number):
            raise JobError("it is not running")
        self.stopped.append(trial.number)


def sweep_of(count: int, *, parallel: int = 4, prune: bool = True) -> Sweep:
    trials = tuple(Trial(number=number, settings={"lora.r": number}) for number in range(1, count + 1))
    return Sweep(
        sweep_id="bcdfg-x", created="2026-01-01", spec="x", metric="loss", goal="min", parallel=parallel, prune=prune,
        trials=trials,
    )  # fmt: skip


def run(sweep: Sweep, engine: FastEngine, *, looks: float = math.inf) -> tuple[Sweep, list[Sweep]]:
    kept: list[Sweep] = []
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return asked > looks

    return Runner(sweep, engine, keep=kept.append, stopping=stopping).run(lambda _seconds: None), kept


def test_an_array_is_handed_over_whole_and_only_once() -> None:
    engine = FastEngine(losses=dict.fromkeys(range(1, 7), 1.0), array=True)
    ended, kept = run(sweep_of(6, parallel=2, prune=False), engine)
    assert {trial.state for trial in ended.trials} == {jobs.SUCCEEDED}
    assert engine.most_at_once == 6  # how many run at a time is up to the scheduler
    assert all(trial.job_id for trial in kept[6].trials)
    again, _ = run(ended, engine)
    assert again.trials == ended.trials
    refused, _ = run(sweep_of(3), FastEngine(losses={}, array=True, refused={2}))
    assert [(trial.state, trial.note) for trial in refused.trials] == [(REFUSED, "sbatch refused the job")] * 3


def test_fifty_trials_find_the_best_and_stop_half_of_the_others() -> None:
    losses: dict[int, float] = {
        number: loss for number, loss in enumerate(random.Random(1).sample(range(50), 50), start=1)
    }
    engine = FastEngine(losses=losses, fails={7: 3}, refused={11})
    ended, _ = run(sweep_of(50), engine)
    states = {trial.number: trial.state for trial in ended.trials}

    assert ended.state == DONE
    assert ended.best is not None
    assert losses[ended.best.number] == 0
    assert (states.pop(7), states.pop(11)) == (jobs.FAILED, REFUSED)
    assert set(states.values()) == {jobs.SUCCEEDED, PRUNED}
    pruned = [number for number, state in states.items() if state == PRUNED]
    assert 15 <= len(pruned) <= 40
    kept = [number for number, state in states.items() if state == jobs.SUCCEEDED]
    assert statistics.median(losses[number] for number in pruned) > 2 * statistics.median(losses[n] for n in kept)
    assert engine.most_at_once <= 4
    assert sum(engine.done.values()) < 0.75 * 50 * STEPS
    assert ended.trials[10].note == "no room on this host"
    assert "is worse than the median" in ended.trials[pruned[0] - 1].note


def test_nothing_is_pruned_when_it_is_not_to_be() -> None:
    ended, _ = run(sweep_of(8, prune=False), FastEngine(losses={number: number for number in range(1, 9)}))
    assert {trial.state for trial in ended.trials} == {jobs.SUCCEEDED}
    assert ended.trials[0].value == pytest.approx(1 + (10 / 19 + 10 / 20) / 2)  # the mean of a tenth of the steps
    assert [trial.step for trial in ended.trials] == [STEPS] * 8


def test_a_sweep_that_is_stopped_goes_on_where_it_was() -> None:
    engine = FastEngine(losses={number: number for number in range(1, 7)})
    stopped, _ = run(sweep_of(6, parallel=2), engine, looks=10)
    assert stopped.state == STOPPED
    assert [trial.state for trial in stopped.trials] == [STOPPED] * 2 + [WAITING] * 4
    assert engine.stopped == [1, 2]

    ended, _ = run(replace(stopped, state=RUNNING), engine)
    assert ended.state == DONE
    assert ended.best is not None
    assert ended.best.number == 1
    assert engine.stopped == [trial.number for trial in ended.trials if trial.state == PRUNED]


def test_trials_that_ended_while_no_runner_lived_are_looked_at() -> None:
    """A runner that was killed left trial 1 running; it has ended since, and its job is not begun again."""
    engine = FastEngine(losses={1: 1.0, 2: 2.0}, done={1: STEPS})
    left = sweep_of(2, parallel=1).with_trial(
        Trial(number=1, settings={"lora.r": 1}, job_id="job1", state=jobs.RUNNING)
    )
    ended, kept = run(left, engine)
    assert [trial.state for trial in ended.trials] == [jobs.SUCCEEDED] * 2
    assert kept[1].trials[0].state == jobs.SUCCEEDED


def test_a_sweep_that_is_to_stop_starts_no_array() -> None:
    engine = FastEngine(losses=dict.fromkeys(range(1, 4), 1.0), array=True)
    ended, _ = run(sweep_of(3), engine, looks=0)
    assert (ended.state, engine.done) == (STOPPED, {})
    assert {trial.state for trial in ended.trials} == {WAITING}


def test_trials_that_ended_before_a_resume_are_still_compared_with() -> None:
    losses = dict.fromkeys(range(1, 4), 1.0) | {4: 50.0}
    engine = FastEngine(losses=losses, done=dict.fromkeys(range(1, 4), STEPS))
    sweep = sweep_of(4)
    for number in range(1, 4):
        done = Trial(number=number, settings={"lora.r": number}, job_id=f"job{number}", state=jobs.SUCCEEDED)
        sweep = sweep.with_trial(done)
    ended, _ = run(sweep, engine)
    assert ended.trials[3].state == PRUNED


def test_a_job_that_is_removed_while_it_runs_stops_no_other_trial() -> None:
    class Removing(FastEngine):
        def look(self, trial: Trial) -> tuple[str, Curve]:
            if trial.number == 1:
                raise JobError("no job 'job1'")
            return super().look(trial)

        def stop(self, trial: Trial) -> None:
            if trial.number == 1:
                raise JobError("no job 'job1'")
            super().stop(trial)

    losses = dict.fromkeys(range(1, 4), 1.0)
    left = sweep_of(2).with_trial(Trial(number=1, settings={"lora.r": 1}, job_id="job1", state=jobs.RUNNING))
    stopped, _ = run(left, Removing(losses=losses), looks=0)
    assert (stopped.state, stopped.trials[0].note) == (STOPPED, "no job 'job1'")
    ended, _ = run(sweep_of(3, parallel=1, prune=False), Removing(losses=losses))
    assert ended.state == DONE
    assert [(trial.state, trial.note) for trial in ended.trials] == [
        (jobs.LOST, "no job 'job1'"), (jobs.SUCCEEDED, ""), (jobs.SUCCEEDED, ""),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ the median rule


def curve(*values: float, goal: str = "min", metric: str = "loss", total: int = 5) -> Curve:
    return Curve(metric=metric, goal=goal, steps=range(1, len(values) + 1), values=values, total=total)


def test_the_median_rule_compares_at_the_same_step() -> None:
    others = {2: curve(9, 3, 1, 1, 1), 3: curve(9, 4, 1, 1, 1), 4: curve(9, 5, 1, 1, 1)}
    assert hopeless(1, {1: curve(9, 4), **others}) == ""
    assert hopeless(1, {1: curve(9, 4.5), **others}) == (
        "its loss 4.5 at step 2 is worse than the median 4 of 3 trials"
    )
    assert hopeless(1, {1: curve(9, 4.5), 2: others[2], 3: others[3]}) == ""  # two others say nothing
    assert hopeless(1, {1: curve(9, 4.5), **others, 4: curve(9)}) == ""  # the third has not come so far
    assert hopeless(1, {1: curve(20, total=50), **others}) == ""  # the first steps warm up
    assert hopeless(1, {1: curve(9, math.nan)}) == "its loss is no finite number"
    assert hopeless(1, {1: curve()}) == ""
    best = {number: curve(1, 1, number, goal="max") for number in (2, 3, 4)}
    assert hopeless(1, {1: curve(1, 1, 2.9, goal="max"), **best}).startswith("its loss 2.9 at step 3")
    assert hopeless(1, {1: curve(1, 1, 3.1, goal="max"), **best}) == ""


def test_of_held_out_losses_the_best_counts() -> None:
    assert curve(3, 1, 2, metric="eval-loss").value_at() == 1
    assert curve(3, 1, 2, metric="eval-loss").value_at(1) == 3
    assert curve(3, 1, 2).value_at() == 2
    assert curve(math.nan).value_at() is None


# ------------------------------------------------------------------------------------------------ the record


def test_trials_have_the_tags_and_the_note_that_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"cards": 1, "sets": ["data.sample={size: 64, seed: 1}"]}
    sweep = replace(sweep_of(1), sweep_id="bcdfg-x", spec="tiny_cpu", asked=asked)
    labelled = replace(sweep, asked={**asked, "tags": ["rank"], "note": "before the talk"})

    runs = [prepare_trial(one, one.trials[0], tmp_path) for one in (sweep, labelled)]
    found = [json.loads(file.text) for run in runs for file in run.own if file.path == "labels.json"]

    assert [labels["tags"] for labels in found] == [["sweep-bcdfg"], ["sweep-bcdfg", "rank"]]
    assert [labels["note"] for labels in found] == ["trial 1 of bcdfg-x", "trial 1 of bcdfg-x; before the talk"]


def test_the_best_trial_whose_job_was_removed_is_said_with_its_settings(tmp_path: Path) -> None:
    paths = new_paths(tmp_path, "x")
    done = Trial(number=1, settings={"lora.r": 4}, job_id="bcdfg-x", state="succeeded", value=1.0)
    write(paths, replace(sweep_of(1), sweep_id=paths.root.name, spec="tiny_cpu", state=DONE, trials=(done,)))

    result = CliRunner().invoke(main, ["sweep", "best", "--jobs-dir", str(tmp_path)])

    assert result.exit_code == 6
    assert "its job bcdfg-x was removed" in result.output
    assert "launcher submit tiny_cpu --set lora.r=4 trains it again" in result.output


def test_a_sweep_is_written_found_and_lost(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there are no sweeps in"):
        find("last", tmp_path)
    paths = new_paths(tmp_path, "x")
    sweep = replace(sweep_of(2), sweep_id=paths.root.name, runner=ProcessId.current())
    write(paths, sweep)

    assert read(paths) == sweep
    assert find("last", tmp_path) == find(paths.root.name[:3], tmp_path) == paths
    assert paths.jobs_dir == tmp_path
    write(paths, replace(sweep, runner=ProcessId(pid=2**22, started=0.0)))
    assert read(paths).state == LOST
    other = SweepPaths(root=tmp_path / "sweeps" / f"{paths.root.name[:2]}zzz-y")
    write(other, replace(sweep, created="2026-01-02"))
    assert all_paths(tmp_path) == [paths, other]
    with pytest.raises(JobError, match="fits 2 sweeps"):
        find(paths.root.name[:2], tmp_path)
    for damaged in ("{", "[]", "[" * 100_000, json.dumps({"runner": "x", "trials": []}), json.dumps({"trials": [1]})):
        paths.record.write_text(damaged)
        with pytest.raises(JobError, match="missing or damaged"):
            read(paths)
    written = json.loads(sweep.to_json())
    paths.record.write_text(json.dumps({**written, "new": 1, "trials": [{**written["trials"][0], "new": 1}]}))
    assert read(paths).trials == sweep.trials[:1]  # versions share a folder


def test_settings_that_do_not_fit_are_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.sweeps.planning import plan_sweep

    monkeypatch.chdir(tmp_path)
    small = {"cards": 1, "sets": ["data.sample={size: 64, seed: 1}"]}
    with pytest.raises(SpecError, match=r"trial 2: .*lora.r"):
        plan_sweep("tiny_cpu", jobs_dir=tmp_path / "jobs", asked=small, grid=["lora.r=4,-1"])
    with pytest.raises(SpecError, match="the run evaluates nothing"):
        plan_sweep("tiny_cpu", jobs_dir=tmp_path / "jobs", asked=small, grid=["lora.r=4"], metric="eval_loss")
    assert not (tmp_path / "jobs").exists()
    _, sweep = plan_sweep("tiny_cpu", jobs_dir=tmp_path / "jobs", asked=small, grid=["lora.r=4,8"], metric="mfu")
    assert (sweep.metric, sweep.goal, sweep.asked["queue"]) == ("mfu", "max", True)
    assert [trial.settings for trial in sweep.trials] == [{"lora.r": 4}, {"lora.r": 8}]
