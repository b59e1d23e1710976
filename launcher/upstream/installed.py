"""Versions of the installed packages."""

from __future__ import annotations

import platform
from importlib import metadata

from launcher import __version__


def installed() -> dict[str, str]:
    """Return the versions for a job record; "-" for packages that are not installed. None of them is imported."""
    found = {"launcher": __version__, "python": platform.python_version()}
    for package in ("mindspore", "mindformers", "sentencepiece"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found
