"""The corpus of failures: what each case's ranks said and when, the class and the rank that the verdict must name.

``cases/public``: texts from public threads and documents, put in the mouth of one of four ranks.
``cases/fresh``: the same, collected and labelled after the rules had been written.
``cases/own``: what supervisors learnt when each fault of our own table happened, with each engine (``record.py``).
``cases/controls.yaml``: jobs that succeeded, were stopped, or failed of their user's program, among frightening words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from launcher.jobs import JobPaths

CASES = Path(__file__).resolve().parent / "cases"

OWN, PUBLIC, FRESH, CONTROL = "own", "public", "fresh", "control"

RANKS = 4

# The one in C reads the corpus in a tenth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case. ``facts``: what the supervisor learnt, in order, with seconds since the start of the attempt.

    ``rank``: the rank to be named, None for another cause, or for no failure. ``logs``: by path in the job's folder.
    """

    id: str
    group: str
    expected: str
    rank: int | None
    source: str
    engine: str | None
    ranks: int
    facts: tuple[Mapping[str, Any], ...]
    logs: Mapping[str, str] = field(default_factory=dict)
    disk_full: bool = False
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> bool:
        """Return True for the half of the public cases that was not looked at while rules were written."""
        return self.group == PUBLIC and _hash(self.source) % 2 == 1

    @property
    def half(self) -> str:
        return "held out" if self.held_out else "tuned" if self.group == PUBLIC else self.group


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@cache
def load() -> tuple[Case, ...]:
    """Return all cases."""
    public = [case for path in sorted((CASES / "public").glob("*.yaml")) for case in map(_public, _read(path))]
    own = [_own(json.loads(path.read_text(encoding="utf-8"))) for path in sorted((CASES / "own").glob("*.json"))]
    fresh = [_public(raw, FRESH) for path in sorted((CASES / "fresh").glob("*.yaml")) for raw in _read(path)]
    return (*own, *public, *fresh, *map(_control, _read(CASES / "controls.yaml")))


def _read(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER))  # noqa: S506


# ------------------------------------------------------------------------------------------------ one text, four ranks


def _training(last_at: float) -> Iterator[dict[str, Any]]:
    """Yield ranks that begin, are ready, and make a step a second."""
    for rank in range(RANKS):
        yield _event(1.0 + rank / 100, rank, "begin", pid=1, started=1.0)
        yield _event(4.0 + rank / 100, rank, "ready")
    for step in range(1, int(last_at - 4.5)):
        for rank in range(RANKS):
            yield _event(4.5 + step + rank / 100, rank, "step", step=step, step_s=1.0)


def _event(at: float, rank: int | None, kind: str, **values: Any) -> dict[str, Any]:
    return {"at": at, "what": "event", "event": {"time": at, "rank_id": rank, "event": kind, **values}}


def _failing(raw: Mapping[str, Any], rank: int) -> Iterator[dict[str, Any]]:
    """Yield the failure of ``rank`` after 10 s; the others lose it, say so, and are ended by the engine."""
    said = raw["said"].rstrip("\n")
    if "raised" in raw:
        yield _error(10.0, rank, raw["raised"], said, raw.get("code_line", "train(arguments)"))
        yield {"at": 11.5, "what": "gone", "who": rank, "when": 11.5, "code": 1}
    else:
        yield {"at": 10.0, "what": "gone", "who": rank, "when": 10.0, "code": raw["ended"]}
    others = [other for other in range(RANKS) if other != rank]
    yield _error(10.1, others[0], "RuntimeError", "Connection reset by peer", "loss = network(*inputs)")
    for number, other in enumerate(others):
        yield {"at": 11.6 + number / 100, "what": "gone", "who": other, "when": 11.6 + number / 100, "code": -9}
    yield {"at": 12.0, "what": "gone", "who": "msrun", "when": 12.0, "code": 1}


def _error(at: float, rank: int, kind: str, message: str, code_line: str) -> dict[str, Any]:
    place = 'Traceback (most recent call last):\n  File "train.py", line 7, in <module>'
    trace = f"{place}\n    {code_line}\n{kind}: {message}"
    return _event(at, rank, "error", type=kind, message=message, traceback=trace)


def _public(raw: Mapping[str, Any], group: str = PUBLIC) -> Case:
    rank = _hash(raw["id"]) % RANKS
    # What a rank raises it also prints: its log has it in both cases.
    return Case(
        id=raw["id"], group=group, expected=raw["class"], rank=rank, source=raw["source"], engine="msrun", ranks=RANKS,
        facts=tuple(_ordered(*_training(10.0), *_failing(raw, rank))), logs={_rank_log(rank): raw["said"]},
    )  # fmt: skip


def _control(raw: Mapping[str, Any]) -> Case:
    if "end" not in raw:
        return _public(raw, CONTROL)
    code = raw.get("code", 0)
    stopped = raw["end"] == "stopped"
    ends = [
        {"at": 10.0, "what": "stop", "value": level + 1} if stopped else _event(10.0 + rank / 100, rank, "done")
        for rank in range(RANKS)
        for level in range(raw.get("level", 1) if stopped else 1)
    ]
    gone = [{"at": 10.05, "what": "gone", "who": rank, "when": 10.05, "code": code} for rank in range(RANKS)]
    return Case(
        id=raw["id"], group=CONTROL, expected=raw["class"], rank=None, source=raw["source"], engine="msrun",
        ranks=RANKS, facts=tuple(_ordered(*_training(10.0), *ends, *gone)),
        logs={_rank_log(rank): raw["said"] for rank in range(RANKS)},
    )  # fmt: skip


def _rank_log(rank: int) -> str:
    return str(JobPaths(root=Path()).rank_log(rank))


def _ordered(*facts: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(facts, key=lambda fact: float(fact["at"]))


# ------------------------------------------------------------------------------------------------ recorded faults


def _own(raw: Mapping[str, Any]) -> Case:
    return Case(
        id=f"{raw['fault']}-{raw['engine']}", group=OWN, expected=raw["class"], rank=raw["rank"],
        source=f"tests/integration/faults: {raw['fault']}, {raw['engine']}", engine=raw["engine"], ranks=raw["ranks"],
        facts=tuple(raw["facts"]), logs={name: "\n".join(lines) for name, lines in raw["logs"].items()},
        disk_full=raw["disk_full"], limits=raw["limits"],
    )  # fmt: skip
