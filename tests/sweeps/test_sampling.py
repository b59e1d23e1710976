"""Settings chosen by what earlier trials came to: ``--sampler tpe``, by Optuna where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest

from launcher import jobs
from launcher.errors import SpecError
from launcher.sweeps.page import make_page
from launcher.sweeps.planning import check_sampler
from launcher.sweeps.pruning import Curve
from launcher.sweeps.record import PRUNED, Sweep, Trial
from launcher.sweeps.runner import Runner
from launcher.sweeps.sampling import TPE, suggest
from launcher.sweeps.space import Range, axes_from_json, axes_to_json, parse_axes

INSTALLED = importlib.util.find_spec("optuna") is not None
needs_optuna = pytest.mark.skipif(not INSTALLED, reason="no Optuna: pip install 'launcher[optuna]'")
GRID = ["rate=log 1e-6..1e-1", "r=2..64", "targets=[q],[q,k],[q,k,v]", "scale=0.5..2.0"]


def loss(settings: Any) -> float:
    """Lowest at a rate of 1e-3, r 32 and all targets."""
    return float(abs(math.log10(settings["rate"]) + 3) + abs(settings["r"] - 32) / 32 + 3 - len(settings["targets"]))


@dataclass
class Instant:
    """Trials that end at their first look."""

    started: list[Trial] = field(default_factory=list)

    def start(self, trial: Trial) -> str:
        self.started.append(trial)
        return f"job{trial.number}"

    def start_together(self, trials: Sequence[Trial]) -> dict[int, str]:
        raise AssertionError("settings are not known yet")

    def look(self, trial: Trial) -> tuple[str, Curve]:
        return jobs.SUCCEEDED, Curve(metric="loss", goal="min", steps=[1], values=[loss(trial.settings)], total=1)

    def resume(self, trial: Trial) -> None:
        raise AssertionError

    def stop(self, trial: Trial) -> None:
        raise AssertionError


def sweep_of(count: int, *, parallel: int = 1, grid: Sequence[str] = GRID, seed: int = 3) -> Sweep:
    return Sweep(
        sweep_id="bcdfg-x", created="2026-01-01", spec="x", metric="loss", goal="min", parallel=parallel, prune=False,
        trials=tuple(Trial(number=number, settings={}) for number in range(1, count + 1)), sampler=TPE, seed=seed,
        axes=json.loads(json.dumps(axes_to_json(parse_axes(grid)))),
    )  # fmt: skip


def ended(sweep: Sweep) -> Sweep:
    return Runner(sweep, Instant(), keep=lambda _: None, stopping=lambda: False).run(lambda _: None)


@needs_optuna
def test_later_trials_are_better_than_the_first_ones_which_are_drawn() -> None:
    found = ended(sweep_of(40, parallel=2))
    values = [float(trial.value or 0.0) for trial in found.trials]
    assert statistics.median(values[-15:]) < 0.6 * statistics.median(values[:10])
    for trial in found.trials:
        assert 1e-6 <= trial.settings["rate"] <= 1e-1
        assert isinstance(trial.settings["r"], int)
        assert 2 <= trial.settings["r"] <= 64
        assert trial.settings["targets"] in (["q"], ["q", "k"], ["q", "k", "v"])


@needs_optuna
def test_a_sweep_that_goes_on_chooses_as_one_that_was_not_stopped() -> None:
    whole = ended(sweep_of(14))
    half = replace(whole, trials=(*whole.trials[:7], *(Trial(number=n, settings={}) for n in range(8, 15))))
    again = ended(Sweep(**{**asdict(half), "trials": half.trials, "state": "running"}))
    assert [trial.settings for trial in again.trials] == [trial.settings for trial in whole.trials]


@needs_optuna
def test_failed_pruned_and_running_trials_are_told_of_too() -> None:
    settings = {"rate": 1e-3, "r": 8, "targets": ["q"], "scale": 1.0}
    states = (jobs.FAILED, PRUNED, jobs.RUNNING, "refused", jobs.SUCCEEDED)
    told = [
        Trial(number=number, settings={**settings, "r": 8 + number}, state=state, value=1.0, step=3)
        for number, state in enumerate(states, 1)
    ]
    sweep = replace(sweep_of(6), trials=(*told, Trial(number=6, settings={})), goal="max")
    assert set(suggest(sweep, sweep.trials[-1])) == set(settings)


@needs_optuna
def test_of_few_settings_none_is_tried_twice() -> None:
    found = ended(sweep_of(4, grid=["rate=1e-3,1e-2", "r=8", "targets=[q],[q,k]"]))
    assert len({str(trial.settings) for trial in found.trials}) == 4


@pytest.mark.skipif(INSTALLED, reason="Optuna is installed")
def test_without_optuna_it_is_said_how_to_get_it() -> None:
    with pytest.raises(SpecError, match="Optuna") as caught:
        check_sampler(4)
    assert caught.value.hint == "pip install 'launcher[optuna]'"


def test_it_needs_a_number_of_trials() -> None:
    with pytest.raises(SpecError, match="a number of trials"):
        check_sampler(None)


def test_a_page_of_trials_without_settings() -> None:
    sweep = sweep_of(3)
    first = replace(sweep.trials[0], settings={"rate": 1e-3, "r": 8, "targets": ["q"], "scale": 1.0}, value=2.0)
    page = make_page(replace(sweep, trials=(first, *sweep.trials[1:])), "en", now=lambda: 0.0)
    assert page.count("<polyline") == 3
    assert page.count("<td></td>") >= 8


def test_ranges_are_kept_as_they_were_given() -> None:
    axes = parse_axes(GRID)
    assert axes_from_json(json.loads(json.dumps(axes_to_json(axes)))) == axes


@pytest.mark.parametrize(
    ("axis", "value", "short"),
    [
        (Range(low=1.2345e-5, high=1.0, log=True), 1.2345e-5, 1.2345e-5),
        (Range(low=1e-5, high=1e-3, log=True), 3.14159e-4, 3.14e-4),
        (Range(low=4, high=64, log=True), 17.4, 17),
    ],
)
def test_numbers_have_three_digits_within_their_range(axis: Range, value: float, short: float) -> None:
    assert axis.rounded(value) == short
    assert type(axis.rounded(value)) is type(short)
