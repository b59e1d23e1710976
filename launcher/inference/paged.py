"""Decoding on Ascend by MindFormers' network with its paged attention: one batch after another, or one that rows join.

``generate`` decodes a batch from beginning to end. It asks the network for logits (``forward``) and for the next tokens
(``postprocess``); the second call is answered here, row by row, with the rows that have ended. A batch that rows join
calls ``forward`` itself. mindformers 1.9.0, generation/text_generator.py. Not yet run on Ascend.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from launcher.errors import LauncherError
from launcher.inference.batching import Batch
from launcher.inference.decoding import Row


class PagedMemory:
    """The blocks of paged attention, divided into slots of whole contexts; ``batching.Memory`` documents its parts.

    Every step has one token in each slot, also in those that are free, so that its shape is always the same. Prompts
    are read one by one at their own length, as by ``generate``, whose graph is compiled for all (``is_dynamic``).
    """

    def __init__(self, network: Any, *, slots: int, pad_id: int) -> None:
        """``network`` must be built with blocks for so many contexts."""
        self._network, self._pad_id = network, pad_id
        self._block = network.config.block_size
        blocks = network.config.num_blocks // slots
        self._tables = np.arange(slots * blocks, dtype=np.int32).reshape(slots, blocks)
        # How many tokens each slot has; a free one has one, which nobody looks at.
        self._lengths = np.ones(slots, np.int32)
        self._taken: list[int] = []
        network.set_dynamic_inputs()

    def join(self, prompts: Sequence[Sequence[int]]) -> Any:
        before, found = list(self._taken), []
        try:
            for prompt in prompts:
                found.append(self._read(prompt))
        except Exception:
            self._taken = before
            raise
        return np.concatenate(found)

    def _read(self, prompt: Sequence[int]) -> Any:
        slot = next(number for number in range(len(self._tables)) if number not in self._taken)
        places = np.arange(len(prompt))
        logits = self._forward(
            np.asarray([prompt], np.int32), np.array([len(prompt)], np.int32), self._tables[slot : slot + 1],
            self._tables[slot, places // self._block] * self._block + places % self._block, prefill=True,
        )  # fmt: skip
        self._taken.append(slot)
        self._lengths[slot] = len(prompt)
        return logits

    def step(self, tokens: Sequence[int]) -> Any:
        ids = np.full((len(self._tables), 1), self._pad_id, np.int32)
        ids[self._taken, 0] = tokens
        self._lengths[self._taken] += 1
        slots, last = np.arange(len(self._tables)), self._lengths - 1
        places = self._tables[slots, last // self._block] * self._block + last % self._block
        return self._forward(ids, self._lengths, self._tables, places, prefill=False)[self._taken]

    def _forward(self, ids: Any, lengths: Any, tables: Any, places: Any, *, prefill: bool) -> Any:
        """Return logits (rows, vocab) float32 after each row."""
        found, _ = self._network.forward(
            input_ids=ids, valid_length_each_example=lengths.copy(), block_tables=tables.copy(),
            slot_mapping=places.astype(np.int32), prefill=prefill, use_past=True,
        )  # fmt: skip
        return rows_of_logits(found)

    def keep(self, rows: Sequence[int]) -> None:
        self._taken = [self._taken[number] for number in rows]
        free = [number for number in range(len(self._tables)) if number not in self._taken]
        self._lengths[free] = 1

    def clear(self) -> None:
        self.keep([])


class PagedDecoder:
    """A network on Ascend that generates answers with its own paged cache; not thread-safe."""

    def __init__(self, network: Any, *, pad_id: int) -> None:
        """Install ``postprocess`` in ``network``."""
        self.network = network
        self._pad_id = pad_id
        self._rows: list[Row] = []
        network.postprocess = self._postprocess

    def batch(self, slots: int) -> Batch:
        return Batch(PagedMemory(self.network, slots=slots, pad_id=self._pad_id), slots)

    def run(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        pad = self._padding()
        width = max(len(row.prompt) for row in rows)
        batch = [[*row.prompt, *[pad] * (width - len(row.prompt))] for row in rows]
        try:
            self.network.generate(
                batch,
                # The highest limit; rows with a lower one end in _postprocess.
                max_new_tokens=max(row.limit for row in rows),
                do_sample=False,
                eos_token_id=[-1],  # rows end in _postprocess
                pad_token_id=pad,
            )
        finally:
            # An exception leaves the blocks of the paged cache allocated.
            if self.network.block_mgr:
                self.network.block_mgr.clear_cache()

    def all_logits(self, tokens: Any) -> Any:
        from mindspore import Tensor

        return self.network(Tensor(tokens)).asnumpy().reshape(*tokens.shape, -1)

    def prompt_logits(self, ids: Sequence[int]) -> Iterator[Any]:
        raise LauncherError("decoding on Ascend has the logits of a prompt's last token only", hint="ask it on CPU")

    def _padding(self) -> int:
        """Return a padding id that no prompt ends with: ``generate`` finds the end of a row by it."""
        last = {row.prompt[-1] for row in self._rows}
        return next(token for token in itertools.chain([self._pad_id], itertools.count()) if token not in last)

    def _postprocess(
        self, input_ids: Any, is_finished: list[bool], res: Any, current_index: Any = None, **_: Any
    ) -> tuple[list[int], None, None, list[bool]]:
        """Return the next token of each row; ended rows get the padding."""
        logits = rows_of_logits(res)
        # The last position of each row where the network gave all positions.
        logits = logits[np.asarray(current_index)] if len(logits) > len(self._rows) else logits
        targets = [self._pad_id] * len(self._rows)
        for number, row in enumerate(self._rows):
            if is_finished[number]:
                continue
            if not row.stop_if_cancelled():
                targets[number] = row.advance(logits[number])
            is_finished[number] = row.finish is not None
        return targets, None, None, is_finished


def rows_of_logits(found: Any) -> Any:
    """Return what the network gave as logits (rows, vocab) float32."""
    logits = found[0] if isinstance(found, tuple) else found
    if hasattr(logits, "asnumpy"):
        logits = logits.asnumpy()
    return np.asarray(logits, dtype=np.float32).reshape(-1, logits.shape[-1])
