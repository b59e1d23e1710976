"""``launcher jobs``: the list of jobs, their labels, and removing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import format_option, jobs_dir_option
from launcher.cli.options.completion import job_ids, tags
from launcher.cli.options.group import option, takes
from launcher.errors import SpecError

if TYPE_CHECKING:
    from launcher.control.removal import Candidate
    from launcher.jobs import JobPaths, JobRecord

SORTED_BY = ("created", "ended", "name", "state", "size")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Which jobs are listed, in which order, and what of them."""

    state: str | None = option("--state", metavar="LIST", help="Only jobs in these states, as running,failed.")
    name: str | None = option("--name", metavar="TEXT", help="Only jobs whose id contains TEXT.")
    tag: tuple[str, ...] = option(
        "--tag", multiple=True, metavar="TAG", shell_complete=tags, help="Only jobs with this tag; repeatable."
    )
    size: bool = option("--size", is_flag=True, help="Show the bytes on disk that removing each job would free.")
    sort: str = option(
        "--sort", type=click.Choice(SORTED_BY), default="created", show_default=True, help="The last is at the bottom."
    )


@click.group("jobs", invoke_without_command=True)
@takes(ListOptions, "options")
@format_option
@jobs_dir_option
@click.pass_context
def jobs(context: click.Context, options: ListOptions, form: str, jobs_dir: Path) -> None:
    """List the jobs in the jobs folder, oldest first; or remove and label them.

    \b
    launcher jobs --state running,failed
    launcher jobs --size --sort size
    launcher jobs --format json
    launcher jobs rm tghjk
    """
    if context.invoked_subcommand is None:
        _list(options, form, jobs_dir)
        return
    given = [text for text, value in (("--format", form != "text"), *_asked(options)) if value]
    if given:
        raise SpecError(
            f"{given[0]} lists jobs, and does not go with {context.invoked_subcommand}",
            hint=f"launcher jobs {context.invoked_subcommand} --help",
        )


def _asked(options: ListOptions) -> list[tuple[str, bool]]:
    return [
        ("--state", options.state is not None),
        ("--name", options.name is not None),
        ("--tag", bool(options.tag)),
        ("--size", options.size),
        ("--sort", options.sort != "created"),
    ]


def _list(options: ListOptions, form: str, jobs_dir: Path) -> None:
    from launcher.cli.output import show
    from launcher.jobs import JobStore, select_jobs, sort_jobs

    store = JobStore(jobs_dir)
    chosen = select_jobs(store.all(), states=options.state, name=options.name, tags=options.tag)
    sizes = _sizes(chosen) if options.size or options.sort == "size" else None
    chosen = sort_jobs(chosen, options.sort, sizes or {})
    click.echo(show.jobs_json(chosen, sizes) if form == "json" else show.job_table(store, chosen, sizes))


def _sizes(chosen: Sequence[tuple[JobPaths, JobRecord]]) -> dict[Path, int]:
    from launcher.common.disk_usage import disk_usage

    return {paths.root: disk_usage(paths.root).bytes for paths, _ in chosen}


@jobs.command("rm")
@click.argument("references", metavar="JOB...", nargs=-1, required=True, shell_complete=job_ids)
@click.option("--force", is_flag=True, help="Also jobs that others, which have ended, were trained from.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@jobs_dir_option
def remove(references: tuple[str, ...], force: bool, dry_run: bool, jobs_dir: Path) -> None:
    """Remove jobs with all they left: all that are named, or none when one of them runs or is needed by another job.

    \b
    launcher jobs rm tghjk bcdfg
    """
    from launcher.control import removal

    _remove(removal.named(references, jobs_dir, force=force), jobs_dir, dry_run=dry_run)


@jobs.command()
@click.option(
    "--older-than", metavar="TIME", required=True, help="Only jobs that ended before: 30d, 12h, or 2026-01-31."
)
@click.option("--keep-merged", is_flag=True, help="Keep jobs that have a merged model.")
@click.option("--force", is_flag=True, help="Also jobs that others, which have ended, were trained from.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@jobs_dir_option
def prune(older_than: str, keep_merged: bool, force: bool, dry_run: bool, jobs_dir: Path) -> None:
    """Remove the jobs that ended long ago, but for those that run or that another job needs.

    \b
    launcher jobs prune --older-than 30d --keep-merged --dry-run
    """
    from launcher.control import removal
    from launcher.jobs import JobStore
    from launcher.jobs.logs import parse_since

    moment = parse_since(older_than, option="--older-than")
    chosen = removal.older_than(JobStore(jobs_dir), moment, keep_merged=keep_merged, force=force)
    _remove(chosen, jobs_dir, dry_run=dry_run)


def _remove(chosen: Sequence[Candidate], jobs_dir: Path, *, dry_run: bool) -> None:
    from launcher.common.sizes import size_text
    from launcher.control import removal

    earlier = 0 if dry_run else removal.finish_earlier(jobs_dir)
    if earlier:
        click.echo(f"deleted what an interrupted removal had left: {size_text(earlier)}")
    going, freed = [job for job in chosen if not job.kept], 0
    for job in chosen:
        if job.kept:
            click.echo(f"kept {job.record.job_id}  {size_text(job.bytes)}: {job.kept}")
        else:
            if not dry_run:
                removal.remove(job)
            freed += job.bytes
            click.echo(f"{'would remove' if dry_run else 'removed'} {job.record.job_id}  {size_text(job.bytes)}")
    done = "would be removed" if dry_run else "removed"
    click.echo(f"{len(going)} job(s) {done}, {size_text(freed)} {'to be ' if dry_run else ''}freed")


@jobs.command()
@click.argument("job", shell_complete=job_ids)
@click.argument("added", metavar="[TAG]...", nargs=-1)
@click.option("--remove", "removed", multiple=True, metavar="TAG", help="Take this tag off; repeatable.")
@click.option("--note", metavar="TEXT", help='What to remember of the job; "" removes it.')
@jobs_dir_option
def tag(job: str, added: tuple[str, ...], removed: tuple[str, ...], note: str | None, jobs_dir: Path) -> None:
    """Give JOB tags and a note, whatever it is doing; without any, show those that it has.

    \b
    launcher jobs tag last keep --note "the one for the paper"
    launcher jobs tag last --remove keep
    """
    from launcher.cli.output import show
    from launcher.control.labelling import label
    from launcher.jobs import JobStore, read_labels

    paths, record = JobStore(jobs_dir).get(job)
    if added or removed or note is not None:
        labels = label(paths, add=added, remove=removed, note=note)
    else:
        labels = read_labels(paths)
    click.echo(f"{record.job_id}: {show.labels_text(labels) or 'no tags and no note'}")
