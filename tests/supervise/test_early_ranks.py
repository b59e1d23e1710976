"""Ranks that are found below an engine before they report: a stand-in for msrun with children that live or are dead."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.supervised import wait_until

from launcher.common.processes import ProcessId, children
from launcher.engines.base import Told
from launcher.supervise.early_ranks import EarlyRanks
from launcher.supervise.rank_states import SCHEDULER

Found = dict[int | str, ProcessId]

ENGINE = """
import os, subprocess, sys, time
kept = []
for role in sys.argv[1:]:
    environment = {**os.environ, "MS_ROLE": "MS_SCHED" if role[0] == "s" else "MS_WORKER", "RANK_ID": role[1:] or "0"}
    rank = [sys.executable, "-Sc", "import time; time.sleep(%d)" % (role[0] != "d" and 600)]
    kept += [subprocess.Popen(["true"] if role == "helper" else rank, env=environment)]
print(flush=True)
time.sleep(600)
"""


@contextmanager
def engine(mark: str, *roles: str) -> Iterator[ProcessId]:
    """A process whose children are "s" (a scheduler), "r1" (rank 1), "d2" (rank 2, which is dead), and "helper", a
    program of its own that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ENGINE + f"# {mark}", *roles], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    own = ProcessId.of_pid(process.pid)
    try:
        dead = sum(role[0] == "d" or role == "helper" for role in roles)
        wait_until(lambda: sum(not child.is_alive() for child in children(own.pid)) == dead, "children that have ended")
        yield own
    finally:
        for child in children(own.pid):
            child.send(9)
        process.kill()
        process.wait()
        process.stdout.close()


def look_for(early: EarlyRanks, *who: int | str) -> Found:
    """A process has no environment for a moment after it was started."""
    found: Found = {}
    wait_until(lambda: found.update(early.look()) or all(name in found for name in who), f"{who}")
    return found


def test_ranks_are_known_by_their_environment(no_survivors: str) -> None:
    with engine(no_survivors, "s", "r0", "r1") as process:
        early = EarlyRanks("msrun", process, [0, 1, 2], scheduler=True)
        found = look_for(early, SCHEDULER, 0, 1)

        assert [found[who].pid for who in (SCHEDULER, 0, 1)] == [child.pid for child in children(process.pid)]
        assert early.missing == [2]
        assert list(early.look()) == []


@pytest.mark.parametrize(("roles", "expected"), [(("s", "d0", "r1"), {0: 1}), (("d", "d0", "d1"), {0: 1, 1: 2})])
def test_a_dead_process_is_the_rank_that_is_missing(
    no_survivors: str, roles: tuple[str, ...], expected: dict[int, int]
) -> None:
    with engine(no_survivors, *roles) as process:
        born = [child.pid for child in children(process.pid)]
        found = look_for(EarlyRanks("msrun", process, [0, 1], scheduler=True), *expected)

        assert {who: found[who].pid for who in expected} == {who: born[at] for who, at in expected.items()}


def test_programs_that_an_engine_runs_for_itself_are_not_its_dead_ranks(no_survivors: str) -> None:
    """As msrun runs lscpu and ip before it starts a job of one rank and its scheduler."""
    with engine(no_survivors, "helper", "helper") as process:
        early = EarlyRanks("msrun", process, [0], scheduler=True)

        assert list(early.look()) == []
        assert early.missing == [SCHEDULER, 0]


def test_a_process_that_an_engine_names_and_nobody_saw_is_the_missing_rank(no_survivors: str) -> None:
    with engine(no_survivors, "s", "r0") as process:
        early = EarlyRanks("msrun", process, [0, 1], scheduler=True)
        known = look_for(early, 0)[0].pid

        assert early.rank_of(Told(pid=known + 10000, code=1)) == 1
        assert early.rank_of(Told(pid=known, code=1)) is None
        assert early.rank_of(Told(rank_id=0, code=1)) == 0
