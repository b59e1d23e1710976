"""Hosts that fail twice, and the spare ones that take their places: who is to blame, and who can stand in."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.common.ranges import spans
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.events import Restart
from launcher.jobs.verdict import EN, ZH, Verdict
from launcher.plan.launch import Launch, NodePlace
from launcher.schedulers import registry
from launcher.supervise.known_errors import KNOWN_ERRORS
from launcher.supervise.restarts import Decision, decide

# Reported by ranks that wait for another one, whose host is not to blame.
_VICTIMS = frozenset(known.name for known in KNOWN_ERRORS if known.elsewhere)


@dataclass(frozen=True, kw_only=True)
class Next:
    """The decision on another attempt, and the spare host that takes the place of the one that is left out."""

    decision: Decision
    spare: NodePlace | None = None

    def of(self, launch: Launch) -> Launch:
        """Return ``launch`` with the hosts of that attempt."""
        left_out = self.decision.leave_out
        return launch.with_spare(self.spare, left_out) if self.spare and left_out else launch

    @property
    def event(self) -> Restart:
        return Restart(
            again=self.decision.again,
            why=self.decision.why[EN],
            left_out=self.decision.leave_out,
            spare=self.spare.name if self.spare else None,
        )


def suspect_of(verdict: Verdict, planned: Launch, found: Launch) -> str | None:
    """Return the name in ``planned`` of the host that ``verdict`` speaks against; None where it is none.

    ``found``: the same hosts under the names that they gave themselves.
    """
    if verdict.host is None or verdict.known in _VICTIMS:
        return None
    names = [place.name for place in planned.nodes]
    # Agents name themselves as planned until the leader has told them what all hosts are called.
    own = [place.name for place in found.nodes]
    return next((names[own_names.index(verdict.host)] for own_names in (own, names) if verdict.host in own_names), None)


def decide_next(paths: JobPaths, launch: Launch, record: JobRecord, verdict: Verdict) -> Next:
    """Return the decision after ``verdict``, the reason with what becomes of a host that failed twice.

    A spare host is looked at before it is taken. If none can be used, the policy is that without spares.
    """
    limits = launch.limits

    def decided(spares: int) -> Decision:
        return decide(verdict, record.earlier, limits.max_restarts, budget_s=limits.restart_budget_s, spares=spares)

    decision = decided(len(launch.spares))
    if decision.leave_out is None:
        had_spares = bool(launch.left_out) and not launch.spares
        return Next(decision=_none_spare(decision, verdict) if had_spares and decision.failed_in else decision)
    faults = []
    for spare in launch.spares:
        fault = registry.get(launch.scheduler).unusable(launch, paths, spare)
        if not fault:
            return Next(decision=_taken(decision, spare), spare=spare)
        faults.append(f"{spare.name}: {fault}")
    return Next(decision=_none_spare(decided(0), verdict, "; ".join(faults)))


def _taken(decision: Decision, spare: NodePlace) -> Decision:
    host, before = decision.leave_out, spans(decision.failed_in)
    return decision.saying({
        EN: f"; {host} failed in attempt {before} too and is left out, {spare.name} takes its place",
        ZH: f"；{host} 在第 {before} 次运行中也失败过，不再使用，由 {spare.name} 代替",
    })  # fmt: skip


def _none_spare(decision: Decision, verdict: Verdict, faults: str = "") -> Decision:
    host, before = verdict.suspect, spans(decision.failed_in)
    none_en, none_zh = ("can be used", "备用主机均不可用") if faults else ("is left", "已没有备用主机")
    why_en, why_zh = (f" ({faults})", f"（{faults}）") if faults else ("", "")
    return decision.saying({
        EN: f"; {host} failed in attempt {before} too, and no spare host {none_en}{why_en}",
        ZH: f"；{host} 在第 {before} 次运行中也失败过，{none_zh}{why_zh}",
    })  # fmt: skip
