"""Writes down the facts that a supervisor is told, with their times, so that its judge can be asked again later."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.jobs.events import Event
from launcher.supervise import attempt
from launcher.supervise.judge import Judge, Look
from launcher.supervise.rank_states import RankStates


class Tape:
    """A file with one fact a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last: dict[str, Any] = {}

    def write(self, what: str, **values: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": time.time(), "what": what, **values}) + "\n")

    def write_change(self, what: str, value: Any) -> None:
        """Write a value when it differs from the last one."""
        if self.last.get(what) != value:
            self.last[what] = value
            self.write(what, value=value)


def _before(owner: Any, name: str, tell: Callable[..., None]) -> None:
    """Have ``owner.name`` tell its arguments before it does its work."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        tell(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, wrapper)


def tap(path: str) -> None:
    """Write all facts of this process's attempt to ``path``."""
    tape = Tape(Path(path))
    _before(RankStates, "note", lambda _, event: tape.write("event", event=_as_json(event)))
    _before(RankStates, "rank_gone", lambda _, rank_id, when, code=None: tape.write("gone", who=rank_id, when=when, code=code))
    _before(RankStates, "program_gone", lambda _, name, when, code=None: tape.write("gone", who=name, when=when, code=code))
    _before(RankStates, "rank_named", lambda _, rank_id, now, code: tape.write("named", who=rank_id, code=code))
    _before(Judge, "begin", lambda _: tape.write("begin"))
    _before(Judge, "no_progress", lambda _, entered, idle_s: tape.write("entered", steps=dict(entered)))
    _before(attempt, "find_verdict", lambda *args: tape.write("verdict", stopped=args[4].stopped, disk_full=args[4].disk_full))
    _tap_decide(tape)


def _as_json(event: Event) -> dict[str, Any]:
    return dict(json.loads(event.to_json()) if isinstance(event.to_json(), str) else event.to_json())


def _tap_decide(tape: Tape) -> None:
    real = Judge.decide

    def decide(self: Judge, facts: Any, stop_level: int, look: Callable[[], Look]) -> Any:
        def told() -> Look:
            seen = look()
            tape.write_change("suspended", sorted(seen.suspended))
            tape.write_change("folder_gone", seen.folder_gone)
            return replace(seen)

        tape.write_change("stop", stop_level)
        return real(self, facts, stop_level, told)

    Judge.decide = decide  # type: ignore[method-assign]
