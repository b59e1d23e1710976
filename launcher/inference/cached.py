"""A key-value cache on CPU, through MindFormers' own layers, or through those of ``plain``.

MindFormers keeps keys and values in paged attention, whose kernels exist only on Ascend. Without them its ``generate``
pads every row to seq_length and recomputes all of it for each token: its graph is compiled for that one shape. Here
one graph with dynamic shapes runs the same cells (embedding, norms, projections, rotary positions, feed-forward, head)
on the new tokens alone; it takes the keys and values of earlier tokens and returns them with the new ones.

The rows of a batch share the columns of the cache, and each ends in the last one: every token of a step is put behind
them, whatever was before it. So a row may join, with a prompt of any length, and leave between two steps. A mask hides
what stands before the beginning of a row. There are as many columns as the longest row has tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from launcher.inference.batching import Batch, run
from launcher.inference.compiled import graph_cache
from launcher.inference.decoding import Row

# New tokens of all rows that one pass takes: bounds the memory of long prompts.
_PASS_TOKENS = 2048
# Logits that one pass returns where those of all tokens are wanted: 32 MiB.
_PASS_LOGITS = 1 << 23
_MASKED = np.float32(-1e9)

Ints = npt.NDArray[np.int32]


class Steps(Protocol):
    """A network that runs new tokens on cached keys and values. layers: how many. heads, head_size: of keys.

    cos, sin (positions, head_size): rotary positions.
    """

    layers: int
    heads: int
    head_size: int
    cos: Any
    sin: Any

    def run(self, tokens: Any, cos: Any, sin: Any, mask: Any, wanted: Any, keys: Any, values: Any) -> Any:
        """Return (logits of the wanted tokens, keys, values), the new ones at their end.

        tokens (rows, new) int32; cos, sin (rows, 1, new, head_size); mask (rows, 1, new, columns), added to scores;
        wanted: flat indexes; keys and values: one (rows, heads, columns, head_size) for each layer.
        """

    def tensor(self, array: Any) -> Any:
        """Return ``array`` in the form of keys and values."""

    def array(self, tensor: Any) -> Any:
        """Return one of the keys or values in numpy."""


class _Part:
    """Keys and values of some rows. lengths (rows,): how many of the last columns are a row's own."""

    def __init__(self, steps: Steps, keys: tuple[Any, ...], values: tuple[Any, ...], lengths: Ints) -> None:
        self._steps, self.keys, self.values, self.lengths = steps, keys, values, lengths

    @classmethod
    def empty(cls, steps: Steps, num_rows: int) -> _Part:
        """Return ``num_rows`` rows without tokens."""
        # A column that nobody looks at: MindSpore has no tensor without elements.
        column = np.zeros((num_rows, steps.heads, 1, steps.head_size), np.float32)
        tensors = tuple(steps.tensor(column) for _ in range(steps.layers))
        return cls(steps, tensors, tensors, np.zeros(num_rows, np.int32))

    @property
    def columns(self) -> int:
        return int(self.keys[0].shape[2])

    def run(self, tokens: Ints, lengths: Ints, wanted: Any) -> Any:
        """Run one pass and return its logits. tokens (rows, new): the next columns; lengths: those after the pass;
        wanted: flat indexes of the rows * new tokens to return logits for."""
        new = tokens.shape[1]
        # By position, not by column: rows began in different columns. In those before its beginning a row has none.
        places = np.maximum(lengths[:, None] - new + np.arange(new), 0)
        order, before = np.arange(self.columns + new), self.columns
        own = order >= before + new - lengths[:, None]
        causal = order <= before + np.arange(new)[:, None]
        logits, self.keys, self.values = self._steps.run(
            np.ascontiguousarray(tokens, np.int32),
            self._steps.cos[places][:, None],
            self._steps.sin[places][:, None],
            np.where(own[:, None] & causal[None], np.float32(0), _MASKED)[:, None],
            np.asarray(wanted, np.int32),
            self.keys,
            self.values,
        )
        self.lengths = lengths
        return logits


def _joined(steps: Steps, parts: Sequence[tuple[_Part, Ints]]) -> _Part:
    """Return the chosen rows of all ``parts`` as one, in their order, with no more columns than the longest needs."""
    lengths = np.concatenate([part.lengths[index] for part, index in parts])
    columns = int(lengths.max())

    def layer(tensors: Sequence[Any]) -> Any:
        found = np.zeros((len(lengths), steps.heads, columns, steps.head_size), np.float32)
        first = 0
        for tensor, (_, index) in zip(tensors, parts, strict=True):
            array = steps.array(tensor)
            width = min(columns, array.shape[2])
            found[first : first + len(index), :, columns - width :] = array[index, :, array.shape[2] - width :]
            first += len(index)
        return steps.tensor(found)

    keys = tuple(layer(tensors) for tensors in zip(*(part.keys for part, _ in parts), strict=True))
    values = tuple(layer(tensors) for tensors in zip(*(part.values for part, _ in parts), strict=True))
    return _Part(steps, keys, values, lengths)


class Cache:
    """Keys and values of the rows that are answered now; ``batching.Memory`` documents its parts."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.clear()

    def clear(self) -> None:
        self._part = _Part.empty(self._steps, 1)
        # Which rows of the part are still wanted.
        self._kept = np.arange(0)

    def join(self, prompts: Sequence[Sequence[int]]) -> Any:
        part = _Part.empty(self._steps, len(prompts))
        logits = self._read(part, prompts)
        # What was there stays as it is until nothing can fail any more.
        held = [(self._part, self._kept)] if self._kept.size else []
        self._part = _joined(self._steps, [*held, (part, np.arange(len(prompts)))]) if held else part
        self._kept = np.arange(len(self._part.lengths))
        return logits

    def _read(self, part: _Part, prompts: Sequence[Sequence[int]]) -> Any:
        """Run the prompts in groups of columns, which bounds the memory; return the logits after each prompt."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        width = int(lengths.max())
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[width - len(prompt) :] = prompt
        logits, group = None, max(1, _PASS_TOKENS // len(prompts))
        for start in range(0, width, group):
            now = tokens[:, start : start + group]
            # All prompts end in the last column, so that the logits of the last group are those of all.
            last = np.arange(1, len(prompts) + 1) * now.shape[1] - 1
            logits = part.run(now, np.maximum(lengths - (width - start - now.shape[1]), 0), last)
        return logits

    def step(self, tokens: Sequence[int]) -> Any:
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
            self._part = _joined(self._steps, [(self._part, self._kept)])
            self._kept = np.arange(self._kept.size)


class CachedDecoder:
    """A model on CPU; ``decoding.Decoder`` documents its parts."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def run(self, rows: Sequence[Row]) -> None:
        run(Cache(self._steps), rows)

    def batch(self, slots: int) -> Batch:
        return Batch(Cache(self._steps), slots)

    def all_logits(self, tokens: Any) -> Any:
        rows, new = tokens.shape
        logits = _Part.empty(self._steps, rows).run(tokens, np.full(rows, new, np.int32), np.arange(rows * new))
        return logits.reshape(rows, new, -1)

    def prompt_logits(self, ids: Sequence[int]) -> Iterator[Any]:
        part, tokens = _Part.empty(self._steps, 1), np.asarray([ids], np.int32)
        start, width = 0, 1
        while start < len(ids):
            now = tokens[:, start : start + width]
            logits = part.run(now, np.array([start + now.shape[1]], np.int32), np.arange(now.shape[1]))
            yield logits
            start += width
            # The size of the vocabulary is known after the first token.
            width = min(_PASS_TOKENS, max(1, _PASS_LOGITS // logits.shape[-1]))


class CompiledSteps:
    """MindFormers' network, compiled once for all shapes."""

    def __init__(self, network: Any, described: Mapping[str, Any]) -> None:
        """Prepare to compile. ``described``: everything that ``network`` was built from except its weights."""
        self._step = _make_step(network)
        # Only the first run compiles, so only that one needs the graph cache.
        self._first: AbstractContextManager[None] = graph_cache(described)
        rotary = network.model.freqs_mgr
        self.cos, self.sin = rotary.freqs_cos.asnumpy(), rotary.freqs_sin.asnumpy()
        attention = network.model.layers[0].attention
        self.layers = len(network.model.layers)
        self.heads, self.head_size = attention.n_kv_head, attention.head_dim

    def run(self, tokens: Any, cos: Any, sin: Any, mask: Any, wanted: Any, keys: Any, values: Any) -> Any:
        from mindspore import mutable

        with self._first:
            # Without mutable() the tuples would be constants, and every new length would compile a graph of its own.
            arrays = map(_tensor, (tokens, cos, sin, mask, wanted))
            logits, keys, values = self._step(*arrays, mutable(keys), mutable(values))
        self._first = nullcontext()
        return logits.asnumpy(), keys, values

    def tensor(self, array: Any) -> Any:
        return _tensor(array)

    def array(self, tensor: Any) -> Any:
        return tensor.asnumpy()


def _tensor(array: Any) -> Any:
    from mindspore import Tensor

    return Tensor.from_numpy(np.ascontiguousarray(array))


def _make_step(network: Any) -> Any:
    """Return the cell that runs ``network`` on new tokens; compiled once for all shapes, on its first run."""
    import mindspore
    from mindspore import Tensor, mutable, nn, ops

    class Step(nn.Cell):  # type: ignore[misc]
        def __init__(self) -> None:
            # The cells belong to ``network``: their parameters keep the names that they have there.
            super().__init__(auto_prefix=False)
            self.num_layers = len(network.model.layers)
            self.layers = network.model.layers
            self.embed = network.model.tok_embeddings
            self.norm = network.model.norm_out
            self.head = network.lm_head
            self.join = ops.Concat(2)
            self.gather = ops.Gather()
            self.reshape = ops.Reshape()
            self.transpose = ops.Transpose()
            self.shape = ops.Shape()

        def split(self, x: Any, rows: int, new: int, heads: int, size: int) -> Any:
            return self.transpose(self.reshape(x, (rows, new, heads, size)), (0, 2, 1, 3))

        def construct(self, tokens: Any, cos: Any, sin: Any, mask: Any, wanted: Any, keys: Any, values: Any) -> Any:
            rows, new = self.shape(tokens)
            hidden = self.reshape(self.embed(tokens), (rows, new, -1))
            all_keys: Any = ()
            all_values: Any = ()
            for number in range(self.num_layers):
                layer = self.layers[number]
                attention = layer.attention
                x = layer.attention_norm(hidden)
                query = self.split(attention.wq(x), rows, new, attention.n_head, attention.head_dim)
                key = self.split(attention.wk(x), rows, new, attention.n_kv_head, attention.head_dim)
                value = self.split(attention.wv(x), rows, new, attention.n_kv_head, attention.head_dim)
                query, key = attention.apply_rotary_emb(query, key, (cos, sin, None))
                key, value = self.join((keys[number], key)), self.join((values[number], value))
                all_keys, all_values = (*all_keys, key), (*all_values, value)
                key, value = attention._repeat_kv(key, attention.n_rep), attention._repeat_kv(value, attention.n_rep)
                score = attention.batch_matmul_q_k(query, key) * attention.inv_norm_factor + mask
                x = attention.batch_matmul(attention.softmax(score), value)
                x = self.reshape(self.transpose(x, (0, 2, 1, 3)), (rows, new, attention.n_head * attention.head_dim))
                hidden = hidden + attention.wo(x)
                hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
            # The head is the largest product of all: it only runs on the wanted tokens.
            hidden = self.gather(self.reshape(hidden, (rows * new, -1)), wanted, 0)
            return self.head(self.norm(hidden)), all_keys, all_values

    step = Step()
    step.set_train(False)
    attention = network.model.layers[0].attention
    float32, int32 = mindspore.float32, mindspore.int32

    def shaped(*shape: int | None, dtype: Any = float32) -> Any:
        return Tensor(shape=list(shape), dtype=dtype)

    cache = [shaped(None, attention.n_kv_head, None, attention.head_dim) for _ in network.model.layers]
    rotary = shaped(None, 1, None, attention.head_dim)
    step.set_inputs(
        shaped(None, None, dtype=int32), rotary, rotary, shaped(None, 1, None, None), shaped(None, dtype=int32),
        mutable(tuple(cache)), mutable(tuple(cache)),
    )  # fmt: skip
    return step
