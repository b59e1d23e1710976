"""Events as they stand in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.jobs.events import EventReader


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the objects of all lines in ``path`` so far, unchanged; none when the file is missing."""
    reader = EventReader(path=path)
    try:
        return list(reader.records())
    finally:
        reader.close()
