"""``launcher eval``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import format_option
from launcher.cli.options.completion import job_ids
from launcher.cli.options.model import given, model_choices

if TYPE_CHECKING:
    from launcher.inference.evaluation import HeldOut, Score


@click.command("eval")
@click.argument("references", metavar="MODEL...", nargs=-1, shell_complete=job_ids)
@click.option("--data", type=click.Path(path_type=Path), help="Held-out rows.  [default: the job's validation split]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@click.option(
    "--questions",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    metavar="N",
    help="Of the first N rows whose answer has a number, ask for it.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON too.")
@format_option
@model_choices
def evaluate(references: tuple[str, ...], **options: Any) -> None:
    """Compare models on held-out rows: loss, perplexity, and how often the final number of an answer is right.

    A job with LoRA stands three times in the table: its base, its base with the adapter beside it, and merged.

    \b
    launcher eval last
    launcher eval jobs/abc/merged other-model --data held_out.mindrecord
    """
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:
        _evaluate(references or ("last",), interrupted, options)


def _evaluate(references: tuple[str, ...], interrupted: Callable[[], bool], options: dict[str, Any]) -> None:
    from launcher.common.rendering import write_atomic
    from launcher.data.info import read_info
    from launcher.errors import DataError
    from launcher.inference import evaluation
    from launcher.upstream.quiet import quiet

    if options["data"] and not read_info(options["data"]):
        raise DataError(f"{options['data']} does not exist or is no dataset", hint="launcher data preprocess makes one")
    chosen = given(options)
    found = list(evaluation.candidates(references, options["jobs_dir"], chosen))
    for note in dict.fromkeys(note for candidate in found for note in candidate.model.notes):
        click.echo(f"note: {note}", err=True)
    data = options["data"] or evaluation.validation_split(references, options["jobs_dir"])
    rows = evaluation.read_rows(data, options["limit"])
    scores = []
    with quiet():
        for candidate in found:
            scores.append(
                evaluation.score(
                    candidate,
                    rows,
                    questions=options["questions"],
                    max_new_tokens=options["max_new_tokens"],
                    device_id=options["device_id"],
                    interrupted=interrupted,
                )
            )
    difference = evaluation.difference(scores)
    record = {
        "data": str(data),
        "rows": len(rows.ids),
        "models": [score.to_dict() for score in scores],
        "difference": difference,
    }
    text = json.dumps(record, ensure_ascii=False, indent=2)
    if options["output"]:
        write_atomic(options["output"], f"{text}\n")
    if options["form"] == "json":
        click.echo(text)
    else:
        _print(rows, scores, difference)


def _print(rows: HeldOut, scores: Sequence[Score], difference: dict[str, Any] | None) -> None:
    from launcher.cli.output.tables import print_table

    tokens, asked = len(scores[0].losses), len(scores[0].right)
    click.echo(f"{rows.path}: {len(rows.ids)} rows, {tokens} tokens in the loss, {asked} questions with a number")
    print_table(
        ("", "model", "loss", "perplexity", "right"),
        [
            (
                score.role,
                score.name,
                f"{score.loss:.4f}",
                f"{score.perplexity:.3f}",
                f"{sum(score.right)}/{asked}" if asked else "",
            )
            for score in scores
        ],
    )
    if difference:
        click.echo(
            f"base + adapter and merged differ by {difference['loss']:.1e} in loss, by "
            f"{difference['largest_of_a_token']:.1e} in one token at most; "
            f"{difference['same_answers']} of {difference['answers']} answers are the same"
        )
