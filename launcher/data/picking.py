"""Choose, before the first row is written, which records are taken and how often: no duplicates, and a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.data.encode import Choice, Encoder, Kept, Survey, first_occurrences, survey
from launcher.data.files import InputFile
from launcher.data.mindrecord import Ints
from launcher.data.mixture import Sizes, interleaved, times
from launcher.data.options import Mix
from launcher.data.records import Chunk
from launcher.data.sources import Sources
from launcher.errors import DataError


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One chunk: how often each of its records is trained on, which are held out, and how many are duplicates."""

    source: int
    times: Ints
    held_out: Kept
    duplicates: int

    def choice(self, reading: int) -> Choice:
        """Return what is taken when the chunk is read for the ``reading``-th time, from 0."""
        if reading:
            return Choice(self.times > reading, 0, again=True)
        return Choice((self.times > 0) | self.held_out, self.duplicates)


class Picked:
    """The choice for all chunks of a run, and their order. ``repeated``: how many records that are kept came before."""

    def __init__(self, parts: Sequence[_Part], files: Sequence[InputFile], *, mixed: bool, repeated: int) -> None:
        self.repeated = repeated
        self._parts = parts
        self._files = files
        self._mixed = mixed

    def chunks(self, sources: Sources) -> Iterator[tuple[Chunk, Choice]]:
        """Yield every chunk with its choice: as often as one of its records is taken. ``sources`` are read once."""
        if not self._mixed:
            for chunk, part in zip(sources.chunks(), self._parts, strict=True):
                yield chunk, part.choice(0)
            return
        numbers = sorted({part.source for part in self._parts})
        streams = [self._stream(number, sources) for number in numbers]
        for chosen in interleaved([self._counts(number) for number in numbers]):
            yield next(streams[chosen])

    def told(self, source: int) -> dict[str, Any]:
        """Return, of one source, how many records it has to train on and how often each is used, on average."""
        if not self._mixed:
            return {}
        parts = self._of(source)
        records = sum(len(part.times) - int(part.held_out.sum()) - part.duplicates for part in parts)
        used = sum(int(part.times.sum()) for part in parts)
        unused = records - sum(int((part.times > 0).sum()) for part in parts)
        return {"records": records, "passes": used / max(records, 1), "unused": unused}

    def _of(self, source: int) -> list[_Part]:
        return [part for part in self._parts if part.source == source]

    def _readings(self, source: int) -> int:
        return max(1, max(int(part.times.max(initial=0)) for part in self._of(source)))

    def _counts(self, source: int) -> list[int]:
        """Return how many samples each chunk of the stream of a source gives."""
        readings, parts = self._readings(source), self._of(source)
        return [int(part.choice(reading).kept.sum()) for reading in range(readings) for part in parts]

    def _stream(self, source: int, sources: Sources) -> Iterator[tuple[Chunk, Choice]]:
        for reading in range(self._readings(source)):
            # Only the first reading counts for the hash of the input.
            read = Sources(self._files) if reading else sources
            for chunk, part in zip(read.chunks(source), self._of(source), strict=True):
                yield chunk, part.choice(reading)


def pick(
    encoder: Encoder,
    files: Sequence[InputFile],
    *,
    weights: Sequence[float] | None,
    mix: Mix,
    dedup: bool,
    processes: int,
) -> Picked:
    """Read all records once and choose. Raises DataError for texts that would be lost, and for an empty source."""
    with_lengths = weights is not None and mix.by == "tokens"
    surveys = []
    for found in survey(encoder, Sources(files), processes=processes, with_lengths=with_lengths):
        found.seen.check(files[found.file].shown)
        surveys.append(found)
    kept = _kept(surveys, dedup=dedup)
    counts = _counts(surveys, kept, files, weights, mix)
    parts = [
        _Part(
            source=files[found.file].source,
            times=often,
            held_out=found.held_out & first,
            duplicates=int(np.count_nonzero(~first)),
        )
        for found, first, often in zip(surveys, kept, counts, strict=True)
    ]
    repeated = sum(int(np.count_nonzero(~first)) for first in first_occurrences([one.digests for one in surveys]))
    return Picked(parts, files, mixed=weights is not None, repeated=0 if dedup else repeated)


def _kept(surveys: Sequence[Survey], *, dedup: bool) -> list[Kept]:
    if dedup:
        return first_occurrences([found.digests for found in surveys])
    return [np.ones(len(found.digests), dtype=bool) for found in surveys]


def _counts(
    surveys: Sequence[Survey],
    kept: Sequence[Kept],
    files: Sequence[InputFile],
    weights: Sequence[float] | None,
    mix: Mix,
) -> list[Ints]:
    """Return how often each record of each chunk is trained on."""
    usable = [first & ~found.held_out for found, first in zip(surveys, kept, strict=True)]
    if weights is None:
        return [mask.astype(np.int32) for mask in usable]
    found: list[Ints] = [np.zeros(len(mask), dtype=np.int32) for mask in usable]
    places = [[n for n, one in enumerate(surveys) if files[one.file].source == s] for s in range(len(weights))]
    sizes = [_sizes([surveys[n] for n in own], [usable[n] for n in own], mix) for own in places]
    for source, size in enumerate(sizes):
        if not size.sum():
            shown = next(file.shown for file in files if file.source == source)
            raise DataError(f"{shown} gives nothing to train on", hint="leave it out of the mixture")
    for own, mine in zip(places, times(sizes, weights, mix), strict=True):
        _spread(mine, [usable[n] for n in own], [found[n] for n in own])
    return found


def _sizes(surveys: Sequence[Survey], usable: Sequence[Kept], mix: Mix) -> Sizes:
    """Return the size of each usable record of one source."""
    if mix.by == "samples":
        return np.ones(sum(int(mask.sum()) for mask in usable), dtype=np.int64)
    parts = [one.lengths[mask] for one, mask in zip(surveys, usable, strict=True)]
    found: Sizes = np.concatenate([*parts, np.zeros(0, dtype=np.int32)]).astype(np.int64)
    return found


def _spread(values: Ints, usable: Sequence[Kept], into: Sequence[Ints]) -> None:
    """Put ``values``, one for each usable record, to the places of these."""
    start = 0
    for mask, target in zip(usable, into, strict=True):
        count = int(mask.sum())
        target[mask] = values[start : start + count]
        start += count
