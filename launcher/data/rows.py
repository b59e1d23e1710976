"""Fit samples of any length into rows of one length.

A row is seq_length + 1 tokens long: LlamaForCausalLM trains on tokens[:-1] and shifts the labels itself, and for
MindFormers' mcore networks the ranks do it (upstream/shifted_rows.py), so that labels are aligned with input_ids and
seq_length tokens are predicted. Labels are -100 for tokens that are not in the loss.

A row holds one sample, or a stretch of one; with packing, several (``packing``). Packed rows have a third column,
actual_seq_len: where each sample ends in the row, then seq_length as often as the column is long.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from launcher.data import packing, samples
from launcher.data.mindrecord import Ints
from launcher.data.packing import Bins
from launcher.data.samples import Records
from launcher.data.segments import Encoded
from launcher.upstream.packed_rows import SEAMS, seams_of

IGNORED_LABEL = -100
PAD_ID = 0
Overflow = Literal["truncate", "drop", "split"]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples one after the other: the ids of all, int32, which of them are in the loss, and the length of each."""

    ids: Ints
    in_loss: npt.NDArray[np.bool_]
    lengths: Ints

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Samples:
        lengths = np.array([len(sample.ids) for sample in encoded], dtype=np.int32)
        # Converting the lists of Python is what takes the time here, so it is done once for all of them.
        ids = np.fromiter(chain.from_iterable(sample.ids for sample in encoded), dtype=np.int32, count=lengths.sum())
        in_loss = np.frombuffer(b"".join(sample.in_loss for sample in encoded), dtype=bool)
        return cls(ids=ids, in_loss=in_loss, lengths=lengths)

    @property
    def ends(self) -> Places:
        ends: Places = np.cumsum(self.lengths, dtype=np.int64)
        return ends

    def joined(self) -> Samples:
        """Return all of them as one, if there are any."""
        length = np.array([len(self.ids)] if len(self.ids) else [], dtype=np.int32)
        return Samples(ids=self.ids, in_loss=self.in_loss, lengths=length)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Stretches of samples, each at most a row long, one after the other.

    ``tokens``: int32 of shape (2, all), ids and labels; the label of the first token of a piece is -100. ``lengths``:
    tokens of each. ``records``: one for each, see ``samples``.
    """

    tokens: Ints
    lengths: Places
    records: Records

    @classmethod
    def none(cls) -> Pieces:
        return cls(tokens=np.zeros((2, 0), np.int32), lengths=np.zeros(0, np.int64), records=samples.none())

    @property
    def starts(self) -> Places:
        starts: Places = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def in_loss(self) -> Places:
        """Return how many tokens of each are in the loss."""
        before = np.concatenate([[0], np.cumsum(self.tokens[1] != IGNORED_LABEL)])
        found: Places = before[self.starts + self.lengths] - before[self.starts]
        return found

    def chosen(self, places: Places) -> Pieces:
        """Return the pieces at ``places``, in that order."""
        spans = zip(self.starts[places].tolist(), self.lengths[places].tolist(), strict=True)
        parts = [self.tokens[:, start : start + length] for start, length in spans]
        return Pieces(
            tokens=np.concatenate([Pieces.none().tokens, *parts], axis=1),
            lengths=self.lengths[places],
            records=self.records[places],
        )

    def __add__(self, other: Pieces) -> Pieces:
        return Pieces(
            tokens=np.concatenate([self.tokens, other.tokens], axis=1),
            lengths=np.concatenate([self.lengths, other.lengths]),
            records=np.concatenate([self.records, other.records]),
        )


@dataclass(frozen=True, kw_only=True)
class Laid:
    """Rows, int32 of shape (rows, 2, width): input_ids and labels, padded to the longest of them.

    ``pack_rows`` adds the rest of the padding up to seq_length + 1.
    ``ends``: the column actual_seq_len, int32 of shape (rows, seams). ``records``: those of the pieces, in order.
    ``counts``: rows, tokens, loss_tokens, padding (tokens).
    """

    values: Ints
    ends: Ints
    records: Records
    counts: Counter[str]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of some samples.

    ``open``: with packing, the pieces that wait for more to share a row with. ``left_out``: records of samples that no
    row holds. ``counts``: those of ``laid``, and conversations, truncated, dropped, split, without_loss (samples of
    which no row has anything in the loss), lost_tokens (in the loss, but cut off).
    """

    laid: Laid
    open: Pieces
    left_out: Records
    counts: Counter[str]

    @property
    def values(self) -> Ints:
        return self.laid.values


def fit(
    whole: Samples, *, seq_length: int, overflow: Overflow, packed: bool = False, records: Records | None = None
) -> Rows:
    """Return rows of samples; those of more than seq_length + 1 tokens are truncated, dropped, or split.

    Split rows share one token, the last of one and the first of the next, so that every token but the first
    of a sample is predicted exactly once. Rows without a token in the loss are dropped. ``records``: one a sample.
    """
    counts: Counter[str] = Counter(conversations=len(whole.lengths))
    about = np.zeros(len(whole.lengths), dtype=samples.RECORD) if records is None else records.copy()
    about["tokens"] = whole.lengths
    pieces, left_out = _cut(whole, about, seq_length, overflow, counts)
    # The first token of a sample is never predicted.
    predicted = int(whole.in_loss.sum() - whole.in_loss[(whole.ends - whole.lengths)[whole.lengths > 0]].sum())
    counts["lost_tokens"] = predicted - int(pieces.in_loss.sum())
    laid, is_open = pack(pieces, seq_length) if packed else (alone(pieces, seq_length), Pieces.none())
    counts.update(laid.counts)
    return Rows(laid=laid, open=is_open, left_out=left_out, counts=counts)


def _cut(
    whole: Samples, about: Records, seq_length: int, overflow: Overflow, counts: Counter[str]
) -> tuple[Pieces, Records]:
    """Return the pieces of samples that become rows, and the records of samples of which no row holds anything."""
    tokens = np.stack([whole.ids, np.where(whole.in_loss, whole.ids, np.int32(IGNORED_LABEL))])
    spans = list(_spans(about["tokens"].tolist(), seq_length, overflow, counts))
    sample, begins, lengths = np.array(spans, dtype=np.int64).reshape(-1, 3).T
    pieces = Pieces(tokens=_gathered(tokens, begins, lengths), lengths=lengths, records=about[sample])
    # Nothing stands before the first token to predict it from; in a split sample the piece before does that.
    pieces.tokens[1, pieces.starts[lengths > 0]] = IGNORED_LABEL
    pieces.records["in_loss"] = pieces.in_loss
    pieces.records["flags"] |= np.where(lengths < about["tokens"][sample], samples.CUT, 0).astype(np.uint8)
    pieces.records["flags"][1:] |= np.where(sample[1:] == sample[:-1], samples.CONTINUED, 0).astype(np.uint8)
    learning = pieces.in_loss > 0
    held = np.isin(np.arange(len(about)), sample[learning])
    counts["without_loss"] = int(np.isin(np.flatnonzero(~held), sample).sum())
    left_out = about[~held]
    left_out["flags"] |= samples.NO_ROW
    return pieces if learning.all() else pieces.chosen(np.flatnonzero(learning)), left_out


def _spans(
    lengths: Sequence[int], seq_length: int, overflow: Overflow, counts: Counter[str]
) -> Iterator[tuple[int, int, int]]:
    """Yield the pieces of samples: number of the sample, where it begins among all tokens, its length."""
    start = 0
    for sample, length in enumerate(lengths):
        if length <= seq_length + 1:
            yield sample, start, length
        elif overflow == "truncate":
            counts["truncated"] += 1
            yield sample, start, seq_length + 1
        elif overflow == "drop":
            counts["dropped"] += 1
        else:
            counts["split"] += 1
            for begin in range(0, length - 1, seq_length):
                yield sample, start + begin, min(seq_length + 1, length - begin)
        start += length


def _gathered(tokens: Ints, begins: Places, lengths: Places) -> Ints:
    if int(lengths.sum()) == tokens.shape[1] and (begins == np.cumsum(lengths) - lengths).all():
        return tokens
    spans = zip(begins.tolist(), lengths.tolist(), strict=True)
    return np.concatenate([tokens[:, :0], *[tokens[:, begin : begin + length] for begin, length in spans]], axis=1)


def alone(pieces: Pieces, seq_length: int) -> Laid:
    """Return a row for each piece."""
    return _lay_out(pieces, [[piece] for piece in range(len(pieces.lengths))], seq_length)


def pack(pieces: Pieces, seq_length: int, *, last: bool = False) -> tuple[Laid, Pieces]:
    """Return rows that pieces share, and the pieces of the emptiest rows, which stay open unless these are the last."""
    lengths = pieces.lengths.tolist()
    bins = packing.fill(lengths, seq_length + 1, seams_of(seq_length) - 1)
    closed, still_open = (packing.in_order(bins), []) if last else packing.part(bins, lengths, seq_length + 1)
    waiting = np.array(sorted(chain.from_iterable(still_open)), dtype=np.int64)
    return _lay_out(pieces, closed, seq_length), pieces.chosen(waiting)


def _lay_out(pieces: Pieces, bins: Bins, seq_length: int) -> Laid:
    lengths, starts = pieces.lengths.tolist(), pieces.starts.tolist()
    used = [sum(lengths[piece] for piece in row) for row in bins]
    # One column of padding more than the longest needs, for it to go on from there.
    width = min(seq_length + 1, 1 + max(used, default=0))
    values = np.empty((len(bins), 2, width), dtype=np.int32)
    values[:, 0] = PAD_ID
    values[:, 1] = IGNORED_LABEL
    ends = np.full((len(bins), seams_of(seq_length)), seq_length, dtype=np.int32)
    for row, row_ends, members in zip(values, ends, bins, strict=True):
        place = 0
        for number, piece in enumerate(members):
            start, length = starts[piece], lengths[piece]
            row[:, place : place + length] = pieces.tokens[:, start : start + length]
            place += length
            # The last token of a row is predicted and predicts nothing: the network sees seq_length tokens.
            row_ends[number] = min(place, seq_length)
    return Laid(
        values=values,
        ends=ends,
        records=_records(pieces.records, bins),
        counts=Counter(
            rows=len(bins),
            tokens=sum(used),
            padding=(seq_length + 1) * len(bins) - sum(used),
            loss_tokens=int(np.count_nonzero(values[:, 1] != IGNORED_LABEL)),
        ),
    )


def _records(records: Records, bins: Bins) -> Records:
    found = records[np.array(list(chain.from_iterable(bins)), dtype=np.int64)]
    sizes = np.array([len(row) for row in bins], dtype=np.int64)
    found["flags"][np.cumsum(sizes) - sizes] |= samples.BEGINS_ROW
    return found


def stretches(ends: Ints, width: int) -> list[tuple[int, int]]:
    """Return where each sample of a packed row of ``width`` tokens begins and ends, padding as the last of them."""
    places = [0, *dict.fromkeys(ends.tolist())]
    places[-1] = width  # the token after the last that the network sees belongs to what stands before it
    return list(pairwise(places))


def unpacked(row: Mapping[str, Ints]) -> Iterator[dict[str, Ints]]:
    """Yield a row for each sample of a packed row that has tokens in the loss; a row that is not packed as it is."""
    if SEAMS not in row:
        yield {"input_ids": row["input_ids"], "labels": row["labels"]}
        return
    width = len(row["input_ids"])
    for begin, end in stretches(row[SEAMS], width):
        labels = np.full(width, IGNORED_LABEL, dtype=np.int32)
        labels[: end - begin] = row["labels"][begin:end]
        if (labels != IGNORED_LABEL).any():
            ids = np.full(width, PAD_ID, dtype=np.int32)
            ids[: end - begin] = row["input_ids"][begin:end]
            yield {"input_ids": ids, "labels": labels}


class OpenRows:
    """The pieces that wait for others to share a row with, from all chunks so far."""

    def __init__(self, seq_length: int, pieces: Pieces | None = None) -> None:
        self._seq_length = seq_length
        self.pieces = pieces or Pieces.none()

    def add(self, pieces: Pieces) -> Laid | None:
        """Take in more pieces, and return the rows that are full enough to be written, once enough have gathered."""
        self.pieces = self.pieces + pieces
        if self.pieces.tokens.shape[1] < packing.GATHERED_ROWS * (self._seq_length + 1):
            return None
        laid, self.pieces = pack(self.pieces, self._seq_length)
        return laid

    def rest(self) -> Laid:
        """Return rows of all that is left."""
        laid, self.pieces = pack(self.pieces, self._seq_length, last=True)
        return laid

    def state(self) -> str:
        """Return the pieces as text, for ``restored``."""
        file = io.BytesIO()
        pieces = self.pieces
        np.savez_compressed(file, tokens=pieces.tokens, lengths=pieces.lengths, records=pieces.records)
        return base64.b64encode(file.getvalue()).decode("ascii")

    @classmethod
    def restored(cls, seq_length: int, state: str) -> OpenRows:
        with np.load(io.BytesIO(base64.b64decode(state)), allow_pickle=False) as arrays:
            pieces = Pieces(tokens=arrays["tokens"], lengths=arrays["lengths"], records=arrays["records"])
        return cls(seq_length, pieces)


def bounded(tokens: Sequence[int], bos_id: int | None, eos_id: int | None) -> Encoded:
    """Return a text between bos and eos. Everything but bos is in the loss."""
    ids = [token for token in (bos_id, *tokens, eos_id) if token is not None]
    return Encoded(ids, (bytes([bos_id is None]) + b"\1" * len(ids))[: len(ids)])
