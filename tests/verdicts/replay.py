"""Tells a case's facts to the production judge, and asks it, and the production verdict, what they make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corpus import Case
from support.histories import EPOCH, History

from launcher.jobs import JobPaths
from launcher.jobs.events import from_json
from launcher.jobs.verdict import EN, Verdict
from launcher.plan.launch import Limits, RankPlace
from launcher.supervise.judge import TICK_S, Action
from launcher.supervise.rank_states import Failure
from launcher.supervise.verdict import Findings, find_verdict, lost_verdict

# Facts are over long before; a judge that has decided nothing by then never will.
PATIENCE_S = 60.0

# The engine's output is read when a failure is found: what it names then belongs to it.
NAMED_WITHIN_S = 1.0

_WITHOUT_FAILURE = {Action.FINISH: "succeeded", Action.STOP: "cancelled", Action.GO_ON: "undecided"}
_KINDS = {
    "exception": "exception", "no_progress": "no progress", "no_start": "never started", "stopped": "suspended",
    "lost": "supervisor ended", "foreign": "folder gone",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The answer to a case: its class, and the verdict where there is one."""

    label: str
    verdict: Verdict | None = None

    @property
    def rank(self) -> int | None:
        return self.verdict.rank_id if self.verdict else None

    @property
    def known(self) -> str | None:
        return self.verdict.known if self.verdict else None


def ask(case: Case, folder: Path) -> Found:
    """Return what is made of ``case``; its logs are written to ``folder``."""
    killed = next((fact["how"] for fact in case.facts if fact["what"] == "supervisor_ended"), None)
    if killed:
        return _named(lost_verdict(killed, []))
    paths = JobPaths(root=folder)
    for name, text in case.logs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    history = Recorded(ranks=case.ranks, engine=case.engine, limits=replace(Limits(), **case.limits))
    action, failure = history.follow(case.facts)
    if failure is None:
        return Found(_WITHOUT_FAILURE[action])
    places = [RankPlace(rank_id=n, local_rank=n, host="node0", device_id=n) for n in range(case.ranks)]
    findings = Findings(disk_full=case.disk_full)
    return _named(find_verdict(paths, places, history.states, failure, findings))


class Recorded(History):
    """A history whose facts were written down when they happened."""

    def follow(self, facts: tuple[Mapping[str, Any], ...]) -> tuple[Action, Failure | None]:
        """Return the judge's decision, and the failure if it is one."""
        for fact in facts:
            self.clock.at(fact["at"], lambda fact=fact: self._learn(fact))  # type: ignore[misc]
        until = 100.0 + max(float(fact["at"]) for fact in facts) + PATIENCE_S
        wait_s = TICK_S
        while self.clock.now < until:
            self.clock.sleep(wait_s)
            decision = self.judge.decide(self.states, self.stop_level, self.look)
            wait_s = decision.wait_s
            if decision.action is Action.HANG:
                return decision.action, self.judge.no_progress(_entered(facts), decision.idle_s)
            if decision.action is Action.FAIL:
                self._hear_engine(facts)
                if failure := decision.failure or self.states.first_failure():
                    return decision.action, failure
            elif decision.action is not Action.GO_ON:
                return decision.action, None
        return Action.GO_ON, None

    def _learn(self, fact: Mapping[str, Any]) -> None:
        what, value = fact["what"], fact.get("value")
        if what == "begin":
            self.judge.begin()
        elif what == "event":
            event = from_json({**fact["event"], "time": EPOCH + 100.0 + fact["event"]["time"]})
            assert event, fact
            self.states.note(event)
        elif what == "gone":
            gone = self.states.rank_gone if isinstance(fact["who"], int) else self.states.program_gone
            gone(fact["who"], EPOCH + 100.0 + fact["when"], fact["code"])
        elif what == "stop":
            self.stop_level = int(value or 0)
        elif what == "suspended":
            self.suspended = frozenset(value or ())
        elif what == "folder_gone":
            self.folder_gone = str(value or "")
        elif what == "named":
            self.states.rank_named(fact["who"], self.clock.time(), fact["code"])

    def _hear_engine(self, facts: tuple[Mapping[str, Any], ...]) -> None:
        for fact in facts:
            if fact["what"] == "named" and 0.0 <= 100.0 + fact["at"] - self.clock.now < NAMED_WITHIN_S:
                self._learn(fact)


def _entered(facts: tuple[Mapping[str, Any], ...]) -> dict[int, int]:
    """Return the steps that the ranks had entered when the supervisor looked."""
    steps: Mapping[str, int] = next((fact["steps"] for fact in facts if fact["what"] == "entered"), {})
    return {int(rank): step for rank, step in steps.items()}


def _named(verdict: Verdict) -> Found:
    """Return the class of a verdict: the known error, or how it ended."""
    return Found(verdict.known or _how(verdict), verdict)


def _how(verdict: Verdict) -> str:
    if verdict.kind in _KINDS:
        return _KINDS[verdict.kind]
    if verdict.rank_id is None:
        is_scheduler = str(verdict.text[EN]).startswith("MindSpore's scheduler")
        return "scheduler ended" if is_scheduler else "engine ended"
    if "out-of-memory killer" in verdict.reason:
        return "out of memory on the host"
    return next((how for how in ("killed", "crashed") if verdict.reason.startswith(how)), "exit")
