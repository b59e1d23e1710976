"""The figures of a job that people ask for first."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from launcher.common.clock import seconds_text
from launcher.jobs import stage_of
from launcher.observe import facts
from launcher.observe.goodput import Goodput, goodput
from launcher.observe.history import HeldOut, History, value_at
from launcher.observe.host_signs import Sign, host_signs, read_samples
from launcher.observe.metrics import METRICS, median, peak_flops, step_flops, tokens_per_step, usual_step_s
from launcher.observe.stragglers import Place, Stragglers, find_stragglers, timeline
from launcher.observe.words import Say

_RECENT = 20


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of a job; None where nothing is known, as of ``redone_steps`` while an attempt starts.

    ``lowest_loss``: of a step. ``step_s``: the usual time of a step, the median. ``goodput``: where the time went.
    ``left_s``: until the last step, by the newest steps. ``tokens``: seen in training, padding included;
    ``loss_tokens``: those in the loss. ``bad_steps``: steps with a loss that is no finite number; ``overflows``:
    steps whose gradients overflowed. ``stragglers``: who holds the others up, of the newest attempt that has steps.
    """

    done_steps: int
    total_steps: int | None
    first_loss: float | None
    last_loss: float | None
    lowest_loss: float | None
    last_held_out: HeldOut | None
    best_held_out: HeldOut | None
    tokens: int | None
    loss_tokens: int | None
    step_s: float | None
    tokens_per_s: float | None
    flops_per_step: float | None
    mfu: float | None
    memory_mib: float | None
    attempts: int
    redone_steps: int | None
    goodput: Goodput
    left_s: float | None
    bad_steps: int
    overflows: int
    stragglers: Stragglers

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, which has no NaN and no infinity."""
        return {
            key: _plain(getattr(self, key).to_dict() if key in ("goodput", "stragglers") else value)
            for key, value in dataclasses.asdict(self).items()
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarize(history: History, now: Callable[[], float] = time.time, *, flops: bool = True) -> Summary:
    """Return the figures of ``history``; a job that runs is taken as it is ``now``.

    Without ``flops`` those that need the sizes of the model stay None: reading them costs more than all others.
    """
    losses, seconds = METRICS["loss"].read(history), METRICS["step-time"].read(history)
    finite = losses.values[np.isfinite(losses.values)]
    held_out, usual = history.held_out, usual_step_s(history)
    tokens, peak = tokens_per_step(history), peak_flops(history)
    per_step = step_flops(history) if flops else None
    counted = METRICS["loss-tokens"].read(history).values
    memory = METRICS["memory"].read(history).values
    left = None if history.total_steps is None else max(0, history.total_steps - history.done_steps)
    recent = median(seconds.values[-_RECENT:])
    return Summary(
        done_steps=history.done_steps,
        total_steps=history.total_steps,
        first_loss=float(finite[0]) if len(finite) else None,
        last_loss=losses.last,
        lowest_loss=float(finite.min()) if len(finite) else None,
        last_held_out=held_out[-1] if held_out else None,
        best_held_out=min(held_out, key=lambda one: one.loss) if held_out else None,
        tokens=None if tokens is None or not len(history.steps) else tokens * len(history.steps),
        loss_tokens=int(np.nansum(counted)) if len(counted) and not np.isnan(counted).any() else None,
        step_s=usual,
        tokens_per_s=tokens / usual if tokens and usual else None,
        flops_per_step=per_step,
        mfu=per_step / usual / peak if per_step and peak and usual else None,
        memory_mib=float(np.nanmax(memory)) if len(memory) and not np.isnan(memory).all() else None,
        attempts=len(history.attempts),
        redone_steps=history.redone_steps if history.knows_redone_steps else None,
        goodput=goodput(history, now),
        left_s=None if left is None or recent is None or history.record.is_final else left * recent,
        bad_steps=int(np.isinf(losses.values).sum()),
        overflows=int(np.nansum(METRICS["overflow"].read(history).values)),
        stragglers=stragglers(history),
    )


def stragglers(history: History) -> Stragglers:
    """Return who holds the others up in the newest attempt that has steps."""
    trained = [attempt for attempt in history.attempts if any(rank.count for rank in attempt.ranks)]
    newest = (*history.attempts, *trained)[-1:]
    found = find_stragglers(timeline(newest[0].ranks if newest else (), places(history)))
    return replace(found, signs=signs(history, newest[0].number)) if newest else found


def signs(history: History, attempt: int) -> tuple[Sign, ...]:
    """Return what stands out on the hosts of an attempt."""
    hosts = {host for host, _ in facts.hosts(history).values()}
    return host_signs(read_samples(history.paths.of_attempt(attempt), len(hosts)))


def places(history: History) -> dict[int, Place]:
    """Return host, device and stage of the pipeline of each rank."""
    stages, cards = value_at(history.spec, "parallel", "pipeline_stage"), history.record.cards
    hosts = facts.hosts(history)
    return {
        rank_id: Place(host=host, device=device, stage=stage_of(rank_id, cards, stages))
        for rank_id in range(cards)
        for host, device in [hosts.get(rank_id, ("", ""))]
    }


def outcome(history: History, summary: Summary, say: Say) -> str:
    """Return in a sentence how far the job is, or came."""
    done, total = summary.done_steps, summary.total_steps
    if not done:
        return say("No step was finished.") if history.record.is_final else say("No step is finished yet.")
    if total is None:
        return say("{done} steps are done.", done=f"{done:,}")
    if done >= total:
        return say("All {total} steps are done.", total=f"{total:,}")
    if history.record.is_final:
        return say("Ended after {done} of {total} steps.", done=f"{done:,}", total=f"{total:,}")
    left = seconds_text(summary.left_s) or "?"
    return say("{done} of {total} steps are done, {left} left.", done=f"{done:,}", total=f"{total:,}", left=left)
