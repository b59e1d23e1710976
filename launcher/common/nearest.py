"""The name that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(text: str, names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is nearest to ``text``; None when none is near."""
    import difflib  # only mistakes need it

    return next(iter(difflib.get_close_matches(text, list(names), n=1)), None)
