"""Small exams of our own in the files in which GSM8K, C-Eval, CMMLU and MMLU are published."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# question, A, B, C, D, answer; a comma, quotes and a line break, as published files have.
EXAMPLES = [
    ("How many legs has a spider?", "4", "6", "8", "10", "C"),
    ('Who says "moo"?', "a cat, mostly", "a cow", "a fish", "a stone", "B"),
]
QUESTIONS = [
    ("What is 2 + 3?", "5", "6", "7", "8", "A"),
    ("Which is\nred?", "grass", "snow", "coal", "blood", "D"),
    ("Is ice cold?", "no", "yes", "never", "at noon, perhaps", "B"),
]
PROBLEMS = [
    ("Ann has 3 apples and buys 4. How many has she?", "3 + 4 = <<3+4=7>>7 apples\n#### 7"),
    ("A book costs $1,250. Two cost?", "2 * 1,250 = 2,500\n#### 2,500"),
]


def _csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def mmlu(folder: Path, subjects: Sequence[str] = ("abstract_algebra",)) -> Path:
    for subject in subjects:
        _csv(folder / "dev" / f"{subject}_dev.csv", EXAMPLES)
        _csv(folder / "val" / f"{subject}_val.csv", QUESTIONS[:1])
        _csv(folder / "test" / f"{subject}_test.csv", QUESTIONS)
    return folder


def mmlu_parquet(folder: Path, subject: str = "abstract_algebra") -> Path:
    for split, rows in (("dev", EXAMPLES), ("test", QUESTIONS)):
        records = [
            {"question": row[0], "subject": subject, "choices": list(row[1:5]), "answer": "ABCD".index(row[5])}
            for row in rows
        ]
        target = folder / subject / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(records), target)
    return folder


def ceval(folder: Path, subject: str = "computer_network") -> Path:
    head = ("id", "question", "A", "B", "C", "D", "answer")
    _csv(folder / "dev" / f"{subject}_dev.csv", [(*head, "explanation"), *_numbered(EXAMPLES, "因为")])
    _csv(folder / "val" / f"{subject}_val.csv", [head, *_numbered(QUESTIONS)])
    unanswered = [(*row[:5], "") for row in QUESTIONS]
    _csv(folder / "test" / f"{subject}_test.csv", [head, *_numbered(unanswered)])
    return folder


def cmmlu(folder: Path, subject: str = "agronomy") -> Path:
    head = ("", "Question", "A", "B", "C", "D", "Answer")
    for split, rows in (("dev", EXAMPLES), ("test", QUESTIONS)):
        _csv(folder / split / f"{subject}.csv", [head, *_numbered(rows)])
    return folder


def _numbered(rows: Sequence[Sequence[str]], *more: str) -> list[tuple[str, ...]]:
    return [(str(number), *row, *more) for number, row in enumerate(rows)]


def gsm8k(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", PROBLEMS[:1]), ("test", PROBLEMS)):
        lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder
