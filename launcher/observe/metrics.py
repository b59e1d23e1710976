"""The metrics of a job: what each is, its unit, and how it follows from what the ranks reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from launcher.common.nearest import name_hint
from launcher.errors import SpecError
from launcher.observe.columns import Floats
from launcher.observe.flops import PEAKS, flops_per_step
from launcher.observe.history import History, Series, highest, mean, total, value_at


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric. ``note``: how it is folded over ranks. ``unit``: "" for a bare number."""

    key: str
    title: str
    unit: str
    note: str
    read: Callable[[History], Series]

    @property
    def is_of_time(self) -> bool:
        """Return True if the first step of an attempt, which compiles, is unlike all others."""
        return self.key in ("step-time", "tokens-per-second", "samples-per-second", "mfu")

    def curve_of(self, history: History) -> Series:
        """Return the values to draw: those of time without the first step of each attempt, where there are others."""
        series = self.read(history)
        first = history.first_steps if self.is_of_time else np.zeros(len(series.values), bool)
        if not first.any() or first.all():
            return series
        return replace(series, values=np.where(first, math.nan, series.values))


def tokens_per_step(history: History) -> int | None:
    """Return the tokens of a step, padding included, over all ranks; None where spec or plan do not say."""
    rows, length = rows_per_step(history), value_at(history.spec, "model", "seq_length")
    return rows * length if rows is not None and isinstance(length, int) else None


def rows_per_step(history: History) -> int | None:
    rows = history.plan.get("global_batch")
    return rows if isinstance(rows, int) else None


def peak_flops(history: History) -> float | None:
    """Return what all cards of the job can do a second; None where no figure is known, and on CPU."""
    peak = PEAKS.get(str(history.plan.get("kind"))) if history.record.target == "Ascend" else None
    return None if peak is None else peak.tera * 1e12 * history.record.cards


def step_flops(history: History) -> float | None:
    """Return the floating-point operations of a step by formula (``observe.flops``)."""
    rows = rows_per_step(history)
    return None if rows is None else flops_per_step(history.spec, rows)


def _loss(history: History) -> Series:
    return history.series("loss", mean, spread=not history.semi_auto)


def _held_out(history: History) -> Series:
    found = history.held_out
    return Series(steps=np.array([one.step for one in found], float), values=np.array([one.loss for one in found]))


def _perplexity(history: History) -> Series:
    losses = _held_out(history)
    return Series(steps=losses.steps, values=np.exp(np.minimum(losses.values, 700.0)))


def _step_s(history: History) -> Series:
    return history.series("step_s", highest)


def _per_second(amount: float | None, history: History) -> Series:
    seconds = _step_s(history)
    values = np.full(len(seconds.values), math.nan)
    if amount is not None:
        np.divide(amount, seconds.values, out=values, where=seconds.values > 0)
    return Series(steps=seconds.steps, values=values)


def _mfu(history: History) -> Series:
    flops, peak = step_flops(history), peak_flops(history)
    return _per_second(None if flops is None or peak is None else 100.0 * flops / peak, history)


def _loss_tokens(history: History) -> Series:
    return history.series("tokens", mean if history.semi_auto else total)


METRICS = {
    metric.key: metric
    for metric in (
        Metric(key="loss", title="Loss", unit="", note="mean over ranks, as the gradients are", read=_loss),
        Metric(key="eval-loss", title="Held-out loss", unit="", note="mean over held-out tokens", read=_held_out),
        Metric(key="perplexity", title="Held-out perplexity", unit="", note="e to the held-out loss", read=_perplexity),
        Metric(key="learning-rate", title="Learning rate", unit="", note="",
               read=lambda history: history.series("lr", mean)),
        Metric(key="grad-norm", title="Gradient norm", unit="", note="before clipping",
               read=lambda history: history.series("grad_norm", mean)),
        Metric(key="loss-scale", title="Loss scale", unit="", note="",
               read=lambda history: history.series("loss_scale", highest)),
        Metric(key="overflow", title="Overflow", unit="", note="1 where gradients overflowed and the step was left out",
               read=lambda history: history.series("overflow", highest)),
        Metric(key="step-time", title="Step time", unit="s", note="of the slowest rank", read=_step_s),
        Metric(key="tokens-per-second", title="Throughput", unit="tokens/s", note="all ranks, padding included",
               read=lambda history: _per_second(tokens_per_step(history), history)),
        Metric(key="samples-per-second", title="Row throughput", unit="rows/s", note="all ranks",
               read=lambda history: _per_second(rows_per_step(history), history)),
        Metric(key="mfu", title="Model FLOPs utilization", unit="%", note="of the cards' peak", read=_mfu),
        Metric(key="loss-tokens", title="Tokens in the loss", unit="tokens", note="all ranks, a step",
               read=_loss_tokens),
        Metric(key="memory", title="Peak memory", unit="MiB", note="of the fullest rank",
               read=lambda history: history.series("memory_mib", highest)),
        Metric(key="input-wait", title="Input wait", unit="s", note="of the rank that waits longest for its rows",
               read=lambda history: history.series("input_s", highest)),
    )
}  # fmt: skip


def metric_of(key: str) -> Metric:
    """Return the metric ``key``. Raises SpecError, with the nearest name, for another."""
    if key in METRICS:
        return METRICS[key]
    hint = name_hint(key, METRICS, f"metrics: {', '.join(METRICS)}")
    raise SpecError(f"there is no metric {key!r}", hint=hint)


def nothing_of(metric: Metric, history: History) -> str:
    """Say why a job has no values of ``metric``."""
    if not len(history.steps):
        return "no step is finished yet"
    if metric.key in ("eval-loss", "perplexity"):
        if value_at(history.spec, "evaluation"):
            return "no evaluation was due: evaluation.every_steps in the run spec is more than the steps that are done"
        return "no held-out rows were evaluated: evaluation.data or .fraction in the run spec names some"
    if metric.key == "grad-norm":
        return "MindFormers computes it where gradients are clipped: training.max_grad_norm in the run spec"
    if metric.key == "mfu":
        return "no peak figure is known of these devices" if step_flops(history) else "spec.json is of another version"
    if metric.key in ("loss-tokens", "input-wait"):
        return "its ranks do not report it (runtime.sink_mode on, or an earlier version of launcher)"
    return "its ranks do not report it"


def usual_step_s(history: History) -> float | None:
    """Return the median time of a step of the slowest rank, the first of each attempt aside: it compiles."""
    seconds = METRICS["step-time"].read(history).values
    first = history.first_steps
    return median(seconds[~first]) if (~first).any() else median(seconds)


def median(values: Floats) -> float | None:
    """Return the median of the values that are known; None for none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None
