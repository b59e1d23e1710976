"""The verdict in a job's record: the rank that failed first, how, why, and what to type next, by language."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

EN, ZH = "en", "zh"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict. ``rank_id``: the rank that failed first, None if it was not a rank. ``text``: the report by language.

    ``stopped``: healthy ranks that the launcher ended. ``retry``: a fault of the machine or of communication, after
    which a restart may succeed. ``signature`` is equal for two equal Python exceptions. ``failed_at``, ``found_at``:
    when the failure happened, and when it was noticed, in seconds since the epoch; None: unknown. ``restart``: by
    language, whether and why another attempt followed; empty where none was asked for. ``suspect``: name in the job's
    plan of the host that it speaks against, on several; ``host`` is the name that the host gives itself.
    """

    rank_id: int | None
    reason: str
    step: int | None
    kind: str
    host: str | None = None
    local_rank: int | None = None
    device_id: int | None = None
    cause: str | None = None
    known: str | None = None
    stopped: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    retry: bool = False
    signature: str = ""
    failed_at: float | None = None
    found_at: float | None = None
    restart: Mapping[str, str] = field(default_factory=dict)
    suspect: str | None = None
    text: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict_text(verdict: Mapping[str, Any], lang: str, job_id: str = "JOB") -> str:
    """Return the report in a record, in ``lang`` if present, with ``job_id`` in the commands that it names."""
    text = verdict.get("text", "")
    if isinstance(text, Mapping):
        text = text.get(lang) or text.get(EN) or ""
    return re.sub(r"\b(launcher (?:logs|resume)) JOB\b", rf"\1 {job_id}", str(text))


def user_language(environment: Mapping[str, str] = os.environ) -> str:
    """Return "zh" when LAUNCHER_LANG or the locale is Chinese, else "en"."""
    for name in ("LAUNCHER_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return ZH if environment[name].lower().startswith(("zh", "chinese")) else EN
    return EN
