"""MindRecord, the file format that MindSpore trains from: FILE and its index FILE.db belong together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

COLUMNS = ("input_ids", "labels")
_SCHEMA = {column: {"type": "int32", "shape": [-1]} for column in COLUMNS}
_BATCH_ROWS = 1000
_LARGEST_HEADER_BYTES = 128 << 20

Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


def write_mindrecord(path: Path, rows: Iterable[Row]) -> int:
    """Write ``rows`` (input_ids and labels, each int32 of shape (row_length,)) to ``path`` and ``path``.db.

    Returns the number of rows.
    """
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(file_name=str(path), shard_num=1, overwrite=True)
    writer.add_schema(_SCHEMA, "launcher")
    count, source = 0, iter(rows)
    while batch := [dict(zip(COLUMNS, row, strict=True)) for row in islice(source, _BATCH_ROWS)]:
        count += len(batch)
        writer.write_raw_data(batch)
    writer.commit()
    return count


def read_header(path: Path) -> dict[str, Any] | None:
    """The header of the MindRecord file ``path`` as MindRecord 3.0 writes it, or None when it is not one.

    Eight bytes of length, little-endian, then JSON (mindspore/ccsrc/minddata/mindrecord/io/shard_writer.cc).
    """
    try:
        with path.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            if not 0 < length <= _LARGEST_HEADER_BYTES:
                return None
            header = json.loads(source.read(length))
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) and "page" in header else None


def header_columns(header: dict[str, Any]) -> tuple[str, ...]:
    """The names of the columns, sorted."""
    return tuple(sorted(name for schema in header.get("schema") or [] for name in schema.get("schema", {})))


def header_rows(header: dict[str, Any]) -> int:
    """How many rows the file holds."""
    return max((page.get("end_row_id", 0) for page in header["page"]), default=0)
