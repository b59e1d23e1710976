"""``launcher attach``, ``launcher stop`` and ``launcher resume``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import Seconds, in_jobs_dir, job_argument, jobs_dir_option, lang_option

if TYPE_CHECKING:
    from launcher.api import Job
    from launcher.jobs import JobPaths, JobRecord


@click.command()
@job_argument
@lang_option
@jobs_dir_option
def attach(job: str, jobs_dir: Path) -> None:
    """Follow JOB (an id, a unique prefix of one, or "last") to its end, as submit does.

    Ctrl-C stops the job; closing the terminal does not.

    \b
    launcher attach last
    """
    from launcher.api import Job
    from launcher.control.follow import noted_signals
    from launcher.jobs import JobStore

    with noted_signals() as signals:
        paths, record = JobStore(jobs_dir).get(job)
        _follow(Job(paths), record, signals)


def _follow(job: Job, record: JobRecord, signals: list[int]) -> None:
    from launcher.cli.output import show
    from launcher.cli.output.following import follow_to_end
    from launcher.jobs import loss_rank, planned_steps

    paths = job.paths
    with show.Progress(planned_steps(paths), loss_rank(paths, record.cards), record.cards) as progress:
        progress.begin(record.job_id, record.cards, record.target)
        record = follow_to_end(job, progress, signals)
    click.echo(show.finished(paths, record, progress))


@click.command()
@job_argument
@click.option("--save", is_flag=True, help="Save a checkpoint first, after a step that all ranks finish.")
@click.option(
    "--grace", "grace_s", type=Seconds(min=0.0), help="Seconds from TERM to KILL; the job's own setting if left out."
)
@jobs_dir_option
def stop(job: str, save: bool, grace_s: float | None, jobs_dir: Path) -> None:
    """Stop JOB: TERM to every rank, KILL after the grace, and nothing of it is left. launcher resume goes on with it.

    \b
    launcher stop last --save
    """
    from launcher.cli.output import show
    from launcher.control.stop import stop_job
    from launcher.jobs import JobStore

    record = stop_job(*JobStore(jobs_dir).get(job), save=save, grace_s=grace_s)
    click.echo(show.stopped(record, save=save))


@click.command()
@job_argument
@click.option("--detach", is_flag=True, help="Print the job's id and return at once.")
@lang_option
@jobs_dir_option
def resume(job: str, detach: bool, jobs_dir: Path) -> None:
    """Go on with JOB, which has failed or was stopped, from its newest step that is complete on all ranks.

    Logs and events of the new attempt go to a folder of their own; those of earlier ones stay.

    \b
    launcher resume last
    """
    from launcher.control.follow import noted_signals
    from launcher.jobs import JobStore

    paths, record = JobStore(jobs_dir).get(job)
    with noted_signals() as signals:
        _resume(paths, record, signals, detach=detach)


def _resume(paths: JobPaths, record: JobRecord, signals: list[int], *, detach: bool) -> None:
    from launcher.api import Job
    from launcher.plan.resume import beginning
    from launcher.schedulers import registry

    told: list[str] = []
    job = Job(paths).resume(told.append)
    for line in told or [beginning(job.paths, record.cards)]:
        click.echo(in_jobs_dir(line), err=detach)
    if detach:
        job.leave()
        click.echo(record.job_id)
    elif registry.get(record.scheduler).is_followed:
        _follow(job, record, signals)
