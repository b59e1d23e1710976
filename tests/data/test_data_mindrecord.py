"""MindRecord: our bytes against those of MindSpore's FileWriter, and what MindDataset reads of our files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.data.info import read_info
from launcher.data.mindrecord import (
    HEADER_BYTES,
    PAGE_BYTES,
    Ints,
    ShardWriter,
    pack_rows,
    page_bytes,
    read_row,
    write_mindrecord,
)
from launcher.data.mindrecord_header import header_rows, read_header
from launcher.errors import DataError

EDGES = [0, 1, -1, 127, 128, -128, -129, 255, 256, 32767, 32768, -32768, -32769, 65536, 2**31 - 1, -(2**31)]

# Both in one process: the import of MindSpore is most of the time.
MINDSPORE = """
import json, sys
import numpy as np
from mindspore.dataset import MindDataset
from mindspore.mindrecord import FileWriter
for job in json.load(sys.stdin):
    if job["do"] == "write":
        writer = FileWriter(job["path"], shard_num=1)
        writer.set_header_size(job["header"])
        writer.set_page_size(job["page"])
        schema = {name: {"type": "int32", "shape": [-1]} for name in ("input_ids", "labels")}
        writer.add_schema(schema, "launcher")
        rows = np.load(job["values"])
        writer.write_raw_data([{"input_ids": row[0], "labels": row[1]} for row in rows])
        writer.commit()
    else:
        dataset = MindDataset(job["path"], shuffle=False)
        rows = [(row["input_ids"], row["labels"])
                for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
        np.save(job["values"], np.array(rows))
"""


def mindspore(*jobs: dict[str, object]) -> None:
    argv = (sys.executable, "-c", MINDSPORE)
    subprocess.run(argv, input=json.dumps(jobs), text=True, check=True, timeout=120, capture_output=True)


def rows(count: int, length: int, limit: int = 40_000) -> Ints:
    """``count`` rows like those of preprocessing: tokens, then padding; labels that begin with -100."""
    rng = np.random.default_rng(count)
    values = np.zeros((count, 2, length), dtype=np.int32)
    values[:, 1] = -100
    for row in values:
        used = int(rng.integers(2, length + 1))
        row[0, :used] = rng.integers(0, limit, used)
        row[1, used // 2 : used] = row[0, used // 2 : used]
    return values


@pytest.mark.mindspore
def test_files_are_those_of_mindspore(tmp_path: Path) -> None:
    values = rows(50, 37)
    values[0, 0, : len(EDGES)] = EDGES
    np.save(tmp_path / "values.npy", values)
    (tmp_path / "theirs").mkdir()
    theirs, ours, many = (
        tmp_path / "theirs" / "a.mindrecord",
        tmp_path / "a.mindrecord",
        tmp_path / "b.mindrecord",
    )
    write_mindrecord(ours, [values[:20], values[20:]], row_length=37)
    # Small pages, so that 7,000 rows need several raw pages (13 bytes a row) as well.
    manifold = rows(7000, 37)
    writer = ShardWriter(many, row_length=37, least_page=1 << 15)
    for start in range(0, 7000, 900):
        packed = pack_rows(manifold[start : start + 900])
        writer.append(memoryview(packed.data), packed.sizes, packed.saved_bytes)
    writer.finish([many.name], 0)
    mindspore(
        {
            "do": "write",
            "path": str(theirs),
            "values": str(tmp_path / "values.npy"),
            "header": HEADER_BYTES,
            "page": PAGE_BYTES,
        },
        {"do": "read", "path": str(ours), "values": str(tmp_path / "ours.npy")},
        {"do": "read", "path": str(many), "values": str(tmp_path / "many.npy")},
    )
    assert theirs.read_bytes() == ours.read_bytes()
    assert np.array_equal(np.load(tmp_path / "ours.npy"), values)
    assert np.array_equal(np.load(tmp_path / "many.npy"), manifold)
    pages = (read_header(many) or {})["page"]
    assert sum(page["page_type"] == "RAW_DATA" for page in pages) == 3
    assert header_rows(read_header(many) or {}) == 7000
    for row in (0, 3000, 6999):
        assert np.array_equal(read_row(many, row)["labels"], manifold[row, 1])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda length: st.lists(
            st.lists(
                st.sampled_from(EDGES) | st.integers(-(2**31), 2**31 - 1),
                min_size=2 * length,
                max_size=2 * length,
            ),
            min_size=1,
            max_size=5,
        )
    )
)
def test_what_is_packed_is_read_back(tmp_path_factory: pytest.TempPathFactory, numbers: list[list[int]]) -> None:
    values = np.array(numbers, dtype=np.int32).reshape(len(numbers), 2, -1)
    path = tmp_path_factory.mktemp("record") / "a.mindrecord"
    assert write_mindrecord(path, [values], row_length=values.shape[2]) == len(numbers)
    for number, row in enumerate(values):
        found = read_row(path, number)
        assert np.array_equal(found["input_ids"], row[0])
        assert np.array_equal(found["labels"], row[1])


def test_info_of_a_file_without_statistics(tmp_path: Path) -> None:
    path = tmp_path / "a.mindrecord"
    write_mindrecord(path, [rows(3, 9)], row_length=9)
    info = read_info(path)
    assert info is not None
    assert (info.rows, info.columns, info.seq_length, info.tokenizer) == (
        3,
        ("input_ids", "labels"),
        None,
        None,
    )


@pytest.mark.parametrize("content", [None, b"", b"not a MindRecord at all", (10).to_bytes(8, "little") + b"[1,2,3,4,]"])
def test_info_of_what_is_no_mindrecord(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mindrecord"
    if content is not None:
        path.write_bytes(content)
    assert read_info(path) is None
    with pytest.raises(DataError, match="not a MindRecord"):
        read_row(path, 0)


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.mindrecord"
    write_mindrecord(path, [rows(3, 9)], row_length=9)
    with pytest.raises(DataError, match="no row 3") as error:
        read_row(path, 3)
    assert error.value.hint == "it has rows 0 to 2"
    index = tmp_path / "a.mindrecord.db"
    index.write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="not the index"):
        read_row(path, 0)
    index.unlink()
    with pytest.raises(DataError, match="belong together"):
        read_row(path, 0)


def test_pages_grow_with_the_rows() -> None:
    assert page_bytes(2049) == PAGE_BYTES
    assert page_bytes(1_000_000) == 4 * PAGE_BYTES
    with pytest.raises(DataError, match="does not fit"):
        page_bytes(100_000_000)
