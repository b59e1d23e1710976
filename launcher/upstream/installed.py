"""Versions of what is installed."""

from __future__ import annotations

import platform
from importlib import metadata

from launcher import __version__


def installed() -> dict[str, str]:
    """Versions that a job record keeps; "-" for what is not installed. Imports none of it."""
    found = {"launcher": __version__, "python": platform.python_version()}
    for package in ("mindspore", "mindformers", "sentencepiece"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found
