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
# After how many passes the slower way is tried again: soon, and later each time that it was still slower.
_FIRST_TRY, _LAST_TRY = 4, 64
_ALL, _ONE = None, 1


class Threads:
    """Chooses for one network, by what passes of as many tokens took."""

    def __init__(self, hidden_size: int) -> None:
        self._blas = ThreadpoolController().select(user_api="blas")
        self._is_small = hidden_size < _SHARED_HIDDEN
        self._sizes: dict[int, _Size] = {}

    @contextmanager
    def chosen(self, num_tokens: int) -> Iterator[None]:
        """Context for a pass of so many tokens."""
        if self._is_small:
            with self._blas.limit(limits=_ONE):
                yield
            return
        # Passes of about as many tokens are alike.
        size = self._sizes.setdefault(num_tokens.bit_length(), _Size())
        limit = size.choose()
        began = time.perf_counter()
        with self._blas.limit(limits=limit):
            yield
        size.took(limit, time.perf_counter() - began)


class _Size:
    """What passes of one size took, lately, and when the slower way is tried again."""

    def __init__(self) -> None:
        self._seconds: dict[int | None, float] = {}
        self._best: int | None = _ALL
        self._wait = self._left = _FIRST_TRY

    def choose(self) -> int | None:
        other = _ONE if self._best is _ALL else _ALL
        if self._best not in self._seconds:
            return self._best
        self._left -= 1
        if other in self._seconds and self._left > 0:
            return self._best
        self._seconds.pop(other, None)
        return other

    def took(self, limit: int | None, seconds: float) -> None:
        was_tried = limit is not self._best
        self._seconds[limit] = (self._seconds.get(limit, seconds) + seconds) / 2
        best = min(self._seconds, key=lambda one: self._seconds[one])
        if best is not self._best:
            self._best, self._wait, self._left = best, _FIRST_TRY, _FIRST_TRY
        elif was_tried:
            self._wait = self._left = min(2 * self._wait, _LAST_TRY)
