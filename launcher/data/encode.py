"""The job of each preprocessing process: encodes a chunk of records to rows in the bytes of the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data.convert import conversations, rejected
from launcher.data.formats import RecordError, to_text
from launcher.data.messages import Message
from launcher.data.mindrecord import Ints, PackedRows, beside, pack_rows
from launcher.data.pool import ordered_map
from launcher.data.records import Chunk, Origin, Reject, Source, paragraphs, parse, record_lines
from launcher.data.rows import Laid, Overflow, Pieces, Places, Samples, bounded, fit
from launcher.data.samples import BEGINS_ROW, RECORD, Records
from launcher.data.segments import Encoded, Segment
from launcher.data.templates import Template
from launcher.data.tokenizer import Tokenizer
from launcher.errors import DataError

Kept = npt.NDArray[np.bool_]
Digests = npt.NDArray[np.uint64]

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
    """The result of one chunk: a half for training, and one for validation if there is such a split."""

    halves: list[Half]
    rejects: list[Reject]
    kinds: Counter[str]
    unread: Counter[str]


@dataclass(frozen=True, kw_only=True)
class ReadChunk:
    """The records of one chunk with their ids, those rejected, and counts by format and of keys that were not read.

    ``lines``: the line or row of each record.
    """

    pairs: list[tuple[str, Any]]
    lines: Sequence[int]
    rejects: list[Reject]
    kinds: Counter[str]
    unread: Counter[str]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """A record being encoded: its id, where it comes from, its tokens, and the number of characters of its text."""

    id: str
    origin: Origin
    encoded: Encoded
    characters: int


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Tokenizer, template and options. Without a template the records are texts."""

    tokenizer: Tokenizer
    template: Template | None
    seq_length: int
    overflow: Overflow
    eval_fraction: float
    packing: bool = False

    @cached_property
    def byte_pieces(self) -> Kept:
        """Return the mask of vocabulary pieces that are single bytes of unknown characters."""
        tokenizer = self.tokenizer
        return np.array([tokenizer.is_byte(token) for token in range(tokenizer.info.vocab_size)], dtype=bool)

    def __call__(self, item: tuple[Chunk, Kept | None], /) -> Batch:
        """Encode the kept records of a chunk to rows; rejected records have no entry in the mask."""
        chunk, kept = item
        read = self.read(chunk)
        found = [(Origin(chunk.file, line), *pair) for line, pair in zip(read.lines, read.pairs, strict=True)]
        chosen = found if kept is None else [item for item, keep in zip(found, kept, strict=True) if keep]
        samples = [self._sample(*item) for item in chosen]
        halves = [self._half(part) for part in self._split(samples)]
        halves[0].counts["duplicates"] = len(found) - len(chosen)
        return Batch(halves=halves, rejects=read.rejects, kinds=read.kinds, unread=read.unread)

    def read(self, chunk: Chunk) -> ReadChunk:
        """Return the records of ``chunk``."""
        if self.template is None:
            return _texts(chunk)
        read = conversations(chunk)
        pairs = [(conversation.id, conversation.messages) for _, conversation in read.found]
        lines = record_lines(chunk) if read.lines is None else read.lines
        return ReadChunk(pairs=pairs, lines=lines, rejects=read.rejects, kinds=read.kinds, unread=read.unread)

    def _sample(self, origin: Origin, name: str, content: Any) -> _Sample:
        if self.template is None:
            ids = self.tokenizer.encode(content, start=True)
            return _Sample(id=name, origin=origin, encoded=Encoded(ids, b""), characters=len(content))
        segments = _segments(self.template, name, content)
        characters = sum(len(segment.text) for segment in segments if not segment.control)
        encoded = self.template.encode_segments(segments, self.tokenizer)
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
            overflow=self.overflow,
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


def _texts(chunk: Chunk) -> ReadChunk:
    found: list[tuple[str, str]] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    for item in paragraphs(chunk) if chunk.kind == "text" else parse(chunk):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        try:
            text = to_text(item.value)
            found.append((text, text))
            lines.append(item.line)
        except RecordError as error:
            rejects.append(rejected(item, error))
    return ReadChunk(pairs=found, lines=lines, rejects=rejects, kinds=Counter(text=len(found)), unread=Counter())


def digest(text: str) -> int:
    """Return a 64-bit hash of ``text``."""
    return _hashed(text.encode("utf-8", "surrogatepass"))


def _hashed(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def said(messages: Sequence[Message]) -> str:
    """Return one text per conversation that is equal for equal conversations."""
    return "\0".join(
        [f"{role}\0{content}" if in_loss else f"-{role}\0{content}" for role, content, in_loss in messages]
    )


class _Digests:
    """Maps a chunk to one hash per record, equal for equal contents, and the mask of held-out records."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, chunk: Chunk, /) -> tuple[Digests, Kept]:
        found = self._encoder.read(chunk).pairs
        texts = [content if isinstance(content, str) else said(content) for _, content in found]
        held_out = np.array([self._encoder.holds_out(name) for name, _ in found], dtype=bool)
        return np.array([digest(text) for text in texts], dtype=np.uint64), held_out


def count_shared(encoder: Encoder, source: Source, *, processes: int) -> int:
    """Return how many held-out records of ``source`` are also in training. Takes 9 bytes per record."""
    parts = list(ordered_map(lambda: _Digests(encoder), source.chunks(), processes=processes))
    numbers: Digests = np.concatenate([*(part[0] for part in parts), np.zeros(0, dtype=np.uint64)])
    held_out: Kept = np.concatenate([*(part[1] for part in parts), np.zeros(0, dtype=bool)])
    return int(np.isin(numbers[held_out], numbers[~held_out]).sum())


def duplicates(encoder: Encoder, source: Source, *, processes: int) -> Iterator[Kept]:
    """Return, chunk by chunk of ``source``, the mask of first occurrences. Takes 16 bytes per record."""
    parts = ordered_map(lambda: _Digests(encoder), source.chunks(), processes=processes)
    chunks = [numbers for numbers, _ in parts]
    lengths = [len(chunk) for chunk in chunks]
    numbers: npt.NDArray[np.uint64] = np.concatenate([*chunks, np.zeros(0, dtype=np.uint64)])
    first = np.zeros(len(numbers), dtype=bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    ends: Sequence[int] = np.cumsum(lengths).tolist()
    return iter([first[end - length : end] for length, end in zip(lengths, ends, strict=True)])
