"""Batched decoding through MindFormers' ``generate``: its loop, padding and paged attention, our choice of tokens.

``generate`` asks the network for logits (``forward``) and for the next tokens (``postprocess``); the second call is
answered here, row by row, with the rows that have ended. mindformers 1.9.0, generation/text_generator.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launcher.inference.logprobs import TokenScore, scores_of
from launcher.inference.sampling import GenerationSpec, Sampler
from launcher.inference.transcript import Transcript

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"

OnText = Callable[[str], None]


@dataclass(kw_only=True)
class Row:
    """One prompt and its growing answer.

    prompt: token ids. limit: new tokens at most, within the context. ends: ids that end an answer. cancelled: called
    before each token; True ends the row. on_text: called with each piece of text that will not change, and with the
    rest, even if there is none, when the row has ended. top: how many alternatives ``scores`` have; None: no scores.
    scores: of the new tokens and of the end token.
    """

    prompt: Sequence[int]
    spec: GenerationSpec
    limit: int
    ends: frozenset[int]
    transcript: Transcript
    on_text: OnText | None = None
    cancelled: Callable[[], bool] | None = None
    finish: str | None = None
    top: int | None = None
    scores: list[TokenScore] = field(default_factory=list)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.spec)

    @property
    def new_tokens(self) -> list[int]:
        return self.transcript.tokens

    def advance(self, logits: Any) -> int:
        """Choose the next token and add it to the answer. ``logits`` (vocab,) float32."""
        token = self.sampler.pick(logits, [*self.prompt, *self.new_tokens])
        if self.top is not None:
            self.scores += scores_of(logits[None], [token], self.top)
        # An end token is not part of the text, but ``generate`` expects a token for the row.
        if token in self.ends:
            self.end(STOP)
            return token
        self.transcript.add(token)
        if self.transcript.stopped:
            self.end(STOP)
        elif len(self.new_tokens) >= self.limit:
            self.end(LENGTH)
        elif self.on_text and (news := self.transcript.news()):
            self.on_text(news)
        return token

    def end(self, reason: str) -> None:
        """End the row with ``reason`` and pass on the rest of its text."""
        self.finish = reason
        if self.on_text:
            self.on_text(self.transcript.news(final=True))


class Decoder:
    """A network that generates answers; not thread-safe."""

    def __init__(self, network: Any, *, pad_id: int, cache: Any = None) -> None:
        """Install ``postprocess`` in ``network``. ``cache``: replaces its ``forward`` on CPU; None on Ascend."""
        self.network = network
        self._pad_id = pad_id
        self._cache = cache
        self._rows: list[Row] = []
        network.postprocess = self._postprocess
        if cache is not None:
            network.forward = cache.forward

    def run(self, rows: Sequence[Row]) -> None:
        """Answer all ``rows`` as one batch; each ends with its ``finish`` set."""
        self._rows = list(rows)
        pad = self._padding()
        width = max(len(row.prompt) for row in rows)
        batch = [[*row.prompt, *[pad] * (width - len(row.prompt))] for row in rows]
        if self._cache is not None:
            self._cache.begin(len(rows))
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
            if self._cache is not None:
                self._cache.end()
            # An exception leaves the blocks of the paged cache allocated.
            if self.network.block_mgr:
                self.network.block_mgr.clear_cache()

    def all_logits(self, tokens: Any) -> Any:
        """Return logits (rows, new, vocab) float32 after each of ``tokens`` (rows, new) int32.

        On Ascend the network must be built without its own cache, and rows must be as long as its context.
        """
        if self._cache is not None:
            return self._cache.all_logits(tokens)
        from mindspore import Tensor

        return self.network(Tensor(tokens)).asnumpy().reshape(*tokens.shape, -1)

    def prompt_logits(self, ids: Sequence[int]) -> Iterator[Any]:
        """Yield logits (some, vocab) float32 after the tokens of one row, a few tokens at a time. On CPU only."""
        yield from self._cache.passes(np.asarray([ids], np.int32))

    def _padding(self) -> int:
        """Return a padding id that no prompt ends with: ``generate`` finds the end of a row by it."""
        last = {row.prompt[-1] for row in self._rows}
        return next(token for token in itertools.chain([self._pad_id], itertools.count()) if token not in last)

    def _postprocess(
        self, input_ids: Any, is_finished: list[bool], res: Any, current_index: Any = None, **_: Any
    ) -> tuple[list[int], None, None, list[bool]]:
        """Return the next token of each row; ended rows get the padding."""
        logits = self._rows_of_logits(res, current_index)
        targets = [self._pad_id] * len(self._rows)
        for number, row in enumerate(self._rows):
            if is_finished[number]:
                continue
            if row.cancelled and row.cancelled():
                row.end(CANCELLED)
            else:
                targets[number] = row.advance(logits[number])
            is_finished[number] = row.finish is not None
        if self._cache is not None:
            self._cache.shrink([not finished for finished in is_finished])
        return targets, None, None, is_finished

    def _rows_of_logits(self, res: Any, current_index: Any) -> Any:
        """Return logits (rows, vocab) float32: the last position of each row where the network gave all positions."""
        logits = res[0] if isinstance(res, tuple) else res
        if hasattr(logits, "asnumpy"):
            logits = logits.asnumpy()
        logits = np.asarray(logits, dtype=np.float32).reshape(-1, logits.shape[-1])
        if len(logits) > len(self._rows):
            logits = logits[np.asarray(current_index)]
        return logits
