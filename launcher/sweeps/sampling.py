"""Settings of the next trial by what earlier ones came to: Optuna's tree-structured Parzen estimator.

Bergstra and others, NeurIPS 2011; Watanabe, arXiv:2304.11127. The study is made anew from the sweep's record for each
trial, so that a sweep which is resumed goes on as if it had not been stopped.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

from launcher import jobs
from launcher.errors import SpecError
from launcher.sweeps.record import MAX, PRUNED, REFUSED, Sweep, Trial
from launcher.sweeps.space import Axis, Range, axes_from_json

TPE = "tpe"
# Of a space with few different settings the estimator may ask for one that was tried.
_MOST_ASKED = 20


def check_installed() -> None:
    """Raise SpecError when Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise SpecError(f"--sampler {TPE} needs Optuna, which is not installed", hint="pip install 'launcher[optuna]'")


def suggest(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """Return the settings for ``trial``: new ones, unless none were found that have not been tried."""
    check_installed()
    axes = axes_from_json(sweep.axes)
    tried = [one.settings for one in sweep.trials if one.settings]
    found: dict[str, Any] = {}
    for again in range(_MOST_ASKED):
        found = _asked(sweep, axes, seed=sweep.seed + trial.number + again * len(sweep.trials))
        if found not in tried:
            break
    return found


def _asked(sweep: Sweep, axes: Mapping[str, Axis], *, seed: int) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Trials that run count as bad ones: several at a time do not try the same.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(direction="maximize" if sweep.goal == MAX else "minimize", sampler=sampler)
    space = {key: _distribution(axis) for key, axis in axes.items()}
    study.add_trials([_told(one, axes, space) for one in sweep.trials if one.settings])
    return {key: _value(axes[key], number) for key, number in study.ask(space).params.items()}


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, Range):
        # By place: values may be lists, which Optuna does not take.
        return CategoricalDistribution(tuple(range(len(axis))))
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return IntDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _value(axis: Axis, number: Any) -> Any:
    """Return the value that Optuna's ``number`` stands for."""
    return axis.rounded(number) if isinstance(axis, Range) else axis[number]


def _told(trial: Trial, axes: Mapping[str, Axis], space: Mapping[str, Any]) -> Any:
    """Return a trial of the sweep as one of Optuna's."""
    import optuna

    state = _state(trial)
    is_complete = state == optuna.trial.TrialState.COMPLETE
    pruned = {trial.step or 1: trial.value} if trial.state == PRUNED and trial.value is not None else {}
    return optuna.trial.create_trial(
        state=state, value=trial.value if is_complete else None, intermediate_values=pruned,
        params={key: _number(axes[key], value) for key, value in trial.settings.items()}, distributions=dict(space),
    )  # fmt: skip


def _number(axis: Axis, value: Any) -> Any:
    return value if isinstance(axis, Range) else list(axis).index(value)


def _state(trial: Trial) -> Any:
    from optuna.trial import TrialState

    if trial.state == PRUNED:
        return TrialState.PRUNED
    if trial.state == jobs.SUCCEEDED and trial.value is not None:
        return TrialState.COMPLETE
    return TrialState.FAIL if trial.state in (*jobs.FINAL_STATES, REFUSED) else TrialState.RUNNING
