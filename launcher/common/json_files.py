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


def fault_of(path: Path) -> str:
    """Return in words why there is no JSON object in ``path``, with the place of a mistake in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {path.name}"
    except json.JSONDecodeError as error:
        return f"{path.name} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{path.name} is not JSON"
    return f"{path.name} holds nothing" if found == {} else f"{path.name} holds no JSON object"
