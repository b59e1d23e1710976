"""Sets of MindFormers, MindSpore, CANN and driver that belong together.

Source: VERSION_MAP.json and the READMEs of mindformers r1.0 .. r2.1, which name one set each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

PYTHON_FROM = (3, 10)
PYTHON_BELOW = (3, 12)


@dataclass(frozen=True, kw_only=True)
class VersionSet:
    """One tested set. ``driver`` is None where the map does not name it."""

    mindformers: str
    mindspore: tuple[str, ...]
    cann: str
    driver: str | None = None


MATRIX = (
    VersionSet(mindformers="1.0", mindspore=("2.2.13",), cann="7.0.0"),
    VersionSet(mindformers="1.1.0", mindspore=("2.3.0rc2",), cann="8.0.RC1"),
    VersionSet(mindformers="1.2.0", mindspore=("2.3.0",), cann="8.0.RC2", driver="24.1.RC2"),
    VersionSet(mindformers="1.3.0", mindspore=("2.4.0",), cann="8.0.RC3", driver="24.1.RC3"),
    VersionSet(mindformers="1.3.2", mindspore=("2.4.10",), cann="8.0.0", driver="24.1.0"),
    VersionSet(mindformers="1.5.0", mindspore=("2.6.0", "2.6.0rc1"), cann="8.1.RC1", driver="25.0.RC1"),
    VersionSet(mindformers="1.6.0", mindspore=("2.7.0",), cann="8.2.RC1", driver="25.2.0"),
    VersionSet(mindformers="1.7.0", mindspore=("2.7.1",), cann="8.3.RC1", driver="25.3.RC1"),
    VersionSet(mindformers="1.8.0", mindspore=("2.7.2",), cann="8.5.0", driver="25.5.0"),
    VersionSet(mindformers="1.9.0", mindspore=("2.9.0",), cann="9.0.0", driver="26.0.RC1"),
    VersionSet(mindformers="2.0.0", mindspore=("2.10.0",), cann="9.1.0", driver="26.1.0"),
    VersionSet(mindformers="2.1.0", mindspore=("2.11.0",), cann="9.2.0", driver="26.2.RC1"),
)


# The set that this version of the launcher was tested with.
SUPPORTED = next(entry for entry in MATRIX if entry.mindformers == "1.9.0")


def pip_install(mindspore: str | None = None, mindformers: str | None = None) -> str:
    """Return the command that installs a pair that belongs together.

    It is the set of the MindFormers that is installed, else of the MindSpore, as far as the table knows them; else the
    supported one.
    """
    wanted = (mindformers and for_mindformers(mindformers)) or (mindspore and for_mindspore(mindspore)) or SUPPORTED
    return f"pip install mindspore=={wanted.mindspore[0]} mindformers=={wanted.mindformers}"


def pip_install_here() -> str:
    """Return the command that completes or repairs the pair of this environment. Imports neither package."""
    return pip_install(installed("mindspore"), installed("mindformers"))


def installed(package: str) -> str | None:
    """Return the installed version of a package without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def for_mindspore(version: str) -> VersionSet | None:
    """Return the set with this MindSpore, or None."""
    return next((entry for entry in MATRIX if version in entry.mindspore), None)


def for_mindformers(version: str) -> VersionSet | None:
    """Return the set with this MindFormers, or None."""
    return next((entry for entry in MATRIX if version == entry.mindformers), None)


def for_cann(version: str) -> VersionSet | None:
    """Return the set with this CANN ("8.0.RC2", or "8.0.RC2.beta1"), or None."""
    return next((entry for entry in MATRIX if same_release(entry.cann, version)), None)


def release_key(version: str) -> tuple[int, int, int, int, int]:
    """Return a sort key of versions: 24.1.RC2 < 24.1.RC3 < 24.1.0 < 25.0.rc1.1. Suffixes (.beta1, .1) are ignored."""
    numbers = re.match(r"[0-9.]*", version)
    parts = [int(part) for part in (numbers[0] if numbers else "").split(".") if part][:3]
    candidate = re.search(r"rc([0-9]+)", version, re.I)
    major, minor, patch = (*parts, 0, 0, 0)[:3]
    return major, minor, patch, 0 if candidate else 1, int(candidate[1]) if candidate else 0


def same_release(one: str, other: str) -> bool:
    """Return True if two version strings name the same release."""
    return release_key(one) == release_key(other)
