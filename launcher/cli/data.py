"""``launcher data``: from raw questions and answers to the rows that training reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from launcher.cli.options.common import format_option
from launcher.cli.options.group import declared, option, takes
from launcher.cli.options.sources import STDIN, ReadOptions, on_disk
from launcher.cli.output.datasets import kinds_text, many, say_details, say_read, summary
from launcher.cli.output.interruption import interruptible
from launcher.cli.output.tables import print_json
from launcher.data import outputs
from launcher.data.templates import DEFAULT
from launcher.errors import DataError

if TYPE_CHECKING:
    from launcher.data.convert import Progress
    from launcher.data.encode import TrainOn
    from launcher.data.options import PreprocessOptions
    from launcher.data.reading import DataSource

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
_sources = click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
_force = click.option("--force", is_flag=True, help="Overwrite the output.")
_max_rejects = click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Skip up to this many bad records and keep them in OUTPUT.rejects.jsonl; one more stops the run.",
)
_processes = click.option(
    "--processes",
    type=click.IntRange(min=0),
    default=0,
    help="Worker processes. 0: one per core, when the input is large enough.",
)


def _output(default: str) -> Callable[[F], F]:
    return click.option("--output", "-o", type=_FILE, default=default, show_default=True, help="File to write.")


@click.group()
def data() -> None:
    """Make, convert, tokenize and look at datasets.

    \b
    launcher data sample --size 5000 --output math.jsonl
    launcher data convert math.jsonl --output conversations.json
    launcher data tokenizer conversations.json --vocab-size 2000 --output tokenizer.model
    launcher data preprocess conversations.json --seq-length 128 --template plain --output train.mindrecord
    launcher data show train.mindrecord --row 5
    """


@data.command()
@click.option("--size", type=click.IntRange(min=1), default=1000, show_default=True, help="How many problems.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option(
    "--kind",
    type=click.Choice(["school", "base", "short", "steps"]),
    default="school",
    show_default=True,
    help="school: many kinds of problems. Of the shipped base: what it read, what it can, what LoRA teaches it.",
)
@click.option("--held-out", is_flag=True, help="Problems that neither the shipped base nor its LoRA was trained on.")
@_output("math.jsonl")
@_force
def sample(size: int, seed: int, kind: str, held_out: bool, output: Path, force: bool) -> None:
    """Write arithmetic problems with solutions, in Chinese, in the schema of BELLE School Math.

    \b
    launcher data sample --size 5000 --seed 1 --output math.jsonl
    launcher data sample --kind steps --held-out --size 50 --output held_out.jsonl
    """
    from launcher.data.arithmetic import arithmetic_lines
    from launcher.data.sample import sample_lines

    if kind == "school" and held_out:
        raise DataError("--held-out does not go with --kind school", hint="add --kind steps, or leave it out")
    lines = sample_lines(size, seed) if kind == "school" else arithmetic_lines(kind, size, seed, held_out=held_out)

    with interruptible(str(output)), outputs.scratch(output) as folder:
        built = folder / output.name
        with built.open("w", encoding="utf-8") as out:
            out.writelines(lines)
        changed = outputs.put(built, output, force=force)
    _say(output, changed, f"{size:,} problems, seed {seed}")


@data.command()
@_sources
@_output("conversations.json")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["json", "jsonl"]),
    default=None,
    help="One array, or one conversation a line. Default: by the name of the output.",
)
@takes(ReadOptions, "reading")
@_max_rejects
@_processes
@_force
def convert(
    sources: tuple[str, ...],
    output: Path,
    layout: str | None,
    reading: ReadOptions,
    max_rejects: int,
    processes: int,
    force: bool,
) -> None:
    """Turn records of any common shape into conversations.

    SOURCE is a file, a folder, a pattern in quotes, or - for standard input: json, jsonl, csv, tsv, parquet or arrow,
    also as .gz or .zst. What each record is, is found out from its keys.

    \b
    launcher data convert math.jsonl --output conversations.json
    launcher data convert 'qa/*.parquet' --columns question=ask,answer=reply --ignore category
    """
    from launcher.data import convert as converter

    lines = layout == "jsonl" if layout else output.suffix == ".jsonl"
    with on_disk(reading.sources(sources)) as given, interruptible(str(output)), _progress("conversations") as progress:
        done = converter.convert(
            given,
            output,
            force=force,
            lines=lines,
            max_rejects=max_rejects,
            processes=processes or useful_processes_for(given),
            progress=progress,
        )
    count = many(done.conversations, "conversation")
    _say(output, done.changed, f"{count} from {_named(sources)} (found: {kinds_text(done.kinds)})")
    say_read(done.notes, done.seen.read, done.seen.unread)
    _say_rejects(output, done.rejected)


def useful_processes_for(sources: Sequence[DataSource]) -> int:
    """Return how many processes pay off to read ``sources``."""
    from launcher.data.files import find_files
    from launcher.data.pool import useful_processes

    return useful_processes(find_files(sources).text_bytes)


def _named(sources: Sequence[str]) -> str:
    names = ["standard input" if source == STDIN else source for source in sources]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@data.command()
@_sources
@click.option(
    "--vocab-size",
    type=click.IntRange(min=260),
    default=None,
    help="Pieces in all. Default: 2000, or as many as SOURCE has.",
)
@click.option("--special", multiple=True, metavar="TOKEN", help="A control token such as '<|im_end|>'; repeatable.")
@takes(ReadOptions, "reading")
@_output("tokenizer.model")
@_force
def tokenizer(
    sources: tuple[str, ...],
    vocab_size: int | None,
    special: tuple[str, ...],
    reading: ReadOptions,
    output: Path,
    force: bool,
) -> None:
    """Train a SentencePiece model as LLaMA's: byte pairs, byte fallback, unk 0, bos 1, eos 2.

    SOURCE is what convert writes, or what it reads.

    \b
    launcher data tokenizer conversations.json --vocab-size 2000 --output tokenizer.model
    """
    from launcher.data.tokenizer import TooManyPiecesError, train_tokenizer

    with on_disk(reading.sources(sources)) as given, interruptible(str(output)), outputs.scratch(output) as folder:
        built = folder / output.name
        most, pieces = None, vocab_size or _PIECES
        try:
            train_tokenizer(_texts(given), built, vocab_size=pieces, special=special)
        except TooManyPiecesError as error:
            if vocab_size is not None:
                raise
            most = pieces = error.most
            train_tokenizer(_texts(given), built, vocab_size=pieces, special=special)
        changed = outputs.put(built, output, force=force)
    _say(output, changed, f"{pieces:,} pieces trained on {_named(sources)}{', which has no more' if most else ''}")


_PIECES = 2000


def _texts(sources: Sequence[DataSource]) -> Iterator[str]:
    from launcher.data.convert import read_conversations

    for conversation in read_conversations(sources):
        for message in conversation.messages:
            yield message.content


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How conversations become rows."""

    tokenizer: Path = option(
        "--tokenizer",
        type=_FILE,
        default="tokenizer.model",
        show_default=True,
        help="tokenizer.model or tokenizer.json.",
    )
    seq_length: int = option(
        "--seq-length", type=click.IntRange(min=2), default=2048, show_default=True, help="As the model's."
    )
    template: str = option("--template", default=DEFAULT, show_default=True, help="See launcher data templates.")
    kind: Literal["chat", "text"] = option(
        "--type",
        type=click.Choice(["chat", "text"]),
        default="chat",
        show_default=True,
        help="What SOURCE holds.",
    )
    too_long: Literal["cut", "drop", "split", "error"] = option(
        "--too-long",
        type=click.Choice(["cut", "drop", "split", "error"]),
        default="cut",
        show_default=True,
        help="What to do with samples longer than a row: cut the end off, leave them out, split them, or stop.",
    )
    overflow: str | None = option(
        "--overflow", type=click.Choice(["truncate", "drop", "split"]), default=None, hidden=True
    )
    train_on: TrainOn = option(
        "--train-on",
        type=click.Choice(["all", "last", "prompt"]),
        default="all",
        show_default=True,
        help="What is in the loss: all answers, the last answer only, or everything, the prompt too.",
    )
    shards: int = option("--shards", type=click.IntRange(1, 1000), default=1, show_default=True, help="Files to write.")
    eval_fraction: float = option(
        "--eval-fraction",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Hold out this share, chosen by a hash of each id, into OUTPUT with .eval before its suffix.",
    )
    dedup: bool = option("--dedup", is_flag=True, help="Skip records whose text occurred before, in any source.")
    packing: bool = option(
        "--packing", is_flag=True, help="Let samples share rows, unseen by each other; needs data.packing in the spec."
    )
    weights: str = option(
        "--weights", metavar="5,3,1", default="", help="Mix the sources in these parts. Default: every record once."
    )
    mix_by: Literal["samples", "tokens"] = option(
        "--mix-by",
        type=click.Choice(["samples", "tokens"]),
        default="samples",
        show_default=True,
        help="What the weights are parts of.",
    )
    mix_until: Literal["all", "first"] = option(
        "--mix-until",
        type=click.Choice(["all", "first"]),
        default="all",
        show_default=True,
        help="all: every record occurs, some repeatedly; first: no record is repeated, some are left out.",
    )
    mix_seed: int = option("--mix-seed", type=int, default=0, show_default=True, help="Which are repeated or left out.")
    max_rejects: int = declared(_max_rejects)
    processes: int = declared(_processes)
    output: Path = declared(_output("train.mindrecord"))
    resume: bool = option("--resume", is_flag=True, help="Continue an interrupted run.")

    def numbers(self) -> list[float]:
        """Return the weights. Raises DataError when one is no positive number."""
        from launcher.data.mixture import parsed_weights

        return parsed_weights(self.weights)

    def wanted(self, sources: tuple[DataSource, ...]) -> PreprocessOptions:
        """Return what to make of ``sources``. Raises DataError."""
        from launcher.data.options import Mix, PreprocessOptions, overflow_of

        return PreprocessOptions(
            source=sources,
            tokenizer=self.tokenizer,
            target=self.output,
            seq_length=self.seq_length,
            template=self.template,
            kind=self.kind,
            overflow=overflow_of(self.overflow or self.too_long),
            train_on=self.train_on,
            mix=Mix(by=self.mix_by, until=self.mix_until, seed=self.mix_seed),
            shards=self.shards,
            eval_fraction=self.eval_fraction,
            dedup=self.dedup,
            packing=self.packing,
            max_rejects=self.max_rejects,
            processes=self.processes,
            resume=self.resume,
        )


@data.command()
@_sources
@takes(ReadOptions, "reading")
@takes(RowOptions, "options")
@_force
def preprocess(sources: tuple[str, ...], reading: ReadOptions, options: RowOptions, force: bool) -> None:
    """Tokenize conversations into a MindRecord of input_ids and labels; only answers are in the loss.

    SOURCE is what convert writes, or what it reads; with --type text a plain text, or records {"text": ...}.
    Rows are one token longer than --seq-length, because the model trains on all but the last and shifts the
    labels itself.

    \b
    launcher data preprocess conversations.json --tokenizer tokenizer.model --seq-length 128 --template plain
    launcher data preprocess belle.parquet alpaca.json --weights 5,3 --seq-length 2048
    """
    from launcher.data.preprocess import preprocess as run

    if options.resume and STDIN in sources:
        raise DataError("--resume cannot read standard input again", hint="save it to a file, and name that")
    with on_disk(reading.sources(sources, options.numbers())) as given, _progress("rows") as progress:
        info, changed = run(options.wanted(given), force=force, progress=progress)
    _say(options.output, changed, summary(info))
    say_details(info)
    _say_rejects(options.output, info.counts["rejected"])


@data.command()
@click.argument("file", type=_FILE)
@click.option("--row", type=click.IntRange(min=0), default=0, show_default=True, help="Which row, from 0.")
@click.option("--tokenizer", type=_FILE, default=None, help="Default: the tokenizer that the file was made with.")
@click.option("--tokens/--no-tokens", default=None, help="List each token with its label. Default: unless packed.")
@format_option
def show(file: Path, row: int, tokenizer: Path | None, tokens: bool | None, form: str) -> None:
    """Show one row of a MindRecord: its samples, file and line of each, with what is in the loss in green.

    \b
    launcher data show train.mindrecord --row 5
    """
    from launcher.data.show import row_values, show_row

    if form == "json":
        print_json(row_values(file, row, tokenizer))
        return
    for line in show_row(file, row, tokenizer, tokens=tokens):
        click.echo(line)


@data.command()
@click.argument("file", type=_FILE)
@format_option
def stats(file: Path, form: str) -> None:
    """Tell what a MindRecord is made of, source by source: lengths, share in the loss, duplicates, odd samples.

    \b
    launcher data stats train.mindrecord
    """
    from launcher.cli.output.dataset_stats import lines
    from launcher.data.stats import stats_of

    found = stats_of(file)
    if form == "json":
        print_json(found)
        return
    for line in lines(found):
        click.echo(line)


@data.command()
@click.argument("names", nargs=-1)
@click.option("--tokenizer", type=_FILE, help="Model folder, for its own template: launcher data templates own.")
@format_option
def templates(names: tuple[str, ...], tokenizer: Path | None, form: str) -> None:
    """Show the chat templates, each with an example; what is in the loss in green.

    Yours go to templates/chat/NAME.jinja in the working folder. "own" is the one in a model's folder.

    \b
    launcher data templates vicuna
    launcher data templates own --tokenizer Qwen2.5-7B-Instruct
    """
    from launcher.data.show import show_template, template_values
    from launcher.data.templates import template_names

    if form == "json":
        print_json([template_values(name, tokenizer) for name in names or template_names()])
        return
    for name in names or template_names():
        for line in show_template(name, tokenizer):
            click.echo(line)


def _say(output: Path, changed: bool, what: str) -> None:
    click.echo(f"{'wrote' if changed else 'unchanged'} {output}: {what}")


def _say_rejects(output: Path, count: int) -> None:
    if count:
        click.echo(f"  {many(count, 'bad record')} left out; see {output}.rejects.jsonl")


@contextmanager
def _progress(unit: str) -> Iterator[Progress]:
    """A progress bar on stderr when that is a terminal, and what feeds it."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
    began = time.monotonic()
    # Without a thread that refreshes it: worker processes are forked meanwhile, and threads do not survive that.
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(unit)

        def tell(position: int, size: int, done: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-3)
            text = f"{done:,} {unit}, {rate:,.0f} a second"
            bar.update(task, completed=position, total=max(size, 1), description=text, refresh=True)

        yield tell
