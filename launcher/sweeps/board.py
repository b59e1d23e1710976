"""The pages of a folder's sweeps on the board: a list, and each sweep as its report has it, anew while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.errors import JobError
from launcher.jobs import UNREADABLE
from launcher.observe.curves import number_text
from launcher.observe.report import html_lang, page_environment
from launcher.observe.words import words
from launcher.sweeps.page import head_style, make_page
from launcher.sweeps.record import RUNNING, SweepPaths, all_paths, read


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sweep in the list. ``value``: of its best trial."""

    sweep_id: str
    state: str
    ended: int = 0
    trials: int = 0
    metric: str = ""
    value: str = ""
    job_id: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepPages:
    """Pages of the sweeps of ``jobs_dir`` in ``lang``; each look reads their files."""

    jobs_dir: Path
    lang: str

    def exist(self) -> bool:
        """Return whether there is a sweep."""
        return bool(all_paths(self.jobs_dir))

    def listed(self) -> str:
        """Return the page of all sweeps, the newest first."""
        say, rows = words(self.lang), [_row(paths) for paths in reversed(all_paths(self.jobs_dir))]
        return page_environment().get_template("sweeps.html.j2").render(
            say=say, lang=html_lang(self.lang), rows=rows, css=head_style(),
            refresh=any(row.state == RUNNING for row in rows),
        )  # fmt: skip

    def one(self, sweep_id: str) -> str | None:
        """Return the page of a sweep; None without one of that id. What is asked for never becomes a path.

        Raises JobError when it cannot be read.
        """
        paths = next((one for one in all_paths(self.jobs_dir) if one.root.name == sweep_id), None)
        return None if paths is None else make_page(read(paths), self.lang, board="/")


def _row(paths: SweepPaths) -> Row:
    try:
        sweep = read(paths)
    except JobError as error:
        return Row(sweep_id=paths.root.name, state=UNREADABLE, note=error.message)
    best = sweep.best
    return Row(
        sweep_id=paths.root.name, state=sweep.state, ended=sweep.ended, trials=len(sweep.trials), metric=sweep.metric,
        value=number_text(best.value) if best and best.value is not None else "", job_id=best.job_id if best else "",
    )  # fmt: skip
