"""Which rank failed first, how, and what it said last."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.events import read_events
from launcher.jobs import JobPaths
from launcher.logs import tail

TRACEBACK_LINES = 30
TAIL_LINES = 15

# msrun, mindspore 2.9.0, parallel/cluster/process_entity/_api.py. It polls once a second.
_MSRUN_EXIT = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")
_MSRUN_WAIT_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``rank_id`` is the rank that failed first, None when it was the engine. ``text`` is the whole report."""

    rank_id: int | None
    reason: str
    step: int | None
    text: str

    @property
    def log_option(self) -> str:
        return "" if self.rank_id is None else f"--rank {self.rank_id}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_verdict(
    paths: JobPaths,
    errors: Sequence[Mapping[str, Any]],
    gone: Mapping[int, float],
    done: set[int],
    last_step: Mapping[int, int],
    engine_code: int | None,
) -> Verdict:
    """The verdict on a failed job.

    ``errors``: error events of ranks. ``gone``: when each rank's process was seen gone (seconds since the epoch).
    The earliest of both is the first failure. MindSpore's survivors end themselves after a peer died: what they say
    later is noise. With neither, the engine itself failed.
    """
    reported = [(float(event["time"]), int(event["rank_id"]), event) for event in errors]
    vanished = [(when, rank, None) for rank, when in gone.items() if rank not in done | {r for _, r, _ in reported}]
    first = min([*reported, *vanished], key=lambda item: item[0], default=None)
    if first is None:
        return _engine_failed(paths, engine_code)
    _, rank_id, event = first
    step = last_step.get(rank_id)
    if event is not None:
        return _raised(rank_id, step, event)
    return _vanished(paths, rank_id, step)


def _raised(rank_id: int, step: int | None, event: Mapping[str, Any]) -> Verdict:
    first_line = str(event["message"]).strip().splitlines()[0] if str(event["message"]).strip() else ""
    reason = f"{event['type']}: {first_line}".rstrip(": ")
    lines = str(event["traceback"]).rstrip().splitlines()
    shown = lines if len(lines) <= TRACEBACK_LINES else [*lines[:2], "  ...", *lines[-TRACEBACK_LINES:]]
    return _report(rank_id, step, reason, shown)


def _vanished(paths: JobPaths, rank_id: int, step: int | None) -> Verdict:
    code = _exit_code(paths, rank_id)
    reason = "its process is gone, without a Python exception" if code is None else describe_exit(code)
    return _report(rank_id, step, reason, tail(paths.rank_log(rank_id), TAIL_LINES))


def _report(rank_id: int, step: int | None, reason: str, lines: Sequence[str]) -> Verdict:
    when = "before its first step" if step is None else f"after step {step}"
    body = "\n".join(f"    {line}" for line in lines)
    text = f"rank {rank_id} failed first, {when}: {reason}" + (f"\n{body}" if body else "")
    return Verdict(rank_id=rank_id, reason=reason, step=step, text=text)


def _engine_failed(paths: JobPaths, engine_code: int | None) -> Verdict:
    reason = f"the engine ended ({describe_exit(engine_code)}) before any rank had begun or failed"
    lines = tail(paths.engine_log, TAIL_LINES)
    body = "".join(f"\n    {line}" for line in lines)
    return Verdict(rank_id=None, reason=reason, step=None, text=reason + body)


def _exit_code(paths: JobPaths, rank_id: int) -> int | None:
    """What msrun says of the rank's process, waiting for its next poll; None when it says nothing."""
    pids = [event["pid"] for event in read_events(paths.rank_events(rank_id)) if event["event"] == "begin"]
    deadline = time.monotonic() + _MSRUN_WAIT_S
    while True:
        codes = {int(pid): int(code) for pid, code in _MSRUN_EXIT.findall(_text(paths.engine_log))}
        found = next((codes[pid] for pid in pids if pid in codes), None)
        if found is not None or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def describe_exit(code: int | None) -> str:
    """A return code as Popen gives it, in words: "exit code 3", "killed by SIGKILL"."""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
