"""Checked rank table files: the last step of ``rank-table make``, ``merge`` and ``convert``."""

from __future__ import annotations

from pathlib import Path

from launcher.cluster.rank_table.lint import check_text
from launcher.cluster.rank_table.problems import Problem, Report
from launcher.cluster.rank_table.table import Table, render_table
from launcher.common.rendering import environment, write_atomic
from launcher.errors import SpecError


def checked_text(table: Table, name: str, *, kind: str | None = None) -> tuple[str, Report]:
    """Return the JSON text of ``table`` and the linter's report on it.

    Raises SpecError when HCCL would refuse the table: such a file is never written.
    """
    text = render_table(environment(), table, name).text
    report = check_text(text, name).for_kind(kind)
    refused = {problem.code: problem for problem in reversed(report.of_level("E"))}
    if refused:
        problems = [_refusal(problem, report.counts[problem.code]) for problem in reversed(refused.values())]
        of_kind = f" on {kind} cards" if kind else ""
        raise SpecError(f"nothing is written: HCCL would refuse this rank table{of_kind}", problems=problems)
    return text, report


def _refusal(problem: Problem, count: int) -> str:
    place = f"{problem.path}, {count} places in all" if count > 1 else problem.path
    value = f" = {problem.value}" if problem.value else ""
    return f"{problem.code} {place}{value}: {problem.rule.rule}; {problem.rule.fix}"


def write_table(target: Path, text: str, *, force: bool = False) -> bool:
    """Write ``text`` and return True; return False when the file has it already. Raises SpecError for another file."""
    if target.suffix != ".json":
        raise SpecError(f"{target}: HCCL opens only files whose name ends in .json", hint=f"-o {target}.json")
    try:
        before = target.read_text(encoding="utf-8") if target.exists() else None
        if before == text:
            return False
        if before is not None and not force:
            raise SpecError(f"{target} is there and says something else", hint="pass --force to replace it, or -o NEW")
        write_atomic(target, text)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{target} cannot be written: {error}", hint="choose another place with -o") from error
    return True
