"""How many threads share a product of numpy: all cores', or one where that was faster of late.

OpenBLAS's threads give the core away while they wait for each other (sched_yield). On a host that is busy with
something else, as training, that takes milliseconds a product: a token of a 135M model took ten times as long.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

# Below this hidden size, sharing a product among threads takes longer than the product.
_SHARED_HIDDEN = 512
# How often the slower way is tried again, in passes.
_TRY_EVERY = 64
_ALL, _ONE = None, 1


class Threads:
    """Chooses for one network, by what passes of as many tokens took."""

    def __init__(self, hidden_size: int) -> None:
        self._blas = ThreadpoolController().select(user_api="blas")
        self._is_small = hidden_size < _SHARED_HIDDEN
        self._took: dict[tuple[int, int | None], float] = {}
        self._passes = 0

    @contextmanager
    def chosen(self, num_tokens: int) -> Iterator[None]:
        """Context for a pass of so many tokens."""
        if self._is_small:
            with self._blas.limit(limits=_ONE):
                yield
            return
        size = num_tokens.bit_length()
        limit = self._choose(size)
        began = time.perf_counter()
        with self._blas.limit(limits=limit):
            yield
        took = time.perf_counter() - began
        self._took[size, limit] = (self._took.get((size, limit), took) + took) / 2

    def _choose(self, size: int) -> int | None:
        self._passes += 1
        best, other = sorted((_ALL, _ONE), key=lambda limit: self._took.get((size, limit), 0.0))
        if self._passes % _TRY_EVERY == 0:
            self._took.pop((size, other), None)
            return other
        return best
