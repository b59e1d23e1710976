"""Whether a failed attempt is followed by another, and after what pause: by its cause, and by what failed before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.jobs.verdict import EN, ZH, Verdict

# Seconds before the first restart, the second, and so on; the last for all that follow. Most faults of a machine go
# away with the process; what is still there then takes longer (a driver that resets, a switch that comes back). An
# attempt that got further begins them anew: what was there is gone.
PAUSES_S = (0.0, 2.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# Their cards, ports or links come back by themselves: to meet them again after the same step means nothing.
_COME_BACK = frozenset({"occupied", "EJ0001", "EJ0002", "EI0006", "EI0009", "link error", "device lost"})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """``again``: another attempt, after ``pause_s``. ``why``: in a sentence, by language.

    ``leave_out``: a host that is to have no part in it, because it failed in the attempts ``failed_in`` too; None where
    no host is.
    """

    again: bool
    why: Mapping[str, str]
    pause_s: float = 0.0
    leave_out: str | None = None
    failed_in: tuple[int, ...] = ()

    def saying(self, text: Mapping[str, str]) -> Decision:
        """Return this decision with ``text`` as the end of its sentence."""
        return replace(self, why={lang: f"{why}{text[lang]}" for lang, why in self.why.items()})


def restarts_so_far(earlier: Sequence[Mapping[str, Any]]) -> int:
    """Return the restarts before the attempts ``earlier``; those that a user resumed by hand do not use them up."""
    return sum(1 for entry in earlier if entry.get("restarted"))


@dataclass(frozen=True, kw_only=True)
class _Facts:
    verdict: Verdict
    earlier: Sequence[Mapping[str, Any]]
    max_restarts: int
    budget_s: float | None
    spares: int = 0

    @property
    def failed_in(self) -> tuple[int, ...]:
        """Return the earlier attempts that failed on the same host, which a spare could replace."""
        suspect = self.verdict.suspect
        return tuple(e["attempt"] for e in self.earlier if suspect is not None and e.get("suspect") == suspect)

    @property
    def leaves_out(self) -> bool:
        return bool(self.spares and self.failed_in)

    def is_programs(self) -> bool | None:
        """Return True for a fault that another attempt would meet again; of a failing host, it may be the host's."""
        of_host = self.leaves_out and self.verdict.kind in ("host_lost", "no_start")
        return None if self.verdict.retry or of_host else True

    @property
    def restarts(self) -> int:
        return restarts_so_far(self.earlier)

    @property
    def stuck_s(self) -> float:
        """Return the seconds from the failure that no later attempt has got beyond until this one."""
        furthest, since = -1, 0.0
        for entry in (*self.earlier, {"step": self.verdict.step, "failed_at": self.verdict.failed_at}):
            if (entry.get("step") or 0) > furthest:
                furthest, since = entry.get("step") or 0, entry.get("failed_at") or 0.0
        return (self.verdict.failed_at or since) - since

    @property
    def in_vain(self) -> int:
        """Return the restarts since the failure that no attempt has got beyond; 0 if this attempt got further."""
        furthest, count = -1, 0
        for entry in (*self.earlier, {"step": self.verdict.step}):
            step = entry.get("step") or 0
            count = 0 if step > furthest else count + bool(entry.get("restarted", True))
            furthest = max(furthest, step)
        return count

    def over_budget(self) -> str | None:
        """Return the seconds of a budget that is used up."""
        return None if self.budget_s is None or self.stuck_s < self.budget_s else f"{self.budget_s:g}"

    def same_exception(self) -> int | None:
        """Return the attempt that the same Python exception ended."""
        signature = self.verdict.signature
        return next((e.get("attempt") for e in self.earlier if signature and e.get("signature") == signature), None)

    def same_step(self) -> int | None:
        """Return the attempt that ended for the same cause after the same step; a start may fail twice.

        If all of them failed on one host, and a spare can take its place, the host may be the cause and not the step.
        """
        verdict = self.verdict
        if verdict.step is None or verdict.known in _COME_BACK:
            return None
        cause = verdict.known or verdict.reason
        same = [
            e.get("attempt") for e in self.earlier
            if e.get("step") == verdict.step and (e.get("known") or e.get("reason")) == cause
        ]  # fmt: skip
        return None if self.leaves_out and set(same) <= set(self.failed_in) else next(iter(same), None)


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """A reason to stop. ``holds``: None where it does not, else what fills the sentences."""

    holds: Callable[[_Facts], Any]
    en: str
    zh: str


# In order: the first that holds ends the job.
RULES = (
    _Rule(
        holds=_Facts.is_programs,
        en="not restarted: a fault of the program or its input, which another attempt would meet again",
        zh="不再重启：这是程序或输入本身的问题，重启后仍会出现",
    ),
    _Rule(
        holds=_Facts.same_exception,
        en="not restarted: attempt {0} ended with the same exception",
        zh="不再重启：第 {0} 次运行因同样的异常而结束",
    ),
    _Rule(
        holds=_Facts.same_step,
        en="not restarted: attempt {0} failed in the same way after the same step",
        zh="不再重启：第 {0} 次运行在同一步之后以同样的方式失败",
    ),
    _Rule(
        holds=lambda facts: facts.max_restarts if facts.restarts >= facts.max_restarts else None,
        en="not restarted: all {0} of --max-restarts are used up",
        zh="不再重启：--max-restarts 的 {0} 次已用完",
    ),
    _Rule(
        holds=_Facts.over_budget,
        en="not restarted: no attempt has got further within the {0} s of --restart-budget",
        zh="不再重启：在 --restart-budget 的 {0} 秒内没有任何一次运行取得进展",
    ),
)


def decide(
    verdict: Verdict, earlier: Sequence[Mapping[str, Any]], max_restarts: int, *, budget_s: float | None = None,
    spares: int = 0,
) -> Decision:  # fmt: skip
    """Return whether to go on after ``verdict``; ``earlier``: the attempts before, as in the job's record.

    ``budget_s``: time in which an attempt must get further than the one that failed first; None: no limit. ``spares``:
    number of hosts that can take the place of one that failed twice.
    """
    facts = _Facts(verdict=verdict, earlier=earlier, max_restarts=max_restarts, budget_s=budget_s, spares=spares)
    for rule in RULES:
        found = rule.holds(facts)
        if found is not None:
            why = {EN: rule.en.format(found), ZH: rule.zh.format(found)}
            return Decision(again=False, why=why, failed_in=facts.failed_in)
    pause, number = PAUSES_S[min(facts.in_vain, len(PAUSES_S) - 1)], facts.restarts + 1
    wait = ("", "") if not pause else (f" after {pause:g} s", f"，{pause:g} 秒后")
    left = max(0.0, budget_s - facts.stuck_s) if budget_s else 0.0
    rest = (f"; {left:.0f} s of --restart-budget are left", f"；--restart-budget 还剩 {left:.0f} 秒")
    budget = rest if budget_s else ("", "")
    return Decision(
        again=True,
        why={
            EN: f"restart {number} of {max_restarts}{wait[0]}: a fault of the machine or of communication{budget[0]}",
            ZH: f"第 {number}/{max_restarts} 次重启{wait[1]}：机器或通信故障{budget[1]}",
        },
        pause_s=pause,
        leave_out=verdict.suspect if facts.leaves_out else None,
        failed_in=facts.failed_in,
    )
