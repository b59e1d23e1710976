"""JSON files that may be absent or broken. A list of jobs reads thousands of them: they are read and parsed quickly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import orjson

_BLOCK = 1 << 16


def parse_json(data: bytes | str) -> Any:
    """Return the value in ``data``. Raises ValueError, as the module json does, or RecursionError."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(data)  # it takes NaN and lone surrogates, and says best what is wrong


def read_bytes(path: Path | str) -> bytes:
    """Return what is in ``path``, by half of the system calls of ``Path.read_bytes``. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = block = os.read(handle, _BLOCK)
        while len(block) == _BLOCK:  # a short read came to the end
            block = os.read(handle, _BLOCK)
            found += block
        return found
    except OSError as error:
        error.filename = str(path)  # only opening tells it
        raise
    finally:
        os.close(handle)


def read_json(path: Path | str) -> Any:
    """Return the value in ``path``. Raises OSError, ValueError or RecursionError."""
    return parse_json(read_bytes(path))


def json_or_empty(path: Path | str) -> dict[str, Any]:
    """Return the JSON object in ``path``, or an empty one where there is none that can be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def fault_of(path: Path) -> str:
    """Return in words why there is no JSON object in ``path``, with the place of a mistake in it."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return f"it has no {path.name}"
    except json.JSONDecodeError as error:
        return f"{path.name} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{path.name} is not JSON"
    return f"{path.name} holds nothing" if found == {} else f"{path.name} holds no JSON object"
