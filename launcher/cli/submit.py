"""``launcher submit``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import in_jobs_dir, jobs_dir_option, lang_option
from launcher.cli.options.completion import job_ids, spec_names
from launcher.cli.options.group import option, takes
from launcher.cli.options.run import JobLabels, RunChoice, SpecChanges
from launcher.cli.options.scheduler import SchedulerChoice, scheduler_options
from launcher.cli.output.progress import waiting

if TYPE_CHECKING:
    from launcher.control.prepare import PreparedRun
    from launcher.jobs import JobPaths, JobRecord


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """How many cards, and how far to go."""

    earlier: str | None = option(
        "--from",
        metavar="JOB",
        shell_complete=job_ids,
        help="Run again what JOB ran, instead of a SPEC; cards, engine and limits are its own if left out.",
    )
    cards: int | None = option(
        "--cards", type=int, metavar="N", help="Number of devices to use, over all hosts; all if left out."
    )
    port: int | None = option(
        "--port", type=click.IntRange(1024, 65535), help="Port of MindSpore's scheduler; a free one if left out."
    )
    dry_run: bool = option("--dry-run", is_flag=True, help="Print what would be written and run; change nothing.")
    no_preflight: bool = option("--no-preflight", is_flag=True, help="Start even when a check of the hosts fails.")
    verify: str = option(
        "--verify",
        type=click.Choice(["sample", "full"]),
        default="sample",
        help="How much of a converted base to compare with its Hugging Face folder.",
    )
    track: tuple[str, ...] = option(
        "--track",
        multiple=True,
        metavar="NAME",
        help="Tracker instead of the spec's, repeatable: tensorboard, swanlab, mlflow, wandb.",
    )
    detach: bool = option(
        "--detach", is_flag=True, help="Print the job's id and return at once; launcher attach follows it."
    )


@click.command()
@click.argument("spec", required=False, shell_complete=spec_names)
@takes(SubmitOptions, "options")
@takes(SpecChanges, "changes")
@takes(JobLabels, "labels")
@takes(RunChoice, "run")
@scheduler_options
@lang_option
@jobs_dir_option
def submit(
    spec: str | None,
    options: SubmitOptions,
    changes: SpecChanges,
    labels: JobLabels,
    run: RunChoice,
    scheduler: SchedulerChoice,
    jobs_dir: Path,
) -> None:
    """Finetune as SPEC says (a .yaml file, or a name in configs/) and follow the run to its end.

    Ctrl-C stops the job, a second one without waiting for it to end by itself. Closing the terminal does not stop it:
    launcher attach follows it again.

    \b
    launcher submit --cards 2
    launcher submit llama_7b_lora --cards 8 --dry-run
    launcher submit --model ./Qwen2.5-7B-Instruct --data my.jsonl --cards 8
    launcher submit --cards 2 --engine direct --detach
    launcher submit --from last --set lora.r=8
    launcher submit llama_7b_lora --scheduler ssh --inventory rank_tables/2x8.yaml
    launcher submit llama_7b_lora --scheduler slurm --nodes 2 --cards 16 --kind A2 --gres npu:8 --time 1-00:00
    launcher submit llama_7b_lora --scheduler kubernetes --nodes 2 --kind A2 --image registry/llm:1 \\
        --volume data:/shared --jobs-dir /shared/jobs
    """
    earlier = _earlier(options.earlier, jobs_dir)  # may print a note
    with waiting("planning the run"):  # imports take a second on a busy host, and so may looking at the cards
        from launcher.cli.output import show
        from launcher.control import prepare

        prepared = prepare.prepare(
            spec, cards=options.cards, port=options.port, jobs_dir=jobs_dir, earlier=earlier,
            options=run.options(earlier[0] if earlier else None, scheduler.name),
            scheduler=scheduler.name, values=scheduler.values, verify_base=options.verify == "full",
            track=options.track, **asdict(labels), **asdict(changes),
        )  # fmt: skip
    if options.dry_run:
        show.dry_run(prepare.estimated(prepared))
        return
    _say(prepared.notes, err=options.detach)
    if not options.no_preflight:
        _say(prepare.preflight(prepared.plan, port=options.port), err=True)
    _begin(_completed(prepared, err=options.detach), detach=options.detach)


def _earlier(reference: str | None, jobs_dir: Path) -> tuple[JobPaths, JobRecord] | None:
    from launcher.errors import JobError
    from launcher.jobs import find_job

    if reference is None:
        return None
    found = find_job(reference, jobs_dir)
    if found is None:
        raise JobError(f"--from {reference} is not the folder of a job", hint="launcher jobs lists them")
    return found


def _say(lines: Iterable[str], *, err: bool) -> None:
    for line in lines:
        click.echo(in_jobs_dir(line), err=err)


def _completed(prepared: PreparedRun, *, err: bool) -> PreparedRun:
    """Make the data that is missing, and say what is new then."""
    from launcher import api

    if prepared.pending is None:
        return prepared
    click.echo(f"Data: {prepared.pending.describe()}", err=err)
    return api.completed(prepared, lambda note: _say([note], err=err))


def _begin(prepared: PreparedRun, *, detach: bool) -> None:
    from launcher import api
    from launcher.schedulers import registry

    if registry.get(prepared.plan.launch.scheduler).is_followed and not detach:
        _follow(prepared)
        return
    job = api.begin(prepared, lambda line: click.echo(in_jobs_dir(line), err=detach))
    job.leave()
    if detach:
        click.echo(job.id)


def _follow(prepared: PreparedRun) -> None:
    from launcher import api
    from launcher.cli.output import show
    from launcher.cli.output.following import follow_to_end
    from launcher.control.follow import noted_signals

    plan = prepared.plan
    cards = plan.cluster.num_devices
    with noted_signals() as signals, show.Progress(plan.steps, plan.loss_rank, cards) as progress:
        progress.begin(plan.paths.job_id, cards, plan.cluster.target)
        job = api.begin(prepared, lambda line: click.echo(in_jobs_dir(line)))
        record = follow_to_end(job, progress, signals)
    click.echo(show.finished(plan.paths, record, progress))
