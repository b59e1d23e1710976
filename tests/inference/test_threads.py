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


def test_the_faster_way_is_found_and_the_other_tried_more_and_more_seldom(host: Host) -> None:
    found = passes(Threads(1024), host, 200)
    assert [number for number, limit in enumerate(found, 1) if limit == 1] == [2, 10, 26, 58, 122, 186]


def test_a_host_that_becomes_busy_and_idle_again_is_noticed(host: Host) -> None:
    chosen = Threads(1024)
    passes(chosen, host, 300)
    host.seconds[None] = 9.0
    assert passes(chosen, host, 10)[2:].count(1) >= 7
    host.seconds[None] = 1.0
    assert passes(chosen, host, 20)[-8:].count(None) >= 7


def test_one_slow_pass_changes_little(host: Host) -> None:
    chosen = Threads(1024)
    passes(chosen, host, 20)
    host.seconds[None] = 9.0
    passes(chosen, host, 1)
    host.seconds[None] = 1.0
    assert passes(chosen, host, 20).count(1) <= 6


def test_passes_of_other_sizes_are_judged_apart(host: Host) -> None:
    chosen = Threads(1024)
    passes(chosen, host, 10)
    host.seconds = {None: 3.0, 1: 2.0}
    assert passes(chosen, host, 10, num_tokens=100).count(1) >= 8
    assert passes(chosen, host, 10)[0] is None


def test_small_models_take_one_thread(host: Host) -> None:
    assert passes(Threads(96), host, 5) == [1] * 5


def test_what_numpy_computes_with_is_found() -> None:
    found = Threads(1024)._blas.info()
    assert {one["user_api"] for one in found} == {"blas"}  # scipy brings another, where something has imported it
