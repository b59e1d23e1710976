"""Whole tensors made of slices in several files, and the outputs to write from them. Planning reads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from launcher.checkpoint.dtypes import FLOATS, Array, item_size, numpy_dtype
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
        return self.whole.row_items * item_size(self.dtype)

    @property
    def must_be_finite(self) -> bool:
        """Return whether infinities and NaNs are an error: in weights and adapters, not in the optimizer's state."""
        name = self.whole.name
        return self.dtype in FLOATS and (names.is_weight(name) or names.is_adapter(name))

    @property
    def is_copy(self) -> bool:
        """Return whether the bytes are copied unchanged."""
        return self.fold is None and self.dtype == self.whole.dtype
