"""The rank that holds the others up, with the evidence; or why none is named.

Step times cannot name it: collectives make every rank wait for the slowest one, so all read the same. What can be
told apart is when a rank enters a step (who comes last, how often, by how much), and what it waited for before: its
rows, a free core, its own save. Times of entering are compared by the wall clocks of hosts; the clock of each host is
set by the ends of steps first, which the last all-reduce of a step makes about the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from launcher.common.clock import seconds_text
from launcher.common.ranges import spans
from launcher.observe.columns import Floats, RankEvents
from launcher.observe.host_signs import Sign
from launcher.observe.words import Say, words


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What it takes to be named. A wrong name costs an hour of looking at a healthy host, so each errs to silence."""

    # The newest steps are judged: what was slow an hour ago and is not any more needs nobody.
    window: int = 100
    # In fewer steps one rank of four is last in most of them by chance.
    least_steps: int = 10
    # Less than this share of the time is not worth a restart.
    lost_share: float = 0.10
    # Below this, the time slices of the operating system (some ms each) make one rank later than another.
    late_s: float = 0.01
    # Where ranks wait for cores, as more ranks than cores do, delays of up to so many times this wait are chance,
    of_core_wait: float = 1.0
    # unless it is one rank that comes last in this share of the steps.
    always: float = 0.8
    # Of the time that ranks wait for a late one, this share is one rank's; chance gives each 1 / ranks. Of two ranks
    # one is always last.
    of_lost: float = 0.5
    # As many steps with the longest delays count as no longer than the next: one pause, one slow read, is no habit.
    outliers: int = 2
    # A rank waits for a core this many times as long as the others do, in most parts of the window. Ranks that share
    # too few cores differ by 1.15 by chance, measured with four on two cores.
    core_ratio: float = 1.3
    parts: int = 10
    least_parts: int = 4
    of_parts: float = 0.7
    # A save is slow when it takes twice as long as the others' and at least this much longer, in most of the newest.
    saves: int = 10
    least_saves: int = 3
    save_ratio: float = 2.0
    save_s: float = 0.1
    of_saves: float = 0.7
    save_share: float = 0.02
    # A cause explains a delay when the wait for it makes up this share of the delay.
    explains: float = 0.5


THRESHOLDS = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Mean seconds that a rank waited for something, a step or a save, and the median of the others."""

    own_s: float
    others_s: float

    @property
    def excess_s(self) -> float:
        return max(0.0, self.own_s - self.others_s)


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """How late a rank enters steps: in which share of steps it is last, by how much then, and what this costs all.

    ``together``: others are as late, so that the share is that of steps in which it is late.
    """

    last_share: float
    late_s: float
    lost_share: float
    together: bool = False


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A rank, or all ranks of a host, for which the others wait. ``lost_share``: of the time of all, about."""

    rank_ids: tuple[int, ...]
    host: str = ""
    device: str = ""
    cause: str
    lost_share: float
    arrivals: Arrivals | None = None
    waits: Mapping[str, Wait] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the suspect for JSON."""
        arrivals = self.arrivals
        return {
            "ranks": list(self.rank_ids), "host": self.host, "device": self.device, "cause": self.cause,
            "lost_share": round(self.lost_share, 4),
            "last_share": None if arrivals is None else round(arrivals.last_share, 4),
            "late_s": None if arrivals is None else round(arrivals.late_s, 4),
            "waits": {name: {"own_s": round(wait.own_s, 4), "others_s": round(wait.others_s, 4)}
                      for name, wait in self.waits.items()},
            "evidence": evidence(self, words("en")),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RankFigures:
    """Means of a rank over the judged steps: seconds after the median of the ranks, waits a step, and a save."""

    rank_id: int
    late_s: float | None = None
    input_s: float | None = None
    core_wait_s: float | None = None
    save_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {"late_s": self.late_s, "input_s": self.input_s, "core_wait_s": self.core_wait_s, "save_s": self.save_s}


ALONE = "One rank waits for nobody."
APART = "Each stage of the pipeline has one rank, so none has an equal to be compared with."
UNTOLD = "Its ranks do not tell when they enter a step (an earlier version of launcher)."
EARLY = "Too early to tell who is slow: {steps} of {least} steps are done."
NOBODY = "No rank stands out in the newest {steps} steps."


@dataclass(frozen=True, kw_only=True)
class Stragglers:
    """Those that hold the others up, the worst first. ``none``: why nobody is named, "" when one is.

    ``steps``: how many were judged. ``ranks``: the figures of each. ``signs``: what stands out on the hosts.
    """

    suspects: tuple[Suspect, ...] = ()
    none: str = ""
    steps: int = 0
    ranks: tuple[RankFigures, ...] = ()
    signs: tuple[Sign, ...] = ()

    @property
    def named(self) -> frozenset[int]:
        """Return all ranks that are named."""
        return frozenset(rank_id for suspect in self.suspects for rank_id in suspect.rank_ids)

    @property
    def is_judged(self) -> bool:
        """Return True if there was enough to tell."""
        return bool(self.suspects or self.signs) or self.none == NOBODY

    def sentences(self, say: Say) -> list[str]:
        """Return the evidence on each suspect with what to look at, or why there is none; then signs on hosts."""
        none = [] if self.suspects else [say(self.none, steps=self.steps, least=THRESHOLDS.least_steps)]
        named = [f"{evidence(suspect, say)}. {say(ADVICE[suspect.cause])}" for suspect in self.suspects]
        return [*none, *named, *(sign.said(say) for sign in self.signs)]

    def figures_of(self, rank_id: int) -> RankFigures:
        """Return the figures of a rank; unknown ones for a rank that was not judged."""
        return next((rank for rank in self.ranks if rank.rank_id == rank_id), RankFigures(rank_id=rank_id))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON, in English; the figures of ranks stand with the ranks."""
        say = words("en")
        return {
            "steps": self.steps,
            "suspects": [suspect.to_dict() for suspect in self.suspects],
            "signs": [sign.said(say) for sign in self.signs],
            "said": " ".join(self.sentences(say)),
        }


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank runs. ``stage``: of the pipeline; ranks of different stages do different work."""

    host: str = ""
    device: str = ""
    stage: int = 0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Steps that all ranks have done: (ranks, steps). NaN: not reported. ``saves``: (ranks, saves), seconds."""

    rank_ids: tuple[int, ...]
    places: tuple[Place, ...]
    steps: Floats
    begun: Floats
    ended: Floats
    input_s: Floats
    core_wait_s: Floats
    saved: Floats
    saves: Floats

    @property
    def elapsed_s(self) -> float:
        """Return the time of the judged steps; the last one is taken to be as long as the others."""
        entered = np.median(self.begun, axis=0)
        return float(entered[-1] - entered[0]) * len(entered) / max(1, len(entered) - 1)


def timeline(ranks: Sequence[RankEvents], places: Mapping[int, Place], wanted: Thresholds = THRESHOLDS) -> Timeline:
    """Return the newest steps of ``ranks`` that all have done. The first of an attempt, which compiles, is left out."""
    own = [rank.steps["step"][1:][-2 * wanted.window :] for rank in ranks]
    common = own[0] if own else np.empty(0)
    for steps in own[1:]:
        common = np.intersect1d(common, steps)
    common = np.unique(common)[-wanted.window :]
    columns = {name: _columns(ranks, name, common) for name in ("begun", "time", "input_s", "core_wait_s")}
    saved, saves = _saves(ranks, wanted.saves)
    return Timeline(
        rank_ids=tuple(rank.rank_id for rank in ranks),
        places=tuple(places.get(rank.rank_id, Place()) for rank in ranks),
        steps=common, begun=columns["begun"], ended=columns["time"], input_s=columns["input_s"],
        core_wait_s=columns["core_wait_s"], saved=saved, saves=saves,
    )  # fmt: skip


def _columns(ranks: Sequence[RankEvents], name: str, steps: Floats) -> Floats:
    if not len(steps):
        return np.empty((len(ranks), 0))
    return np.stack([rank.steps[name][np.searchsorted(rank.steps["step"][:-1], steps)] for rank in ranks])


def _saves(ranks: Sequence[RankEvents], most: int) -> tuple[Floats, Floats]:
    """Return the newest saved steps with the seconds of each rank; NaN where a rank did not save."""
    found: dict[float, dict[int, float]] = {}
    for row, rank in enumerate(ranks):
        for event in rank.of_kind("save"):
            step, seconds = event.get("step"), event.get("seconds")
            if isinstance(step, int | float) and isinstance(seconds, int | float):
                of_step = found.setdefault(float(step), {})
                # MindFormers saves in two parts, weights and all.
                of_step[row] = of_step.get(row, 0.0) + float(seconds)
    steps = sorted(found)[-most:]
    table = [[found[step].get(row, np.nan) for step in steps] for row in range(len(ranks))]
    return np.array(steps, float), np.array(table, float).reshape(len(ranks), len(steps))


# --------------------------------------------------------------------------------------------------------- judging


def find_stragglers(told: Timeline, wanted: Thresholds = THRESHOLDS) -> Stragglers:
    """Return who holds the others up in ``told``, or why nobody is named."""
    steps = len(told.steps)
    if len(told.rank_ids) < 2:
        return Stragglers(none=ALONE, steps=steps)
    if not any(True for _ in _alike(told)):
        return Stragglers(none=APART, steps=steps)
    if not np.isfinite(told.begun).all() and steps:
        return Stragglers(none=UNTOLD, steps=steps)
    if steps < wanted.least_steps:
        return Stragglers(none=EARLY, steps=steps)
    if told.elapsed_s <= 0:  # a clock was set back meanwhile
        return Stragglers(none=UNTOLD, steps=steps)
    told = _one_clock(told)
    suspects = sorted(_suspects(told, wanted), key=lambda suspect: -suspect.lost_share)
    none = "" if suspects else NOBODY
    return Stragglers(suspects=tuple(suspects), none=none, steps=steps, ranks=tuple(_figures(told)))


def _one_clock(told: Timeline) -> Timeline:
    """Return ``told`` with the clocks of its hosts set by the ends of steps, which come at about the same time."""
    hosts = [place.host for place in told.places]
    names = sorted(set(hosts))
    if len(names) < 2:
        return told
    rows = {name: np.array([host == name for host in hosts]) for name in names}
    everywhere = np.median(told.ended, axis=0)
    begun = told.begun.copy()
    for mine in rows.values():
        begun[mine] -= float(np.median(np.median(told.ended[mine], axis=0) - everywhere))
    return replace(told, begun=begun)


def _suspects(told: Timeline, wanted: Thresholds) -> Iterator[Suspect]:
    for rows in _alike(told):
        late = _late(told, rows, wanted)
        signs = {"core": _waits_for_a_core(told, rows, wanted), "save": _saves_slowly(told, rows, wanted)}
        lost = {row: arrivals.lost_share for row, arrivals in late.items()}
        for row, share in filter(None, signs.values()):
            lost[row] = max(lost.get(row, 0.0), share)
        of_host = _late_host(told, rows, late)
        if of_host:
            yield of_host
        for row, share in lost.items():
            if of_host is None or told.rank_ids[rows[row]] not in of_host.rank_ids:
                named = {name for name, sign in signs.items() if sign and sign[0] == row}
                yield _suspect(told, rows, row, share, late.get(row), named)


def _alike(told: Timeline) -> Iterator[Any]:
    """Yield the rows of ranks that do the same work: those of a stage of the pipeline. One alone cannot be compared."""
    stages = np.array([place.stage for place in told.places])
    for stage in sorted(set(stages.tolist())):
        rows = np.flatnonzero(stages == stage)
        if len(rows) > 1:
            yield rows


def _chance_s(told: Timeline, rows: Any, wanted: Thresholds) -> float:
    """Return the delay up to which a rank may be last by chance."""
    waited = _means(_spread(told.core_wait_s[rows]))
    known = waited[np.isfinite(waited)]
    return max(wanted.late_s, wanted.of_core_wait * float(np.median(known)) if len(known) else 0.0)


def _late(told: Timeline, rows: Any, wanted: Thresholds) -> dict[int, Arrivals]:
    """Return the rows that others wait for at the begin of steps: all that are late as a rule, or the one that is
    late often enough to cost most of what is lost so."""
    begun, chance_s = told.begun[rows], _chance_s(told, rows, wanted)
    delays = _delays(begun)
    period_s = told.elapsed_s / len(told.steps)
    usual = np.median(delays, axis=1)
    found = {row: Arrivals(last_share=float((delays[row] >= chance_s).mean()), late_s=float(usual[row]), together=True,
                           lost_share=float(usual[row]) / period_s)
             for row in np.flatnonzero(usual >= max(chance_s, wanted.lost_share * period_s)).tolist()}  # fmt: skip
    return found if len(found) > 1 else _latest(delays, told.elapsed_s, chance_s, wanted)


def _delays(begun: Floats) -> Floats:
    """Return the seconds after the median; of two in the middle the first, as half of the ranks may be late."""
    return np.asarray(begun - np.sort(begun, axis=0)[(len(begun) - 1) // 2])


def _latest(delays: Floats, elapsed_s: float, chance_s: float, wanted: Thresholds) -> dict[int, Arrivals]:
    last, late, ranks = delays.argmax(axis=0), delays.max(axis=0), len(delays)
    lost = np.array([_without_outliers(np.where(last == row, late, 0.0), wanted.outliers) for row in range(ranks)])
    row = int(lost.argmax())
    often = int((last == row).sum())
    found = Arrivals(
        last_share=often / len(last),
        late_s=float(np.median(late[last == row])) if often else 0.0,
        lost_share=float(lost[row]) / elapsed_s if elapsed_s > 0 else 0.0,
    )
    mean_s = float(lost[row]) / max(1, often)
    no_chance = mean_s >= chance_s or (found.last_share >= wanted.always and mean_s >= wanted.late_s)
    of_lost = wanted.of_lost + (1 - wanted.of_lost) / ranks
    named = found.lost_share >= wanted.lost_share and no_chance and lost[row] >= of_lost * lost.sum()
    return {row: found} if named else {}


def _without_outliers(delays: Floats, outliers: int) -> float:
    ordered = np.sort(delays)
    return float(np.minimum(ordered, ordered[-1 - min(outliers, len(ordered) - 1)]).sum())


def _waits_for_a_core(told: Timeline, rows: Any, wanted: Thresholds) -> tuple[int, float] | None:
    """Return the row whose threads wait for a core far longer than the others', in most parts of the window."""
    waited, elapsed_s = told.core_wait_s[rows], told.elapsed_s
    if elapsed_s <= 0:
        return None
    # A part without a reading of each rank would compare nothing.
    count = min(wanted.parts, int(np.isfinite(waited).sum(axis=1).min()))
    if count < wanted.least_parts:
        return None
    parts = np.array_split(np.nan_to_num(waited), count, axis=1)
    sums = np.stack([part.sum(axis=1) for part in parts], axis=1)
    means = sums.sum(axis=1) / elapsed_s
    row = int(means.argmax())
    others = float(np.median(np.delete(means, row)))
    often = float((sums.argmax(axis=0) == row).mean())
    excess = float(means[row]) - others
    named = excess >= wanted.lost_share and means[row] >= wanted.core_ratio * others and often >= wanted.of_parts
    return (row, min(1.0, excess)) if named else None


def _saves_slowly(told: Timeline, rows: Any, wanted: Thresholds) -> tuple[int, float] | None:
    """Return the row whose saves take far longer than the others', in most of the newest saves."""
    saves = told.saves[rows][:, np.isfinite(told.saves[rows]).all(axis=0)]
    if saves.shape[1] < wanted.least_saves:
        return None
    slowest = saves.argmax(axis=0)
    row = int(np.bincount(slowest, minlength=len(rows)).argmax())
    others = np.median(np.delete(saves, row, axis=0), axis=0)
    slow = (saves[row] >= wanted.save_ratio * others) & (saves[row] - others >= wanted.save_s)
    between = told.elapsed_s / len(told.steps) * (told.saved[-1] - told.saved[0]) / (len(told.saved) - 1)
    excess = float(np.median(saves[row] - others))
    share = excess / (between + excess) if between > 0 else 0.0
    return (row, share) if slow.mean() >= wanted.of_saves and share >= wanted.save_share else None


def _suspect(told: Timeline, rows: Any, row: int, share: float, arrivals: Arrivals | None, signs: Set[str]) -> Suspect:
    place, waits = told.places[rows[row]], _waits(told, rows, [row])
    return Suspect(
        rank_ids=(told.rank_ids[rows[row]],), host=place.host, device=place.device, lost_share=share,
        arrivals=arrivals, waits=waits, cause=_cause(told, waits, arrivals, signs),
    )  # fmt: skip


def _waits(told: Timeline, rows: Any, mine: Sequence[int]) -> dict[str, Wait]:
    """Return what these rows waited for, against the others, as far as it is known."""
    tables = {"input": told.input_s[rows], "core": _spread(told.core_wait_s[rows]), "save": told.saves[rows]}
    means = {name: _means(table) for name, table in tables.items()}
    return {
        name: Wait(own_s=float(np.median(values[list(mine)])), others_s=float(np.median(np.delete(values, mine))))
        for name, values in means.items()
        if np.isfinite(values).all()
    }


def _spread(waited: Floats) -> Floats:
    """Return waits for a core with zeros in steps without a reading: the next one has theirs."""
    known = np.isfinite(waited).any(axis=1, keepdims=True)
    return np.where(known, np.nan_to_num(waited), np.nan)


def _means(table: Floats) -> Floats:
    known = np.isfinite(table)
    counts = known.sum(axis=1)
    sums = np.where(known, table, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _cause(told: Timeline, waits: Mapping[str, Wait], arrivals: Arrivals | None, signs: Set[str]) -> str:
    """Return what explains most of the delay of a step. ``signs``: what is much longer than the others'."""
    saves = int(((told.saved >= told.steps[0]) & (told.saved <= told.steps[-1])).sum())
    excess = {name: wait.excess_s for name, wait in waits.items()}
    if "save" in excess:
        excess["save"] *= saves / len(told.steps)
    if arrivals is None:
        return max(sorted(signs), key=lambda name: excess.get(name, 0.0))
    delay_s = arrivals.lost_share * told.elapsed_s / len(told.steps)
    known = {name: seconds for name, seconds in excess.items() if seconds >= THRESHOLDS.explains * delay_s}
    return max(sorted(known), key=lambda name: known[name]) if known else "unexplained"


def _late_host(told: Timeline, rows: Any, late: Mapping[int, Arrivals]) -> Suspect | None:
    """Return the host whose ranks are all late, where it has several and there are others."""
    hosts = [told.places[row].host for row in rows]
    names = {hosts[row] for row in late}
    mine = [row for row, host in enumerate(hosts) if host in names]
    if len(names) != 1 or not 1 < len(mine) < len(hosts) or set(mine) != set(late):
        return None
    arrivals = max(late.values(), key=lambda one: one.lost_share)
    ids = tuple(told.rank_ids[rows[row]] for row in mine)
    waits = {name: wait for name, wait in _waits(told, rows, mine).items() if name != "save"}
    return Suspect(rank_ids=ids, host=names.pop(), cause=_cause(told, waits, arrivals, set()),
                   lost_share=arrivals.lost_share, arrivals=arrivals, waits=waits)  # fmt: skip


def _figures(told: Timeline) -> Iterator[RankFigures]:
    late: dict[int, float] = {}
    for rows in _alike(told):
        means = _delays(told.begun[rows]).mean(axis=1)
        late |= {int(row): float(seconds) for row, seconds in zip(rows, means, strict=True)}
    tables = (told.input_s, _spread(told.core_wait_s), told.saves)
    columns = [_means(table) for table in tables]
    for row, rank_id in enumerate(told.rank_ids):
        input_s, core_wait_s, save_s = (round(float(c[row]), 4) if np.isfinite(c[row]) else None for c in columns)
        yield RankFigures(rank_id=rank_id, late_s=round(late[row], 4) if row in late else None, input_s=input_s,
                          core_wait_s=core_wait_s, save_s=save_s)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- words


_LAST = "comes last in {share} % of steps, {late} after the median"
_TOGETHER = "is late in {share} % of steps, {late} after the median"
_SELDOM = "comes last in {share} % of steps only, but by {late}, which costs {lost} % of the time"
_OFTEN = 0.5
_WAITS = {
    "input": "it waits {own} a step for input, the others {others}",
    "core": "its threads wait {own} a step for a core, the others' {others}",
    "save": "it takes {own} to save, the others {others}",
}


def evidence(suspect: Suspect, say: Say) -> str:
    """Return in a sentence who it is and by what it is known."""
    found, parts = suspect.arrivals, []
    if found is not None:
        values = {"share": f"{100 * found.last_share:.0f}", "late": short_text(found.late_s),
                  "lost": f"{100 * found.lost_share:.0f}"}  # fmt: skip
        parts.append(say(_TOGETHER if found.together else _LAST if found.last_share >= _OFTEN else _SELDOM, **values))
    parts += [say(_WAITS[name], own=short_text(wait.own_s), others=short_text(wait.others_s))
              for name, wait in suspect.waits.items() if name == suspect.cause]  # fmt: skip
    if suspect.cause == "unexplained" and suspect.waits:
        parts.append(say("neither input, nor saving, nor the wait for a core explains it"))
    who = _who(suspect, say)
    return f"{who} {'; '.join(parts)}" if found else f"{who}: {'; '.join(parts)}"


ADVICE = {
    "input": "Look at what reads its rows: the disk or mount of the data on that host, and its data workers.",
    "core": "Look at what else runs on that host: top; ps -eLo psr,pcpu,pid,args --sort=-pcpu | head",
    "save": "Look at the disk or mount to which that host saves: iostat -x 1; df",
    "unexplained": "Look at that host and card: launcher doctor; clocks, temperature and load.",
}


def _who(suspect: Suspect, say: Say) -> str:
    if len(suspect.rank_ids) > 1:
        return say("host {host} (ranks {ranks})", host=suspect.host, ranks=spans(suspect.rank_ids))
    place = f" ({suspect.host})" if suspect.host else ""
    return say("rank {rank}", rank=suspect.rank_ids[0]) + place


def short_text(seconds: float) -> str:
    """Return a short time in milliseconds, one of seconds as elsewhere."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else seconds_text(seconds)
