"""``launcher jobs``, ``launcher status`` and ``launcher logs``."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options import job_argument, jobs_dir_option


@click.command("jobs")
@jobs_dir_option
def list_jobs(jobs_dir: Path) -> None:
    """List the jobs in the jobs folder, oldest first.

    \b
    launcher jobs
    """
    from launcher.cli import show
    from launcher.jobs import JobStore

    click.echo(show.job_table(JobStore(jobs_dir)))


@click.command()
@job_argument
@jobs_dir_option
def status(job: str, jobs_dir: Path) -> None:
    """Show what JOB (an id, a unique prefix of one, or "last") is doing or how it ended.

    \b
    launcher status last
    """
    from launcher.cli import show
    from launcher.jobs import JobStore

    click.echo(show.status(*JobStore(jobs_dir).get(job)))


@click.command()
@job_argument
@click.option("--rank", type=click.IntRange(min=0), help="Only this rank; the engine's log and all ranks if left out.")
@click.option("--tail", "lines", type=click.IntRange(min=1), help="Only the last N lines of each.")
@jobs_dir_option
def logs(job: str, rank: int | None, lines: int | None, jobs_dir: Path) -> None:
    """Print the logs of JOB, of one rank or of all.

    \b
    launcher logs last --rank 1 --tail 50
    """
    from launcher.jobs import JobStore
    from launcher.logs import print_logs

    paths, record = JobStore(jobs_dir).get(job)
    print_logs(paths, record.cards, rank, lines, click.echo)
