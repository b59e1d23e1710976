"""Fit samples of any length into rows of one length.

A row is seq_length + 1 tokens long: LlamaForCausalLM trains on tokens[:-1] and shifts the labels itself, and for
MindFormers' mcore networks the ranks do it (upstream/shifted_rows.py), so that labels are aligned with input_ids and
seq_length tokens are predicted. Labels are -100 for tokens that are not in the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

from launcher.data.mindrecord import Ints
from launcher.data.templates import Encoded

IGNORED_LABEL = -100
PAD_ID = 0
Overflow = Literal["truncate", "drop", "split"]


class _Piece(NamedTuple):
    """A stretch of the tokens of a batch that becomes a row."""

    sample: int
    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows, int32 of shape (rows, 2, width): input_ids and labels, padded to the longest of them.

    ``pack_rows`` adds the rest of the padding up to seq_length + 1.
    ``ids`` are all tokens of the samples and ``lengths`` their number per sample, before anything was cut.
    ``counts``: conversations, rows, tokens, loss_tokens, padding (tokens), truncated, dropped, split, and
    without_loss (samples of which no row has anything in the loss), lost_tokens (in the loss, but cut off).
    """

    values: Ints
    ids: Ints
    lengths: Ints
    counts: Counter[str] = field(default_factory=Counter)


def fit(samples: Sequence[Encoded], *, seq_length: int, overflow: Overflow) -> Rows:
    """Return rows of ``samples``; those of more than seq_length + 1 tokens are truncated, dropped, or split.

    Split rows share one token, the last of one and the first of the next, so that every token but the first
    of a sample is predicted exactly once. Rows without a token in the loss are dropped.
    """
    counts: Counter[str] = Counter(conversations=len(samples))
    lengths = np.array([len(sample.ids) for sample in samples], dtype=np.int32)
    pieces = list(_pieces(lengths.tolist(), seq_length, overflow, counts))
    # Converting the lists of Python is what takes the time here, so it is done once for all of them.
    ids = np.fromiter(chain.from_iterable(sample.ids for sample in samples), dtype=np.int32, count=lengths.sum())
    values = _fill(samples, ids, pieces, seq_length + 1)
    learning = (values[:, 1, 1:] != IGNORED_LABEL).any(axis=1)
    kept = [piece for piece, learns in zip(pieces, learning, strict=True) if learns]
    counts["without_loss"] = len({piece.sample for piece in pieces} - {piece.sample for piece in kept})
    if len(kept) < len(pieces):
        values = values[learning]
    _count(counts, values, kept, seq_length + 1)
    # The first token of a sample is never predicted.
    counts["lost_tokens"] = sum(sample.in_loss.count(1, 1) for sample in samples) - counts["loss_tokens"]
    return Rows(values=values, ids=ids, lengths=lengths, counts=counts)


def _pieces(lengths: Sequence[int], seq_length: int, overflow: Overflow, counts: Counter[str]) -> Iterator[_Piece]:
    start = 0
    for sample, length in enumerate(lengths):
        if length <= seq_length + 1:
            yield _Piece(sample, start, length)
        elif overflow == "truncate":
            counts["truncated"] += 1
            yield _Piece(sample, start, seq_length + 1)
        elif overflow == "drop":
            counts["dropped"] += 1
        else:
            counts["split"] += 1
            for begin in range(0, length - 1, seq_length):
                yield _Piece(sample, start + begin, min(seq_length + 1, length - begin))
        start += length


def _fill(samples: Sequence[Encoded], ids: Ints, pieces: Sequence[_Piece], length: int) -> Ints:
    in_loss = np.frombuffer(b"".join(sample.in_loss for sample in samples), dtype=bool)
    labels = np.where(in_loss, ids, np.int32(IGNORED_LABEL))
    # One column of padding more than the longest needs, for it to go on from there.
    width = min(length, 1 + max((piece.length for piece in pieces), default=0))
    values = np.empty((len(pieces), 2, width), dtype=np.int32)
    values[:, 0] = PAD_ID
    values[:, 1] = IGNORED_LABEL
    for row, piece in zip(values, pieces, strict=True):
        row[0, : piece.length] = ids[piece.start : piece.start + piece.length]
        row[1, : piece.length] = labels[piece.start : piece.start + piece.length]
    # Nothing stands before the first token to predict it from; in a split sample the row before does that.
    values[:, 1, 0] = IGNORED_LABEL
    return values


def _count(counts: Counter[str], values: Ints, pieces: Sequence[_Piece], length: int) -> None:
    tokens = sum(piece.length for piece in pieces)
    counts["rows"] = len(values)
    counts["tokens"] = tokens
    counts["padding"] = length * len(values) - tokens
    counts["loss_tokens"] = int(np.count_nonzero(values[:, 1] != IGNORED_LABEL))


def join(texts: Sequence[Sequence[int]], bos_id: int | None, eos_id: int | None) -> list[Encoded]:
    """Concatenate texts to one sample, each between bos and eos. Everything but bos is in the loss."""
    ids: list[int] = []
    in_loss = bytearray()
    for tokens in texts:
        new = [token for token in (bos_id, *tokens, eos_id) if token is not None]
        ids += new
        in_loss += bytes([bos_id is None]) + b"\1" * (len(new) - 1)
    return [Encoded(ids, bytes(in_loss))] if ids else []
