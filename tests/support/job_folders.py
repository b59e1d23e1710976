"""Folders of jobs as ranks and supervisor leave them, without any process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.jobs import JobPaths, JobRecord
from launcher.observe.history import History, read_history

# 2026-01-01, when every job made here begins.
BEGAN = 1767225600.0
SPEC: dict[str, Any] = {
    "name": "made",
    "model": {
        "preset": "tiny_cpu", "hidden_size": 96, "num_layers": 3, "num_heads": 4, "intermediate_size": 256,
        "vocab_size": 1024, "seq_length": 96,
    },
    "data": {"train": "train.mindrecord", "batch_size": 16},
    "lora": None,
    "parallel": {"mode": "data", "pipeline_stage": 1},
    "training": {"epochs": 1},
}  # fmt: skip


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(BEGAN + seconds, timezone.utc).isoformat(timespec="milliseconds")


def plain_loss(rank_id: int, step: int) -> float:
    return 8.0 / step + 0.5 * rank_id


@dataclass(frozen=True, kw_only=True)
class Made:
    """An attempt to write. Times in seconds after BEGAN; ``steps`` after ``from_step``, each of a second.

    ``loss``: by rank and step; ``more``: further fields of a step, by rank and step.
    """

    began: float = 0.0
    ended: float | None = None
    from_step: int = 0
    steps: int = 4
    loss: Callable[[int, int], float | None] = plain_loss
    more: Callable[[int, int], dict[str, Any]] = lambda rank_id, step: {}
    held_out: Sequence[int] = ()
    saves: Sequence[int] = ()
    reason: str | None = None
    failed_at: float | None = None
    found_at: float | None = None
    phases: bool = False


def lines(attempt: Made, rank_id: int) -> list[dict[str, Any]]:
    """Return the events of a rank: ready after 10 seconds, the first step after 20, then one a second.

    With ``phases`` it has imported after 6 seconds, joined after 9 and loaded after 14.
    """
    t = BEGAN + attempt.began
    found: list[dict[str, Any]] = [
        {"time": t + 2, "event": "begin", "pid": 1, "started": t},
        {"time": t + 10, "event": "ready", "from_step": attempt.from_step},
    ]
    if attempt.phases:
        names = {"imported": 6, "joined": 9, "loaded": 14}
        found += [{"time": t + at, "event": "phase", "name": name} for name, at in names.items()]
    for number in range(1, attempt.steps + 1):
        step, at = attempt.from_step + number, t + 19 + number
        loss = attempt.loss(rank_id, step)
        found.append({
            "time": at, "event": "step", "step": step, "loss": loss, "lr": 0.001, "overflow": False,
            "grad_norm": None, "step_s": 10.0 if number == 1 else 1.0, "memory_mib": 1000 + rank_id,
            **attempt.more(rank_id, step),
        })  # fmt: skip
        if step in attempt.held_out:
            begun = {"time": at, "event": "eval", "step": step}
            found += [begun, {**begun, "time": at + 0.5, "loss": 9.0 / step, "seconds": 0.5}]
        if step in attempt.saves:
            begun = {"time": at, "event": "save", "step": step}
            found += [begun, {**begun, "time": at + 0.25, "seconds": 0.25}]
    return [{**event, "rank_id": rank_id} for event in found]


def text(events: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def _times(attempt: Made) -> dict[str, float | None]:
    times = {"failed_at": attempt.failed_at, "found_at": attempt.found_at}
    return {name: None if time is None else BEGAN + time for name, time in times.items()}


@dataclass(frozen=True, kw_only=True)
class MadeJob:
    """A job to write below a folder."""

    job_id: str = "bcdfg-made"
    state: str = jobs.SUCCEEDED
    cards: int = 2
    target: str = "CPU"
    kind: str | None = None
    steps: int = 4
    attempts: tuple[Made, ...] = (Made(ended=30.0),)
    spec: dict[str, Any] = field(default_factory=lambda: SPEC)
    plan: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> JobPaths:
        paths = JobPaths(root=root / self.job_id, attempt=len(self.attempts))
        for number, attempt in enumerate(self.attempts, 1):
            own = paths.of_attempt(number)
            own.events.mkdir(parents=True)
            for rank_id in range(self.cards):
                own.rank_events(rank_id).write_text(text(lines(attempt, rank_id)))
        plan = {
            "spec": "made", "kind": self.kind, "steps": self.steps, "global_batch": 32, "dataset": "/gone.mindrecord",
            "rows": 128, "checkpoint": None,
            "ranks": [{"rank_id": rank, "host": f"node{rank}", "device_id": rank} for rank in range(self.cards)],
        }  # fmt: skip
        paths.spec.write_text(json.dumps(self.spec))
        paths.plan.write_text(json.dumps({**plan, **self.plan}))
        jobs.write_record(paths, self.make_record())
        return paths

    def make_record(self) -> JobRecord:
        *before, last = self.attempts
        earlier = tuple(
            {"attempt": number, "started": iso(one.began), "ended": None if one.ended is None else iso(one.ended),
             "reason": one.reason, "restarted": True, **_times(one)}
            for number, one in enumerate(before, 1)
        )  # fmt: skip
        record = JobRecord(
            job_id=self.job_id, name="made", state=self.state, created=iso(0), host="elsewhere", cards=self.cards,
            target=self.target, versions={"mindspore": "2.9.0"}, attempt=len(self.attempts), earlier=earlier,
            started=iso(last.began), ended=None if last.ended is None else iso(last.ended),
        )  # fmt: skip
        return replace(record, **self.record)

    def history(self, root: Path) -> History:
        return read_history(self.write(root), self.make_record())
