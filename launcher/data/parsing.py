"""The records of a chunk, of whatever kind of file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from launcher.data import records
from launcher.data.records import Chunk, Record, Reject, paragraphs, record_lines


def parse_fast(chunk: Chunk) -> list[Any] | None:
    """Return the values of a chunk, one per record; None when one of them cannot be read."""
    if chunk.kind == "table":
        from launcher.data.tables import table_values

        return table_values(chunk)
    if chunk.kind == "parsed":
        values = [item.value for item in chunk.records if isinstance(item, Record)]
        return values if len(values) == len(chunk.records) else None
    return records.parse_fast(chunk)


def parse(chunk: Chunk) -> Iterator[Record | Reject]:
    """Return the records of a chunk; those that cannot be read as Reject."""
    if chunk.kind == "table":
        from launcher.data.tables import table_records

        return table_records(chunk)
    if chunk.kind == "parsed":
        return iter(chunk.records)
    return paragraphs(chunk) if chunk.kind == "text" else records.parse(chunk)


def lines_of(chunk: Chunk, count: int) -> Sequence[int]:
    """Return the line or row of each of the ``count`` records of a chunk that ``parse_fast`` can read."""
    if chunk.kind == "parsed":
        return [item.line for item in chunk.records]
    if chunk.kind == "array":
        return record_lines(chunk)
    return range(chunk.first_line, chunk.first_line + count)
