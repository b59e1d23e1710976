"""``launcher sweep``: the same run with other settings, trial by trial."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Decorator, format_option, jobs_dir_option, jobs_dir_words, lang_option
from launcher.cli.options.completion import spec_names
from launcher.cli.options.group import option, takes
from launcher.cli.options.run import JobLabels, RunChoice, SpecChanges
from launcher.cli.options.scheduler import SchedulerChoice, scheduler_options
from launcher.common.nearest import nearest
from launcher.common.resources import names

if TYPE_CHECKING:
    from launcher.sweeps.record import Sweep, SweepPaths, Trial


class _Sweep(click.Group):
    """``launcher sweep SPEC`` is ``launcher sweep run SPEC``."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.commands.get(cmd_name) or self.commands["run"]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        near = nearest(args[0], self.commands)
        if near and args[0] not in names("configs", ".yaml") and not Path(args[0]).exists():
            ctx.fail(f"No such command or run spec {args[0]!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, ["run", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave options before a SPEC, and all that follows, to "run"."""
        ours = not args or args[0] in (*self.commands, *ctx.help_option_names) or not args[0].startswith("-")
        return super().parse_args(ctx, args if ours else ["run", *args])


@click.group("sweep", cls=_Sweep)
def sweep() -> None:
    """Run SPEC with other settings, trial by trial; each trial is a job. "run" may be left out: launcher sweep SPEC.

    \b
    launcher sweep tiny_cpu --cards 2 --grid training.lr_schedule.learning_rate=1e-4,3e-4 --grid lora.r=8,16
    launcher sweep status
    launcher sweep run --help
    """


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is varied, how trials are compared, and how many run at a time."""

    grid: tuple[str, ...] = option(
        "--grid",
        multiple=True,
        metavar="KEY=V,V",
        help="Values of one key of SPEC, repeatable; KEY=LOW..HIGH or 'KEY=log LOW..HIGH' with --random.",
    )
    random: int | None = option(
        "--random", type=click.IntRange(min=1), metavar="N", help="Draw N trials; all combinations if left out."
    )
    sampler: str = option(
        "--sampler",
        type=click.Choice(["random", "tpe"]),
        default="random",
        show_default=True,
        help="How --random draws: all beforehand, or each by what earlier trials came to (Optuna's TPE).",
    )
    seed: int = option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Another draws other --random trials.",
    )
    parallel: int = option(
        "--parallel", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
        help="Trials at a time; on cards each takes those that fewest jobs want, and queues for them.",
    )  # fmt: skip
    metric: str | None = option(
        "--metric",
        metavar="NAME",
        help="What trials are compared by, as launcher plot --list has it; eval-loss if SPEC evaluates, else loss.",
    )
    goal: str | None = option(
        "--goal", type=click.Choice(["min", "max"]), help="Which value is better; by the metric if left out."
    )
    no_prune: bool = option("--no-prune", is_flag=True, help="Run hopeless trials to their end too.")
    cards: int | None = option("--cards", type=int, metavar="N", help="Cards of each trial; all if left out.")
    no_preflight: bool = option("--no-preflight", is_flag=True, help="Start even when a check of the hosts fails.")
    dry_run: bool = option("--dry-run", is_flag=True, help="Print the trials and check their settings; start nothing.")
    detach: bool = option("--detach", is_flag=True, help="Print the sweep's id and return at once.")


@sweep.command("run")
@click.argument("spec", required=False, shell_complete=spec_names)
@takes(SweepOptions, "options")
@takes(SpecChanges, "changes")
@takes(JobLabels, "labels")
@takes(RunChoice, "run")
@scheduler_options
@lang_option
@jobs_dir_option
def run_sweep(
    spec: str | None,
    options: SweepOptions,
    changes: SpecChanges,
    labels: JobLabels,
    run: RunChoice,
    scheduler: SchedulerChoice,
    jobs_dir: Path,
) -> None:
    """Run SPEC with every combination of --grid, or with --random ones, and follow the sweep to its end.

    Ctrl-C stops the sweep; closing the terminal does not. A trial that fails stops no other.

    \b
    launcher sweep tiny_cpu --cards 2 --grid training.lr_schedule.learning_rate=1e-4,3e-4 --grid lora.r=8,16
    launcher sweep my_run --grid 'training.lr_schedule.learning_rate=log 1e-5..1e-3' --random 20 --seed 1 --parallel 4
    """
    from launcher.sweeps import planning, runner

    asked: dict[str, Any] = {
        "cards": options.cards, "no_preflight": options.no_preflight, "scheduler": scheduler.name,
        "values": dict(scheduler.values), "engine": run.engine,
        "limits": asdict(run.options().limits), **asdict(labels), **asdict(changes),
    }  # fmt: skip
    paths, found = planning.plan_sweep(
        spec, jobs_dir=jobs_dir, asked=asked, grid=options.grid, count=options.random, seed=options.seed,
        parallel=options.parallel, metric=options.metric, goal=options.goal, prune=not options.no_prune,
        sampler="" if options.sampler == "random" else options.sampler,
    )  # fmt: skip
    if options.dry_run:
        click.echo(_table(found))
        return
    process = runner.begin(paths, found)
    process.returncode = 0  # nobody waits for it
    if options.detach:
        click.echo(found.sweep_id)
        return
    click.echo(f"Sweep {found.sweep_id}: {len(found.trials)} trials, {found.parallel} at a time, by {found.metric}.")
    _follow(paths)


_SWEEP: Decorator[Any] = click.argument("reference", metavar="SWEEP", default="last")


@sweep.command()
@_SWEEP
@format_option
@jobs_dir_option
def status(reference: str, form: str, jobs_dir: Path) -> None:
    """Show the trials of SWEEP, the best first.

    \b
    launcher sweep status last
    """
    from launcher.cli.output.tables import print_json
    from launcher.sweeps import record

    found = record.read(record.find(reference, jobs_dir))
    if form == "json":
        print_json(asdict(found) | {"best": found.best.number if found.best else None})
        return
    click.echo(
        f"Sweep {found.sweep_id}: {found.state}, {found.ended} of {len(found.trials)} trials ended, by {found.metric}"
    )
    click.echo(_table(found))
    click.echo(_next(found))


@sweep.command()
@_SWEEP
@jobs_dir_option
def best(reference: str, jobs_dir: Path) -> None:
    """Print the job of the best trial of SWEEP that ran to its end.

    \b
    launcher merge-ckpt $(launcher sweep best last)
    """
    from launcher.errors import JobError
    from launcher.jobs import is_job_folder
    from launcher.sweeps import record

    found = record.read(record.find(reference, jobs_dir))
    if found.best is None:
        raise JobError(f"no trial of {found.sweep_id} has ended with a value", hint="launcher sweep status")
    if not is_job_folder(jobs_dir / found.best.job_id):
        raise JobError(
            f"trial {found.best.number} of {found.sweep_id} is the best, and its job {found.best.job_id} was removed",
            hint=f"launcher submit{_spec_words(found)} {_set_words(found.best)} trains it again",
        )
    click.echo(f"{_settings(found.best)}: {found.metric} {found.best.value:.4g}", err=True)
    click.echo(found.best.job_id)


@sweep.command()
@_SWEEP
@jobs_dir_option
def stop(reference: str, jobs_dir: Path) -> None:
    """Stop SWEEP and the trials that run. launcher sweep resume goes on with it.

    \b
    launcher sweep stop last
    """
    from launcher.sweeps import planning, record

    found = planning.stop_sweep(record.find(reference, jobs_dir))
    click.echo(f"Sweep {found.sweep_id} {found.state}. Next: launcher sweep resume {_reference(found)}")


@sweep.command()
@_SWEEP
@click.option("--detach", is_flag=True, help="Print the sweep's id and return at once.")
@jobs_dir_option
def resume(reference: str, detach: bool, jobs_dir: Path) -> None:
    """Go on with SWEEP, which was stopped or whose runner is gone: its stopped trials are resumed, the others begin.

    \b
    launcher sweep resume last
    """
    from launcher.errors import JobError
    from launcher.sweeps import record, runner

    paths = record.find(reference, jobs_dir)
    found = record.read(paths)
    if found.state == record.RUNNING:
        raise JobError(f"sweep {found.sweep_id} is running", hint="launcher sweep status")
    if found.state == record.DONE and not any(trial.state == record.REFUSED for trial in found.trials):
        raise JobError(f"sweep {found.sweep_id} is done", hint="launcher sweep best")
    runner.begin_again(paths, found).returncode = 0
    if detach:
        click.echo(found.sweep_id)
    else:
        _follow(paths)


@sweep.command()
@_SWEEP
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: SWEEP.report.html]",
)  # fmt: skip
@click.option("--lang", type=click.Choice(["en", "zh"]), help="Language; the locale's if left out.")
@jobs_dir_option
def report(reference: str, output: Path | None, lang: str | None, jobs_dir: Path) -> None:
    """Write a report of SWEEP as one HTML file: its table, and a parallel plot of settings and results.

    \b
    launcher sweep report last
    """
    from launcher.common.atomic import write_atomic
    from launcher.jobs.verdict import user_language
    from launcher.sweeps import record
    from launcher.sweeps.page import make_page

    found = record.read(record.find(reference, jobs_dir))
    target = output or Path(f"{found.sweep_id}.report.html")
    write_atomic(target, make_page(found, lang or user_language()))
    click.echo(target)


# ------------------------------------------------------------------------------------------------ showing

_POLL_S = 0.5


def _follow(paths: SweepPaths) -> None:
    """Print a line for each trial that begins or ends, and the table at the end."""
    from launcher.control.follow import noted_signals
    from launcher.sweeps import planning, record

    shown: dict[int, str] = {}
    with noted_signals() as signals:
        while True:
            found = record.read(paths)
            for trial in found.trials:
                _tell(found, trial, shown)
            if found.state != record.RUNNING:
                break
            if signals:
                click.echo("stopping ...", err=True)
                planning.stop_sweep(paths)
                signals.clear()
            time.sleep(_POLL_S)
    click.echo(_table(found))
    click.echo(_next(found))
    sys.exit(0 if found.state == record.DONE and found.best else 7 if found.state == record.DONE else 130)


def _tell(found: Sweep, trial: Trial, shown: dict[int, str]) -> None:
    from launcher.sweeps.record import WAITING

    state = "begins" if trial.state in ("planned", "starting", "running", "stopping") else trial.state
    if state == WAITING or shown.get(trial.number) == state:
        return
    shown[trial.number] = state
    value = f"  {found.metric} {trial.value:.4g}" if trial.value is not None and state != "begins" else ""
    why = f"  {trial.note.splitlines()[0]}" if trial.note else ""
    click.echo(f"trial {trial.number} {state}: {_settings(trial)}  {trial.job_id}{value}{why}".rstrip())


def _spec_words(found: Sweep) -> str:
    return f" {found.spec}" if found.spec else ""


def _set_words(trial: Trial) -> str:
    import shlex

    return " ".join(shlex.join(("--set", f"{key}={value}")) for key, value in trial.settings.items())


def _settings(trial: Trial) -> str:
    return ", ".join(f"{key}={value}" for key, value in trial.settings.items())


def _table(found: Sweep) -> str:
    from launcher.cli.output.tables import table

    keys = found.keys
    short = [key.rpartition(".")[2] for key in keys]
    names = [name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)]
    rows = [
        (
            str(trial.number), *(str(trial.settings.get(key, "")) for key in keys), trial.state,
            "" if trial.step is None else str(trial.step), "" if trial.value is None else f"{trial.value:.4g}",
            trial.job_id, trial.note.splitlines()[0] if trial.note else "",
        )
        for trial in sorted(found.trials, key=lambda trial: (found.rank(trial), trial.number))
    ]  # fmt: skip
    return table(
        ("TRIAL", *(name.upper() for name in names), "STATE", "STEP", found.metric.upper(), "JOB", "NOTE"), rows
    )


def _next(found: Sweep) -> str:
    words = jobs_dir_words()
    if found.state in ("stopped", "lost"):
        return f"Next: launcher sweep resume{words} {_reference(found)}"
    if found.best:
        return f"Best: trial {found.best.number}. Next: launcher merge-ckpt{words} {found.best.job_id}"
    return "No trial has ended well yet." if found.state == "running" else "No trial has ended well."


def _reference(found: Sweep) -> str:
    return found.sweep_id.split("-")[0]
