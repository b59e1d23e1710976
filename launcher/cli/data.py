"""``launcher data``: from raw questions and answers to the rows that training reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from launcher.data import outputs
from launcher.data.templates import DEFAULT

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
_force = click.option("--force", is_flag=True, help="Overwrite the output.")


def _output(default: str) -> Callable[[F], F]:
    return click.option("--output", "-o", type=_FILE, default=default, show_default=True, help="File to write.")


@click.group()
def data() -> None:
    """Make, convert and tokenize datasets.

    \b
    launcher data sample --size 5000 --output math.jsonl
    launcher data convert math.jsonl --output conversations.json
    launcher data tokenizer conversations.json --vocab-size 2000 --output tokenizer.model
    launcher data preprocess conversations.json --seq-length 128 --template plain --output train.mindrecord
    """


@data.command()
@click.option("--size", type=click.IntRange(min=1), default=1000, show_default=True, help="How many problems.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives other problems.")
@_output("math.jsonl")
@_force
def sample(size: int, seed: int, output: Path, force: bool) -> None:
    """Write school arithmetic problems with worked solutions, in Chinese, in the schema of BELLE School Math.

    \b
    launcher data sample --size 5000 --seed 1 --output math.jsonl
    """
    from launcher.data.sample import sample_lines

    with outputs.scratch(output) as folder:
        built = folder / output.name
        with built.open("w", encoding="utf-8") as out:
            out.writelines(sample_lines(size, seed))
        changed = outputs.put(built, output, force=force)
    _say(output, changed, f"{size} problems, seed {seed}")


@data.command()
@click.argument("source", type=_FILE)
@_output("conversations.json")
@_force
def convert(source: Path, output: Path, force: bool) -> None:
    """Turn questions and answers into conversations.

    \b
    launcher data convert math.jsonl --output conversations.json
    """
    from launcher.data import convert as converter

    count, changed = converter.convert(source, output, force=force)
    _say(output, changed, f"{count} conversations from {source}")


@data.command()
@click.argument("source", type=_FILE)
@click.option("--vocab-size", type=click.IntRange(min=260), default=2000, show_default=True, help="Pieces in all.")
@_output("tokenizer.model")
@_force
def tokenizer(source: Path, vocab_size: int, output: Path, force: bool) -> None:
    """Train a SentencePiece model as LLaMA's: byte pairs, byte fallback, unk 0, bos 1, eos 2.

    \b
    launcher data tokenizer conversations.json --vocab-size 2000 --output tokenizer.model
    """
    from launcher.data.tokenizer import train_tokenizer

    with outputs.scratch(output) as folder:
        built = folder / output.name
        train_tokenizer(_texts(source), built, vocab_size=vocab_size)
        changed = outputs.put(built, output, force=force)
    _say(output, changed, f"{vocab_size} pieces trained on {source}")


def _texts(source: Path) -> Iterator[str]:
    from launcher.data.convert import read_conversations

    for conversation in read_conversations(source):
        for message in conversation.messages:
            yield message.content


@data.command()
@click.argument("source", type=_FILE)
@click.option("--tokenizer", type=_FILE, default="tokenizer.model", show_default=True, help="SentencePiece model.")
@click.option("--seq-length", type=click.IntRange(min=2), default=2048, show_default=True, help="As the model's.")
@click.option("--template", default=DEFAULT, show_default=True, help="Chat template.")
@_output("train.mindrecord")
@_force
def preprocess(source: Path, tokenizer: Path, seq_length: int, template: str, output: Path, force: bool) -> None:
    """Tokenize conversations into a MindRecord of input_ids and labels; only answers are learnt.

    Rows are one token longer than --seq-length, because the model trains on all but the last and shifts the
    labels itself.

    \b
    launcher data preprocess conversations.json --tokenizer tokenizer.model --seq-length 128 --template plain
    """
    from launcher.data.preprocess import PreprocessOptions
    from launcher.data.preprocess import preprocess as run

    options = PreprocessOptions(
        source=source, tokenizer=tokenizer, target=output, seq_length=seq_length, template=template
    )
    info, changed = run(options, force=force)
    counts = info.counts
    _say(
        output,
        changed,
        f"{info.rows} rows of {seq_length} + 1 tokens from {counts['conversations']} conversations, "
        f"{counts['learnt_tokens']} of {counts['tokens']} tokens learnt, "
        f"{counts['truncated']} truncated, {counts['dropped']} dropped",
    )


def _say(output: Path, changed: bool, what: str) -> None:
    click.echo(f"{'wrote' if changed else 'unchanged'} {output}: {what}")
