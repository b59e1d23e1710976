"""Read parquet and Arrow files in batches of rows. pyarrow is imported only here, when such a file is read.

A batch goes to the process that encodes it as a stream of Arrow, which is all but a copy of memory; only there its
rows become Python's values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.outputs import file_sha256
from launcher.data.reading import Reading
from launcher.data.records import Chunk, Record, Reject
from launcher.errors import DataError

_CHUNK_BYTES = 1 << 19
_MOST_ROWS = 1024
_BUFFER_BYTES = 1 << 20
_PARQUET, _ARROW_FILE = b"PAR1", b"ARROW1"


class TableSource:
    """A parquet or Arrow file, read once from beginning to end, with the attributes of ``Source``."""

    encoding = "UTF-8"

    def __init__(self, path: Path, reading: Reading, *, shown: str = "") -> None:
        self.shown = shown or str(path)
        self._path = path
        self._reading = reading
        self._read = 0
        self._rows: int | None = None
        self._done = False
        self.left_out: list[str] = []
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise DataError(f"cannot read {self.shown}: {error.strerror}") from error

    @property
    def sha256(self) -> str:
        return file_sha256(self._path)

    @property
    def position(self) -> int:
        if self._done:
            return self.size
        return int(self.size * min(self._read / self._rows, 1)) if self._rows else 0

    def chunks(self) -> Iterator[Chunk]:
        """Yield chunks of rows in order. Raises DataError, naming the row, where the file cannot be read on."""
        for batch in self._batches():
            for part in _parts(batch):
                yield Chunk(kind="table", first_record=self._read, first_line=self._read + 1, data=_stream_of(part))
                self._read += part.num_rows
        if not self._read:
            raise DataError(f"{self.shown} has no rows")
        self._done = True

    def rows(self) -> int:
        """Return the number of rows, which the file says without being read. Raises DataError."""
        import pyarrow.parquet

        if self._magic() != _PARQUET:
            # Batches of a mapped file: none of their pages is touched.
            return sum(batch.num_rows for batch in self._batches())
        with self._saying_where():
            rows: int = pyarrow.parquet.read_metadata(self._path).num_rows
        return rows

    def _batches(self) -> Iterator[Any]:
        magic = self._magic()
        with self._saying_where():
            if magic == _PARQUET:
                yield from self._parquet()
            elif magic.startswith(_ARROW_FILE[:4]):
                yield from self._arrow_file()
            else:
                yield from self._arrow_stream()

    def _parquet(self) -> Iterator[Any]:
        import pyarrow.parquet

        # A small buffer in place of whole column chunks: a row group may be as large as the file.
        with pyarrow.parquet.ParquetFile(self._path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            self._rows = file.metadata.num_rows
            columns = self._wanted(file.schema_arrow.names)
            yield from file.iter_batches(_rows_at_once(file.metadata), columns=columns, use_threads=False)

    def _arrow_file(self) -> Iterator[Any]:
        import pyarrow

        with pyarrow.memory_map(str(self._path)) as mapped:
            reader = pyarrow.ipc.open_file(mapped)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield batch.select(self._wanted(batch.schema.names))

    def _arrow_stream(self) -> Iterator[Any]:
        import pyarrow

        with pyarrow.memory_map(str(self._path)) as mapped:
            for batch in pyarrow.ipc.open_stream(mapped):
                yield batch.select(self._wanted(batch.schema.names))

    def _wanted(self, names: list[str]) -> list[str]:
        """Return the columns that are read: ignored ones may be large."""
        self.left_out = [name for name in names if name in self._reading.ignore]
        return [name for name in names if name not in self._reading.ignore]

    def _magic(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(4)
        except OSError as error:
            raise DataError(f"cannot read {self.shown}: {error.strerror}") from error

    @contextmanager
    def _saying_where(self) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            after = f"after row {self._read:,}: " if self._read else ""
            what = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise DataError(f"cannot read {self.shown}: {after}{what}", hint="was it downloaded whole?") from error


def rows_of(path: Path) -> int | None:
    """Return the number of rows that a parquet file says it has; None when it cannot be read."""
    import pyarrow.parquet

    try:
        rows: int = pyarrow.parquet.read_metadata(path).num_rows
    except (pyarrow.ArrowException, OSError):
        return None
    return rows


def _rows_at_once(metadata: Any) -> int:
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return _fitting(size, metadata.num_rows)


def _fitting(size: int, rows: int) -> int:
    """Return how many rows of ``size`` bytes in all make a chunk."""
    return max(1, min(_MOST_ROWS, _CHUNK_BYTES * rows // max(size, 1)))


def _parts(batch: Any) -> Iterator[Any]:
    rows = _fitting(batch.nbytes, batch.num_rows)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _stream_of(batch: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _table(chunk: Chunk) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(chunk.data).read_all()


def table_values(chunk: Chunk) -> list[Any] | None:
    """Return the rows of ``chunk`` as dicts; None when a value in it cannot be read."""
    table = _table(chunk)
    try:
        columns = [_column_values(column) for column in table.columns]
    except (UnicodeDecodeError, ValueError, OverflowError):
        return None
    names = table.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column_values(column: Any) -> list[Any]:
    import pyarrow

    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    return [text for part in column.chunks for text in _texts(part)] if is_text else column.to_pylist()


def _texts(array: Any) -> list[str | None]:
    """Return the texts of an array of strings. By pyarrow's own way, an object for each, it takes twice as long."""
    import pyarrow

    _, offsets, data = array.buffers()
    width = np.int64 if pyarrow.types.is_large_string(array.type) else np.int32
    places = (
        np.frombuffer(offsets, dtype=width)[array.offset : array.offset + len(array) + 1].tolist() if len(array) else []
    )
    whole = data.to_pybytes() if data is not None else b""
    texts: list[str | None] = [whole[start:end].decode() for start, end in pairwise(places)]
    if array.null_count:
        return [text if valid else None for text, valid in zip(texts, array.is_valid().to_pylist(), strict=True)]
    return texts


def table_records(chunk: Chunk) -> Iterator[Record | Reject]:
    """Yield the rows of ``chunk``, one by one; those with a value that cannot be read as Reject."""
    table = _table(chunk)
    for place in range(table.num_rows):
        yield _record(table, place, chunk.first_record + place)


def _record(table: Any, place: int, number: int) -> Record | Reject:
    values: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            values[name] = column[place].as_py()
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            return Reject(number=number, line=number + 1, reason=f"{name}: {what}", raw=repr(values)[:1000])
    return Record(number, number + 1, values)
