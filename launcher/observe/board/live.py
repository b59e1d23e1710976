"""One job's page while it trains: its parts, its events, and the ends of its logs."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.common.clock import local_time
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.logs import Source, Wanted, select, sources, tail
from launcher.observe.board.pace import Paced, Stamp, stamp
from launcher.observe.history import History, read_history
from launcher.observe.report import LIVE_PARTS, live_parts, page_environment
from launcher.observe.words import words

PARTS = (*LIVE_PARTS, "events")
_EVENTS = 60
# The end of a log in which lines are looked for.
LOG_BYTES, LOG_LINES = 4 << 20, 500
_MOST_LOGS = 512


@dataclass(frozen=True, kw_only=True)
class LivePage:
    """A job's page at a moment. ``number`` grows with each that was made; ``html`` is by the names in PARTS."""

    number: int
    state: str
    is_final: bool
    html: dict[str, str]
    data: dict[str, Any]


class LiveJob:
    """A job that is looked at: all viewers share what was read of it."""

    def __init__(self, lang: str) -> None:
        self._lang = lang
        self._lock = threading.Lock()
        self._page: Paced[LivePage] = Paced()
        # A page that was made by a board before this one must not pass for one of this.
        self._made = secrets.randbelow(1 << 40)

    def page(self, paths: JobPaths, record: JobRecord) -> LivePage:
        """Return the page, made again where a file of the job has changed."""
        newest = paths.of_attempt(record.attempt)
        marks = tuple(stamp(newest.rank_events(rank_id)) for rank_id in range(record.cards))
        with self._lock:
            return self._page.get(((record.state, record.attempt), stamp(paths.record), marks),
                                  lambda: self._make(newest, record))  # fmt: skip

    def _make(self, paths: JobPaths, record: JobRecord) -> LivePage:
        history = read_history(paths, record)
        parts = live_parts(history, self._lang)
        events = page_environment().get_template("_events.html.j2").render(
            say=words(self._lang), events=newest_events(history), most=_EVENTS
        )  # fmt: skip
        self._made += 1
        html = {**parts.html, "events": events}
        return LivePage(number=self._made, state=record.state, is_final=record.is_final, html=html, data=parts.data)


def newest_events(history: History) -> list[dict[str, str]]:
    """Return the newest events of the newest attempt that are no steps, the last first."""
    ranks = history.attempts[-1].ranks if history.attempts else ()
    found = [(_time_of(event), rank.rank_id, event) for rank in ranks for event in rank.others]
    found.sort(key=lambda item: -item[0])
    return [
        {"time": local_time(when), "rank": str(rank_id), "kind": str(event["event"]), "text": _event_text(event)}
        for when, rank_id, event in found[:_EVENTS]
    ]  # fmt: skip


def _time_of(event: dict[str, Any]) -> float:
    when = event.get("time")
    return float(when) if isinstance(when, (int, float)) else 0.0


# Keys that have a column of their own, or say nothing to a reader.
_NOT_SHOWN = {"time", "rank_id", "event", "pid", "started", "ticks", "boot", "traceback"}


def _event_text(event: dict[str, Any]) -> str:
    known = {key: value for key, value in event.items() if key not in _NOT_SHOWN and value is not None}
    return ", ".join(f"{key} {_short(value)}" for key, value in known.items())


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 400 else text[:400] + "…"


# --------------------------------------------------------------------------------------------------------- logs


@dataclass(frozen=True, kw_only=True)
class LogView:
    """Which lines of which log: those that contain ``contains``, in any case; ``errors``: of errors only."""

    name: str
    contains: str = ""
    errors: bool = False


def log_names(paths: JobPaths, record: JobRecord) -> list[str]:
    """Return the names of a job's logs, ranks first; of very many ranks the first ones."""
    every = _sources(paths, record)
    return [source.name for source in sorted(every, key=lambda source: source.number < 0)][:_MOST_LOGS]


def log_stamp(paths: JobPaths, record: JobRecord, view: LogView) -> tuple[int, Stamp | None]:
    """Return what changes when the log does; another attempt's log is another."""
    source = _find(paths, record, view.name)
    return record.attempt, None if source is None else stamp(source.path)


def log_end(paths: JobPaths, record: JobRecord, view: LogView) -> list[str]:
    """Return the last lines that ``view`` wants, of the last LOG_BYTES of the log; none without such a log."""
    source = _find(paths, record, view.name)
    if source is None or stamp(source.path) is None:
        return []
    lines: Sequence[str] = tail(source.path, LOG_BYTES, LOG_BYTES)
    if view.errors:
        lines = [line for _, line in select(lines, Wanted(errors=True))]
    wanted = view.contains.casefold()
    return [line[:4000] for line in lines if wanted in line.casefold()][-LOG_LINES:]


def _sources(paths: JobPaths, record: JobRecord) -> list[Source]:
    return sources(paths.of_attempt(record.attempt), record.cards, None)


def _find(paths: JobPaths, record: JobRecord, name: str) -> Source | None:
    """Return the log of that name among those that the job has: a name never becomes a path."""
    return next((source for source in _sources(paths, record) if source.name == name), None)
