"""``launcher infer``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from launcher.cli.options.common import Text
from launcher.cli.options.model import find, generation_spec, model_options, sampling_options


@click.command()
@model_options
@click.option("--prompt", "prompts", multiple=True, type=Text(), help="A question; give several for one batch.")
@click.option(
    "--file", "file", metavar="FILE", help="Questions: .jsonl or .json with ids, else one a line; - is stdin."
)
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without the template of training.")
@click.option("--system", type=Text(), help="Text of the system's turn.")
@click.option("--batch-size", type=click.IntRange(min=1, max=1024), default=8, show_default=True, metavar="N")
@sampling_options
@click.option("--format", "layout", type=click.Choice(["text", "jsonl"]), default="text", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON lines to write; what it has answered already is not asked again.",
)
def infer(reference: str, prompts: tuple[str, ...], file: str | None, **options: Any) -> None:
    """Ask MODEL: a job, a folder that merge-ckpt wrote, a folder of transformers, or a weights file.

    \b
    launcher infer last --prompt "小明有3个苹果，妈妈又给他5个，现在有几个？"
    launcher infer last --file questions.jsonl --output answers.jsonl
    launcher infer my-llama --adapter last --raw --prompt "I love Beijing, because"
    """
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:
        _infer(reference, prompts, file, interrupted, options)


def _infer(
    reference: str, prompts: tuple[str, ...], file: str | None, interrupted: Callable[[], bool], options: dict[str, Any]
) -> None:
    from launcher.inference.asking import Asking
    from launcher.inference.prompts import collect
    from launcher.inference.session import Session

    questions = collect(prompts, file, system=options["system"], raw=options["raw"])
    session = Session(
        find(reference, options),
        batch_size=min(options["batch_size"], len(questions)),
        device_id=options["device_id"],
    )
    session.interrupted = interrupted
    asking = Asking(session=session, spec=generation_spec(options, session.model), as_json=options["layout"] == "jsonl")
    if options["output"]:
        waits = f"{options['output']}: another infer writes it; waiting for its end"
        left, total = asking.into_file(questions, options["output"], on_wait=lambda: click.echo(waits, err=True))
        click.echo(f"{options['output']}: {total} answers, {left} of them new", err=True)
    else:
        asking.to_stdout(questions, stream=sys.stdout.isatty())
