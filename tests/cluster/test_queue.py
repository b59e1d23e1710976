"""The queue for cards: order, stale tickets, and the block of cards that fewest want."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.supervised import wait_until

from launcher.cluster.locks import hold
from launcher.cluster.queue import is_free, least_wanted, queued, tickets, wait_and_hold


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


class Waiting:
    """A job in the queue, in a thread; ``served`` gets its name when it has its cards, held until ``leave``."""

    def __init__(self, name: str, *cards: str, served: list[str], priority: int = 0) -> None:
        self.told: list[str] = []
        self.leave, self.give_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(name, cards, served, priority))
        before = len(list(tickets()))
        self._thread.start()
        wait_until(lambda: len(list(tickets())) > before or name in served, f"{name} to queue")

    def _run(self, name: str, cards: tuple[str, ...], served: list[str], priority: int) -> None:
        with wait_and_hold(
            cards, holder=f"job {name}", tell=self.told.append, give_up=self.give_up.is_set, priority=priority
        ) as held:
            served.append(name if held else f"not {name}")
            self.leave.wait(60 if held else 0)

    def end(self) -> None:
        self.leave.set()
        self.give_up.set()
        self._thread.join(60)


def test_priority_comes_first_and_then_arrival() -> None:
    served: list[str] = []
    with hold(["card_0"], holder="job x"):
        jobs = [
            Waiting("one", "card_0", served=served),
            Waiting("two", "card_0", served=served),
            Waiting("urgent", "card_0", served=served, priority=5),
        ]
        wait_until(lambda: all(job.told for job in jobs), "what each waits for")
    assert jobs[0].told[0] == "waiting: card 0 is taken by job x (pid " + f"{os.getpid()})"
    assert jobs[1].told[0] == "waiting: 1 before it in the queue, job one the last of them"
    for place in (2, 0, 1):
        wait_until(lambda: len(served) > (2, 0, 1).index(place), "the next one")  # noqa: B023
        jobs[place].end()
    assert served == ["urgent", "one", "two"]


def test_who_wants_other_cards_waits_for_nobody() -> None:
    served: list[str] = []
    with hold(["card_0"], holder="job x"):
        first = Waiting("first", "card_0", "card_1", served=served)
        other = Waiting("other", "card_2", served=served)
        wait_until(lambda: served == ["other"], "the other")
        behind = Waiting("behind", "card_1", served=served)
        wait_until(lambda: behind.told, "its turn")
        assert behind.told == ["waiting: 1 before it in the queue, job first the last of them"]
        other.end()
        first.give_up.set()
        wait_until(lambda: "behind" in served, "the one behind")
    for job in (first, behind):
        job.end()
    assert served == ["other", "not first", "behind"]
    assert list(tickets()) == []


HOLDS = """
import sys, time
from launcher.cluster.queue import queued
with queued(["card_0"], holder="job gone"):
    print("queued", flush=True)
    time.sleep(600)
"""


def test_one_that_was_killed_keeps_nobody_waiting(locks: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with contextlib.closing(holder.stdout):
        holder.stdout.readline()
        with queued(["card_0"], holder="job next") as ticket:
            assert ticket.before() == ["job gone"]
            holder.kill()
            holder.wait()
            assert ticket.before() == []
            assert [found.holder for found in tickets()] == ["job next"]
    assert [path.name for path in (locks / "queue").iterdir()] == []


def test_files_that_are_no_tickets_are_passed_over(locks: Path) -> None:
    with queued(["card_0"], holder="job one", priority=3) as ticket:
        (locks / "queue" / "README").write_text("?")
        (locks / "queue" / "00-1.json").write_text("{}")  # nobody holds it
        assert ticket.file.name.startswith("96-")
        assert json.loads(ticket.file.read_text()) == {"holder": "job one", "names": ["card_0"]}
        assert [found.holder for found in tickets()] == ["job one"]
    assert stat.S_IMODE((locks / "queue").stat().st_mode) == 0o1777


def test_the_block_that_fewest_want_is_chosen() -> None:
    blocks = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert least_wanted(blocks) == [0, 1, 2, 3]
    with hold(["card_2"], holder="job x"):
        assert not is_free("card_2")
        assert least_wanted(blocks) == [4, 5, 6, 7]
        with hold(["card_4"], holder="job y"):
            assert least_wanted(blocks) == [0, 1, 2, 3]
            with queued(["card_0", "card_1"], holder="job z"):
                assert least_wanted(blocks) == [4, 5, 6, 7]
