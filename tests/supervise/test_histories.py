"""What the judge says of histories: what happened when, by a clock that the test turns. No process, no waiting."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from support.histories import EPOCH, FakeClock, History, ready, steps

from launcher.jobs.events import Step
from launcher.plan.launch import HANG_FACTOR, MIN_HANG_TIMEOUT_S, Launch, Limits, NodePlace, RankPlace
from launcher.supervise.judge import (
    BUSY_FACTOR,
    Action,
    Judge,
    LifeSigns,
    Look,
    Loss,
    Phase,
    Scope,
    StopSequence,
    judge_host,
)
from launcher.supervise.multinode.host_states import HostStates
from launcher.supervise.multinode.host_verdicts import host_verdict, span
from launcher.supervise.rank_states import RankStates
from launcher.supervise.stop_signals import StopSignals

KILL, TERM = -signal.SIGKILL, -signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Case:
    """``says``: (action, kind, rank, program) of the end, None for none in ``seconds``. ``at``: when, at the latest."""

    happens: list[tuple[Any, ...]]
    says: tuple[Any, ...] | None
    at: float = 1e9
    ranks: int = 2
    engine: str | None = None
    limits: Limits = field(default_factory=Limits)
    seconds: float = 100.0


def fails(kind: str, rank: int | None = None, program: str | None = None) -> tuple[Any, ...]:
    return (Action.FAIL, kind, rank, program)


BOTH = ready((0, 1))

FIRST_FAILURES = {
    "the earlier of two errors, though it is heard of in the same look": Case(
        happens=[*BOTH, (5.01, 1, "error", "the cause"), (5.03, 0, "error", "a victim")],
        says=fails("exception", 1), at=5.5,
    ),
    "a death that is noticed after what follows from it": Case(
        happens=[*BOTH, (5.0, 1, "gone", KILL), (5.1, 0, "error", "connection reset")], says=fails("exit", 1), at=5.5
    ),
    "one rank of a thousand": Case(
        happens=[*ready(range(1000)), (5.0, 777, "error", "no luck")], says=fails("exception", 777), ranks=1000, at=5.5
    ),
    "a death before anything was reported": Case(happens=[(0.2, 1, "gone", 1)], says=fails("exit", 1), at=0.6),
    "an end without a word, with code 0": Case(happens=[*BOTH, (3.0, 0, "gone", 0)], says=fails("exit", 0)),
    "a crash after all is saved is no failure": Case(
        happens=[*BOTH, (9.0, 0, "done"), (9.0, 1, "done"), (9.05, 1, "gone", -signal.SIGSEGV)],
        says=(Action.FINISH, None, None, None),
    ),
    "rank 1 is done, rank 0 fails": Case(
        happens=[*BOTH, (9.0, 1, "done"), (9.1, 1, "gone", 0), (9.2, 0, "error", "disk full")],
        says=fails("exception", 0),
    ),
}  # fmt: skip

ENGINES = {
    "msrun kills the others after a death: it spares its scheduler": Case(
        engine="msrun", says=fails("exit", 1),
        happens=[*BOTH, (1.0, None, "begin"), (5.0, 1, "gone", KILL), (5.1, 0, "gone", KILL),
                 (35.0, "msrun", "gone", 1)],
    ),
    "msrun is told to stop: ranks at once, then its scheduler, then itself": Case(
        engine="msrun", says=fails("exit", None, "msrun"),
        happens=[*BOTH, (1.0, None, "begin"), (5.0, 0, "gone", KILL), (5.05, 1, "gone", KILL),
                 (5.3, "scheduler", "gone", KILL), (6.5, "msrun", "gone", 0)],
    ),
    "mpirun is told to stop: TERM to one rank after the other": Case(
        engine="mpirun", says=fails("exit", None, "mpirun"),
        happens=[*BOTH, (5.0, 0, "gone", TERM), (5.7, 1, "gone", TERM), (6.2, "mpirun", "gone", 1)],
    ),
    "mpirun is told to stop, and the other rank ends of the loss": Case(
        engine="mpirun", says=fails("exit", None, "mpirun"),
        happens=[*BOTH, (5.0, 0, "gone", TERM), (5.4, 1, "gone", 1), (6.2, "mpirun", "gone", 1)],
    ),
    "the engine is killed and takes its ranks along": Case(
        engine="msrun", says=fails("exit", None, "msrun"),
        happens=[*BOTH, (5.0, "msrun", "gone", KILL), (5.05, 0, "gone", KILL), (5.06, 1, "gone", KILL)],
    ),
    "MindSpore's scheduler is killed first": Case(
        says=fails("exit", None, "scheduler"),
        happens=[*BOTH, (5.0, "scheduler", "gone", KILL), (5.15, 1, "error", "the scheduler is gone")],
    ),
    "MindSpore's scheduler raises": Case(
        says=fails("exception", None, "scheduler"), happens=[(1.0, None, "begin"), (2.0, None, "error", "bind")]
    ),
    "a scheduler that ends with 0 has done its work": Case(
        says=(Action.FINISH, None, None, None),
        happens=[*BOTH, (8.0, "scheduler", "gone", 0), (9.0, 0, "done"), (9.0, 1, "done")],
    ),
    "how a rank ended comes a second after its end": Case(
        engine="mpirun", says=fails("exit", 1),
        happens=[*BOTH, (5.0, 1, "gone"), (6.0, 1, "gone", 3), (6.1, "mpirun", "gone", 3)], at=7.5,
    ),
}  # fmt: skip

HANG = Limits(hang_timeout_s=10.0)

PROGRESS = {
    "all hang after step 3": Case(
        happens=[*BOTH, *steps((0, 1), 1, 3, 2.0, 1.0)], says=(Action.HANG, None, None, None), at=15.2, limits=HANG
    ),
    "slow but alive": Case(happens=[*BOTH, *steps((0, 1), 1, 10, 2.0, 9.0)], says=None, limits=HANG, seconds=85.0),
    "one rank goes on alone: that is progress": Case(
        happens=[*BOTH, *steps((0,), 1, 40, 2.0, 2.0)], says=None, limits=HANG, seconds=80.0
    ),
    "the first step compiles for an hour": Case(happens=[*BOTH], says=None, limits=HANG, seconds=3600.0),
    "an evaluation takes nine times as long": Case(
        happens=[*BOTH, *steps((0, 1), 1, 1, 2.0, 1.0), (3.0, 0, "eval")], says=None, limits=HANG, seconds=92.0
    ),
    "an evaluation that never ends": Case(
        happens=[*BOTH, *steps((0, 1), 1, 1, 2.0, 1.0), (3.0, 0, "eval")],
        says=(Action.HANG, None, None, None), limits=HANG, at=3.0 + 10.0 * BUSY_FACTOR + 1.3, seconds=200.0,
    ),
    "a checkpoint that is written ends the patience": Case(
        happens=[*BOTH, *steps((0, 1), 1, 1, 2.0, 1.0), (3.0, 0, "save"), (4.0, 0, "done_saving")],
        says=(Action.HANG, None, None, None), limits=HANG, at=15.3,
    ),
    "without a limit it follows from the step time, and is ten minutes at the least": Case(
        happens=[*BOTH, *steps((0, 1), 1, 3, 2.0, 1.0)], says=(Action.HANG, None, None, None),
        at=4.0 + MIN_HANG_TIMEOUT_S + 1.3, seconds=900.0,
    ),
    "steps of a minute may stand still for twenty": Case(
        happens=[*BOTH, *steps((0, 1), 1, 3, 60.0, 60.0)], says=None, seconds=180.0 + HANG_FACTOR * 60.0 - 1.0
    ),
    "a rank that has begun and is not ready": Case(
        happens=[(1.0, 0, "begin"), (1.0, 1, "begin"), (2.0, 0, "ready")], says=fails("no_start", 1),
        limits=Limits(start_timeout_s=30.0), at=31.3,
    ),
    "of two that are late, the one that has not begun": Case(
        happens=[(1.0, 0, "begin")], says=fails("no_start", 1), limits=Limits(start_timeout_s=30.0), at=31.3
    ),
    "a rank is suspended while another runs": Case(
        happens=[*BOTH, (5.0, None, "suspended", frozenset({1}))], says=fails("stopped", 1), at=17.3
    ),
    "all are suspended: on purpose": Case(
        happens=[*BOTH, (5.0, None, "suspended", frozenset({0, 1}))], says=None, seconds=60.0
    ),
    "a rank is suspended for a moment only": Case(
        happens=[*BOTH, (5.0, None, "suspended", frozenset({1})), (13.0, None, "suspended", frozenset())], says=None
    ),
    "the job's folder is removed": Case(
        happens=[*BOTH, (5.0, None, "folder_gone", "removed")], says=fails("foreign"), at=7.3
    ),
    "the job's folder is away for one look": Case(
        happens=[*BOTH, (5.0, None, "folder_gone", "removed"), (5.95, None, "folder_gone", "")], says=None
    ),
}  # fmt: skip

STOPS = {
    "a stop": Case(happens=[*BOTH, (5.0, None, "stop")], says=(Action.STOP, None, None, None), at=5.2),
    "a stop before anything has begun": Case(happens=[(0.5, None, "stop")], says=(Action.STOP, None, None, None)),
    "a failure that was noticed before the stop stays one": Case(
        happens=[*BOTH, (5.0, 1, "error", "no luck"), (5.15, None, "stop")], says=fails("exception", 1)
    ),
    "TERM to the whole group: the ranks' ends follow from the stop": Case(
        happens=[*BOTH, (5.0, None, "stop"), (5.0, 0, "gone", TERM), (5.0, 1, "gone", TERM)],
        says=(Action.STOP, None, None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FIRST_FAILURES, *ENGINES, *PROGRESS, *STOPS])
def test_the_judge_says_of_a_history(name: str) -> None:
    case = {**FIRST_FAILURES, **ENGINES, **PROGRESS, **STOPS}[name]
    history = History(ranks=case.ranks, engine=case.engine, limits=case.limits).happen(*case.happens)
    end = history.run(case.seconds)

    if case.says is None or end is None:
        assert (end, case.says) == (None, None)
        return
    failure = end.failure
    said = (end.action, *((failure.kind, failure.rank_id, failure.program) if failure else (None, None, None)))
    assert said == case.says
    assert end.at <= case.at + 1e-6


def test_a_verdict_waits_for_how_a_rank_ended() -> None:
    """Its parent, which the engine started, says it a moment later."""
    events = [*BOTH, (5.0, 1, "gone"), (6.0, 1, "gone", 3)]
    end = History(engine="mpirun").happen(*events).run(60.0)

    assert end is not None
    assert end.failure is not None
    assert (end.failure.rank_id, end.failure.code) == (1, 3)


def test_a_host_of_many_leaves_late_and_hanging_ranks_to_the_leader_and_its_own_failure_outranks_a_stop() -> None:
    scope = {"failure_first": True, "progress": False}
    quiet = History(limits=Limits(start_timeout_s=3.0, hang_timeout_s=3.0), scope=scope)
    quiet.happen(*ready((0,)), (2.0, 0, "step", 1))
    assert quiet.run(60.0) is None

    failing = History(scope=scope).happen(*BOTH, (5.0, 1, "error", "no luck"), (5.0, None, "stop"))
    end = failing.run(60.0)
    assert end is not None
    assert (end.action, end.at < 5.2) == (Action.FAIL, True)


@pytest.mark.parametrize(
    ("entered", "rank_id", "behind"),
    [({0: 4, 1: 3}, 1, (1,)), ({0: 3, 1: 4, 2: 3}, None, (0, 2)), ({0: 3, 1: 3}, None, ()), ({}, None, ())],
)
def test_a_hang_names_the_rank_that_has_not_entered_the_step(
    entered: dict[int, int], rank_id: int | None, behind: tuple[int, ...]
) -> None:
    failure = Judge(Limits(), Scope(), clock=FakeClock()).no_progress(entered, 612.4)

    assert (failure.rank_id, failure.behind, failure.detail) == (rank_id, behind, "612")


def test_a_wall_clock_that_is_set_back_makes_no_hang_and_hides_none() -> None:
    """Ranks report times of the wall clock; progress is measured by ours, which nobody sets."""
    clock = FakeClock()
    states = RankStates(1, None, clock=clock)
    states.note(Step(time=EPOCH - 86_400, rank_id=0, step=1, step_s=1.0))
    judge = Judge(Limits(hang_timeout_s=10.0), Scope(), clock=clock)
    states.ranks[0].ready = True

    assert judge.decide(states, 0, Look).action is Action.GO_ON
    clock.sleep(11.0)
    assert judge.decide(states, 0, Look).action is Action.HANG


# ------------------------------------------------------------------------------------------------ the order of a stop


@dataclass
class Ranks:
    """``Facts`` for the order of a stop."""

    all_done: bool = False
    all_gone: bool = False
    failing: bool = False
    progress_at: float | None = None
    all_ready: bool = True
    busy: bool = False

    def step_time_s(self) -> float | None:
        return None

    def unready(self) -> dict[int, bool]:
        return {}


SAVING = [Phase.LOCATE, Phase.SAVE, Phase.TERMINATE]


@pytest.mark.parametrize(
    ("phases", "happens", "expected"),
    [
        ([Phase.TERMINATE], {2.0: "all_gone"}, [(0, Phase.TERMINATE), (2, Phase.KILL)]),
        ([Phase.TERMINATE], {}, [(0, Phase.TERMINATE), (30, Phase.KILL)]),
        ([Phase.TERMINATE], {1.0: "again"}, [(0, Phase.TERMINATE), (1, Phase.KILL)]),
        (
            SAVING, {1.0: "located", 8.0: "all_done", 9.0: "all_gone"},
            [(0, Phase.LOCATE), (1, Phase.SAVE), (8, Phase.TERMINATE), (9, Phase.KILL)],
        ),
        (SAVING, {0.0: "located", 5.0: "again"}, [(0, Phase.SAVE), (5, Phase.KILL)]),
        (
            SAVING, {0.0: "located", 5.0: "failing", 6.0: "all_gone"},
            [(0, Phase.SAVE), (5, Phase.TERMINATE), (6, Phase.KILL)],
        ),
        (SAVING, {0.0: "located"}, [(0, Phase.SAVE), (30, Phase.TERMINATE), (60, Phase.KILL)]),
    ],
)  # fmt: skip
def test_a_stop_goes_through_its_phases(
    phases: list[Phase], happens: dict[float, str], expected: list[tuple[int, Phase]]
) -> None:
    clock, ranks, said = FakeClock(), Ranks(), {"located": False, "again": False}
    for when, what in happens.items():
        facts = ranks.__dict__ if what in ranks.__dict__ else said
        clock.at(when, lambda facts=facts, what=what: facts.update({what: True}))  # type: ignore[misc]
    sequence = StopSequence(phases, 30.0, clock=clock)
    seen: list[tuple[int, Phase]] = []
    clock.sleep(0.0)
    while not seen or seen[-1][1] is not Phase.KILL:
        phase = sequence.phase(ranks, 1 + said["again"], located=said["located"])
        if not seen or seen[-1][1] is not phase:
            seen.append((round(clock.now - 100.0), phase))
        clock.sleep(0.1)

    assert seen == expected


def test_whoever_asks_twice_wants_no_more_waiting_and_one_request_by_two_ways_is_one() -> None:
    signals = StopSignals(wake_fd=-1)
    assert signals.stop_level() == 0
    signals.direct.append(signal.SIGTERM)
    signals.passed_on.append(signal.SIGTERM)
    assert signals.stop_level() == 1
    signals.passed_on.append(signal.SIGTERM)
    assert signals.stop_level() == 2


# ------------------------------------------------------------------------------------------------ several hosts

LAUNCH = Launch(
    engine="direct", target="CPU", address="", port=0, program="", rank_table="", limits=Limits(lost_s=8.0),
    ranks=tuple(RankPlace(rank_id=n, local_rank=n % 2, host="h", device_id=0, node_rank=n // 2) for n in range(4)),
    nodes=tuple(NodePlace(node_rank=n, name=f"h{n}", address=f"10.0.0.{n}") for n in range(2)),
)  # fmt: skip


def status(
    clock: FakeClock, heartbeat: int, *ranks: tuple[str, int], ahead_s: float = 0.0, **more: Any
) -> dict[str, Any]:
    """What an agent writes, 50 ms before it is read; its clock is ``ahead_s`` ahead."""
    return {
        "heartbeat": heartbeat, "time": clock.time() - 0.05 + ahead_s, "ahead_most_s": ahead_s + 0.05,
        "state": "running", "ranks": {str(rank_id): state for rank_id, state in enumerate(ranks)}, **more,
    }  # fmt: skip


def failed(when: float, reason: str) -> dict[str, Any]:
    verdict = {"rank_id": 0, "reason": reason, "step": 1, "kind": "exception", "text": {"en": reason}, "later_key": 1}
    return {"state": "failed", "verdict": verdict, "warnings": [], "saved_step": None, "failed_at": when}


def test_the_first_failure_of_two_hosts_is_found_though_a_clock_is_a_minute_ahead() -> None:
    clock = FakeClock()
    hosts = HostStates(LAUNCH, clock=clock)
    for host, ahead_s in zip(hosts, (0.0, 60.0), strict=True):
        host.note(status(clock, 1, ("ready", 1), ("ready", 1), ahead_s=ahead_s))
    first, second = hosts
    first.end = failed(clock.time() + 2.0, "a victim")
    second.end = failed(clock.time() + 60.0 + 1.0, "the cause")  # by its own clock it came after the other

    found = hosts.first_failure()
    assert found is not None
    assert (found.host, found.verdict.reason) == (second, "the cause")
    assert found.failed_at == pytest.approx(clock.time() + 1.0)


def test_a_step_counts_as_saved_only_once_all_hosts_have_said_so() -> None:
    clock = FakeClock()
    hosts = HostStates(LAUNCH, clock=clock)
    first, second = hosts
    saved: dict[str, Any] = {"state": "cancelled", "verdict": None, "warnings": [], "saved_step": 5, "failed_at": None}
    first.end = saved
    assert hosts.saved_step() is None
    second.end = saved
    assert hosts.saved_step() == 5
    second.end = {**saved, "saved_step": 6}
    assert hosts.saved_step() is None


def test_ranks_are_named_in_few_words_however_many_they_are() -> None:
    assert [span(ranks) for ranks in ([3], range(8, 16), [0, 4, 8])] == ["rank 3", "ranks 8-15", "ranks 0, 4, 8"]
    assert len(span(range(0, 10_000, 2))) < 80


def test_a_host_that_fell_silent_before_another_failed_is_the_cause() -> None:
    clock = FakeClock()
    hosts = HostStates(LAUNCH, clock=clock)
    first, second = hosts
    place = second.place
    second.lost, second.lost_at = host_verdict(place, LAUNCH.ranks, {"en": "x", "zh": "x"}, kind="host_lost"), 5.0
    first.end = failed(7.0, "connection reset")

    found = hosts.first_failure()
    assert hosts.failing
    assert found is not None
    assert found.host is second


@pytest.mark.parametrize(
    ("heard", "until", "expected"),
    [([1.0, 2.0, 3.0], 10.9, None), ([1.0, 2.0, 3.0], 11.1, Loss.SILENT), ([], 8.1, Loss.SILENT)],
)
def test_a_host_is_lost_when_it_shows_no_sign_of_life(heard: list[float], until: float, expected: Loss | None) -> None:
    clock = FakeClock()
    host = next(iter(HostStates(LAUNCH, clock=clock)))
    host.here = object()  # type: ignore[assignment]
    for number, when in enumerate(heard):
        clock.at(when, partial(host.note, status(clock, number)))
    clock.sleep(until)

    assert judge_host(host.facts(2.0), told_to_run=True) is expected


@pytest.mark.parametrize(
    ("end", "left", "told_to_run", "expected"),
    [
        (None, 0.1, True, None),  # its last report may be on its way
        (None, 3.0, True, Loss.LEFT),
        (None, 3.0, False, Loss.LEFT),
        ({"state": "cancelled"}, 3.0, True, Loss.GAVE_UP),
        ({"state": "cancelled"}, 3.0, False, None),
        ({"state": "succeeded"}, 3.0, True, None),
    ],
)
def test_an_agent_that_has_ended_is_judged_by_its_report(
    end: dict[str, Any] | None, left: float, told_to_run: bool, expected: Loss | None
) -> None:
    clock = FakeClock()
    host = next(iter(HostStates(LAUNCH, clock=clock)))
    host.left_at, host.end = clock.now, end
    clock.sleep(left)

    assert judge_host(host.facts(2.0), told_to_run=told_to_run) is expected


def test_a_leader_is_lost_by_its_silence_and_old_heartbeats_are_no_life() -> None:
    clock = FakeClock()
    signs = LifeSigns(8.0, clock=clock)
    assert signs.note(1)
    for _ in range(90):
        clock.sleep(0.1)
        assert not signs.note(1)
    assert signs.lost
    assert signs.note(2)
    assert not signs.lost


def test_time_in_which_we_stood_still_ourselves_is_nobodys_silence() -> None:
    clock = FakeClock()
    signs = LifeSigns(8.0, clock=clock)
    clock.sleep(60.0)
    signs.excuse()

    assert not signs.lost


def leader_of(clock: FakeClock, **limits: Any) -> tuple[Judge, HostStates]:
    launch = Launch.from_json(LAUNCH.to_json())
    asked = Limits(lost_s=8.0, **limits)
    return Judge(asked, Scope(failure_first=True), clock=clock), HostStates(launch, clock=clock)


def test_over_all_hosts_a_hang_counts_from_the_last_step_that_any_rank_entered() -> None:
    clock = FakeClock()
    judge, hosts = leader_of(clock, hang_timeout_s=10.0)
    numbers = iter(range(1, 10_000))

    def heard(*steps: int) -> None:
        for host, step in zip(hosts, steps, strict=True):
            host.note(status(clock, next(numbers), ("ready", step), ("ready", step)))
        hosts.note_progress()

    for _ in range(600):  # the first step compiles
        clock.sleep(1.0)
        heard(0, 0)
        assert judge.decide(hosts, 0, Look).action is Action.GO_ON
    ends = []
    for second in range(40):
        clock.sleep(1.0)
        heard(min(second, 15) + 1, 1)
        ends.append(judge.decide(hosts, 0, Look))
        if ends[-1].action is not Action.GO_ON:
            break
    assert (ends[-1].action, len(ends)) == (Action.HANG, 26)


def test_a_rank_that_nothing_is_heard_of_is_late_before_one_that_has_begun() -> None:
    clock = FakeClock()
    judge, hosts = leader_of(clock, start_timeout_s=30.0)
    next(iter(hosts)).note(status(clock, 1, ("begun", 0), ("ready", 0)))
    clock.sleep(31.0)
    decision = judge.decide(hosts, 0, Look)

    assert decision.failure is not None
    assert (decision.failure.kind, decision.failure.rank_id, decision.failure.behind) == ("no_start", 2, (0, 3))


@pytest.mark.parametrize(("stop_level", "expected"), [(0, Action.FAIL), (1, Action.FAIL)])
def test_a_failed_host_outranks_the_signals_that_a_scheduler_answers_it_with(stop_level: int, expected: Action) -> None:
    judge, hosts = leader_of(FakeClock())
    next(iter(hosts)).end = failed(5.0, "no luck")

    assert judge.decide(hosts, stop_level, Look).action is expected


def test_all_hosts_done_is_the_end_and_one_is_not() -> None:
    clock = FakeClock()
    judge, hosts = leader_of(clock)
    first, second = hosts
    first.note(status(clock, 1, ("done", 9), state="done"))
    assert judge.decide(hosts, 0, Look).action is Action.GO_ON
    second.note(status(clock, 1, ("done", 9), state="done"))
    assert judge.decide(hosts, 0, Look).action is Action.FINISH
