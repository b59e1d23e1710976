"""``launcher status`` and ``launcher logs``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import format_option, job_argument, jobs_dir_option, lang_option
from launcher.cli.options.group import option, takes

if TYPE_CHECKING:
    from launcher.jobs.logs import Source, Wanted


@click.command()
@job_argument
@click.option(
    "--watch",
    is_flag=True,
    help="Show a live page until the job ends; Ctrl-C leaves the page and does not stop the job.",
)
@format_option
@lang_option
@jobs_dir_option
def status(job: str, watch: bool, form: str, jobs_dir: Path) -> None:
    """Show what JOB (an id, a unique prefix of one, or "last") is doing or how it ended.

    \b
    launcher status last --watch
    """
    from launcher.cli.output import show
    from launcher.cli.output.status import status as status_text
    from launcher.jobs import JobStore

    store = JobStore(jobs_dir)
    paths, record = store.get(job)
    if watch:
        from launcher.cli.output.live import watch_job

        with suppress(KeyboardInterrupt):
            watch_job(store, record.job_id)
        return
    if not record.is_final:  # of a job that has ended its folder knows all
        from launcher.control.follow import ask_scheduler

        record = ask_scheduler(record)
    click.echo(show.status_json(paths, record) if form == "json" else status_text(paths, record))


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Which lines of which logs."""

    ranks: str | None = option(
        "--rank", metavar="LIST", help="Only these ranks, as 0,3-5; the engine's log and all ranks if left out."
    )
    lines: int | None = option("--tail", type=click.IntRange(min=1), help="Only the last N lines of each.")
    errors: bool = option("--errors", is_flag=True, help="Only lines that report an error, and tracebacks.")
    since: str | None = option(
        "--since", metavar="TIME", help="Only what was written since then: 10m, 2h, or 2026-01-31T12:00."
    )
    follow: bool = option(
        "--follow", "-f", is_flag=True, help="Print new lines as they are written, until the job ends."
    )
    attempt: int | None = option(
        "--attempt", type=click.IntRange(min=1), help="Attempt to show; the newest if left out."
    )

    def wanted(self) -> Wanted:
        """Return the same as logs are chosen by. Raises SpecError for ranks or a time that are none."""
        from launcher.jobs.logs import Wanted, parse_ranks, parse_since

        return Wanted(
            ranks=parse_ranks(self.ranks) if self.ranks is not None else None,
            lines=self.lines,
            errors=self.errors,
            since=parse_since(self.since) if self.since is not None else 0.0,
        )


@click.command()
@job_argument
@takes(LogOptions, "options")
@jobs_dir_option
def logs(job: str, options: LogOptions, jobs_dir: Path) -> None:
    """Print the logs of JOB, of all ranks in order of time or of some.

    \b
    launcher logs last --rank 0,3-5 --follow
    launcher logs last --errors --since 10m
    """
    from launcher.jobs import JobStore
    from launcher.jobs.logs import show_logs

    paths, record = JobStore(jobs_dir).get(job)
    wanted = options.wanted()
    with suppress(KeyboardInterrupt):
        show_logs(paths, record, wanted, click.echo, _coloured, attempt=options.attempt, follow=options.follow)


_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


def _coloured(source: Source, line: str) -> str:
    """The line with its rank before it, one colour a rank; click takes colours out where there is no terminal."""
    colour = _COLOURS[source.number % len(_COLOURS)] if source.number >= 0 else "white"
    return f"{click.style(source.name + ' |', fg=colour)} {line}"
