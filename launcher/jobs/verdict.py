"""A verdict as a job's record holds it: which rank failed first, how, why, and what to type next, by language."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

EN, ZH = "en", "zh"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """``rank_id`` is the rank that failed first, None when the cause is no rank. ``text`` is the report, by language.

    ``stopped``: ranks that this launcher ended itself, which failed in nothing. ``retry``: a fault of the machine or of
    communication, after which a restart may succeed. ``signature`` is equal for two equal Python exceptions.
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
    text: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict_text(verdict: Mapping[str, Any], lang: str, job_id: str = "JOB") -> str:
    """The report that a record holds, in ``lang`` if it has that; what it says to type is for ``job_id``."""
    text = verdict.get("text", "")
    if isinstance(text, Mapping):
        text = text.get(lang) or text.get(EN) or ""
    return re.sub(r"\b(launcher (?:logs|resume)) JOB\b", rf"\1 {job_id}", str(text))


def user_language(environment: Mapping[str, str] = os.environ) -> str:
    """ "zh" when LAUNCHER_LANG or the locale says Chinese, else "en"."""
    for name in ("LAUNCHER_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return ZH if environment[name].lower().startswith(("zh", "chinese")) else EN
    return EN
