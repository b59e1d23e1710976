"""``launcher submit``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import jobs_dir_option, lang_option, set_option
from launcher.cli.options.completion import spec_names
from launcher.cli.options.run import make_options, run_options
from launcher.cli.options.scheduler import make_where, split_options, where_options

if TYPE_CHECKING:
    from launcher.control.prepare import Draft


@click.command()
@click.argument("spec", required=False, shell_complete=spec_names)
@click.option("--cards", type=int, metavar="N", help="Devices to use; all of the host's if left out.")
@click.option("--checkpoint", metavar="PATH", help="Base weights: takes the place of the spec's model.checkpoint.")
@set_option
@click.option("--port", type=click.IntRange(1024, 65535), help="The scheduler's port; a free one if left out.")
@click.option("--dry-run", is_flag=True, help="Print what would be written and run, and touch nothing.")
@click.option("--no-preflight", is_flag=True, help="Start even when a check of this host fails.")
@run_options
@where_options
@click.option("--detach", is_flag=True, help="Print the job's id and return at once; launcher attach follows it.")
@lang_option
@jobs_dir_option
def submit(
    spec: str | None,
    cards: int | None,
    checkpoint: str | None,
    sets: tuple[str, ...],
    port: int | None,
    dry_run: bool,
    no_preflight: bool,
    detach: bool,
    jobs_dir: Path,
    **more: Any,
) -> None:
    """Finetune as SPEC says (a .yaml file, or a name in configs/) and follow the run to its end.

    Ctrl-C stops the job, twice at once. Closing the terminal does not: launcher attach follows it again.

    \b
    launcher submit --cards 2
    launcher submit llama_7b_lora --cards 8 --dry-run
    launcher submit --cards 2 --engine direct --detach
    launcher submit llama_7b_lora --scheduler ssh --inventory rank_tables/2x8.yaml
    launcher submit llama_7b_lora --scheduler slurm --nodes 2 --cards 16 --kind A2 --gres npu:8 --time 1-00:00
    """
    from launcher.cli.output import show
    from launcher.control import prepare

    place, run = split_options(more)
    where = make_where(place, cards, grace_s=run["grace_s"])
    make_draft = partial(
        prepare.draft,
        spec,
        cards=cards,
        checkpoint=checkpoint,
        sets=sets,
        port=port,
        jobs_dir=jobs_dir,
        options=make_options(**run),
        where=where,
    )
    draft = make_draft()
    for note in draft.notes:
        click.echo(note, err=detach)
    if dry_run:
        click.echo(show.plan(draft.plan, draft.pending))
        return
    if not no_preflight:
        for note in prepare.preflight(draft.plan, port=port):
            click.echo(note, err=True)
    if draft.pending:
        click.echo(f"Data: {draft.pending.describe()}", err=detach)
        draft.pending.make()
        told, draft = draft.notes, make_draft()  # the number of rows, and so of steps, is known now
        for note in draft.more_than(told):
            click.echo(note, err=detach)
    _detach(draft) if detach else _follow(draft)


def _detach(draft: Draft) -> None:
    from launcher.control import prepare

    guard = prepare.begin(draft)
    if guard:
        guard.returncode = 0  # nobody waits for it
    click.echo(draft.plan.paths.job_id)


def _follow(draft: Draft) -> None:
    from launcher.cli.output import show
    from launcher.cli.output.following import follow_to_end
    from launcher.control import prepare
    from launcher.control.follow import noted_signals

    plan = draft.plan
    with noted_signals() as signals, show.Progress(plan.steps, plan.loss_rank) as progress:
        progress.begin(plan.paths.job_id, plan.cluster.num_devices, plan.cluster.target)
        guard = prepare.begin(draft)
        record = follow_to_end(plan.paths, progress, signals, guard)
    click.echo(show.finished(plan.paths, record, progress))
