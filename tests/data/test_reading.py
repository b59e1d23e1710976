"""Every format and encoding by a file that its own library wrote, and broken rows named by file, row and column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from support.data_tools import launcher

from launcher.data.convert import convert, read_conversations
from launcher.data.encodings import find_encoding
from launcher.data.files import find_files
from launcher.data.reading import DataSource, Reading
from launcher.errors import DataError

ROWS = [
    {
        "question": f'第{n}题："1，{n}"\n怎么算？ "a", b',
        "answer": f"{n};\t'{n}'",
        "score": n / 2,
        "system": "" if n % 3 else "简短",
    }
    for n in range(50)
]
TABLE = pyarrow.Table.from_pylist(ROWS)
CHINESE = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]


def write_csv(path: Path, encoding: str = "utf-8", delimiter: str = ",", rows: list[dict[str, Any]] = ROWS) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd").compress(data, asbytes=True)
    return packed


def write_packed(path: Path) -> None:
    write_csv(path)
    path.write_bytes(zstd(path.read_bytes()))


def write_pandas(path: Path) -> None:
    import pandas

    pandas.DataFrame(ROWS).to_csv(path, index=False)


def write_stream(path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=7)


def write_feather(path: Path) -> None:
    import pyarrow.feather

    pyarrow.feather.write_feather(TABLE, path, compression="zstd")


def lines(rows: list[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1), "utf-8"),
    "a.jsonl": lambda path: path.write_text(lines(), "utf-8"),
    "a.ndjson": lambda path: path.write_text(lines(), "utf-8-sig"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines().encode())),
    "a.jsonl.zst": lambda path: path.write_bytes(zstd(lines().encode())),
    "utf16.jsonl": lambda path: path.write_text(lines(), "utf-16"),
    "utf16be.json": lambda path: path.write_bytes(json.dumps(ROWS, ensure_ascii=False).encode("utf-16-be")),
    "gbk.jsonl": lambda path: path.write_text(lines(), "gbk"),
    "gb.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines().encode("gb18030"))),
    "a.csv": write_csv,
    "pandas.csv": write_pandas,
    "arrow.csv": lambda path: pyarrow.csv.write_csv(TABLE, path),
    "bom.csv": lambda path: write_csv(path, "utf-8-sig"),
    "gb.csv": lambda path: write_csv(path, "gb18030", ";"),
    "utf16.csv": lambda path: write_csv(path, "utf-16"),
    "a.csv.zst": write_packed,
    "a.tsv": lambda path: write_csv(path, delimiter="\t"),
    "a.parquet": lambda path: pyarrow.parquet.write_table(TABLE, path, row_group_size=9),
    "b.parquet": lambda path: pyarrow.parquet.write_table(TABLE, path, compression="gzip", use_dictionary=False),
    "a.arrow": write_stream,
    "a.feather": write_feather,
    "parquet-without-a-suffix": lambda path: pyarrow.parquet.write_table(TABLE, path),
}


def said(given: Any) -> list[list[tuple[str, str]]]:
    return [[(message.role, message.content) for message in one.messages] for one in read_conversations(given)]


EXPECTED = [
    [*([("system", row["system"])] if row["system"] else []), ("user", row["question"]), ("assistant", row["answer"])]
    for row in ROWS
]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_conversations(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert said(tmp_path / name) == EXPECTED
    done = convert(tmp_path / name, tmp_path / "out.json", force=False)
    assert done.kinds == {"question/answer": 50}
    assert list(done.seen.read) == ["question", "answer", "system"]
    assert list(done.seen.unread) == ["score"]
    notes = "".join(done.notes)
    assert ("GB18030" in notes, "UTF-16" in notes) == ("gb" in name, "utf16" in name)


@pytest.mark.slow
def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    """Hugging Face's own library writes it, in a process of its own: importing it takes a second."""
    script = (
        "import sys, json; from datasets import Dataset, DatasetDict\n"
        "rows = json.load(sys.stdin)\n"
        "Dataset.from_list(rows).save_to_disk('one', num_shards=3)\n"
        "DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:2])).save_to_disk('two')\n"
    )
    argv = [sys.executable, "-c", script]
    subprocess.run(argv, input=json.dumps(ROWS), text=True, check=True, cwd=tmp_path, timeout=120, capture_output=True)
    assert said(tmp_path / "one") == EXPECTED
    found = find_files([DataSource(path=str(tmp_path / "two"))])
    assert said(tmp_path / "two") == EXPECTED
    assert found.notes == (f"{tmp_path / 'two'}: only train is read; left out: test",)
    assert len(said(tmp_path / "two" / "test")) == 2


def test_folders_patterns_and_several_files(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    for number in range(3):
        pyarrow.parquet.write_table(TABLE, data / f"train-0000{number}-of-00003.parquet")
    pyarrow.parquet.write_table(TABLE, data / "test-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("card")
    (tmp_path / "hub" / ".git").mkdir()
    (tmp_path / "hub" / ".git" / "x.json").write_text("{}")
    found = find_files([DataSource(path=str(tmp_path / "hub"))])
    assert [file.path.name[:11] for file in found.files] == ["train-00000", "train-00001", "train-00002"]
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "not read: README.md",
        "only train is read; left out: test-00000-of-00001.parquet",
    ]
    write_csv(tmp_path / "b.csv")
    several = (DataSource(path=str(data / "tr*-0000[01]*.parquet")), DataSource(path=str(tmp_path / "b.csv")))
    assert said(several) == EXPECTED * 3
    ids = [one.id for one in read_conversations(several)]
    assert len(set(ids)) == len(ids)
    assert said((DataSource(path=str(tmp_path / "**" / "test*.parquet")),)) == EXPECTED


@pytest.mark.parametrize(
    ("name", "data", "message", "hint"),
    [
        ("a.xlsx", b"PK\x03\x04", "a.xlsx is a spreadsheet", "save the sheet as CSV"),
        ("renamed.csv", b"PK\x03\x04", "renamed.csv is an archive", "unpack"),
        ("old.xls", b"\xd0\xcf\x11\xe0", "is a spreadsheet", "CSV"),
        ("a.pkl", b"\x80\x04", "a pickle can run any code", "parquet"),
        ("a.zip", b"PK", "is an archive", "unpack"),
        ("a.json.xz", b"\xfd7zXZ", "is compressed in a way that is not read", ".gz"),
        ("a.mindrecord", b"x", "tokenized already", "records that it was made of"),
        ("notes", b"hello", "neither JSON nor of a kind", "--input-format csv"),
        ("a.txt", b"hello", "neither JSON nor of a kind", "--type text"),
        ("a.csv", b"", "a.csv is empty", ""),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: the header names 'a' twice", "--csv-header"),
        ("a.parquet", b"PAR1 and no end", "cannot read .*a.parquet: ", "downloaded whole"),
        ("a.arrow", b"ARROW1\0\0 and no end", "cannot read .*a.arrow: ", "downloaded whole"),
        ("a.jsonl.zst", zstd(lines().encode())[:-20], "cannot read .*Truncated", ""),
        (
            "a.jsonl",
            '{"question": "é", "answer": "à"}\n'.encode("latin-1") * 9,
            "neither UTF-8 nor",
            "--encoding latin-1",
        ),
        ("a.jsonl", "請問一加一等於多少呢\n".encode("big5") * 9, "neither", "big5"),
        ("empty.parquet", b"", "cannot read .*empty.parquet", "downloaded whole"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, name: str, data: bytes, message: str, hint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        said(tmp_path / name)
    assert hint in error.value.hint


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "splits").mkdir()
    for name in ("test.jsonl", "dev.jsonl"):
        (tmp_path / "splits" / name).write_text(lines())
    for path, message in (
        ("empty", "holds no data: it is empty"),
        ("no/*.json", "no file matches"),
        ("no.json", "cannot read .*No such file"),
        ("splits", "has splits dev, test and none named train"),
    ):
        with pytest.raises(DataError, match=message):
            said((DataSource(path=str(tmp_path / path)),))


BROKEN: list[dict[str, Any]] = [
    {"question": "q", "answer": "a"},
    {"question": "q", "answer": None},
    {"question": "q", "answer": "b"},
]
NULL = pyarrow.Table.from_pylist(BROKEN)
NOT_UTF8 = pyarrow.table(
    {
        "question": ["q", "q", "q"],
        "answer": pyarrow.array([b"a", b"\xff\xfe", b"b"], pyarrow.binary()).view(pyarrow.string()),
    }
)
GBK, GOOD = "问,答\n".encode("gbk"), "问,答\n".encode()
HEAD = b"question,answer\n"


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.json", json.dumps(BROKEN, indent=1).encode(), ":6", "answer: the answer is null"),
        ("a.jsonl", lines(BROKEN).encode(), ":2", "answer: the answer is null"),
        ("a.csv", HEAD + b"q,a\nq,\nq,b\n", ":3 (row 2)", "answer: the answer is empty"),
        ("more.csv", HEAD + b"q,a\nq,a,b\nq,b\n", ":3 (row 2)", "3 fields, and the header has 2 (question, answer)"),
        ("quote.csv", HEAD + b'"q\nr",a\n"q"r,a\nq,b\n', ":4 (row 2)", "expected after"),
        ("open.csv", HEAD + b'q,a\nq,b\nq,"a\nq,b\n', ":4 (row 3)", "a quote that opens in this row is never closed"),
        (
            "gb.csv",
            HEAD + GBK + GBK[:-1] + b"\xff\n" + GBK,
            ":3 (row 2)",
            "answer: a byte at column 2 means nothing in",
        ),
        ("u8.csv", HEAD + GOOD + GBK + GOOD, ":3 (row 2)", "question: a byte at column 1 means nothing in"),
        ("a.tsv", b"question\tanswer\nq\ta\nq\nq\tb\n", ":3 (row 2)", "1 fields, and the header has 2"),
        ("a.parquet", NULL, ": row 2", "answer: the answer is null"),
        ("u.parquet", NOT_UTF8, ": row 2", "answer: not UTF-8"),
        ("u.arrow", NOT_UTF8, ": row 2", "answer: not UTF-8"),
    ],
)
def test_broken_rows_name_file_row_and_column(
    tmp_path: Path, name: str, content: bytes | pyarrow.Table, place: str, reason: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (pyarrow.parquet.write_table if name.endswith("parquet") else write_table)(content, path)
    with pytest.raises(DataError) as error:
        convert(path, tmp_path / "out.json", force=False)
    assert error.value.message.startswith(f"{path}{place}: ")
    assert reason in error.value.message
    done = convert(path, tmp_path / "out.json", force=False, max_rejects=1)
    assert (done.conversations, done.rejected) == (2, 1)
    kept = json.loads((tmp_path / "out.json.rejects.jsonl").read_text("utf-8"))
    assert reason in kept["reason"]


def write_table(table: pyarrow.Table, path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def test_a_parquet_that_is_broken_in_the_middle_names_the_row_before(tmp_path: Path) -> None:
    rows = [{"question": f"q{n} {n * 7919 % 1000003}" * 40, "answer": "a"} for n in range(9000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3000, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = b"\xee" * 4096
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet: after row [1-9][0-9,]*: "):
        said(path)


@pytest.mark.parametrize(
    ("reading", "data"),
    [
        (Reading(header=("question", "answer")), "q,a\nr,b\n"),
        (Reading(quotes=False), "question,answer\nq,a\nr,b\n"),
        (Reading(format="tsv"), "question\tanswer\nq\ta\nr\tb\n"),
        (Reading(columns={"question": "问", "answer": "答"}), "问,答,数\nq,a,1\nr,b,2\n"),
        (Reading(columns={"question": "问", "answer": "答"}, ignore=("类",)), "问,答,类\nq,a,x\nr,b,y\n"),
        (Reading(ignore=("*",)), "question,answer,x,y\nq,a,x,y\nr,b,x,y\n"),
    ],
)
def test_what_is_said_about_a_csv_counts(tmp_path: Path, reading: Reading, data: str) -> None:
    (tmp_path / "a.csv").write_text(data, "utf-8")
    found = said((DataSource(path=str(tmp_path / "a.csv"), reading=reading),))
    assert found == [[("user", "q"), ("assistant", "a")], [("user", "r"), ("assistant", "b")]]


def test_quotes_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('question\tanswer\n"5" disk\tyes "\n', "utf-8")
    with pytest.raises(DataError, match=r"a\.tsv:2") as error:
        said(tmp_path / "a.tsv")
    assert "--csv-quotes none" in error.value.hint
    source = DataSource(path=str(tmp_path / "a.tsv"), reading=Reading(quotes=False))
    assert said((source,)) == [[("user", '"5" disk'), ("assistant", 'yes "')]]


def test_encodings_are_told_apart() -> None:
    text = "题目：小明有三个苹果，又买了五个。\n答案：八个\n" * 3
    for encoding, found in (("utf-8", "UTF-8"), ("gb18030", "GB18030"), ("gbk", "GB18030"), ("utf-16", "UTF-16")):
        assert find_encoding(text.encode(encoding)) == found
    assert find_encoding("é à ü\n".encode("latin-1") * 9) is None
    assert find_encoding("請問臺灣的體積\n".encode("big5") * 9) is None
    assert find_encoding("どこですか、東京タワー\n".encode("shift_jis") * 9) is None
    # One broken line among good ones is that line's fault.
    assert find_encoding(text.encode() + b"\xff\n") == "UTF-8"
    assert find_encoding(text.encode()[:-2]) == "UTF-8"
    assert find_encoding(b'{"a": "x"}\n' * 9 + b'{"a": "\xff"}\n') == "UTF-8"


def test_a_line_in_another_encoding_is_named_with_it(tmp_path: Path) -> None:
    good = (json.dumps(CHINESE[0], ensure_ascii=False) + "\n").encode()
    (tmp_path / "a.jsonl").write_bytes(good * 3 + '{"question": "一加一是多少", "answer": "二"}\n'.encode("gbk"))
    with pytest.raises(DataError, match=r"a\.jsonl:4: not JSON: .* is not UTF-8; it would be GB18030"):
        said(tmp_path / "a.jsonl")


@pytest.mark.slow
def test_the_command_reads_standard_input_and_says_what_it_found(tmp_path: Path) -> None:
    write_csv(tmp_path / "gb.csv", "gb18030", ";", CHINESE)
    printed = launcher("data", "convert", "gb.csv", "-o", "a.json", cwd=tmp_path)
    assert "found: 50 question/answer" in printed
    assert "gb.csv: read as GB18030, fields end with a semicolon\n  read: question, answer" in printed
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CHINESE), buffer)
    argv = [sys.executable, "-m", "launcher", "data", "convert", "-", "-o", "a.json"]
    done = subprocess.run(argv, input=buffer.getvalue(), cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().startswith("unchanged a.json: 50 conversations from standard input")
    argv = [sys.executable, "-m", "launcher", "data", "preprocess", "-", "--resume"]
    done = subprocess.run(argv, input=b"{}", cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "cannot read standard input again" in done.stderr.decode()


@pytest.mark.parametrize("extra", [".jsonl", ".parquet", ".csv"])
def test_pyarrow_is_imported_only_for_its_files(tmp_path: Path, extra: str) -> None:
    WRITERS[f"a{extra}"](tmp_path / f"a{extra}")
    script = (
        "import sys; from pathlib import Path; from launcher.data.convert import read_conversations\n"
        f"list(read_conversations(Path('a{extra}'))); print('pyarrow' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [str(extra == ".parquet"), "False"]
