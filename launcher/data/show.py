"""Show rows and templates in a terminal: tokens in the loss in green, control tokens in grey."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np

from launcher.data.info import DatasetInfo, no_dataset, read_info
from launcher.data.messages import Message
from launcher.data.mindrecord import Ints, read_row
from launcher.data.mindrecord_header import header_rows, read_header
from launcher.data.rows import IGNORED_LABEL, stretches
from launcher.data.samples import CONTINUED, CUT, none, of_row, read_samples
from launcher.data.segments import Segment
from launcher.data.stats import place_of, source_names
from launcher.data.templates import Template, get_template
from launcher.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from launcher.errors import DataError
from launcher.upstream.packed_rows import SEAMS

_RULE = 100
_EXAMPLE = (
    Message("user", "题目：1加1是多少？"),
    Message("assistant", "答案：2"),
    Message("user", "再加1呢？"),
    Message("assistant", "答案：3"),
)


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """A sample in a row, or a stretch of one: its places, and the file and line it is from where that is known."""

    begin: int
    end: int
    record: Any = None

    @property
    def flags(self) -> int:
        return 0 if self.record is None else int(self.record["flags"])


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row without its padding; ``padding``: the number of padding tokens."""

    info: DatasetInfo
    tokenizer: Tokenizer
    ids: list[int]
    labels: list[int]
    padding: int
    samples: tuple[_Stretch, ...]

    def in_loss(self, stretch: _Stretch) -> int:
        return sum(label != IGNORED_LABEL for label in self.labels[stretch.begin : stretch.end])

    def place(self, stretch: _Stretch) -> str:
        """Return the file and line of a sample, "" where they are not known."""
        return "" if stretch.record is None else place_of(source_names(self.info.stats), stretch.record)


def _read(path: Path, row: int, tokenizer: Path | None) -> _Row:
    info = read_info(path)
    if info is None:
        raise no_dataset(path)
    columns = _row(info, row)
    ids = columns["input_ids"]
    labels = columns.get("labels", ids)
    used = _used(ids, labels)
    return _Row(
        info=info,
        tokenizer=_tokenizer(info, tokenizer),
        ids=ids[:used].tolist(),
        labels=labels[:used].tolist(),
        padding=len(ids) - used,
        samples=tuple(_stretches(path, row, columns.get(SEAMS), used)),
    )


def _stretches(path: Path, row: int, ends: Ints | None, used: int) -> Iterator[_Stretch]:
    spans = [(0, used)] if ends is None else stretches(ends, used)
    table = read_samples(path)
    records = none() if table is None else of_row(table, row)
    # The last one of a packed row may be padding.
    for number, (begin, end) in enumerate(span for span in spans if span[0] < used):
        yield _Stretch(begin=begin, end=min(end, used), record=records[number] if number < len(records) else None)


def show_row(path: Path, row: int, tokenizer: Path | None = None, *, tokens: bool | None = None) -> Iterator[str]:
    """Show row ``row`` of the dataset ``path``: the text of each sample and, without packing or with ``tokens``, its
    tokens with their labels, without padding.

    Raises DataError when there is no such dataset or row, or no tokenizer is known for it.
    """
    shown = _read(path, row, tokenizer)
    packed = SEAMS in shown.info.columns
    yield _title(shown, row, packed)
    for number, stretch in enumerate(shown.samples, start=1):
        part = slice(stretch.begin, stretch.end)
        yield _seam(shown, stretch, number) if packed else ""
        yield _coloured(shown.tokenizer, shown.ids[part], shown.labels[part])
        if not packed if tokens is None else tokens:
            yield from ("", *_table(shown, stretch))


def _title(shown: _Row, row: int, packed: bool) -> str:
    width = len(shown.ids) + shown.padding
    in_loss = sum(map(shown.in_loss, shown.samples))
    parts = [f"{width} tokens", f"{in_loss} in the loss", f"{shown.padding} padding"]
    if packed:
        parts.append(f"{len(shown.samples)} samples")
    elif place := shown.place(shown.samples[0]) if shown.samples else "":
        parts += [f"from {place}", *_cut(shown.samples[0])]
    return f"row {row} of {shown.info.rows}: {', '.join(parts)}"


def _seam(shown: _Row, stretch: _Stretch, number: int) -> str:
    """Return the line above a sample of a packed row."""
    tokens = f"{stretch.end - stretch.begin} tokens, {shown.in_loss(stretch)} in the loss"
    about = "  ".join(filter(None, (f"── {number}", shown.place(stretch), ", ".join([tokens, *_cut(stretch)]))))
    return click.style(f"{about} ".ljust(_RULE, "─"), fg="cyan")


def _cut(stretch: _Stretch) -> list[str]:
    """Return what tells that the row does not hold the whole sample."""
    if not stretch.flags & CUT:
        return []
    what = "goes on from the row before" if stretch.flags & CONTINUED else "cut"
    return [f"{what}: the sample has {stretch.record['tokens']} tokens"]


def _table(shown: _Row, stretch: _Stretch) -> Iterator[str]:
    yield click.style(f"{'place':>6} {'id':>7} {'label':>7}  piece", bold=True)
    for place in range(stretch.begin, stretch.end):
        token, label = shown.ids[place], shown.labels[place]
        line = f"{place:>6} {token:>7} {label:>7}  {_visible(shown.tokenizer.piece(token))}"
        yield click.style(line, fg=None if label == IGNORED_LABEL else "green")


def row_values(path: Path, row: int, tokenizer: Path | None = None) -> dict[str, Any]:
    """Return row ``row`` for programs: text, and id, label and piece of each token, no padding. Raises DataError."""
    shown = _read(path, row, tokenizer)
    piece = shown.tokenizer.piece
    pairs = zip(shown.ids, shown.labels, strict=True)
    tokens = [{"id": token, "label": label, "piece": piece(token)} for token, label in pairs]
    return {
        "row": row,
        "rows": shown.info.rows,
        "padding": shown.padding,
        "samples": [_sample_values(shown, stretch) for stretch in shown.samples],
        "text": _text(shown.tokenizer, shown.ids),
        "segments": list(_segments(shown.tokenizer, shown.ids, shown.labels)),
        "tokens": tokens,
    }


def _sample_values(shown: _Row, stretch: _Stretch) -> dict[str, Any]:
    return {
        "begin": stretch.begin,
        "end": stretch.end,
        "place": shown.place(stretch) or None,
        "loss_tokens": shown.in_loss(stretch),
        "cut": bool(stretch.flags & CUT),
    }


def template_values(name: str, tokenizer: Path | None = None) -> dict[str, Any]:
    """Return the template ``name`` for programs: the segments of an example with two questions."""
    return {"name": name, "example": [segment._asdict() for segment in _template(name, tokenizer).segments(_EXAMPLE)]}


def _template(name: str, tokenizer: Path | None) -> Template:
    return get_template(name, find_tokenizer(tokenizer).path if tokenizer else None)


def show_template(name: str, tokenizer: Path | None = None) -> Iterator[str]:
    """Show the template ``name``, with a conversation of two questions as an example."""
    segments = _template(name, tokenizer).segments(_EXAMPLE)
    yield click.style(name, bold=True)
    for line in "".join(map(_styled, segments)).split("\n"):
        yield f"    {line}"


def _row(info: DatasetInfo, row: int) -> dict[str, Ints]:
    # The rows went round the shards when they were written.
    if row >= info.rows:
        raise DataError(f"{info.path} has no row {row}", hint=f"it has rows 0 to {info.rows - 1}")
    if len(info.files) == 1:
        return read_row(info.files[0], row)
    if info.fingerprint:
        return read_row(info.files[row % len(info.files)], row // len(info.files))
    for file in info.files:
        rows = header_rows(read_header(file) or {"page": []})
        if row < rows:
            return read_row(file, row)
        row -= rows
    raise DataError(f"{info.path} has no such row")


def _tokenizer(info: DatasetInfo, path: Path | None) -> Tokenizer:
    if path is None and info.tokenizer is None:
        raise DataError(f"nothing says which tokenizer {info.path} was made with", hint="name it with --tokenizer")
    if path is None and info.tokenizer and not Path(info.tokenizer.path).exists():
        raise DataError(
            f"{info.tokenizer.path}, the tokenizer that {info.path} was made with, is no longer there",
            hint="--tokenizer FILE says where it is now; any other one would show other text",
        )
    found = load_tokenizer(path or Path(info.tokenizer.path if info.tokenizer else ""))
    if path is None and info.tokenizer and found.info.sha256 != info.tokenizer.sha256:
        raise DataError(f"{found.info.path} is no longer the tokenizer {info.path} was made with")
    return found


def _used(ids: Ints, labels: Ints) -> int:
    """Return how many tokens come before the padding."""
    (places,) = np.nonzero((ids != 0) | (labels != IGNORED_LABEL))
    return int(places[-1]) + 1 if len(places) else 0


def _segments(tokenizer: Tokenizer, ids: Sequence[int], labels: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the text of a row in parts that are in the loss as a whole, or not at all."""
    pairs = zip(ids, labels, strict=True)
    for in_loss, group in groupby(pairs, key=lambda pair: pair[1] != IGNORED_LABEL):
        yield {"text": _text(tokenizer, [token for token, _ in group]), "in_loss": in_loss}


def _coloured(tokenizer: Tokenizer, ids: Sequence[int], labels: Sequence[int]) -> str:
    return "".join(
        click.style(segment["text"], fg="green" if segment["in_loss"] else None)
        for segment in _segments(tokenizer, ids, labels)
    )


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of ``ids`` with control tokens by name."""
    return "".join(_run(tokenizer, list(group)) for _, group in groupby(ids, key=tokenizer.is_control))


def _run(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    if tokenizer.is_control(ids[0]):
        return "".join(map(tokenizer.piece, ids))
    return tokenizer.decode(ids)


def _styled(segment: Segment) -> str:

    return click.style(segment.text, fg="green" if segment.in_loss else None, dim=segment.control)


def _visible(piece: str) -> str:
    """Return ``piece`` on one line, with control characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in piece)
