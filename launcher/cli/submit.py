"""``launcher submit``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from launcher.cli.options import jobs_dir_option, set_option


@click.command()
@click.argument("spec", required=False)
@click.option("--cards", type=int, metavar="N", help="Devices to use; all of the host's if left out.")
@click.option("--checkpoint", metavar="PATH", help="Base weights: takes the place of the spec's model.checkpoint.")
@set_option
@click.option("--port", type=click.IntRange(1024, 65535), help="The scheduler's port; a free one if left out.")
@click.option("--dry-run", is_flag=True, help="Print what would be written and run, and touch nothing.")
@click.option("--no-preflight", is_flag=True, help="Start even when a check of this host fails.")
@jobs_dir_option
def submit(
    spec: str | None,
    cards: int | None,
    checkpoint: str | None,
    sets: tuple[str, ...],
    port: int | None,
    dry_run: bool,
    no_preflight: bool,
    jobs_dir: Path,
) -> None:
    """Finetune as SPEC says (a .yaml file, or a name in configs/) and follow the run to its end.

    \b
    launcher submit --cards 2
    launcher submit llama_7b_lora --cards 8 --dry-run
    """
    from launcher import submission
    from launcher.cli import show

    make_draft = partial(
        submission.draft, spec, cards=cards, checkpoint=checkpoint, sets=sets, port=port, jobs_dir=jobs_dir
    )
    draft = make_draft()
    for note in draft.notes:
        click.echo(note)
    if dry_run:
        click.echo(show.plan(draft.plan))
        return
    if not no_preflight:
        submission.preflight(draft.plan, port=port)
    if draft.pending:
        draft.pending.make()
        draft = make_draft()  # the number of rows, and so of steps, is known now
    with show.Progress(draft.plan.steps) as progress:
        record = submission.carry_out(draft, progress.note, on_start=progress.begin)
    click.echo(show.finished(draft.plan, record, progress))
