"""Notices of a job: what there is to tell people who do not look at it, and the words for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher import jobs
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.verdict import EN, ZH, verdict_text

END, FAILURE, RESTART = "end", "failure", "restart"

_TITLES = {
    EN: {RESTART: "{job} was restarted: attempt {attempt}", jobs.SUCCEEDED: "{job} succeeded",
         jobs.FAILED: "{job} failed", jobs.CANCELLED: "{job} was cancelled", jobs.LOST: "{job} was lost"},
    ZH: {RESTART: "{job} 已重启：第 {attempt} 次尝试", jobs.SUCCEEDED: "{job} 已成功结束",
         jobs.FAILED: "{job} 失败", jobs.CANCELLED: "{job} 已取消", jobs.LOST: "{job} 已丢失"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing to tell. ``reason``: a sentence of the verdict; ``verdict``: all of it, "" where there is none."""

    occasion: str
    title: str
    job_id: str
    name: str
    state: str
    attempt: int
    reason: str
    verdict: str
    host: str
    folder: str

    @property
    def text(self) -> str:
        """Return title and verdict, as people read it."""
        return "\n".join([self.title, *filter(None, [self.verdict or self.reason])])

    def fields(self) -> dict[str, Any]:
        """Return all fields, as programs read them."""
        own = ("occasion", "title", "job_id", "name", "state", "attempt", "reason", "verdict", "host", "folder")
        return {"text": self.text, **{name: getattr(self, name) for name in own}}

    def is_for(self, occasions: tuple[str, ...]) -> bool:
        """Return True if it is to be told on these occasions: a failure is an end, too."""
        return self.occasion in occasions or (self.occasion == FAILURE and END in occasions)


def restarts(paths: JobPaths, record: JobRecord, after: int, lang: str) -> Iterator[Notice]:
    """Yield a notice of each restart that ended an attempt later than number ``after``."""
    for entry in record.earlier:
        if entry.get("restarted") and entry["attempt"] > after:
            attempt = int(entry["attempt"]) + 1
            yield _notice(paths, record, RESTART, lang, attempt=attempt, state=jobs.RUNNING, reason=entry.get("reason"))


def end(paths: JobPaths, record: JobRecord, lang: str) -> Notice | None:
    """Return the notice of the job's end; None while it has none."""
    if not record.is_final or record.state not in _TITLES[EN]:
        return None
    verdict = record.verdict or {}
    occasion = FAILURE if record.state in (jobs.FAILED, jobs.LOST) else END
    return _notice(
        paths, record, occasion, lang, attempt=record.attempt, state=record.state, reason=verdict.get("reason"),
        verdict=verdict_text(verdict, lang, record.job_id),
    )  # fmt: skip


def _notice(
    paths: JobPaths, record: JobRecord, occasion: str, lang: str, *, attempt: int, state: str, reason: Any,
    verdict: str = "",
) -> Notice:  # fmt: skip
    words = _TITLES.get(lang, _TITLES[EN])
    title = words[RESTART if occasion == RESTART else state].format(job=record.job_id, attempt=attempt)
    return Notice(
        occasion=occasion, title=title, job_id=record.job_id, name=record.name, state=state, attempt=attempt,
        reason=str(reason or ""), verdict=verdict, host=record.host, folder=str(paths.root),
    )  # fmt: skip
