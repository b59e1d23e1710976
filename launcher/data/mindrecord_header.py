"""The header of a MindRecord file (``launcher.data.mindrecord``): what a run asks of rows before any is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST_HEADER_BYTES = 128 << 20


def read_header(path: Path) -> dict[str, Any] | None:
    """Read the header of the MindRecord file ``path``; None when it is missing or not a MindRecord."""
    try:
        with path.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            if not 0 < length <= _LARGEST_HEADER_BYTES:
                return None
            header = json.loads(source.read(length))
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) and isinstance(header.get("page"), list) else None


def least_size(header: dict[str, Any]) -> int:
    """Return how long the file must be at least, in bytes: up to what its last page holds."""
    begin, size = int(header.get("header_size", 0)), int(header.get("page_size", 0))
    ends = (begin + page.get("page_id", 0) * size + page.get("page_size", 0) for page in header["page"])
    return max(ends, default=0)


def header_columns(header: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns, sorted."""
    return tuple(sorted(name for schema in header.get("schema") or [] for name in schema.get("schema", {})))


def header_rows(header: dict[str, Any]) -> int:
    """Return how many rows the file holds."""
    return max((page.get("end_row_id", 0) for page in header["page"]), default=0)
