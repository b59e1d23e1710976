"""``launcher chat``."""

from __future__ import annotations

import sys

import click

from launcher.cli.options.common import Text, model_argument
from launcher.cli.options.group import takes
from launcher.cli.options.model import ModelOptions, SamplingOptions
from launcher.cli.output.progress import waiting


@click.command()
@model_argument
@takes(ModelOptions, "choice")
@click.option("--system", type=Text(), help="System prompt.")
@takes(SamplingOptions, "sampling")
def chat(reference: str, choice: ModelOptions, system: str | None, sampling: SamplingOptions) -> None:
    """Talk with MODEL: what was said before is part of each question, the oldest left out when the context is full.

    \b
    launcher chat last
    launcher chat last --system "Answer in one sentence." --temperature 0.7
    """
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        from launcher.inference.chatting import talk
        from launcher.inference.session import Session

        session = Session(choice.find(reference), batch_size=1, device_id=choice.device_id)
        session.interrupted = interrupted
        with waiting() as session.on_phase:
            talk(session, sampling.spec(session.model), system=system, out=sys.stdout)
