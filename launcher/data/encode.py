"""The job of each preprocessing process: encodes a chunk of records to rows in the bytes of the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from launcher.data.convert import conversations, rejected
from launcher.data.formats import PLAIN, to_text
from launcher.data.messages import Message
from launcher.data.mindrecord import Ints, PackedRows, beside, pack_rows
from launcher.data.parsing import lines_of, parse
from launcher.data.pool import ordered_map
from launcher.data.reading import Reading
from launcher.data.records import Chunk, Origin, Reject
from launcher.data.rows import Laid, Overflow, Pieces, Places, Samples, bounded, fit
from launcher.data.samples import BEGINS_ROW, RECORD, Records
from launcher.data.seen import Seen, seen_in
from launcher.data.segments import Encoded, Segment
from launcher.data.sources import Chunked
from launcher.data.templates import Template
from launcher.data.tokenizer import Tokenizer
from launcher.data.turns import RecordError
from launcher.errors import DataError

Kept = npt.NDArray[np.bool_]
Digests = npt.NDArray[np.uint64]
TooLong = Overflow | Literal["error"]
TrainOn = Literal["all", "last", "prompt"]

# Rows of 2 x 2,049 numbers packed at once take about 10 MB.
_NUMBERS_AT_ONCE = 1 << 20
_MOST_COUNTED = 0xFFFF


@dataclass(frozen=True, kw_only=True)
class Half:
    """The share of one chunk in one of the two outputs.

    ``records``: of the samples in the rows, and of those that no row holds. ``open``: pieces that wait for others to
    share a row with (packing).
    """

    packed: PackedRows
    lengths: Ints
    counts: Counter[str]
    records: Records
    open: Pieces


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The result of one chunk: a half for training, and one for validation if there is such a split.

    ``too_long``: where samples are longer than a row, and how long in tokens, when that is an error. ``digests``: of
    the content of each record, unless they were compared before.
    """

    halves: list[Half]
    rejects: list[Reject]
    seen: Seen
    file: int
    too_long: list[tuple[Origin, int]]
    digests: Digests


class Choice(NamedTuple):
    """Which records of a chunk are taken, and how many of the others are duplicates; ``again``: it was read before."""

    kept: Kept
    duplicates: int
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class ReadChunk:
    """The records of one chunk with their ids, those rejected, and what was recognised.

    ``lines``: the line or row of each record.
    """

    pairs: list[tuple[str, Any]]
    lines: Sequence[int]
    rejects: list[Reject]
    seen: Seen


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A record being encoded: its id, where it comes from, its tokens, and the number of characters of its text."""

    id: str
    origin: Origin
    encoded: Encoded
    characters: int


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Tokenizer, template and options. Without a template the records are texts. ``readings``: one for each file."""

    tokenizer: Tokenizer
    template: Template | None
    seq_length: int
    overflow: TooLong
    eval_fraction: float
    packing: bool = False
    readings: tuple[Reading, ...] = ()
    train_on: TrainOn = "all"

    @cached_property
    def byte_pieces(self) -> Kept:
        """Return the mask of vocabulary pieces that are single bytes of unknown characters."""
        tokenizer = self.tokenizer
        return np.array([tokenizer.is_byte(token) for token in range(tokenizer.info.vocab_size)], dtype=bool)

    def __call__(self, item: tuple[Chunk, Choice | None], /) -> Batch:
        """Encode the chosen records of a chunk to rows; rejected records are not among those to choose from."""
        chunk, choice = item
        read = self.read(chunk)
        found = [(Origin(chunk.file, line), *pair) for line, pair in zip(read.lines, read.pairs, strict=True)]
        chosen = found if choice is None else [item for item, keep in zip(found, choice.kept, strict=True) if keep]
        samples = [self._sample(*item) for item in chosen]
        halves = [self._half(part) for part in self._split(samples)]
        halves[0].counts["duplicates"] = choice.duplicates if choice else 0
        too_long = [(sample.origin, len(sample.encoded.ids)) for sample in samples if self._is_refused(sample)]
        is_again = choice is not None and choice.again
        return Batch(
            halves=halves,
            rejects=[] if is_again else read.rejects,
            seen=Seen() if is_again else read.seen,
            file=chunk.file,
            too_long=too_long,
            digests=digests(read.pairs if choice is None else ()),
        )

    def _is_refused(self, sample: _Sample) -> bool:
        return self.overflow == "error" and len(sample.encoded.ids) > self.seq_length + 1

    def read(self, chunk: Chunk) -> ReadChunk:
        """Return the records of ``chunk``."""
        reading = self.readings[chunk.file] if self.readings else PLAIN
        if self.template is None:
            return _texts(chunk, reading)
        read = conversations(chunk, reading)
        pairs = [(conversation.id, conversation.messages) for _, conversation in read.found]
        lines = lines_of(chunk, len(pairs)) if read.lines is None else read.lines
        return ReadChunk(pairs=pairs, lines=lines, rejects=read.rejects, seen=read.seen)

    def lengths(self, pairs: Sequence[tuple[str, Any]]) -> Ints:
        """Return how many tokens of each record become part of a row."""
        counts = [len(self._sample(Origin(0, 0), *pair).encoded.ids) for pair in pairs]
        found: Ints = np.array(counts, dtype=np.int32)
        most = self.seq_length + 1
        if self.overflow == "truncate":
            return np.minimum(found, most)
        return np.where(found > most, 0, found).astype(np.int32) if self.overflow == "drop" else found

    def _sample(self, origin: Origin, name: str, content: Any) -> _Sample:
        if self.template is None:
            ids = self.tokenizer.encode(content, start=True)
            return _Sample(id=name, origin=origin, encoded=Encoded(ids, b""), characters=len(content))
        if self.train_on == "last":
            content = _only_last(content)
        segments = _segments(self.template, name, content)
        characters = sum(len(segment.text) for segment in segments if not segment.control)
        encoded = self.template.encode_segments(segments, self.tokenizer)
        if self.train_on == "prompt":
            encoded = encoded._replace(in_loss=b"\1" * len(encoded.ids))
        return _Sample(id=name, origin=origin, encoded=encoded, characters=characters)

    def _split(self, samples: list[_Sample]) -> list[list[_Sample]]:
        if not self.eval_fraction:
            return [samples]
        held_out = [self.holds_out(sample.id) for sample in samples]
        return [
            [sample for sample, out in zip(samples, held_out, strict=True) if out is half] for half in (False, True)
        ]

    def holds_out(self, name: str) -> bool:
        """Return whether the record ``name`` goes to the validation split."""
        return digest(name) < int(self.eval_fraction * 2**64)

    def _half(self, chosen: list[_Sample]) -> Half:
        whole = Samples.of([self._bounded(sample.encoded) for sample in chosen])
        about = self._about(chosen, whole)
        # Without packing, texts follow one another through all rows of the chunk.
        stream = self.template is None and not self.packing
        rows = fit(
            whole.joined() if stream else whole,
            seq_length=self.seq_length,
            # What is too long stops the run, which names it: the rows are not used.
            overflow="drop" if self.overflow == "error" else self.overflow,
            packed=self.packing,
            records=about[: len(whole.joined().lengths)] if stream else about,
        )
        if stream:
            self._describe_stream(rows.laid.records, about, whole)
        return Half(
            packed=in_bytes(rows.laid, self.seq_length, seams=self.packing),
            lengths=np.array([len(sample.encoded.ids) for sample in chosen], dtype=np.int32),
            counts=Counter({**rows.counts, **self._counts(chosen, whole)}),
            records=np.concatenate([rows.laid.records, rows.left_out]),
            open=rows.open,
        )

    def _bounded(self, encoded: Encoded) -> Encoded:
        """Return a text between bos and eos; a conversation has them."""
        if self.template is not None:
            return encoded
        return bounded(encoded.ids, self.tokenizer.bos_id, self.tokenizer.eos_id)

    def _about(self, chosen: list[_Sample], whole: Samples) -> Records:
        """Return the records of samples, as far as they do not depend on the rows."""
        about = np.zeros(len(chosen), dtype=RECORD)
        about["source"] = [sample.origin.file for sample in chosen]
        about["line"] = [sample.origin.line for sample in chosen]
        about["characters"] = [sample.characters for sample in chosen]
        self._describe(about, whole.ids, whole.ends - whole.lengths, whole.ends)
        return about

    def _describe(self, records: Records, ids: Ints, begins: Places, ends: Places) -> None:
        """Set in ``records`` what the tokens from ``begins`` to ``ends`` are like."""
        for name, which in (("unknown", self._is_unknown(ids)), ("bytes", self.byte_pieces[ids])):
            before = np.concatenate([[0], np.cumsum(which)])
            records[name] = (before[ends] - before[begins]).clip(max=_MOST_COUNTED)
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        records["digest"] = [_hashed(ids[begin:end].tobytes()) for begin, end in spans]

    def _describe_stream(self, records: Records, about: Records, whole: Samples) -> None:
        """Let each record of a row of running text tell of the row, and of the text that it begins in."""
        begins = np.arange(len(records)) * self.seq_length
        ends = (begins + self.seq_length + 1).clip(max=len(whole.ids))
        inside = np.searchsorted(whole.ends, begins, side="right")
        for name in ("source", "line"):
            records[name] = about[name][inside]
        records["tokens"] = ends - begins
        records["characters"] = 0
        records["flags"] = BEGINS_ROW
        self._describe(records, whole.ids, begins, ends)

    def _is_unknown(self, ids: Ints) -> Kept:
        unknown = self.tokenizer.unk_id
        is_unknown: Kept = ids == (-1 if unknown is None else unknown)
        return is_unknown

    def _counts(self, chosen: list[_Sample], whole: Samples) -> dict[str, int]:
        return {
            "conversations": len(chosen),
            "characters": sum(sample.characters for sample in chosen),
            "text_tokens": len(whole.ids),
            "unknown": int(np.count_nonzero(self._is_unknown(whole.ids))),
            "bytes": int(np.count_nonzero(self.byte_pieces[whole.ids])),
        }


def _segments(template: Template, name: str, messages: Sequence[Message]) -> list[Segment]:
    try:
        return template.segments(messages)
    except DataError as error:
        raise DataError(f"record {name}: {error.message}", hint=error.hint) from error


def in_bytes(laid: Laid, seq_length: int, *, seams: bool) -> PackedRows:
    """Return rows as they lie in a MindRecord, with the column of their seams if they have one."""
    length = seq_length + 1
    at_once = max(1, _NUMBERS_AT_ONCE // (2 * length))
    # Short rows together: each part is packed up to its longest row. Order within a part must stay, so no
    # sorting.
    parts = [pack_rows(laid.values[start : start + at_once], length) for start in range(0, len(laid.values), at_once)]
    packed = PackedRows(
        data=b"".join(part.data for part in parts),
        sizes=np.concatenate([part.sizes for part in parts]) if parts else np.zeros(0, dtype=np.int64),
        saved_bytes=sum(part.saved_bytes for part in parts),
    )
    return beside(pack_rows(laid.ends[:, None]), packed) if seams and parts else packed


def _only_last(messages: Sequence[Message]) -> list[Message]:
    """Return ``messages`` of which only the last answer is in the loss."""
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
    return [
        message if place == last or message.role != "assistant" else message._replace(in_loss=False)
        for place, message in enumerate(messages)
    ]


def _texts(chunk: Chunk, reading: Reading) -> ReadChunk:
    found: list[tuple[str, str]] = []
    values: list[Any] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    for item in parse(chunk):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        try:
            text = to_text(item.value, reading)
            found.append((text, text))
            values.append(item.value)
            lines.append(item.line)
        except RecordError as error:
            rejects.append(rejected(item, error))
    seen = seen_in(["text"] * len(values), values, reading)
    return ReadChunk(pairs=found, lines=lines, rejects=rejects, seen=seen)


def digest(text: str) -> int:
    """Return a 64-bit hash of ``text``."""
    return _hashed(text.encode("utf-8", "surrogatepass"))


def _hashed(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def said(messages: Sequence[Message]) -> str:
    """Return one text per conversation that is equal for equal conversations."""
    return "\0".join(
        [
            f"{role}\0{content}{calls}" if in_loss else f"-{role}\0{content}{calls}"
            for role, content, in_loss, calls in messages
        ]
    )


def digests(pairs: Sequence[tuple[str, Any]]) -> Digests:
    """Return a hash of the content of each record."""
    texts = (content if isinstance(content, str) else said(content) for _, content in pairs)
    return np.array([digest(text) for text in texts], dtype=np.uint64)


class Survey(NamedTuple):
    """One number per record of a chunk that can be used: a hash of its content, whether it is held out, its tokens."""

    file: int
    digests: Digests
    held_out: Kept
    lengths: Ints
    seen: Seen


class _Surveyor:
    """Maps a chunk to its survey. Tokens are counted only ``with_lengths``: that takes as long as making the rows."""

    def __init__(self, encoder: Encoder, *, with_lengths: bool) -> None:
        self._encoder = encoder
        self._with_lengths = with_lengths

    def __call__(self, chunk: Chunk, /) -> Survey:
        read = self._encoder.read(chunk)
        return Survey(
            file=chunk.file,
            digests=digests(read.pairs),
            held_out=np.array([self._encoder.holds_out(name) for name, _ in read.pairs], dtype=bool),
            lengths=self._encoder.lengths(read.pairs) if self._with_lengths else np.zeros(0, dtype=np.int32),
            seen=read.seen,
        )


def survey(encoder: Encoder, sources: Chunked, *, processes: int, with_lengths: bool = False) -> Iterator[Survey]:
    """Yield the survey of each chunk of ``sources``, which takes 9 to 13 bytes per record."""
    make = partial(_Surveyor, encoder, with_lengths=with_lengths)
    return ordered_map(make, sources.chunks(), processes=processes)


def count_shared(encoder: Encoder, source: Chunked, *, processes: int) -> int:
    """Return how many held-out records of ``source`` are also in training."""
    parts = list(survey(encoder, source, processes=processes))
    numbers: Digests = np.concatenate([*(part.digests for part in parts), np.zeros(0, dtype=np.uint64)])
    held_out: Kept = np.concatenate([*(part.held_out for part in parts), np.zeros(0, dtype=bool)])
    return int(np.isin(numbers[held_out], numbers[~held_out]).sum())


def duplicates(encoder: Encoder, source: Chunked, *, processes: int) -> Iterator[Kept]:
    """Return, chunk by chunk of ``source``, the mask of first occurrences."""
    return iter(first_occurrences([part.digests for part in survey(encoder, source, processes=processes)]))


def first_occurrences(chunks: Sequence[Digests]) -> list[Kept]:
    """Return for each chunk the mask of those numbers that did not occur before, in it or in an earlier chunk."""
    numbers: Digests = np.concatenate([*chunks, np.zeros(0, dtype=np.uint64)])
    first = np.zeros(len(numbers), dtype=bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    ends: Sequence[int] = np.cumsum([len(chunk) for chunk in chunks]).tolist()
    return [first[end - len(chunk) : end] for chunk, end in zip(chunks, ends, strict=True)]
