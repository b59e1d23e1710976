"""The table of a dataset's samples, NAME.samples beside it: where each came from, how long it is, which row holds it.

One record of 32 bytes a sample, in the order of the rows: a million take 32 MB, and are read in milliseconds. Samples
that no row holds, and the later rows of a split one, have records too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]

# line: in the source, from 1; source: its number in the statistics; tokens and characters: of the whole sample;
# in_loss: tokens in the loss in this row; unknown and bytes: tokens that stand for no piece of the vocabulary, at most
# 65,535; digest: of the ids.
RECORD = np.dtype(
    [
        ("digest", "<u8"),
        ("line", "<u4"),
        ("tokens", "<u4"),
        ("characters", "<u4"),
        ("in_loss", "<u4"),
        ("source", "<u2"),
        ("unknown", "<u2"),
        ("bytes", "<u2"),
        ("flags", "u1"),
        ("spare", "u1"),
    ]
)

# Flags of a record.
BEGINS_ROW = 1
NO_ROW = 2
CUT = 4
CONTINUED = 8


def samples_path(dataset: Path) -> Path:
    """Return the path of the table of samples of ``dataset``."""
    return dataset.with_name(f"{dataset.name}.samples")


def none() -> Records:
    """Return no records."""
    return np.zeros(0, dtype=RECORD)


def has(records: Records, flag: int) -> npt.NDArray[np.bool_]:
    """Return which of ``records`` have ``flag``."""
    found: npt.NDArray[np.bool_] = (records["flags"] & flag) != 0
    return found


def read_samples(dataset: Path) -> Records | None:
    """Map the table of ``dataset`` into memory; None where there is none, or it is not whole."""
    path = samples_path(dataset)
    try:
        size = path.stat().st_size
        if not size or size % RECORD.itemsize:
            return None
        found: Any = np.memmap(path, dtype=RECORD, mode="r")
    except OSError:
        return None
    records: Records = found
    return records


def of_row(records: Records, row: int) -> Records:
    """Return the records of the samples in row ``row``, in the order in which the row holds them."""
    in_rows = records[~has(records, NO_ROW)]
    (begins,) = np.nonzero(has(in_rows, BEGINS_ROW))
    if row >= len(begins):
        return none()
    end = begins[row + 1] if row + 1 < len(begins) else len(in_rows)
    return in_rows[begins[row] : end]


class SamplesWriter:
    """Writes the table. ``records``: how many of an interrupted run stay."""

    def __init__(self, path: Path, *, records: int) -> None:
        self.path = path
        self._file = path.open("r+b" if records else "wb")
        self._file.truncate(records * RECORD.itemsize)
        self._file.seek(0, 2)
        self.records = records

    def append(self, records: Records) -> None:
        self._file.write(records.tobytes())
        self.records += len(records)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()
