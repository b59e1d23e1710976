"""How many threads compute a pass. The clock and numpy's threads are not real; what follows from them is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from launcher.inference.threads import Threads


class Host:
    """Where a pass takes ``seconds[limit]``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds: dict[int | None, float] = {None: 1.0, 1: 2.0}
        self.limits: list[int | None] = []

    @contextmanager
    def limit(self, *, limits: int | None) -> Iterator[None]:
        self.limits.append(limits)
        yield
        self.now += self.seconds[limits]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host()
    monkeypatch.setattr("launcher.inference.threads.time.perf_counter", lambda: found.now)
    return found


def passes(chosen: Threads, host: Host, count: int, num_tokens: int = 1) -> list[int | None]:
    chosen._blas = host
    before = len(host.limits)
    for _ in range(count):
        with chosen.chosen(num_tokens):
            pass
    return host.limits[before:]


def test_the_faster_way_is_found_and_the_other_tried_now_and_then(host: Host) -> None:
    chosen = Threads(1024)
    assert passes(chosen, host, 63) == [None, 1, *[None] * 61]
    assert passes(chosen, host, 64) == [1, *[None] * 63]


def test_a_host_that_becomes_busy_and_idle_again_is_noticed(host: Host) -> None:
    chosen = Threads(1024)
    passes(chosen, host, 10)
    host.seconds[None] = 9.0
    found = passes(chosen, host, 10)
    assert found.count(1) >= 9
    host.seconds[None] = 1.0
    assert passes(chosen, host, 128)[-60:].count(None) >= 59


def test_passes_of_other_sizes_are_judged_apart(host: Host) -> None:
    chosen = Threads(1024)
    passes(chosen, host, 10)
    host.seconds = {None: 3.0, 1: 2.0}
    assert passes(chosen, host, 10, num_tokens=100) == [None, *[1] * 9]
    assert passes(chosen, host, 10)[0] is None


def test_small_models_take_one_thread(host: Host) -> None:
    assert passes(Threads(96), host, 5) == [1] * 5


def test_what_numpy_computes_with_is_found() -> None:
    found = Threads(1024)._blas.info()
    assert [one["user_api"] for one in found] == ["blas"]
