"""``launcher chat``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from launcher.cli.options.common import Text
from launcher.cli.options.model import find, generation_spec, model_options, sampling_options


@click.command()
@model_options
@click.option("--system", type=Text(), help="Text of the system's turn.")
@sampling_options
def chat(reference: str, **options: Any) -> None:
    """Talk with MODEL: what was said before is part of each question, the oldest left out when the context is full.

    \b
    launcher chat last
    launcher chat last --system "Answer in one sentence." --temperature 0.7
    """
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:
        _chat(reference, interrupted, options)


def _chat(reference: str, interrupted: Callable[[], bool], options: dict[str, Any]) -> None:
    from launcher.inference.chatting import Chat, Conversation, read_line
    from launcher.inference.session import Session
    from launcher.upstream.quiet import quiet

    session = Session(find(reference, options), batch_size=1, device_id=options["device_id"])
    template = session.template
    session.interrupted = interrupted
    with quiet():
        session.load()
    if interrupted():
        return
    model = session.model
    click.echo(f"{model.name}, {model.context} tokens of context, template {template.name}. /help lists commands.")
    conversation = Conversation(system=options["system"])
    Chat(
        session=session,
        spec=generation_spec(options, session.model),
        read=read_line,
        out=sys.stdout,
        conversation=conversation,
    ).run()
