"""``launcher status --watch``: a live page of one job."""

from __future__ import annotations

import json
import time

import click

from launcher.cli.options.common import in_jobs_dir
from launcher.cli.output.show import RankProgress, progress_of, stragglers
from launcher.cli.output.tables import table
from launcher.common.clock import duration
from launcher.jobs import JobPaths, JobRecord, JobStore, loss_rank, planned_steps
from launcher.jobs.verdict import user_language, verdict_text

REFRESH_S = 1.0
_HEADER = ("RANK", "STATE", "STEP", "LOSS", "S/STEP", "TOKENS/S", "MEMORY", "NOTE")


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
    ranks = [progress_of(paths, rank_id) for rank_id in range(record.cards)]
    slow = {rank.rank_id for rank in stragglers(ranks)}
    tokens = tokens_per_step(paths)
    rows = table(_HEADER, (_row(rank, tokens, rank.rank_id in slow) for rank in ranks))
    head = f"{record.job_id}  {record.state}" + (f" ({record.note})" if record.note else "")
    return "\n".join([head, _summary(ranks[loss_rank(paths, record.cards)], planned_steps(paths)), "", rows])


def _row(rank: RankProgress, tokens: int | None, slow: bool) -> tuple[str, ...]:
    last = rank.steps[-1] if rank.steps else None
    loss = last.loss if last else None
    return (
        str(rank.rank_id),
        rank.state,
        str(last.step) if last else "",
        f"{loss:.4f}" if isinstance(loss, float) else str(loss or ""),
        f"{rank.step_s:.3f}" if rank.step_s else "",
        f"{tokens / rank.step_s:.0f}" if tokens and rank.step_s else "",
        f"{last.memory_mib} MiB" if last and last.memory_mib else "",
        "slow" if slow else "",
    )


def _summary(first: RankProgress, steps: int | None) -> str:
    if not first.steps or first.step_s is None:
        return "no step yet"
    done = first.steps[-1].step
    left = "" if steps is None else f", {duration(first.step_s * max(0, steps - done))} left"
    return f"step {done}/{steps or '?'}{left}"


def tokens_per_step(paths: JobPaths) -> int | None:
    """Tokens that one card sees in a step: rows of its batch times the sequence length."""
    try:
        spec = json.loads(paths.spec.read_text(encoding="utf-8"))
        return int(spec["data"]["batch_size"]) * int(spec["model"]["seq_length"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
