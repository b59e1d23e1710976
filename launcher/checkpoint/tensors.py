"""Whole tensors made of slices in several files, and the outputs to write from them. Planning reads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from launcher.checkpoint.dtypes import FLOATS, Q8_0, Array, item_size, numpy_dtype, row_size
from launcher.checkpoint.entries import Entry
from launcher.checkpoint.layout import Box
from launcher.checkpoint.tensorfile import TensorFile, byte_view
from launcher.models import names


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A box of the whole tensor and the slice that holds it.

    skip: where the box begins in the slice along the axes after the first, when the slice is larger than the box.
    """

    file: TensorFile
    entry: Entry
    box: Box
    skip: tuple[int, ...] = ()

    @property
    def row_items(self) -> int:
        """Elements of one row of the slice."""
        return math.prod(self.entry.shape[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A tensor of ``shape`` made of pieces that cover it exactly once, in order of their first row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Length of axis 0; a scalar has one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_items(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        return self.row_items * item_size(self.dtype)

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def is_wide(self, piece: Piece) -> bool:
        """Return whether ``piece`` has whole rows, so that its bytes are consecutive in the whole tensor too."""
        return piece.box.size[1:] == self.shape[1:] == piece.entry.shape[1:]

    def parts(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int, int]]:
        """Yield (piece, first row, last row + 1, that first row in the piece's slice) for rows [start, stop)."""
        for piece in self.pieces:
            first = piece.box.start[0] if piece.box.start else 0
            rows = piece.box.size[0] if piece.box.size else 1
            begin, end = max(start, first), min(stop, first + rows)
            if begin < end:
                yield piece, begin, end, piece.box.row + begin - first

    def read_rows(self, start: int, stop: int, out: Array, scratch: Array) -> None:
        """Gather rows [start, stop) into ``out`` (rows, ...), C-contiguous, of this dtype.

        ``scratch``: bytes (uint8) for the rows of one slice; see ``scratch_bytes``.
        """
        for piece, begin, end, row in self.parts(start, stop):
            if self.is_wide(piece):
                target = out[begin - start : end - start]
                piece.file.read_into(piece.entry, row * self.row_bytes, byte_view(target))
            else:
                self._read_strided(piece, (begin, end, row), out[begin - start : end - start], scratch)

    def _read_strided(self, piece: Piece, rows: tuple[int, int, int], out: Array, scratch: Array) -> None:
        begin, end, row = rows
        row_bytes = piece.row_items * item_size(self.dtype)
        raw = scratch[: (end - begin) * row_bytes]
        piece.file.read_into(piece.entry, row * row_bytes, byte_view(raw))
        axes = zip(piece.box.start[1:], piece.box.size[1:], strict=True)
        place = (slice(None), *(slice(first, first + length) for first, length in axes))
        source = raw.view(numpy_dtype(self.dtype)).reshape(end - begin, *piece.entry.shape[1:])
        if piece.skip:
            sides = zip(piece.skip, piece.box.size[1:], strict=True)
            window = (slice(None), *(slice(first, first + length) for first, length in sides))
            source = source[window]
        np.copyto(out[place], source)

    def read(self) -> Array:
        """Read the whole tensor, in its shape and dtype."""
        out = np.empty((self.rows, *self.shape[1:]), numpy_dtype(self.dtype))
        if out.size:
            self.read_rows(0, self.rows, out, np.empty(self.scratch_bytes(self.rows), np.uint8))
        return out.reshape(self.shape)

    def scratch_bytes(self, rows: int) -> int:
        """Return the bytes of scratch that ``read_rows`` needs for ``rows`` rows."""
        narrow = [piece.row_items for piece in self.pieces if not self.is_wide(piece)]
        return rows * max(narrow, default=0) * item_size(self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Woven(Whole):
    """A tensor woven of ``sources``: each group of rows has ``runs[0]`` of the first, ``runs[1]`` of the second, ..."""

    sources: tuple[Whole, ...]
    runs: tuple[int, ...]

    def is_wide(self, piece: Piece) -> bool:
        return False

    def parts(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int, int]]:
        for source, _, rows in self._sources_of(start, stop):
            yield from source.parts(int(rows[0]), int(rows[-1]) + 1)

    def read_rows(self, start: int, stop: int, out: Array, scratch: Array) -> None:
        for source, mine, rows in self._sources_of(start, stop):
            size = len(rows) * self.row_bytes
            found = scratch[:size].view(numpy_dtype(self.dtype)).reshape(len(rows), *self.shape[1:])
            source.read_rows(int(rows[0]), int(rows[-1]) + 1, found, scratch[size:])
            out[mine] = found

    def scratch_bytes(self, rows: int) -> int:
        return rows * self.row_bytes + max(source.scratch_bytes(rows) for source in self.sources)

    def _sources_of(self, start: int, stop: int) -> Iterator[tuple[Whole, Array, Array]]:
        """Yield each source of rows [start, stop), which of these rows are its own, and the rows in it: all between
        the first and the last."""
        group, places = sum(self.runs), np.arange(start, stop)
        inside, first = places % group, 0
        for source, run in zip(self.sources, self.runs, strict=True):
            mine = (inside >= first) & (inside < first + run)
            if mine.any():
                yield source, mine, (places // group * run + inside - first)[mine]
            first += run


@dataclass(frozen=True, kw_only=True, slots=True)
class Unwoven(Whole):
    """One of the tensors that ``source`` is woven of: ``run`` rows from ``first`` on in each group of ``group``."""

    source: Whole
    first: int
    run: int
    group: int

    def is_wide(self, piece: Piece) -> bool:
        return False

    def parts(self, start: int, stop: int) -> Iterator[tuple[Piece, int, int, int]]:
        yield from self.source.parts(self._place(start), self._place(stop - 1) + 1)

    def read_rows(self, start: int, stop: int, out: Array, scratch: Array) -> None:
        if self.run == 1:  # one call for all rows, with those between them, is faster than a call for each
            rows = (stop - start - 1) * self.group + 1
            size = rows * self.row_bytes
            found = scratch[:size].view(numpy_dtype(self.dtype)).reshape(rows, *self.shape[1:])
            self.source.read_rows(self._place(start), self._place(start) + rows, found, scratch[size:])
            out[:] = found[:: self.group]
            return
        row = start
        while row < stop:
            end = min(stop, row - row % self.run + self.run)
            place = self._place(row)
            self.source.read_rows(place, place + end - row, out[row - start : end - start], scratch)
            row = end

    def scratch_bytes(self, rows: int) -> int:
        if self.run > 1:
            return self.source.scratch_bytes(min(rows, self.run))
        return rows * self.group * self.row_bytes + self.source.scratch_bytes(rows * self.group)

    def _place(self, row: int) -> int:
        return row // self.run * self.group + self.first + row % self.run


def woven(name: str, sources: Sequence[Whole], runs: tuple[int, ...]) -> Woven:
    """Weave ``sources``, of one dtype and with as many groups of rows each, into the tensor ``name``."""
    return Woven(
        name=name,
        dtype=sources[0].dtype,
        shape=(sum(source.rows for source in sources), *sources[0].shape[1:]),
        pieces=tuple(piece for source in sources for piece in source.pieces),
        sources=tuple(sources),
        runs=runs,
    )


def unwoven(whole: Whole, runs: tuple[int, ...], number: int) -> Whole:
    """Return tensor ``number`` of those that ``whole`` is woven of; it keeps the name of ``whole``."""
    if isinstance(whole, Woven) and whole.runs == runs:
        return replace(whole.sources[number], name=whole.name)
    group = sum(runs)
    return Unwoven(
        name=whole.name,
        dtype=whole.dtype,
        shape=(whole.rows // group * runs[number], *whole.shape[1:]),
        pieces=whole.pieces,
        source=whole,
        first=sum(runs[:number]),
        run=runs[number],
        group=group,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """LoRA adapters of a weight W (out, in): lora_a (r, in), lora_b (out, r); W becomes W + scale * lora_b @ lora_a."""

    lora_a: Whole
    lora_b: Whole
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A tensor to write: ``whole`` under ``name`` as ``dtype``, with ``fold`` added when there is one."""

    name: str
    dtype: str
    whole: Whole
    fold: Fold | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def nbytes(self) -> int:
        return self.whole.rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        return row_size(self.dtype, self.whole.row_items)

    @property
    def unquantized(self) -> Output:
        """Return the tensor whose values are quantized to this one; itself where they are not."""
        return replace(self, dtype="float32") if self.dtype == Q8_0 else self

    @property
    def must_be_finite(self) -> bool:
        """Return whether infinities and NaNs are an error: in weights and adapters, not in the optimizer's state."""
        name = self.whole.name
        return self.dtype in FLOATS and (names.is_weight(name) or names.is_adapter(name))

    @property
    def is_copy(self) -> bool:
        """Return whether the bytes are copied unchanged."""
        return self.fold is None and self.dtype == self.whole.dtype
