"""Writes down the facts that a supervisor is told, with their times, so that its judge can be asked again later."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    _tap_rank_states(tape)
    _before(Judge, "begin", lambda *_: tape.write("begin"))
    _before(Judge, "no_progress", lambda _, entered, idle_s: tape.write("entered", steps=dict(entered)))
    _before(attempt, "find_verdict", lambda *args: tape.write("verdict", disk_full=args[4].disk_full))
    _tap_decide(tape)


def _tap_rank_states(tape: Tape) -> None:
    def tell_gone(_: RankStates, who: int | str, when: float, code: int | None = None) -> None:
        tape.write("gone", who=who, when=when, code=code)

    _before(RankStates, "note", lambda _, event: tape.write("event", event=event.to_json()))
    _before(RankStates, "rank_gone", tell_gone)
    _before(RankStates, "program_gone", tell_gone)
    _before(RankStates, "rank_named", lambda _, rank_id, now, code: tape.write("named", who=rank_id, code=code))


def _tap_decide(tape: Tape) -> None:
    real = Judge.decide

    def decide(self: Judge, facts: Any, stop_level: int, look: Callable[[], Look]) -> Any:
        def told() -> Look:
            seen = look()
            tape.write_change("suspended", sorted(seen.suspended))
            tape.write_change("folder_gone", seen.folder_gone)
            return seen

        tape.write_change("stop", stop_level)
        decision = real(self, facts, stop_level, told)
        tape.write_change("decided", decision.action.name)
        return decision

    Judge.decide = decide  # type: ignore[method-assign]
