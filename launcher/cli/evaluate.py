"""``launcher eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import format_option
from launcher.cli.options.completion import job_ids
from launcher.cli.options.group import option, takes
from launcher.cli.options.model import ModelOptions
from launcher.cli.output.progress import waiting
from launcher.errors import SpecError

if TYPE_CHECKING:
    from launcher.inference.evaluation import Comparison, Score
    from launcher.inference.quiz import Results


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The rows and questions to score with, and where the result goes."""

    data: Path | None = option(
        "--data", type=click.Path(path_type=Path), help="Held-out rows.  [default: the job's validation split]"
    )
    limit: int | None = option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
    ask: str | None = option(
        "--ask",
        metavar="FILE",
        help="Put the questions of FILE instead, any that data convert reads, and count right answers; see --score.",
    )
    score: str = option(
        "--score",
        type=click.Choice(["exact", "number", "regex", "contains", "choice"]),
        default="number",
        show_default=True,
        help="With --ask, what makes an answer right: the whole text, its last number, a pattern, a part, a letter.",
    )
    columns: str = option(
        "--columns", metavar="PART=FIELD,...", default="", help="With --ask: question=FIELD,answer=FIELD."
    )
    ignore: tuple[str, ...] = option(
        "--ignore", multiple=True, metavar="FIELD,...", help="With --ask: fields to leave out; '*': all others."
    )
    questions: int = option(
        "--questions",
        type=click.IntRange(min=0),
        default=50,
        show_default=True,
        metavar="N",
        help="Also ask the first N rows whose answer contains a number, and count right answers.",
    )
    max_new_tokens: int = option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
    output: Path | None = option(
        "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON too."
    )


@click.command("eval")
@click.argument("references", metavar="MODEL...", nargs=-1, shell_complete=job_ids)
@takes(EvalOptions, "options")
@format_option
@takes(ModelOptions, "choice")
def evaluate(references: tuple[str, ...], options: EvalOptions, form: str, choice: ModelOptions) -> None:
    """Compare models on held-out rows: loss, perplexity, and how often the final number of an answer is right.

    A job with LoRA stands three times in the table: its base, its base with the adapter beside it, and merged.

    \b
    launcher eval last
    launcher eval jobs/abc/merged other-model --data held_out.mindrecord
    launcher eval last --ask exam.jsonl --score choice
    """
    from launcher.cli.output.tables import print_json

    references = references or ("last",)
    if options.ask is not None:
        _examine(references, options, form, choice)
        return
    if options.columns or options.ignore:
        raise SpecError("--columns and --ignore are of --ask", hint="launcher eval JOB --ask FILE")
    found = _compared(references, options, choice)
    _keep(found, references, choice)
    if options.output:
        found.write(options.output)
    if form == "json":
        print_json(found.to_dict())
    else:
        _print(found)


def _examine(references: tuple[str, ...], options: EvalOptions, form: str, choice: ModelOptions) -> None:
    """Put the questions of a file to every model, and print how many each has right."""
    from launcher.cli.output.tables import print_json

    if options.data:
        raise SpecError("--ask and --data both say what models are evaluated on", hint="leave one out")
    results = _graded(references, options, choice)
    if options.output:
        results.write(options.output)
    if form == "json":
        print_json(results.to_dict())
    else:
        _print_graded(results)


def _graded(references: tuple[str, ...], options: EvalOptions, choice: ModelOptions) -> Results:
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        from launcher.data.reading import DataSource, Reading, listed, parsed_columns
        from launcher.inference.evaluation import candidates
        from launcher.inference.quiz import read_quiz

        reading = Reading(columns=parsed_columns(options.columns), ignore=listed(options.ignore))
        quiz = read_quiz(DataSource(path=str(options.ask), reading=reading), options.score, options.limit)
        found = tuple(candidates(references, choice.jobs_dir, choice.given()))
        for note in dict.fromkeys(note for one in found for note in one.model.notes):
            click.echo(f"note: {note}", err=True)
        with waiting() as on_phase:
            return quiz.put_to(
                found,
                max_new_tokens=options.max_new_tokens,
                device_id=choice.device_id,
                interrupted=interrupted,
                on_phase=on_phase,
            )


_SHOWN_IDS = 8


def _print_graded(results: Results) -> None:
    from launcher.cli.output.tables import table

    quiz, asked = results.quiz, len(results.quiz.items)
    click.echo(f"{quiz.path}: {asked} questions, right by {quiz.judge}")
    rows = (
        (one.role, one.name, f"{sum(one.right)}/{asked}", f"{100 * sum(one.right) / asked:.1f} %")
        for one in results.graded
    )
    click.echo(table(("ROLE", "MODEL", "RIGHT", "SHARE"), rows, right={3}))
    if len(results.graded) > 1:
        shown = ", ".join(results.differing[:_SHOWN_IDS]) + (", ..." if len(results.differing) > _SHOWN_IDS else "")
        click.echo(f"right for some models and wrong for others: {len(results.differing)} {shown}".rstrip())


def _compared(references: tuple[str, ...], options: EvalOptions, choice: ModelOptions) -> Comparison:
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        from launcher.inference.evaluation import Evaluation

        evaluation = Evaluation.of(references, choice.jobs_dir, choice.given(), data=options.data, limit=options.limit)
        for note in evaluation.notes:
            click.echo(f"note: {note}", err=True)
        with waiting() as on_phase:
            return evaluation.run(
                questions=options.questions,
                max_new_tokens=options.max_new_tokens,
                device_id=choice.device_id,
                interrupted=interrupted,
                on_phase=on_phase,
            )


def _keep(found: Comparison, references: tuple[str, ...], choice: ModelOptions) -> None:
    """Leave the result in the jobs' folders, for their reports."""
    try:
        found.keep(references, choice.jobs_dir)
    except OSError as error:  # someone else's job
        click.echo(f"note: not kept for launcher report: {error}", err=True)


def _print(found: Comparison) -> None:
    from launcher.cli.output.tables import table

    rows, scores = found.rows, found.scores
    tokens, asked = len(scores[0].losses), len(scores[0].right)
    click.echo(f"{rows.path}: {len(rows.ids)} rows, {tokens} tokens in the loss, {asked} questions with a number")
    click.echo(table(("ROLE", "MODEL", "LOSS", "PERPLEXITY", "RIGHT"), map(_row, scores)))
    if found.difference:
        click.echo(
            f"base + adapter and merged differ by {found.difference['loss']:.1e} in loss, by "
            f"{found.difference['largest_of_a_token']:.1e} in one token at most; "
            f"{found.difference['same_answers']} of {found.difference['answers']} answers are the same"
        )


def _row(score: Score) -> tuple[str, ...]:
    right = f"{sum(score.right)}/{len(score.right)}" if score.right else ""
    return score.role, score.name, f"{score.loss:.4f}", f"{score.perplexity:.3f}", right
