"""MindRecord 3.0, the file format that MindSpore trains from, written and read without MindSpore.

FILE holds a header and pages; FILE.db is a SQLite index of the position of each row. Both belong together.
The output equals that of MindSpore's FileWriter (for one page byte for byte), about six times as fast, because
a few numpy calls pack a whole batch of rows, and without importing MindSpore, which takes longer than
preprocessing a small dataset.

FILE     8 bytes length (little-endian) and JSON, padded to header_size; then pages of page_size bytes each
blob     the values of the rows: for each row 8 bytes of length (little-endian), then for each column 8 bytes
         of length (big-endian), 4 bytes number of values (big-endian), two bits per value for its width (0: 1
         byte, 1: 2 bytes, 2: 4 bytes; the first value in the highest bits), and the values, little-endian
raw      13 bytes per row: 8 bytes of length, then MessagePack of {"id": 0}, the number of the schema

Source: mindspore/ccsrc/minddata/mindrecord (io/shard_writer.cc, common/shard_utils.cc, meta/shard_column.cc)
of MindSpore 2.9, and files that its FileWriter wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data.mindrecord_header import header_rows, read_header
from launcher.errors import DataError
from launcher.upstream.packed_rows import SEAMS

# MindSpore reads columns in the order of their names, whatever order the header gives.
COLUMNS = ("input_ids", "labels")
PACKED_COLUMNS = (SEAMS, *COLUMNS)
_SCHEMA = {"shape": [-1], "type": "int32"}
# FileWriter's defaults are 16 and 32 MiB, which makes every file, however small, at least 48 MiB long.
HEADER_BYTES = 2 << 20
PAGE_BYTES = 4 << 20
_LARGEST_PAGE_BYTES = 256 << 20
_RAW_ROW = b"\x05\x00\x00\x00\x00\x00\x00\x00\x81\xa2id\x00"

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Rows as they lie in blob pages: their bytes one after the other, and the size of each (int64, bytes).

    ``saved_bytes`` is how much shorter the values are than at 4 bytes each; the header states it.
    """

    data: bytes
    sizes: npt.NDArray[np.int64]
    saved_bytes: int


def pack_rows(values: Ints, length: int | None = None) -> PackedRows:
    """Pack ``values``, int32 of shape (rows, columns, width), to blob bytes of rows of ``length`` numbers.

    Beyond ``width`` the last value of each row and column is repeated; it must then fit into one byte.
    """
    rows, columns, width = values.shape
    length = width if length is None else length
    # Most of a row may be padding, which needs neither widths nor choosing bytes: one byte a value.
    dense = _without_padding(values)
    low = dense.astype("<i2")
    narrow = np.array_equal(low, dense)
    # wide[k]: which values need more than 1 << k bytes. Casting there and back is the fastest way to see it.
    wide = [low.astype(np.int8) != low] if narrow else [dense.astype(np.int8) != dense, low != dense]
    widths = sum((over.view(np.uint8) for over in wide[1:]), start=wide[0].view(np.uint8))
    tags = _pack_tags(widths, length)
    # Every value takes one byte, wide ones more; then come the number of values and the tags.
    sizes = np.add.reduce((1 << widths) - 1, axis=2, dtype=np.int64) + length + 4 + tags.shape[2]
    padding = np.repeat(values[:, :, -1:].astype(np.int8).view(np.uint8), length - dense.shape[2], axis=2)
    return PackedRows(
        data=_assemble(low if narrow else dense, padding, wide, tags, sizes),
        sizes=sizes.sum(axis=1) + 8 * (columns + 1),
        saved_bytes=int(4 * length * rows * columns - sizes.sum()),
    )


def beside(left: PackedRows, right: PackedRows) -> PackedRows:
    """Return rows with the columns of ``left`` and then those of ``right``, which have as many rows."""
    ends, others = np.cumsum(left.sizes), np.cumsum(right.sizes)
    spans = zip(ends.tolist(), left.sizes.tolist(), others.tolist(), right.sizes.tolist(), strict=True)
    parts = []
    for end, size, other, more in spans:
        # The first 8 bytes of a row are its length.
        columns = size + more - 16
        parts += [columns.to_bytes(8, "little"), left.data[end - size + 8 : end], right.data[other - more + 8 : other]]
    return PackedRows(
        data=b"".join(parts), sizes=left.sizes + right.sizes - 8, saved_bytes=left.saved_bytes + right.saved_bytes
    )


def _without_padding(values: Ints) -> Ints:
    """Cut off the common tail of ``values`` in which each row and column repeats one value of one byte."""
    last = values[:, :, -1:]
    if values.size == 0 or int(last.min()) < -128 or int(last.max()) > 127:
        return values
    (differing,) = np.nonzero((values != last).any(axis=(0, 1)))
    return values[:, :, : differing[-1] + 1 if len(differing) else 0]


def _pack_tags(widths: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
    rows, columns, dense = widths.shape
    padded = np.zeros((rows, columns, -(-length // 4), 4), dtype=np.uint8)
    padded.reshape(rows, columns, -1)[:, :, :dense] = widths
    # Four bytes as one number: times this, their low bits meet in the highest byte, the first of them on top.
    return (padded.view("<u4")[..., 0] * np.uint32(0x40100401) >> 24).astype(np.uint8)


def _assemble(
    dense: npt.NDArray[np.signedinteger[Any]],
    padding: npt.NDArray[np.uint8],
    wide: Sequence[npt.NDArray[np.bool_]],
    tags: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.int64],
) -> bytes:
    """Return the bytes of the rows: every value at full width, without the bytes that ``wide`` marks as unneeded."""
    rows, columns, _ = dense.shape
    length = dense.shape[2] + padding.shape[2]
    head = 12 + tags.shape[2]
    tail = head + dense.shape[2] * dense.itemsize
    cell = tail + padding.shape[2]
    out = np.empty((rows, 8 + columns * cell), dtype=np.uint8)
    mask = np.ones(out.shape, dtype=bool)
    out[:, :8] = (sizes.sum(axis=1) + 8 * columns).astype("<u8")[:, None].view(np.uint8)
    for column in range(columns):
        part = slice(8 + column * cell, 8 + (column + 1) * cell)
        target = out[:, part]
        target[:, :8] = sizes[:, column, None].astype(">u8").view(np.uint8)
        target[:, 8:12] = np.frombuffer(length.to_bytes(4, "big"), dtype=np.uint8)
        target[:, 12:head] = tags[:, column]
        target[:, head:tail] = np.ascontiguousarray(dense[:, column], dense.dtype.newbyteorder("<")).view(np.uint8)
        target[:, tail:] = padding[:, column]
        for width, over in enumerate(wide):
            for byte in range(1 << width, 2 << width):
                mask[:, part][:, head + byte : tail : dense.itemsize] = over[:, column]
    # One selection over the whole batch instead of a loop over rows: the reason for the speed.
    data: bytes = out[mask].tobytes()
    return data


@dataclass(kw_only=True)
class Page:
    """A page of blobs: rows ``start`` to ``end`` (not included) and the bytes they take."""

    start: int
    end: int
    used: int = 0


@dataclass(kw_only=True)
class ShardState:
    """The state to resume a shard after an interruption, beside the bytes on the disk."""

    pages: list[Page] = field(default_factory=list)
    saved_bytes: int = 0

    @property
    def rows(self) -> int:
        return self.pages[-1].end if self.pages else 0


class ShardWriter:
    """Writes one FILE of a dataset and its index. It is not readable before ``finish``.

    ``row_length`` is the number of tokens in a row. Until ``finish``, FILE.rows holds the sizes of the rows.
    """

    def __init__(
        self,
        path: Path,
        *,
        row_length: int,
        columns: Sequence[str] = COLUMNS,
        state: ShardState | None = None,
        least_page: int = PAGE_BYTES,
    ) -> None:
        self.state = state or ShardState()
        self._columns = tuple(columns)
        self._path = path
        self._sizes_path = path.with_name(f"{path.name}.rows")
        self._page_bytes = page_bytes(row_length, least_page, len(columns))
        mode = "r+b" if state else "wb"
        self._file = path.open(mode)
        self._sizes = self._sizes_path.open(mode)
        # Both files may be ahead of the journal: later sizes are cut off, later blobs are overwritten.
        self._sizes.truncate(8 * self.state.rows)
        self._sizes.seek(8 * self.state.rows)

    def append(self, data: memoryview, sizes: npt.NDArray[np.int64], saved_bytes: int) -> None:
        """Append rows whose blobs lie in ``data`` one after the other. Raises DataError at 40 GB."""
        ends = np.cumsum(sizes)
        first, begin = 0, 0
        while first < len(sizes):
            page = self._page_for(int(sizes[first]))
            room = self._page_bytes - page.used
            stop = int(np.searchsorted(ends, begin + room, side="right"))
            end = int(ends[stop - 1])
            # Pages have a fixed size in the file: the unused end of the page before stays empty.
            self._file.seek(HEADER_BYTES + (len(self.state.pages) - 1) * self._page_bytes + page.used)
            self._file.write(data[begin:end])
            page.used += end - begin
            page.end += stop - first
            first, begin = stop, end
        self._sizes.write(sizes.astype("<i8").tobytes())
        self.state.saved_bytes += saved_bytes

    def _page_for(self, size: int) -> Page:
        pages = self.state.pages
        if not pages or pages[-1].used + size > self._page_bytes:
            pages.append(Page(start=self.state.rows, end=self.state.rows))
            # The place for the header is fixed before the number of pages is known.
            if len(pages) * _HEADER_BYTES_PER_PAGE > HEADER_BYTES:
                raise DataError(f"{self._path.name} would be larger than its header allows", hint="add --shards 8")
        return pages[-1]

    def flush(self) -> None:
        """Hand everything to the operating system, so that a process that dies loses nothing."""
        self._file.flush()
        self._sizes.flush()

    def close(self) -> None:
        """Close the files without finishing them."""
        self._file.close()
        self._sizes.close()

    def finish(self, names: Sequence[str], shard_id: int) -> None:
        """Write the raw pages, the header and the index. ``names`` are the files of all shards."""
        raw = list(_raw_pages(self.state.pages, self._page_bytes))
        for page_id, groups in enumerate(raw, start=len(self.state.pages)):
            self._file.seek(HEADER_BYTES + page_id * self._page_bytes)
            self._file.write(_RAW_ROW * sum(page.end - page.start for page in groups.values()))
        header = json.dumps(self._header(raw, names, shard_id), separators=(",", ":"), ensure_ascii=False).encode()
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.seek(HEADER_BYTES)
        self.close()
        self._write_index(raw)
        self._sizes_path.unlink()

    def _header(self, raw: list[dict[int, Page]], names: Sequence[str], shard_id: int) -> dict[str, Any]:
        blobs = [_blob_entry(number, page, shard_id) for number, page in enumerate(self.state.pages)]
        raws = [_raw_entry(number, len(blobs), groups, shard_id) for number, groups in enumerate(raw)]
        schema = {
            "blob_fields": list(self._columns),
            "desc": "launcher",
            "schema": {name: _SCHEMA for name in self._columns},
        }
        return {
            "header_size": HEADER_BYTES,
            "index_fields": None,
            "page": blobs + raws,
            "page_size": self._page_bytes,
            "compression_size": self.state.saved_bytes,
            "schema": [schema],
            "shard_addresses": list(names),
            "shard_id": shard_id,
            "statistics": None,
            "version": "3.0",
        }

    def _write_index(self, raw: list[dict[int, Page]]) -> None:
        import sqlite3

        index = self._path.with_name(f"{self._path.name}.db")
        with closing(sqlite3.connect(index, isolation_level=None)) as db:
            # No journal and no syncs: the index is synced and moved into place only when it is complete.
            db.execute("PRAGMA synchronous=OFF")
            db.execute("PRAGMA journal_mode=OFF")
            db.execute("BEGIN")
            db.execute(_CREATE_INDEX)
            db.executemany("INSERT INTO INDEXES VALUES(?,?,?,?,?,?,?,?)", self._index_rows(raw))
            db.execute("CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)")
            db.execute("INSERT INTO SHARD_NAME VALUES(?)", (self._path.name,))
            db.execute("COMMIT")

    def _index_rows(self, raw: list[dict[int, Page]]) -> Iterator[tuple[int, ...]]:
        with self._sizes_path.open("rb") as source:
            for raw_id, groups in enumerate(raw, start=len(self.state.pages)):
                place = 0
                for group, page in groups.items():
                    sizes = np.frombuffer(source.read(8 * (page.end - page.start)), dtype="<i8")
                    ends = np.cumsum(sizes)
                    for row, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True), page.start):
                        yield row, raw_id, place, place + len(_RAW_ROW), group, group, end - size, end
                        place += len(_RAW_ROW)


# An entry of a blob page with its place in a raw page takes up to 220 bytes of JSON.
_HEADER_BYTES_PER_PAGE = 240
_CREATE_INDEX = (
    "CREATE TABLE INDEXES(  ROW_ID               INT  NOT NULL, PAGE_ID_RAW          INT  NOT NULL,"
    " PAGE_OFFSET_RAW      INT  NOT NULL, PAGE_OFFSET_RAW_END  INT  NOT NULL,"
    " ROW_GROUP_ID         INT  NOT NULL, PAGE_ID_BLOB         INT  NOT NULL,"
    " PAGE_OFFSET_BLOB     INT  NOT NULL, PAGE_OFFSET_BLOB_END INT  NOT NULL, PRIMARY KEY(ROW_ID))"
)


def page_bytes(row_length: int, least: int = PAGE_BYTES, columns: int = len(COLUMNS)) -> int:
    """Return the page size for rows of ``row_length`` tokens: ``least``, doubled until the longest row fits.

    No column is longer than that. Raises DataError when no valid page size is large enough.
    """
    # The worst case: four bytes for every value.
    longest = 8 + columns * (12 + -(-row_length // 4) + 4 * row_length)
    size = least
    while size < longest:
        size *= 2
    if size > _LARGEST_PAGE_BYTES:
        raise DataError(f"a row of {row_length} tokens does not fit into a MindRecord page of 256 MiB")
    return size


def _raw_pages(pages: Sequence[Page], size: int) -> Iterator[dict[int, Page]]:
    """Yield the blob pages (by number) whose rows share a raw page; the rows of a blob page stay together."""
    groups: dict[int, Page] = {}
    room = size // len(_RAW_ROW)
    for number, page in enumerate(pages):
        if groups and page.end - page.start > room:
            yield groups
            groups, room = {}, size // len(_RAW_ROW)
        groups[number] = page
        room -= page.end - page.start
    if groups:
        yield groups


def _blob_entry(number: int, page: Page, shard_id: int) -> dict[str, Any]:
    return {
        "end_row_id": page.end,
        "page_id": number,
        "page_size": page.used,
        "page_type": "BLOB_DATA",
        "page_type_id": number,
        "row_group_ids": [{"id": 0, "offset": 0}],
        "shard_id": shard_id,
        "start_row_id": page.start,
    }


def _raw_entry(number: int, first_id: int, groups: dict[int, Page], shard_id: int) -> dict[str, Any]:
    counts = [page.end - page.start for page in groups.values()]
    offsets = [len(_RAW_ROW) * sum(counts[:place]) for place in range(len(counts))]
    return {
        "end_row_id": 0,
        "page_id": first_id + number,
        "page_size": len(_RAW_ROW) * sum(counts),
        "page_type": "RAW_DATA",
        "page_type_id": number,
        "row_group_ids": [{"id": group, "offset": at} for group, at in zip(groups, offsets, strict=True)],
        "shard_id": shard_id,
        "start_row_id": 0,
    }


def write_mindrecord(path: Path, values: Iterable[Ints], *, row_length: int, seams: Iterable[Ints] = ()) -> int:
    """Write batches of int32 of shape (rows, 2, row_length) to ``path``; return the number of rows.

    ``seams``: for packed rows, batches of int32 of shape (rows, seams), the column actual_seq_len.
    """
    ends = tuple(seams)
    writer = ShardWriter(path, row_length=row_length, columns=PACKED_COLUMNS if ends else COLUMNS)
    for batch, batch_ends in zip_longest(values, ends):
        packed = pack_rows(batch) if batch_ends is None else beside(pack_rows(batch_ends[:, None]), pack_rows(batch))
        writer.append(memoryview(packed.data), packed.sizes, packed.saved_bytes)
    writer.finish([path.name], 0)
    return writer.state.rows


# --- reading


def read_row(path: Path, row: int) -> dict[str, Ints]:
    """Read row ``row`` (from 0) of the single file ``path``: each int32 column as an array of shape (length,).

    Raises DataError when the file is not a MindRecord, its index is missing, or there is no such row.
    """
    header = read_header(path)
    if header is None:
        raise DataError(f"{path} is not a MindRecord file")
    page, begin, end = _locate(path, row, header_rows(header))
    with path.open("rb") as source:
        source.seek(header["header_size"] + page * header["page_size"] + begin)
        blob = source.read(end - begin)
    return dict(_columns(path, header["schema"][0], blob))


def _locate(path: Path, row: int, rows: int) -> tuple[int, int, int]:
    import sqlite3

    index = path.with_name(f"{path.name}.db")
    if not index.is_file():
        raise DataError(f"{index} is missing: a MindRecord and its .db belong together")
    query = "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES WHERE ROW_ID=?"
    try:
        with closing(sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute(query, (row,)).fetchone()
    except sqlite3.DatabaseError as error:
        raise DataError(f"{index} is not the index of a MindRecord: {error}") from error
    if found is None:
        raise DataError(f"{path} has no row {row}", hint=f"it has rows 0 to {rows - 1}")
    return tuple(found)


def _columns(path: Path, schema: dict[str, Any], blob: bytes) -> Iterator[tuple[str, Ints]]:
    place = 8
    for name in schema["blob_fields"]:
        if schema["schema"][name].get("type") != "int32" or "shape" not in schema["schema"][name]:
            raise DataError(f"{path}: column {name} does not hold int32")
        length = int.from_bytes(blob[place : place + 8], "big")
        yield name, _unpack(blob[place + 8 : place + 8 + length])
        place += 8 + length


def _unpack(cell: bytes) -> Ints:
    length = int.from_bytes(cell[:4], "big")
    head = 4 + -(-length // 4)
    tags = np.frombuffer(cell[4:head], dtype=np.uint8)
    widths = (tags[:, None] >> np.array([6, 4, 2, 0], dtype=np.uint8) & 3).reshape(-1)[:length]
    sizes = 1 << widths.astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    data = np.frombuffer(cell[head:] + b"\0\0\0", dtype=np.uint8)
    out = np.empty(length, dtype=np.int32)
    for width, kind in enumerate(("<i1", "<i2", "<i4")):
        chosen = widths == width
        parts = data[starts[chosen, None] + np.arange(1 << width)]
        out[chosen] = np.ascontiguousarray(parts).view(kind)[:, 0]
    return out
