"""``launcher infer``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import Text, model_argument
from launcher.cli.options.group import option, takes
from launcher.cli.options.model import ModelOptions, SamplingOptions
from launcher.cli.output.progress import waiting

if TYPE_CHECKING:
    from launcher.inference.session import Question, Session


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The questions and how they are put to the model."""

    prompts: tuple[str, ...] = option(
        "--prompt", multiple=True, type=Text(), help="A question; give several for one batch."
    )
    file: str | None = option(
        "--file", metavar="FILE", help="Questions: .jsonl or .json with ids, else one per line; - is stdin."
    )
    raw: bool = option("--raw", is_flag=True, help="Pass the prompt to the model as is, without the prompt template.")
    system: str | None = option("--system", type=Text(), help="System prompt.")
    batch_size: int = option(
        "--batch-size",
        type=click.IntRange(min=1, max=1024),
        default=8,
        show_default=True,
        metavar="N",
        help="Prompts of --file that are answered at a time.",
    )


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The form of the answers and where they go."""

    layout: str = option(
        "--format", type=click.Choice(["text", "jsonl"]), default="text", show_default=True,
        help="jsonl: an object an answer, with its prompt, tokens and reason of the end.",
    )  # fmt: skip
    output: Path | None = option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, dir_okay=False),
        help="JSON lines to write; questions that it already answers are not asked again.",
    )


@click.command()
@model_argument
@takes(ModelOptions, "choice")
@takes(Questions, "asked")
@takes(SamplingOptions, "sampling")
@takes(Answers, "answers")
def infer(reference: str, choice: ModelOptions, asked: Questions, sampling: SamplingOptions, answers: Answers) -> None:
    """Ask MODEL: a job, a folder that merge-ckpt wrote, a folder of transformers, or a weights file.

    \b
    launcher infer last --prompt "小明有3个苹果，妈妈又给他5个，现在有几个？"
    launcher infer last --file questions.jsonl --output answers.jsonl
    launcher infer my-llama --adapter last --raw --prompt "I love Beijing, because"
    """
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        from launcher.inference.prompts import collect
        from launcher.inference.session import Session

        questions = collect(asked.prompts, asked.file, system=asked.system, raw=asked.raw)
        batch_size = min(asked.batch_size, len(questions))
        session = Session(choice.find(reference), batch_size=batch_size, device_id=choice.device_id)
        session.interrupted = interrupted
        with waiting() as session.on_phase:
            _answer(session, questions, sampling, answers)


def _answer(session: Session, questions: Sequence[Question], sampling: SamplingOptions, answers: Answers) -> None:
    from launcher.inference.asking import Asking

    asking = Asking(session=session, spec=sampling.spec(session.model), as_json=answers.layout == "jsonl")
    if answers.output is None:
        asking.to_stdout(questions, stream=sys.stdout.isatty())
        return
    waits = f"{answers.output}: another infer writes it; waiting for its end"
    new, total = asking.into_file(questions, answers.output, on_wait=lambda: click.echo(waits, err=True))
    click.echo(f"{answers.output}: {total} answers, {new} of them new", err=True)
