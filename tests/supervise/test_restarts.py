"""The decision on another attempt, by cause and repetition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.jobs.verdict import Verdict
from launcher.supervise.restarts import PAUSES_S, decide

KILLED = Verdict(rank_id=1, reason="killed by SIGKILL", step=4, kind="exit", retry=True)


def entry(attempt: int, **values: Any) -> dict[str, Any]:
    return {"attempt": attempt, "reason": "killed by SIGKILL", "step": 2, "restarted": True, **values}


def test_a_fault_of_the_machine_is_restarted_with_growing_pauses() -> None:
    earlier: list[dict[str, Any]] = []
    for number, pause in enumerate((*PAUSES_S, PAUSES_S[-1]), 1):
        found = decide(KILLED, earlier, 20)
        assert (found.again, found.pause_s) == (True, pause)
        assert found.why["en"].startswith(f"restart {number} of 20")
        earlier.append(entry(number, step=100 - number))
    # What got further begins them anew.
    assert decide(replace(KILLED, step=101), earlier, 20).pause_s == 0


@pytest.mark.parametrize(
    ("verdict", "earlier", "why"),
    [
        (replace(KILLED, retry=False), [], "a fault of the program or its input"),
        (KILLED, [entry(1), entry(2)], "all 2 of --max-restarts are used up"),
        (KILLED, [entry(1, step=4)], "attempt 1 failed in the same way after the same step"),
        (replace(KILLED, known="EI0002"), [entry(1, step=4, known="EI0002")], "attempt 1 failed in the same way"),
        (replace(KILLED, signature="ValueError: x"), [entry(1, signature="ValueError: x")], "the same exception"),
    ],
)
def test_what_comes_again_stops(verdict: Verdict, earlier: list[dict[str, Any]], why: str) -> None:
    found = decide(verdict, earlier, 2)
    assert not found.again
    assert why in found.why["en"]
    assert "不再重启" in found.why["zh"]


@pytest.mark.parametrize(
    ("verdict", "earlier"),
    [
        (replace(KILLED, step=None), [entry(1, step=None)]),  # a start that failed twice may succeed
        (replace(KILLED, known="EJ0001"), [entry(1, step=4, known="EJ0001")]),  # its cards come back by themselves
        (KILLED, [entry(1, step=4, reason="no progress")]),  # another cause
        (KILLED, [entry(1, restarted=False), entry(2, restarted=False)]),  # a user went on by hand
    ],
)
def test_what_need_not_come_again_is_restarted(verdict: Verdict, earlier: list[dict[str, Any]]) -> None:
    assert decide(verdict, earlier, 2).again


def test_without_restarts_none_follows() -> None:
    assert not decide(KILLED, [], 0).again


def test_a_budget_ends_restarts_that_get_no_further() -> None:
    """Attempt 1 failed after step 9 at 100 s; none since then has finished more steps."""
    earlier = [entry(1, step=9, failed_at=100.0), entry(2, step=8, failed_at=130.0)]
    verdict = replace(KILLED, step=7, failed_at=160.0)
    kept = decide(verdict, earlier, 9, budget_s=61.0)
    assert kept.again
    assert kept.why["en"].endswith("; 1 s of --restart-budget are left")
    assert decide(verdict, earlier, 9, budget_s=60.0).why["en"] == (
        "not restarted: no attempt has got further within the 60 s of --restart-budget"
    )
    assert decide(replace(verdict, step=10), earlier, 9, budget_s=60.0).again
    assert decide(verdict, earlier, 9).again


def test_a_budget_counts_attempts_that_never_began_a_step() -> None:
    earlier = [entry(1, step=None, failed_at=100.0)]
    assert not decide(replace(KILLED, step=None, failed_at=101.0), earlier, 9, budget_s=1.0).again
