"""Questions from the command line and from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.errors import DataError, SpecError


def collect(prompts: Sequence[str], file: Path | None) -> list[str]:
    """All questions: those given one by one, then those of ``file``, one a line, blank lines left out.

    Raises SpecError when there is none or one is empty, DataError when the file cannot be read.
    """
    if any(not prompt.strip() for prompt in prompts):
        raise SpecError("a --prompt is empty", hint='launcher infer JOB --prompt "..."')
    asked = [*prompts, *(_read(file) if file else ())]
    if not asked:
        raise SpecError("nothing to ask", hint='give --prompt "..." or --file questions.txt')
    return asked


def _read(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}", hint="give a UTF-8 text file, one question a line") from error
    return [line.strip() for line in lines if line.strip()]
