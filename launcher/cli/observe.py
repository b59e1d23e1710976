"""``launcher report``, ``compare``, ``plot`` and ``top``: what jobs did, as a page, a table or curves."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Decorator, NumberRange, jobs_dir_option
from launcher.cli.options.completion import job_ids
from launcher.cli.options.group import option, takes

if TYPE_CHECKING:
    from launcher.observe.history import History, Series
    from launcher.observe.metrics import Metric

_JOBS: Decorator[Any] = click.argument("references", metavar="JOB...", nargs=-1, shell_complete=job_ids)
_LANG: Decorator[Any] = click.option(
    "--lang", type=click.Choice(["en", "zh"]), help="Language; $LAUNCHER_LANG, else the locale's, if left out."
)


def _histories(references: tuple[str, ...], jobs_dir: Path) -> list[History]:
    """Return the histories of the jobs named, "last" without any. Raises JobError when one is no job."""
    from launcher.errors import JobError
    from launcher.jobs import find_job
    from launcher.observe.history import read_history

    found = []
    for reference in references or ("last",):
        job = find_job(reference, jobs_dir)
        if job is None:
            raise JobError(f"{reference} is not the folder of a job", hint="launcher jobs lists them")
        found.append(read_history(*job))
    return found


@click.command()
@_JOBS
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write.  [default: JOB.report.html]"
)
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
@_LANG
@jobs_dir_option
def report(references: tuple[str, ...], output: Path | None, show: bool, lang: str | None, jobs_dir: Path) -> None:
    """Write a report of JOB as one HTML file, which needs no network; of several jobs, their comparison.

    \b
    launcher report last --open
    launcher report abcde fghij -o both.html --lang zh
    """
    from launcher import api

    jobs = [api.job(reference, jobs_dir=jobs_dir) for reference in references or ("last",)]
    target = api.report(jobs, output, lang=lang)
    click.echo(target)
    if show:
        _show(target)


def _page(histories: list[History], lang: str | None) -> str:
    from launcher.jobs.verdict import user_language
    from launcher.observe.report import make_report

    return make_report(histories, lang or user_language())


def _write(target: Path, content: str | bytes) -> None:
    from launcher.common.atomic import write_atomic
    from launcher.errors import HostError

    try:
        write_atomic(target, content)
    except OSError as error:
        raise HostError(f"cannot write {target}: {error.strerror}", hint="name another file with -o") from error


def _show(target: Path) -> None:
    import webbrowser

    if not webbrowser.open(target.absolute().as_uri()):
        click.echo(f"no browser here; copy the file to where there is one: {target.absolute()}", err=True)


@click.command()
@_JOBS
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "html"]),
    default="text",
    show_default=True,
    help="A table, JSON for programs, or the page that report makes.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file, not to the terminal."
)
@_LANG
@jobs_dir_option
def compare(
    references: tuple[str, ...], form: str, output: Path | None, lang: str | None, jobs_dir: Path
) -> None:  # fmt: skip
    """Compare two jobs or more: their results, and what differs in spec, data and versions.

    \b
    launcher compare abcde fghij
    launcher compare abcde fghij --format html -o comparison.html
    """
    from launcher.errors import SpecError

    if len(references) < 2:
        raise SpecError("compare needs two jobs", hint="launcher jobs lists them: launcher compare JOB JOB")
    histories = _histories(references, jobs_dir)
    text = _page(histories, lang) if form == "html" else _compared(histories, form)
    if output is None:
        click.echo(text)
    else:
        _write(output, text + "\n")
        click.echo(output)


def _compared(histories: list[History], form: str) -> str:
    import json

    from launcher.cli.output.observed import comparison_text
    from launcher.observe.comparison import compare
    from launcher.observe.summary import summarize

    found = compare(histories, [summarize(history) for history in histories])
    return json.dumps(found.to_dict(), ensure_ascii=False, indent=2) if form == "json" else comparison_text(found)


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """What is drawn, and where to."""

    metrics: tuple[str, ...] = option(
        "--metric", multiple=True, metavar="NAME", help="What to draw, repeatable; --list names all.  [default: loss]"
    )
    output: Path | None = option(
        "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
        help="Write a .svg or .png picture, or every step as .csv, instead of drawing in the terminal.",
    )  # fmt: skip
    smooth: float = option(
        "--smooth", type=NumberRange(min=0, max=0.999), default=0.0, metavar="W",
        help="Weight of the moving average, from 0 (none) to 0.999.",
    )  # fmt: skip
    log: bool = option("--log", is_flag=True, help="Logarithmic values.")
    names: bool = option("--list", is_flag=True, help="List the metrics and which of them the jobs have.")


@click.command()
@_JOBS
@takes(PlotOptions, "options")
@jobs_dir_option
def plot(references: tuple[str, ...], options: PlotOptions, jobs_dir: Path) -> None:
    """Draw a curve of JOB, or of several jobs over each other.

    \b
    launcher plot last
    launcher plot abcde fghij --metric learning-rate -o rate.svg
    launcher plot last --metric loss --metric grad-norm -o steps.csv
    """
    from launcher.observe.metrics import metric_of

    histories = _histories(references, jobs_dir)
    metrics = [metric_of(name) for name in options.metrics or ("loss",)]
    if options.names:
        from launcher.cli.output.observed import metric_table

        click.echo(metric_table(histories))
    elif options.output is None:
        for metric in metrics:
            _draw(metric, _series(metric, histories, options.smooth), options)
    else:
        _write(options.output, _picture(metrics, histories, options))
        click.echo(options.output)


def _series(metric: Metric, histories: list[History], smooth: float) -> list[tuple[str, Series]]:
    """Return the series that have values; says which jobs have none. Raises JobError when no job has any."""
    from dataclasses import replace

    from launcher.errors import JobError
    from launcher.observe.curves import smoothed
    from launcher.observe.metrics import nothing_of

    found = []
    for history in histories:
        series = metric.curve_of(history)
        if not series.is_empty:
            if smooth:
                series = replace(series, values=smoothed(series.values, smooth), low=None, high=None)
            found.append((history.record.job_id, series))
        elif len(histories) > 1:
            click.echo(f"{history.record.job_id}: no {metric.key}: {nothing_of(metric, history)}", err=True)
    if not found:
        names = ", ".join(history.record.job_id for history in histories)
        raise JobError(
            f"no {metric.key} of {names}: {nothing_of(metric, histories[0])}",
            hint="launcher plot --list says which metrics there are",
        )
    return found


_TERMINAL = ("blue", "yellow", "green", "magenta", "cyan", "red", "bright_blue", "bright_yellow")
_HEIGHT, _MOST_COLUMNS = 16, 120


def _draw(metric: Metric, named: list[tuple[str, Series]], options: PlotOptions) -> None:
    import shutil

    from launcher.observe.braille import braille
    from launcher.observe.curves import number_text

    width = min(_MOST_COLUMNS, shutil.get_terminal_size().columns)
    unit = f", {metric.unit}" if metric.unit else ""
    note = f" ({metric.note})" if metric.note else ""
    click.echo(f"{click.style(metric.title, bold=True)}{unit}{note}")
    for number, (name, series) in enumerate(named):
        last = "" if series.last is None else number_text(series.last)
        click.echo(f"{_paint('━━', number)} {name}  {last} at step {int(series.steps[-1])}")
    click.echo(braille(named, width, _HEIGHT, _paint, log=options.log))


def _paint(text: str, number: int) -> str:
    return click.style(text, fg=_TERMINAL[number % len(_TERMINAL)])


def _picture(metrics: list[Metric], histories: list[History], options: PlotOptions) -> str | bytes:
    from launcher.errors import SpecError
    from launcher.observe.csv import to_csv

    suffix = options.output.suffix.lower() if options.output else ""
    if suffix == ".csv":
        return to_csv(metrics, histories)
    if suffix not in (".svg", ".png"):
        raise SpecError(f"{options.output}: a plot is a .svg, .png or .csv", hint="-o loss.svg")
    if len(metrics) > 1:
        raise SpecError("a picture shows one --metric", hint="give one --metric, or -o FILE.csv")
    return _chart(metrics[0], histories, options, suffix)


def _chart(metric: Metric, histories: list[History], options: PlotOptions, suffix: str) -> str | bytes:
    from launcher.observe.curves import make_curve
    from launcher.observe.drawing import Chart, to_png, to_svg

    named = _series(metric, histories, options.smooth)
    curves = [make_curve(series, 900, name) for name, series in named]
    chart = Chart(curves=curves, title=metric.title, unit=metric.unit, note=metric.note, log=options.log)
    return to_svg(chart) if suffix == ".svg" else to_png(chart)


@click.command()
@click.option("--once", is_flag=True, help="Print the page once and end.")
@jobs_dir_option
def top(once: bool, jobs_dir: Path) -> None:
    """Show all jobs that run, live: progress, loss, throughput, time left. Ctrl-C leaves the page.

    \b
    launcher top
    """
    from launcher.cli.output.observed import top_page, watch_top
    from launcher.jobs import JobStore

    if once or not sys.stdout.isatty():
        click.echo(top_page(JobStore(jobs_dir)))
        return
    with suppress(KeyboardInterrupt):
        watch_top(JobStore(jobs_dir))
