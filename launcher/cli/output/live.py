"""``launcher status --watch``: a live page of one job."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import in_jobs_dir
from launcher.cli.output.show import RankProgress, progress_of
from launcher.cli.output.tables import table
from launcher.common.clock import duration
from launcher.common.json_files import json_or_empty
from launcher.jobs import JobPaths, JobRecord, JobStore, loss_rank, planned_steps
from launcher.jobs.verdict import user_language, verdict_text

if TYPE_CHECKING:
    from launcher.observe.stragglers import Stragglers

REFRESH_S = 1.0
# Collectives make steps last the same on all ranks: what differs is when each enters one, and what it waited for.
_HEADER = ("RANK", "STATE", "STEP", "LOSS", "LATE", "INPUT WAIT", "CORE WAIT", "MEMORY", "NOTE")


def watch_job(store: JobStore, job_id: str) -> None:
    """Redraw the page every second until the job has ended. Without a terminal, print it once at the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            paths, record = store.get(job_id)
            live.update(Text(page(paths, record)), refresh=True)
            if record.is_final:
                break
            time.sleep(REFRESH_S)
    if record.verdict:
        click.echo(in_jobs_dir(verdict_text(record.verdict, user_language(), record.job_id)))


def page(paths: JobPaths, record: JobRecord) -> str:
    """Step, loss, tokens a second of each card, time left, and a line a rank."""
    from launcher.observe.words import words

    ranks = [progress_of(paths, rank_id) for rank_id in range(record.cards)]
    slow = slow_ranks(paths, record, ranks)
    rows = table(_HEADER, (_row(rank, slow) for rank in ranks))
    head = f"{record.job_id}  {record.state}" + (f" ({record.note})" if record.note else "")
    first = ranks[loss_rank(paths, record.cards)]
    lines = [head, _summary(first, planned_steps(paths), tokens_per_step(paths)), "", rows]
    return "\n".join([*lines, *(["", *slow.sentences(words("en"))] if slow.is_judged else [])])


def slow_ranks(paths: JobPaths, record: JobRecord, ranks: Sequence[RankProgress]) -> Stragglers:
    """Return who holds the others up, by the ends of event files alone: this is asked every second."""
    from launcher.observe.columns import RankEvents, step_columns
    from launcher.observe.history import History
    from launcher.observe.stragglers import find_stragglers, timeline
    from launcher.observe.summary import places

    told = [
        RankEvents(
            rank_id=rank.rank_id, steps=step_columns([step.fields() | {"time": step.time} for step in rank.steps]),
            others=tuple(save.to_json() for save in rank.saves),
        )
        for rank in ranks
    ]  # fmt: skip
    around = History(paths, record, json_or_empty(paths.spec), json_or_empty(paths.plan), (), 0)
    return find_stragglers(timeline(told, places(around)))


def _row(rank: RankProgress, slow: Stragglers) -> tuple[str, ...]:
    last, figures = rank.steps[-1] if rank.steps else None, slow.figures_of(rank.rank_id)
    loss = last.loss if last else None
    waits = (figures.late_s, figures.input_s, figures.core_wait_s)
    return (
        str(rank.rank_id),
        rank.state,
        str(last.step) if last else "",
        f"{loss:.4f}" if isinstance(loss, float) else str(loss or ""),
        *("" if seconds is None else f"{1000 * seconds:.0f} ms" for seconds in waits),
        f"{last.memory_mib} MiB" if last and last.memory_mib else "",
        ", ".join(f"slow: {suspect.cause}" for suspect in slow.suspects if rank.rank_id in suspect.rank_ids),
    )


def _summary(first: RankProgress, steps: int | None, tokens: int | None) -> str:
    if not first.steps or first.step_s is None:
        return "no step yet"
    done = first.steps[-1].step
    left = "" if steps is None else f", {duration(first.step_s * max(0, steps - done))} left"
    speed = f", {first.step_s:.3g} s a step" + (f", {tokens / first.step_s:.0f} tokens/s a card" if tokens else "")
    return f"step {done}/{steps or '?'}{speed if first.step_s else ''}{left}"


def tokens_per_step(paths: JobPaths) -> int | None:
    """Tokens that one card sees in a step: rows of its batch times the sequence length."""
    try:
        spec = json.loads(paths.spec.read_text(encoding="utf-8"))
        return int(spec["data"]["batch_size"]) * int(spec["model"]["seq_length"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
