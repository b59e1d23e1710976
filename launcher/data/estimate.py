"""Estimate rows, tokens and shares of sources before any row is made, from the first records of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from launcher.data.encode import Encoder, ReadChunk
from launcher.data.files import InputFile
from launcher.data.mixture import passes
from launcher.data.options import PreprocessOptions
from launcher.data.preprocess import make_encoder
from launcher.data.records import Chunk, Record
from launcher.data.sources import open_file
from launcher.data.tables import TableSource
from launcher.errors import DataError

_RECORDS = 1000
_WALKED_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One source: records that were read, about how many it has, and tokens of these; ``exact`` if all of it was read.

    ``passes``: how often each record occurs in an epoch; ``share``: of the tokens of an epoch.
    """

    path: str
    read: int
    records: int
    tokens: int
    exact: bool
    weight: float | None
    passes: float = 1.0
    share: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return samples, tokens and share in an epoch as statistics of rows have them, and what they rest on."""
        return {
            "path": self.path,
            "weight": self.weight,
            "samples": round(self.records * self.passes),
            "tokens": round(self.tokens * self.passes),
            "share": self.share,
            **({} if self.weight is None else {"passes": self.passes}),
            "estimated_from": None if self.exact else self.read,
        }


def estimate(options: PreprocessOptions) -> list[Mapping[str, Any]]:
    """Return about what each source gives, from its first thousand records at most. Raises DataError."""
    encoder = make_encoder(options)
    found = [_of_source(encoder, options, number) for number in range(len(options.sources))]
    weights = options.weights
    if weights:
        sizes = [one.records if options.mix.by == "samples" else one.tokens for one in found]
        often = passes(sizes, weights, options.mix)
        found = [replace(one, passes=times, weight=w) for one, times, w in zip(found, often, weights, strict=True)]
    total = sum(one.tokens * one.passes for one in found) or 1
    return [replace(one, share=one.tokens * one.passes / total).to_dict() for one in found]


def about_rows(options: PreprocessOptions, sources: Sequence[Mapping[str, Any]]) -> tuple[int, int | None]:
    """Return about how many rows for training, and held out, ``sources`` give, as ``estimate`` returned them.

    Without packing a sample is a row; with it, rows are taken to be full. Long samples that are split or left out are
    not considered.
    """
    samples = sum(source["samples"] for source in sources)
    tokens = sum(source["tokens"] for source in sources)
    is_full = options.packing or options.kind == "text"
    rows = -(-tokens // (options.seq_length + 1)) if is_full else samples
    held_out = round(rows * options.eval_fraction)
    return max(rows - held_out, 1), held_out if options.eval_fraction else None


def _of_source(encoder: Encoder, options: PreprocessOptions, number: int) -> Estimate:
    """Read the first records of the files of a source; a file that is not reached counts by its size."""
    source = options.sources[number]
    files = [(place, file) for place, file in enumerate(options.files) if file.source == number]
    read = tokens = 0
    reached = 0.0
    for place, file in files:
        if read < _RECORDS:
            part = _of_file(encoder, place, file, _RECORDS - read)
            read, tokens = read + part.read, tokens + part.tokens
            reached += part.share * file.path.stat().st_size
    whole = sum(file.path.stat().st_size for _, file in files)
    exact = reached >= whole
    scale = 1.0 if exact else whole / max(reached, 1.0)
    return Estimate(
        path=source.shown or source.path,
        read=read,
        records=round(read * scale),
        tokens=round(tokens * scale),
        exact=exact,
        weight=source.weight,
    )


class _Part(NamedTuple):
    """What was read of a file: records, their tokens in rows, and which share of the file that is."""

    read: int
    tokens: int
    share: float


def _of_file(encoder: Encoder, place: int, file: InputFile, most: int) -> _Part:
    reader = open_file(file)
    rows = reader.rows() if isinstance(reader, TableSource) else None
    read = tokens = 0
    used = walked = 0.0
    for chunk in reader.chunks():
        size = _size(chunk)
        walked += size
        if read < most:
            found = _good(encoder.read(replace(chunk, file=place)), file)
            kept = found[: most - read]
            read += len(kept)
            tokens += int(encoder.lengths(kept).sum())
            used += size * len(kept) / max(len(found), 1)
        elif rows is not None:
            break
        if walked > _WALKED_BYTES and reader.position:
            # What is left of the file is as dense as what was read of it.
            walked *= max(reader.size / reader.position, 1.0)
            break
    return _Part(read, tokens, min(read / max(rows, 1) if rows is not None else used / max(walked, 1.0), 1.0))


def _good(chunk: ReadChunk, file: InputFile) -> list[tuple[str, Any]]:
    """Return the records of ``chunk``. Raises DataError for the first that is bad, and for texts that would be lost."""
    for reject in chunk.rejects:
        where = file.place(reject.number, reject.line)
        raise DataError(f"{where}: {reject.reason}", hint=reject.hint or "mend it, or take it out")
    chunk.seen.check(file.shown)
    return chunk.pairs


def _size(chunk: Chunk) -> int:
    if chunk.kind != "parsed":
        return len(chunk.data)
    values = (item.value.values() for item in chunk.records if isinstance(item, Record))
    return sum(len(text) + 1 for fields in values for text in fields)
