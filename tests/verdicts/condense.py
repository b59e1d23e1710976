"""Makes a case of the corpus of what a supervisor was told: seconds since the start, and only what a verdict needs."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

# Of a rank's steps, this many of the first and of the last are kept.
STEPS_KEPT = 3

# Of a log, the first errors of MindSpore and CANN and the last lines are kept.
ERROR_LINES = 6
LAST_LINES = 12

# The class that the verdict on each fault must have; "killed" for the others.
CLASSES = {
    "exception": "exception", "exit3": "exception", "SIGSEGV": "crashed", "SIGSTOP": "suspended",
    "hang": "no progress", "crash_after_done": "succeeded", "never_starts": "never started", "disk_full": "disk full",
    "logs_deleted": "exception",
    "much_output": "exception", "stubborn_child": "exception", "port_taken": "scheduler port",
    "scheduler_SIGKILL": "scheduler ended", "supervisor_SIGKILL": "supervisor ended", "follower_SIGKILL": "cancelled",
    **{f"engine_{signal.Signals(number).name}": "engine ended" for number in (2, 15, 9)},
}  # fmt: skip


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the case for the recorded run ``raw``."""
    began = next((fact["at"] for fact in raw["facts"] if fact["what"] == "begin"), 0.0)
    facts = [_relative(fact, began) for fact in raw["facts"]]
    ended = next((fact for fact in facts if fact["what"] == "verdict"), {})
    if raw["state"] == "lost":
        facts.append({"at": facts[-1]["at"], "what": "supervisor_ended", "how": "SIGKILL"})
    return {
        "fault": raw["fault"], "engine": raw["engine"], "class": CLASSES.get(raw["fault"], "killed"),
        "rank": raw["rank"], "ranks": 2, "limits": raw["limits"], "disk_full": ended.get("disk_full", False),
        "facts": list(_few_steps(_until_the_end(facts))),
        "logs": {name: _lines(lines) for name, lines in raw["logs"].items() if lines and "/logs/" in name},
    }  # fmt: skip


def as_text(case: dict[str, Any]) -> str:
    """Return ``case`` as JSON with one fact a line."""
    facts = ",\n".join(f"  {json.dumps(fact)}" for fact in case["facts"])
    head = json.dumps({key: value for key, value in case.items() if key != "facts"}, indent=1)
    return f'{head.removesuffix("}").rstrip()},\n "facts": [\n{facts}\n ]\n}}\n'


def _relative(fact: dict[str, Any], began: float) -> dict[str, Any]:
    made = {**fact, "at": round(fact["at"] - began, 3)}
    if "when" in made:
        made["when"] = round(made["when"] - began, 6)
    if "event" in made:
        event = {key: value for key, value in made["event"].items() if key not in ("boot", "ticks", "memory_mib")}
        made["event"] = {key: _anonymous(value) for key, value in event.items()} | {
            "time": round(event["time"] - began, 3)
        }
    return made


def _anonymous(value: Any) -> Any:
    """Return texts without the folders of the machine that recorded them."""
    return (
        re.sub(r"(?:/[\w.-]+)+/(?=(?:launcher|tests|site-packages|python3[.]\d+)/)|/tmp/[\w.-]+/", "", value)
        if isinstance(value, str)
        else value
    )


def _lines(lines: list[str]) -> list[str]:
    errors = [line for line in lines[:-LAST_LINES] if line.startswith("[ERROR]")][:ERROR_LINES]
    return [str(_anonymous(line))[:240] for line in (*errors, *lines[-LAST_LINES:])]


def _until_the_end(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the facts known when the judge decided, and those later ones that the verdict is made of."""
    end = next((number for number, fact in enumerate(facts) if _is_decision(fact)), len(facts))
    after = [fact for fact in facts[end:] if fact["what"] in ("supervisor_ended", "named", "entered")]
    return [fact for fact in facts[:end] if fact["what"] != "decided"] + after


def _is_decision(fact: dict[str, Any]) -> bool:
    return bool(fact["what"] == "decided") and fact["value"] != "GO_ON"


def _few_steps(facts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    of_rank: dict[int, list[int]] = {}
    for number, fact in enumerate(facts):
        if fact["what"] == "event" and fact["event"]["event"] == "step":
            of_rank.setdefault(fact["event"]["rank_id"], []).append(number)
    dropped = {number for steps in of_rank.values() for number in steps[STEPS_KEPT:-STEPS_KEPT]}
    yield from (fact for number, fact in enumerate(facts) if number not in dropped)
