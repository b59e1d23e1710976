"""``launcher eval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from launcher.inference.evaluation import Candidate, Comparison, Score
    from launcher.inference.perplexity import Surprises
    from launcher.inference.quiz import Quiz, Results


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The rows and questions to score with, and where the result goes."""

    data: Path | None = option(
        "--data", type=click.Path(path_type=Path), help="Held-out rows.  [default: the job's validation split]"
    )
    limit: int | None = option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows; of an exam, N of each subject."
    )
    ask: str | None = option(
        "--ask",
        metavar="FILE",
        help="Put the questions of FILE instead, any that data convert reads, and count right answers; or those of a "
        "published exam, a file or a folder: GSM8K, C-Eval, CMMLU, MMLU.",
    )
    score: str | None = option(
        "--score",
        type=click.Choice(["exact", "number", "regex", "contains", "choice", "likelihood"]),
        help="With --ask, what makes an answer right: the whole text, its last number, a pattern, a part, a letter, "
        "or the likeliest letter.  [default: number; likelihood for exams with letters]",
    )
    exam: str | None = option(
        "--exam",
        type=click.Choice(["gsm8k", "ceval", "cmmlu", "mmlu", "none"]),
        help="With --ask, which exam FILE is; none: any other file.  [default: by its shape]",
    )
    shots: int | None = option(
        "--shots",
        type=click.IntRange(min=0),
        metavar="N",
        help="Examples before each question of an exam, from the split that is published for it.  [default: 5]",
    )
    chat: bool = option(
        "--chat", is_flag=True, help="Put an exam in the model's template, examples as turns, for models that chat."
    )
    perplexity: Path | None = option(
        "--perplexity",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Score the plain text in FILE instead: nats a token, perplexity, bits a byte.",
    )
    window: int | None = option(
        "--window", type=click.IntRange(min=2), metavar="N", help="Tokens of a window.  [default: the model's context]"
    )
    stride: int | None = option(
        "--stride", type=click.IntRange(min=1), metavar="N", help="Tokens to the next window.  [default: half a window]"
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
    max_new_tokens: int | None = option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most tokens per answer.  [default: 128; 256 for GSM8K]",
    )
    output: Path | None = option(
        "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON too."
    )

    @property
    def tokens(self) -> int:
        """Return the limit of an answer that is given, or usual."""
        return self.max_new_tokens or _USUAL_TOKENS

    def check(self) -> None:
        """Raise SpecError for options that mean nothing together."""
        ways = {"--ask": self.ask, "--data": self.data, "--perplexity": self.perplexity}
        given = [flag for flag, value in ways.items() if value is not None]
        if len(given) > 1:
            raise SpecError(f"{' and '.join(given)} both say what models are evaluated on", hint="leave one out")
        of_ask = {
            "--columns": self.columns, "--ignore": self.ignore, "--score": self.score, "--exam": self.exam,
            "--shots": self.shots is not None, "--chat": self.chat,
        }  # fmt: skip
        of_text = {"--window": self.window, "--stride": self.stride}
        self._check_belonging(of_ask, "--ask", "launcher eval JOB --ask FILE")
        self._check_belonging(of_text, "--perplexity", "launcher eval JOB --perplexity FILE")

    def _check_belonging(self, values: Mapping[str, object], flag: str, example: str) -> None:
        owner = {"--ask": self.ask, "--perplexity": self.perplexity}[flag]
        if owner is None and (stray := [name for name, value in values.items() if value]):
            raise SpecError(f"{' and '.join(stray)} {'is' if len(stray) == 1 else 'are'} of {flag}", hint=example)


_USUAL_TOKENS = 128
_TOKENS_OF_WORKING = 256


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
    launcher eval last --ask mmlu/
    launcher eval last --perplexity book.txt
    """
    references = references or ("last",)
    options.check()
    if options.ask is not None:
        _examine(references, options, form, choice)
    elif options.perplexity is not None:
        _read_on(references, options, form, choice)
    else:
        _compare(references, options, form, choice)


def _compare(references: tuple[str, ...], options: EvalOptions, form: str, choice: ModelOptions) -> None:
    """Score every model on held-out rows."""
    from launcher.cli.output.tables import print_json

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

    results = _graded(references, options, choice)
    _keep(results, references, choice)
    if options.output:
        results.write(options.output)
    if form == "json":
        print_json(results.to_dict())
    else:
        _print_graded(results)


def _graded(references: tuple[str, ...], options: EvalOptions, choice: ModelOptions) -> Results:
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        quiz = _quiz(options)
        found = _candidates(references, choice, quiz.notes)
        with waiting() as on_phase:
            return quiz.put_to(
                found,
                max_new_tokens=options.max_new_tokens or (_TOKENS_OF_WORKING if quiz.has_working else _USUAL_TOKENS),
                device_id=choice.device_id,
                interrupted=interrupted,
                on_phase=on_phase,
            )


def _candidates(references: tuple[str, ...], choice: ModelOptions, notes: Sequence[str] = ()) -> list[Candidate]:
    """Return the models, and print ``notes`` and how they were found."""
    from launcher.inference.evaluation import candidates

    found = list(candidates(references, choice.jobs_dir, choice.given()))
    for note in dict.fromkeys((*notes, *(note for one in found for note in one.model.notes))):
        click.echo(f"note: {note}", err=True)
    return found


def _quiz(options: EvalOptions) -> Quiz:
    """Return the questions of --ask: those of a published exam, or of any other file."""
    from launcher.data.exams import find_exam
    from launcher.data.reading import DataSource, Reading, listed, parsed_columns
    from launcher.inference.exams import EXAMPLES
    from launcher.inference.quiz import exam_quiz, read_quiz

    other = options.exam == "none" or (options.exam is None and bool(options.columns or options.ignore))
    exam = None if other else find_exam(Path(str(options.ask)), options.exam, options.limit)
    if exam is not None:
        if options.columns or options.ignore:
            raise SpecError("--columns and --ignore are of files that are no exam", hint="--exam none")
        shots = EXAMPLES if options.shots is None else options.shots
        return exam_quiz(exam, judge=options.score, examples=shots, chat=options.chat)
    if options.chat or options.shots is not None or options.score == "likelihood":
        raise SpecError(
            f"--chat, --shots and --score likelihood are of exams, and {options.ask} has the shape of none",
            hint="--exam gsm8k, ceval, cmmlu or mmlu says which it is",
        )
    reading = Reading(columns=parsed_columns(options.columns), ignore=listed(options.ignore))
    return read_quiz(DataSource(path=str(options.ask), reading=reading), options.score or "number", options.limit)


def _read_on(references: tuple[str, ...], options: EvalOptions, form: str, choice: ModelOptions) -> None:
    """Score a plain text by every model."""
    from launcher.cli.output.tables import print_json
    from launcher.inference.interrupts import held_back

    with held_back() as interrupted:  # before numpy is imported: its threads inherit what is held back
        from launcher.inference.perplexity import read_text, surprises

        text = read_text(Path(str(options.perplexity)))
        found = _candidates(references, choice)
        with waiting() as on_phase:
            results = surprises(
                found, text, window=options.window, stride=options.stride, device_id=choice.device_id,
                interrupted=interrupted, on_phase=on_phase,
            )  # fmt: skip
    if options.output:
        results.write(options.output)
    if form == "json":
        print_json(results.to_dict())
    else:
        _print_surprises(results)


def _print_surprises(results: Surprises) -> None:
    from launcher.cli.output.tables import table

    click.echo(f"{results.text.path}: {results.text.size} bytes")
    rows = (
        (
            row["role"], row["model"], str(row["tokens"]), f"{row['nats']:.2f}", f"{row['nats_per_token']:.4f}",
            f"{row['perplexity']:.3f}", f"{row['bits_per_byte']:.4f}", f"{row['window']}/{row['stride']}",
        )
        for row in results.to_dict()["models"]
    )  # fmt: skip
    head = ("ROLE", "MODEL", "TOKENS", "NATS", "NATS/TOKEN", "PERPLEXITY", "BITS/BYTE", "WINDOW/STRIDE")
    click.echo(table(head, rows, right={2, 3, 4, 5, 6, 7}))


_SHOWN_IDS = 8


_SHOWN_SUBJECTS = 20


def _print_graded(results: Results) -> None:
    from launcher.cli.output.tables import table

    quiz, asked = results.quiz, len(results.quiz.items)
    click.echo(f"{quiz.path}: {quiz.title}{asked} questions{quiz.put}, right by {quiz.judge}")
    head = ("ROLE", "MODEL", "RIGHT", "SHARE", *(("SUBJECTS",) if quiz.subjects else ()))
    rows = (
        (
            one.role, one.name, f"{sum(one.right)}/{asked}", f"{100 * sum(one.right) / asked:.1f} %",
            *((f"{100 * results.mean_of_subjects(one):.1f} %",) if quiz.subjects else ()),
        )
        for one in results.graded
    )  # fmt: skip
    click.echo(table(head, rows, right={3, 4}))
    if 1 < len(quiz.subjects) <= _SHOWN_SUBJECTS:
        _print_subjects(results)
    elif quiz.subjects[1:]:
        click.echo(f"SUBJECTS: the mean of {len(quiz.subjects)} subjects; -o FILE has each of them")
    for one in results.graded:
        if one.fewer:
            click.echo(f"{one.role} {one.name}: {one.fewer} questions had fewer examples, as its context holds no more")
    if len(results.graded) > 1:
        shown = ", ".join(results.differing[:_SHOWN_IDS]) + (", ..." if len(results.differing) > _SHOWN_IDS else "")
        click.echo(f"right for some models and wrong for others: {len(results.differing)} {shown}".rstrip())


def _print_subjects(results: Results) -> None:
    from launcher.cli.output.tables import table

    counts = [results.by_subject(one) for one in results.graded]
    rows = ((name, *(f"{one[name][0]}/{one[name][1]}" for one in counts)) for name in results.quiz.subjects)
    click.echo(table(("SUBJECT", *(one.role.upper() for one in results.graded)), rows))


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
                max_new_tokens=options.tokens,
                device_id=choice.device_id,
                interrupted=interrupted,
                on_phase=on_phase,
            )


def _keep(found: Comparison | Results, references: tuple[str, ...], choice: ModelOptions) -> None:
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
