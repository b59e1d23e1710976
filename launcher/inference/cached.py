"""A key-value cache for ``numpy_network``.

The rows of a batch share the columns of the cache, and each ends in the last one: every token of a step is put behind
them, whatever was before it. So a row may join, with a prompt of any length, and leave between two steps. A mask hides
what stands before the beginning of a row. There are as many columns as the longest row has tokens, and room for more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from launcher.checkpoint.dtypes import Array
from launcher.inference.batching import Batch, run
from launcher.inference.decoding import Row
from launcher.inference.numpy_network import Ints, NumpyNetwork

# New tokens of all rows that one pass takes: bounds the memory of long prompts.
_PASS_TOKENS = 2048
# Logits that one pass returns where those of all tokens are wanted: 32 MiB.
_PASS_LOGITS = 1 << 23
_MASKED = np.float32(-1e9)


class _Part:
    """Keys and values of some rows. lengths (rows,): how many of the last columns are a row's own.

    store (layers, 2, rows, heads, room, head_size): its first columns are in use.
    """

    def __init__(self, network: NumpyNetwork, lengths: Ints, columns: int = 0, store: Array | None = None) -> None:
        self._network, self.lengths, self.columns = network, lengths, columns
        self.store = _store(network, len(lengths), 0) if store is None else store

    def run(self, tokens: Ints, lengths: Ints, wanted: Any) -> Array:
        """Run one pass and return its logits. tokens (rows, new): the next columns; lengths: those after the pass;
        wanted: flat indexes of the rows * new tokens to return logits for."""
        new, before = tokens.shape[1], self.columns
        self._make_room(before + new)
        # By position, not by column: rows began in different columns. In those before its beginning a row has none.
        positions = np.maximum(lengths[:, None] - new + np.arange(new, dtype=np.int32), 0)
        order = np.arange(before + new)
        seen = (order >= before + new - lengths[:, None])[:, None] & (order <= before + np.arange(new)[:, None])
        mask = None if seen.all() else np.where(seen, np.float32(0), _MASKED)[:, None, None]
        logits = self._network.run(tokens, positions, mask, wanted, self.store[..., : before + new, :])
        self.lengths, self.columns = lengths, before + new
        return logits

    def _make_room(self, columns: int) -> None:
        """Have room for so many columns, and a quarter more, so that not every token copies the cache."""
        if columns > self.store.shape[-2]:
            grown = _store(self._network, len(self.lengths), columns + columns // 4 + 64)
            grown[..., : self.columns, :] = self.store[..., : self.columns, :]
            self.store = grown


def _store(network: NumpyNetwork, rows: int, room: int) -> Array:
    return np.empty((network.layers, 2, rows, network.heads, room, network.head_size), np.float32)


def _joined(network: NumpyNetwork, parts: Sequence[tuple[_Part, Ints]]) -> _Part:
    """Return the chosen rows of all ``parts`` as one, in their order, with no more columns than the longest needs."""
    lengths = np.concatenate([part.lengths[index] for part, index in parts])
    columns, first = int(lengths.max()), 0
    store = _store(network, len(lengths), columns + columns // 4 + 64)
    for part, index in parts:
        width = min(columns, part.columns)
        target = store[:, :, first : first + len(index), :, :columns]
        # Nobody looks at what stands before a row, but it must be numbers: a weight of 0 times NaN is NaN.
        target[..., : columns - width, :] = 0
        target[..., columns - width :, :] = part.store[:, :, index, :, part.columns - width : part.columns]
        first += len(index)
    return _Part(network, lengths, columns, store)


class Cache:
    """Keys and values of the rows that are answered now; ``batching.Memory`` documents its parts."""

    def __init__(self, network: NumpyNetwork) -> None:
        self._network = network
        self.clear()

    def clear(self) -> None:
        self._part = _Part(self._network, np.zeros(0, np.int32))
        # Which rows of the part are still wanted.
        self._kept = np.arange(0)

    def join(self, prompts: Sequence[Sequence[int]]) -> Array:
        part = _Part(self._network, np.zeros(len(prompts), np.int32))
        logits = self._read(part, prompts)
        # What was there stays as it is until nothing can fail any more.
        held = [(self._part, self._kept)] if self._kept.size else []
        self._part = _joined(self._network, [*held, (part, np.arange(len(prompts)))]) if held else part
        self._kept = np.arange(len(self._part.lengths))
        return logits

    def _read(self, part: _Part, prompts: Sequence[Sequence[int]]) -> Array:
        """Run the prompts in groups of columns, which bounds the memory; return the logits after each prompt."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        width = int(lengths.max())
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[width - len(prompt) :] = prompt
        group = max(1, _PASS_TOKENS // len(prompts))
        for start in range(0, width, group):
            now = tokens[:, start : start + group]
            # All prompts end in the last column, so that the logits of the last group are those of all.
            last = np.arange(1, len(prompts) + 1) * now.shape[1] - 1
            logits = part.run(now, np.maximum(lengths - (width - start - now.shape[1]), 0), last)
        return logits

    def step(self, tokens: Sequence[int]) -> Array:
        lengths = self._part.lengths.copy()
        given = np.zeros((len(lengths), 1), np.int32)
        given[self._kept, 0] = tokens
        lengths[self._kept] += 1
        return self._part.run(given, lengths, self._kept)

    def keep(self, rows: Sequence[int]) -> None:
        self._kept = self._kept[list(rows)]
        if not self._kept.size:
            self.clear()
            return
        needed = self._kept.size * int(self._part.lengths[self._kept].max())
        # Not for each row that leaves: copying the cache costs more than computing a few idle rows.
        if 2 * needed <= len(self._part.lengths) * self._part.columns:
            self._part = _joined(self._network, [(self._part, self._kept)])
            self._kept = np.arange(self._kept.size)


class CachedDecoder:
    """A model on CPU; ``decoding.Decoder`` documents its parts."""

    def __init__(self, network: NumpyNetwork) -> None:
        self._network = network

    def run(self, rows: Sequence[Row]) -> None:
        run(Cache(self._network), rows)

    def batch(self, slots: int) -> Batch:
        return Batch(Cache(self._network), slots)

    def all_logits(self, tokens: Any) -> Array:
        rows, new = tokens.shape
        part = _Part(self._network, np.zeros(rows, np.int32))
        return part.run(tokens, np.full(rows, new, np.int32), np.arange(rows * new)).reshape(rows, new, -1)

    def prompt_logits(self, ids: Sequence[int]) -> Iterator[Array]:
        part, tokens = _Part(self._network, np.zeros(1, np.int32)), np.asarray([ids], np.int32)
        start, width = 0, 1
        while start < len(ids):
            now = tokens[:, start : start + width]
            logits = part.run(now, np.array([start + now.shape[1]], np.int32), np.arange(now.shape[1]))
            yield logits
            start += width
            # The size of the vocabulary is known after the first token.
            width = min(_PASS_TOKENS, max(1, _PASS_LOGITS // logits.shape[-1]))
