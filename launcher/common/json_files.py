"""JSON files that may be absent or broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def json_or_empty(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``, or an empty one where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
