"""The registry of schedulers by name: ours, and those that installed packages add."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib import metadata

from launcher.common.nearest import nearest
from launcher.errors import HostError, SpecError
from launcher.schedulers.base import Scheduler

GROUP = "launcher.schedulers"

# Loaded when asked for: a supervisor or a listing of jobs needs one of them at the most.
_OFFERED = ("local", "ssh", "slurm", "kubernetes")
_OURS = {name: f"launcher.schedulers.{name}" for name in (*_OFFERED, "given")}
# Names in the folders of jobs that earlier versions submitted.
_EARLIER = {"here": "local", "hosts": "ssh"}


def names() -> list[str]:
    """Return the values of ``--scheduler``."""
    return [*_OFFERED, *(name for name in sorted(metadata.entry_points(group=GROUP).names) if name not in _OURS)]


def find(name: str) -> Scheduler | None:
    """Return the scheduler of this name; None when it is not installed or cannot be loaded."""
    try:
        return get(name)
    except (HostError, SpecError):
        return None


def get(name: str) -> Scheduler:
    """Return the scheduler of this name.

    Raises SpecError when there is none, HostError when the package that adds it cannot be loaded.
    """
    name = _EARLIER.get(name, name)
    if name in _OURS:
        scheduler: Scheduler = importlib.import_module(_OURS[name]).SCHEDULER
        return scheduler
    # Ours come first: a package cannot replace a scheduler that jobs rely on.
    for entry in metadata.entry_points(group=GROUP, name=name):
        return _load(entry)
    near = nearest(name, names())
    hint = f"did you mean {near}?" if near else f"there are {', '.join(names())}"
    raise SpecError(f"no scheduler {name!r} is installed on this host", hint=hint)


def _load(entry: metadata.EntryPoint) -> Scheduler:
    try:
        scheduler: Scheduler = entry.load()
    except Exception as error:  # whatever a package that is not ours raises when it is imported
        raise HostError(
            f"scheduler {entry.name} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"fix or uninstall the package that adds it ({entry.value})",
        ) from error
    return scheduler


def available() -> Iterator[Scheduler]:
    """Yield the schedulers that ``--scheduler`` takes, except from packages that cannot be loaded."""
    for name in names():
        scheduler = find(name)
        if scheduler is not None:
            yield scheduler
