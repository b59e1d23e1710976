"""``launcher chat``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from launcher.cli.options.common import Text, model_argument
from launcher.cli.options.group import takes
from launcher.cli.options.model import ModelOptions, SamplingOptions
from launcher.cli.output.progress import waiting


@click.command()
@model_argument
@takes(ModelOptions, "choice")
@click.option("--system", type=Text(), help="System prompt.")
@click.option(
    "--continue",
    "kept",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Go on with the conversation in FILE, made if missing, and keep it there.",
)
@takes(SamplingOptions, "sampling")
def chat(
    reference: str, choice: ModelOptions, system: str | None, kept: Path | None, sampling: SamplingOptions
) -> None:
    """Talk with MODEL: what was said before is part of each question, the oldest left out when the context is full.

    \b
    launcher chat last
    launcher chat last --system "Answer in one sentence." --temperature 0.7
    launcher chat last --continue talk.json
    """
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        from launcher.inference.chatting import Chat, begun, line_reader, talk
        from launcher.inference.session import Session

        def session_with(adapter: str | None) -> Session:
            model = replace(choice, adapter=adapter).find(reference)
            return Session(model, batch_size=1, device_id=choice.device_id)

        conversation = begun(kept, system)
        session = session_with(choice.adapter)
        session.interrupted = interrupted
        talker = Chat(
            session=session,
            spec=sampling.spec(session.model),
            read=line_reader(),
            out=sys.stdout,
            conversation=conversation,
            kept=kept,
            switch=session_with,
        )
        with waiting() as session.on_phase:
            talk(talker)
