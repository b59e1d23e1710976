"""Published exams in their own files: found by shape, split by split, and refused with file, row and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import exam_files
from support.exam_files import QUESTIONS

from launcher.data.exams import Exam, find_exam
from launcher.errors import DataError


def found(path: Path, name: str | None = None, limit: int | None = None) -> Exam:
    exam = find_exam(path, name, limit)
    assert exam is not None
    return exam


@pytest.mark.parametrize(
    ("make", "name", "split"),
    [
        (exam_files.mmlu, "mmlu", "test"),
        (exam_files.mmlu_parquet, "mmlu", "test"),
        (exam_files.ceval, "ceval", "val"),
        (exam_files.cmmlu, "cmmlu", "test"),
    ],
)
def test_a_folder_is_known_by_its_shape(tmp_path: Path, make: Callable[[Path], Path], name: str, split: str) -> None:
    exam = found(make(tmp_path / "exam"))
    (subject,) = exam.subjects
    assert (exam.format.name, exam.split) == (name, split)
    assert [(one.question, *one.choices, one.answer) for one in exam.entries] == QUESTIONS
    assert [one.answer for one in exam.examples[subject]] == ["C", "B"]
    assert len({one.id for one in exam.entries}) == 3
    assert "has the shape of" in exam.notes[0]
    assert found(tmp_path / "exam", name).notes[:1] != exam.notes[:1]


def test_gsm8k(tmp_path: Path) -> None:
    exam = found(exam_files.gsm8k(tmp_path))
    assert (exam.format.name, exam.split, exam.subjects) == ("gsm8k", "test", ("",))
    assert [(one.question, one.answer) for one in exam.entries] == exam_files.PROBLEMS
    assert len(exam.examples[""]) == 1


def test_a_file_and_a_split_alone_have_their_examples_beside_them(tmp_path: Path) -> None:
    root = exam_files.mmlu(tmp_path, ("abstract_algebra", "test_making"))
    one = found(root / "test" / "test_making_test.csv")
    assert (one.subjects, len(one.entries), len(one.examples["test_making"])) == (("test_making",), 3, 2)
    val = found(root / "val")
    assert (val.split, len(val.entries), len(val.examples)) == ("val", 2, 2)
    assert found(root, limit=1).entries[1].subject == "test_making"
    # Examples are never shown before themselves.
    assert found(root / "dev").examples == {}
    whole = found(root)
    assert any("left out: val" in note for note in whole.notes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "question,answer\n1,2\n"),
        ("a.csv", "question,A,B,C,D,answer\nq,1,2,3,4,A\n"),
        ("a.jsonl", json.dumps({"question": "q", "answer": "7"}) + "\n"),
        ("a.jsonl", "no JSON\n"),
        ("a.jsonl", ""),
        ("a.txt", "q\n"),
    ],
)
def test_what_has_no_shape_of_an_exam_is_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert find_exam(tmp_path / name) is None


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_wrong_record_is_named_by_file_row_and_column(tmp_path: Path) -> None:
    file = edited(exam_files.mmlu(tmp_path) / "test" / "abstract_algebra_test.csv", 'noon, perhaps",B', 'noon",E')
    with pytest.raises(
        DataError, match=r"abstract_algebra_test.csv:4 \(row 3\): column answer: 'E' is none of A, B, C"
    ):
        find_exam(tmp_path)
    edited(file, "What is 2 + 3?,5", "What is 2 + 3?,5,5")
    with pytest.raises(DataError, match=r"test.csv:1 \(row 1\): 7 fields, and the header has 6"):
        find_exam(tmp_path, "mmlu")


def test_a_split_without_answers_says_which_has_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"_test.csv:2 \(row 1\): column answer: it is empty") as caught:
        find_exam(exam_files.ceval(tmp_path) / "test")
    assert "ask its val split" in str(caught.value.hint)


def test_an_exam_that_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column Question: there is none; the columns are 'id', 'question'"):
        find_exam(exam_files.ceval(tmp_path), "cmmlu")
    with pytest.raises(DataError, match="does not exist"):
        find_exam(tmp_path / "no", "mmlu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no csv, parquet or jsonl"):
        find_exam(tmp_path / "empty", "mmlu")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"question": "q", "answer": "seven"}, "column answer: 'seven' does not end with #### and a number"),
        ({"question": " ", "answer": "#### 7"}, "column question: it is empty"),
        ({"question": 3, "answer": "#### 7"}, "column question: 3 is no text"),
        (["q"], "the record is no object"),
    ],
)
def test_wrong_lines_of_gsm8k(tmp_path: Path, record: object, fault: str) -> None:
    file = exam_files.gsm8k(tmp_path) / "test.jsonl"
    file.write_text(file.read_text() + (json.dumps(record) + "\n") * 7)
    with pytest.raises(DataError) as caught:
        find_exam(file)
    assert f"test.jsonl:3: {fault}" in str(caught.value)
    assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [("choices", ["a", "b"], "is no list of four texts"), ("answer", 4, "4 is no number from 0 to 3")],
)
def test_wrong_rows_of_parquet(tmp_path: Path, column: str, value: object, fault: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = {"question": "q", "subject": "s", "choices": list("abcd"), "answer": 1}
    pq.write_table(pa.Table.from_pylist([good, {**good, column: value}]), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=f"test.parquet: row 2: column {column}: .*{fault}"):
        find_exam(tmp_path / "test.parquet")
