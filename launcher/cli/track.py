"""``launcher track``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from launcher.cli.options.common import job_argument, jobs_dir_option


@click.command()
@job_argument
@click.option(
    "--to", "names", multiple=True, metavar="NAME",
    help="Tracker, repeatable: tensorboard, or one that a package adds.  [default: tensorboard]",
)  # fmt: skip
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends; Ctrl-C ends this and not the job.")
@jobs_dir_option
def track(job: str, names: tuple[str, ...], follow: bool, jobs_dir: Path) -> None:
    """Give what JOB did to a tracker: TensorBoard's files, with MindFormers' own tags. Again gives what is new.

    \b
    launcher track last
    launcher track last --follow
    """
    from launcher.errors import SpecError
    from launcher.jobs import JobStore
    from launcher.observe import trackers

    if follow and len(names) > 1:
        raise SpecError("--follow takes one --to", hint="start the command once for each tracker")
    paths, record = JobStore(jobs_dir).get(job)
    for name in names or ("tensorboard",):
        tracker = trackers.find(name)
        told = 0
        with suppress(KeyboardInterrupt):
            told = (trackers.follow if follow else trackers.tell)(tracker, name, paths, record)
        click.echo(f"{record.job_id}: {told} step(s) given to {name}")
