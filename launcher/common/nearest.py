"""The name that somebody may have meant."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def nearest(text: str, names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is nearest to ``text``; None when none is near."""
    import difflib  # only mistakes need it

    return next(iter(difflib.get_close_matches(text, list(names), n=1)), None)


def nearest_path(path: Path) -> Path | None:
    """Return the file or folder beside ``path``, which is not there, whose name is nearest; None when none is near."""
    try:
        beside = [entry.name for entry in os.scandir(path.parent)]
    except (OSError, ValueError):
        return None
    close = nearest(path.name, beside)
    return path.with_name(close) if close else None


def name_hint(text: str, names: Iterable[str], hint: str) -> str:
    """Return ``hint``, after the question for which of ``names`` may have been meant by ``text``."""
    return _asked(nearest(text, names), hint)


def path_hint(path: Path, hint: str = "") -> str:
    """Return ``hint``, after the question for what may have been meant where ``path`` is not there."""
    return _asked(None if os.path.lexists(path) else nearest_path(path), hint)


def _asked(near: str | Path | None, hint: str) -> str:
    return f"did you mean {near}? {hint}".rstrip() if near else hint
