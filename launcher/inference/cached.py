"""A key-value cache on CPU, through MindFormers' own layers, or through those of ``plain``.

MindFormers keeps keys and values in paged attention, whose kernels exist only on Ascend. Without them its ``generate``
pads every row to seq_length and recomputes all of it for each token: its graph is compiled for that one shape. Here
one graph with dynamic shapes runs the same cells (embedding, norms, projections, rotary positions, feed-forward, head)
on the new tokens alone; it takes the keys and values of earlier tokens and returns them with the new ones.

All rows of a batch share the columns of the cache: first the prompts, shorter ones padded, then one column per step.
A mask hides the columns that are padding for a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from launcher.inference.compiled import graph_cache

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

    def rows(self, tensors: tuple[Any, ...], index: Any) -> tuple[Any, ...]:
        """Return the rows ``index`` of each of ``tensors``."""


class Cache:
    """Keys and values of one batch at a time. ``forward`` replaces the network's."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.end()

    def begin(self, num_rows: int) -> None:
        """Clear the cache for a new batch of ``num_rows`` rows."""
        self._keep = np.arange(num_rows)
        self._prompt: Ints | None = None
        # A column that nobody looks at: MindSpore has no tensor without elements.
        empty = np.zeros((num_rows, self._steps.heads, 1, self._steps.head_size), np.float32)
        self._keys = self._values = tuple(self._steps.tensor(empty) for _ in range(self._steps.layers))
        self._columns = np.zeros((num_rows, 1), bool)

    def end(self) -> None:
        """Free the memory."""
        self._keys = self._values = ()
        self._columns = np.zeros((0, 0), bool)
        self._prompt = None
        self._keep = np.arange(0)

    def forward(self, *, input_ids: Any, valid_length_each_example: Any, **_: Any) -> tuple[Any, None]:
        """Return logits (rows, vocab) float32 after each row of ``input_ids``; those of ended rows are meaningless."""
        lengths = np.asarray(valid_length_each_example, dtype=np.int32)
        if self._prompt is None:
            self._prompt = lengths
            return self._prefill(np.asarray(input_ids)[:, : lengths.max()], lengths), None
        return self._next(np.asarray(input_ids), lengths), None

    def all_logits(self, tokens: Any) -> Any:
        """Return logits (rows, new, vocab) float32 after each of ``tokens`` (rows, new), which begin their rows."""
        self.begin(len(tokens))
        logits = self._whole_pass(tokens, 0)
        self.end()
        return logits

    def passes(self, tokens: Any) -> Iterator[Any]:
        """Yield logits (new, vocab) float32 after each of ``tokens`` (1, new), in order, in parts of bounded memory."""
        self.begin(1)
        start, width = 0, 1
        while start < tokens.shape[1]:
            logits = self._whole_pass(tokens[:, start : start + width], start)[0]
            yield logits
            start += width
            # The size of the vocabulary is known after the first token.
            width = min(_PASS_TOKENS, max(1, _PASS_LOGITS // logits.shape[-1]))
        self.end()

    def _whole_pass(self, tokens: Any, start: int) -> Any:
        rows, new = tokens.shape
        places = np.tile(np.arange(start, start + new), (rows, 1))
        logits = self._run(tokens, places, np.ones_like(places, dtype=bool), np.arange(rows * new))
        return logits.reshape(rows, new, -1)

    def _prefill(self, tokens: Any, lengths: Ints) -> Any:
        """Run the prompts in groups of columns, which bounds the memory; return the logits after each prompt."""
        width = max(1, _PASS_TOKENS // len(tokens))
        found = None
        for start in range(0, tokens.shape[1], width):
            part = tokens[:, start : start + width]
            places = np.tile(np.arange(start, start + part.shape[1]), (len(part), 1))
            # A prompt's last token lies in one group of columns; the logits of other groups are discarded.
            here = (lengths - 1 >= start) & (lengths - 1 < start + part.shape[1])
            last = np.arange(len(part)) * part.shape[1] + np.where(here, lengths - 1 - start, 0)
            logits = self._run(part, places, places < lengths[:, None], last)
            found = logits if found is None else np.where(here[:, None], logits, found)
        return found

    def _next(self, input_ids: Any, lengths: Ints) -> Any:
        rows = self._keep
        # ``generate`` passes whole rows; only the newest token of each is not in the cache yet.
        place = lengths[rows, None] - 1
        tokens = input_ids[rows[:, None], place]
        logits = self._run(tokens, place, np.ones_like(place, dtype=bool), np.arange(len(rows)))
        # ``generate`` expects logits for every row, dropped ones included.
        found = np.zeros((len(input_ids), logits.shape[-1]), np.float32)
        found[rows] = logits
        return found

    def shrink(self, active: Any) -> None:
        """Drop ended rows when they are at least half of those left. ``active``: whether each row goes on."""
        kept = np.asarray(active, dtype=bool)[self._keep]
        # Not for each ended row: copying the cache costs more than computing a few idle rows.
        if not kept.any() or 2 * kept.sum() > len(kept):
            return
        index = np.flatnonzero(kept).astype(np.int32)
        self._keys, self._values = (self._steps.rows(tensors, index) for tensors in (self._keys, self._values))
        self._columns, self._keep = self._columns[kept], self._keep[kept]

    def _run(self, tokens: Any, places: Any, real: Any, wanted: Any) -> Any:
        """Run one pass and return its logits. tokens, places, real (rows, new): ids, positions, False for padding;
        wanted: flat indexes of the rows * new tokens to return logits for."""
        new = tokens.shape[1]
        before = self._columns.shape[1]
        self._columns = np.concatenate([self._columns, real], axis=1)
        # Causal among the new columns; columns that are padding for a row stay hidden from it.
        earlier = np.arange(before + new)[None, :] <= before + np.arange(new)[:, None]
        seen = self._columns[:, None, :] & earlier[None]
        logits, self._keys, self._values = self._steps.run(
            np.ascontiguousarray(tokens, np.int32),
            # By position, not by column: shorter prompts are padded, so the two differ from row to row.
            self._steps.cos[places][:, None],
            self._steps.sin[places][:, None],
            np.where(seen, np.float32(0), _MASKED)[:, None],
            wanted.astype(np.int32),
            self._keys,
            self._values,
        )
        return logits


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

    def rows(self, tensors: tuple[Any, ...], index: Any) -> tuple[Any, ...]:
        return tuple(self._step.gather(tensor, _tensor(index), 0) for tensor in tensors)


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
