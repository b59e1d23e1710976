"""Read GSM8K, C-Eval, CMMLU and MMLU in the files in which they are published; the files are the user's.

GSM8K   train.jsonl, test.jsonl (github.com/openai/grade-school-math), or parquet as on Hugging Face
C-Eval  dev/SUBJECT_dev.csv, val/SUBJECT_val.csv, test/SUBJECT_test.csv (ceval-exam.zip), or parquet
CMMLU   dev/SUBJECT.csv, test/SUBJECT.csv (cmmlu_v1_0_1.zip)
MMLU    dev/SUBJECT_dev.csv, val/..., test/..., without a header (github.com/hendrycks/test), or parquet
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from launcher.data.files import InputFile, find_files
from launcher.data.parsing import parse
from launcher.data.reading import DataSource, Reading
from launcher.data.records import Record, Reject
from launcher.data.sources import Sources
from launcher.errors import DataError

LETTERS = "ABCD"
ANSWER_MARK = "####"

_SUFFIXES = (".csv", ".parquet", ".jsonl")
_SPLIT = r"(train|dev|val|validation|test)"
_WHOLE_STEM = re.compile(rf"{_SPLIT}(?:-\d+-of-\d+)?")
_END_OF_STEM = re.compile(rf"(.+)_{_SPLIT}")
_FINAL = re.compile(rf"{ANSWER_MARK}\s*-?[$]?[\d.]")
_SHOWN_FAULTS = 5

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One question. ``choices``: the texts of A, B, C and D, none in GSM8K. ``answer``: a letter, or the working."""

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: str


class _Fault(Exception):
    """A record is none of the exam. ``hint``: what to do, if known."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class Format:
    """How an exam is published. ``splits``: those to ask, the preferred first. ``examples``: the split that examples
    are of. ``header``: the columns of csv files without one. ``parts``: question, choices and answer of a record."""

    name: str
    title: str
    splits: tuple[str, ...]
    examples: str
    parts: Callable[[Values], tuple[str, tuple[str, ...], str]]
    header: tuple[str, ...] = ()

    @property
    def has_letters(self) -> bool:
        return self.name != "gsm8k"


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions of one split, and the examples that go before them, by subject."""

    format: Format
    path: str
    split: str
    entries: tuple[Entry, ...]
    examples: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.subject for entry in self.entries))


# ------------------------------------------------------------------------------------------------ records


def _text(values: Values, column: str) -> str:
    if column not in values:
        _refuse(column, f"there is none; the columns are {', '.join(map(repr, values))}"[:300])
    found = values[column]
    if not isinstance(found, str):
        _refuse(column, f"{found!r} is no text")
    return str(found).strip()


def _asked(values: Values, column: str) -> str:
    found = _text(values, column)
    return found if found else _refuse(column, "it is empty")


def _refuse(column: str, reason: str, hint: str = "") -> NoReturn:
    raise _Fault(f"column {column}: {reason}", hint)


def _letter(values: Values, column: str) -> str:
    found = _text(values, column)
    if not found:
        hint = "answers of C-Eval's test split are not published: ask its val split"
        _refuse(column, "it is empty, so that no answer can be called right", hint)
    return found if found in tuple(LETTERS) else _refuse(column, f"{found[:40]!r} is none of A, B, C and D")


def _lettered(question: str, answer: str) -> Callable[[Values], tuple[str, tuple[str, ...], str]]:
    """Return the reader of records with a column for each of A, B, C and D."""
    return lambda values: (
        _asked(values, question),
        tuple(_text(values, letter) for letter in LETTERS),
        _letter(values, answer),
    )


_MMLU_COLUMNS = _lettered("question", "answer")


def _mmlu(values: Values) -> tuple[str, tuple[str, ...], str]:
    if "choices" not in values:
        return _MMLU_COLUMNS(values)
    choices, answer = values["choices"], values.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) != len(LETTERS)
        or not all(isinstance(one, str) for one in choices)
    ):
        _refuse("choices", f"{str(choices)[:80]} is no list of four texts")
    if not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
        _refuse("answer", f"{answer!r} is no number from 0 to 3")
    return _asked(values, "question"), tuple(one.strip() for one in choices), LETTERS[answer]


def _gsm8k(values: Values) -> tuple[str, tuple[str, ...], str]:
    answer = _text(values, "answer")
    if not _FINAL.search(answer):
        _refuse("answer", f"{answer[-40:]!r} does not end with {ANSWER_MARK} and a number")
    return _asked(values, "question"), (), answer


FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        Format(name="gsm8k", title="GSM8K", splits=("test", "train"), examples="train", parts=_gsm8k),
        Format(
            name="ceval", title="C-Eval", splits=("val", "test", "dev"), examples="dev",
            parts=_lettered("question", "answer"),
        ),
        Format(
            name="cmmlu", title="CMMLU", splits=("test", "dev"), examples="dev",
            parts=_lettered("Question", "Answer"),
        ),
        Format(
            name="mmlu", title="MMLU", splits=("test", "val", "validation", "dev"), examples="dev", parts=_mmlu,
            header=("question", *LETTERS, "answer"),
        ),
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ files


def find_exam(path: Path, name: str | None = None, limit: int | None = None) -> Exam | None:
    """Read the exam in the file or folder ``path``: ``name``, or what its shape says; None when that says nothing.

    Of a folder the split with published answers is asked. ``limit``: the first questions of each subject. Raises
    DataError, naming file, row and column, for a record that is none of the exam.
    """
    files = _files(path)
    found = name or (_shape(files[0]) if files else None)
    if found is None:
        return None
    if not files:
        what = "holds no csv, parquet or jsonl" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}", hint=f"give the folder that {found} was unpacked to")
    known = FORMATS[found]
    split, asked, notes = _chosen(path, files, known)
    entries = [entry for file in asked for entry in _first(_entries(file, known), limit)]
    examples = [entry for file in asked for entry in _examples(file, split, known)]
    if not name:
        notes = (f"{path} has the shape of {known.title}; --exam none reads it as any other file", *notes)
    return Exam(
        format=known, path=str(path), split=split, entries=_named_apart(entries), examples=_by_subject(examples),
        notes=notes,
    )  # fmt: skip


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.suffix in _SUFFIXES and path.is_file() else []
    found = (file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    return sorted(
        file for file in found if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    )


def split_of(file: Path) -> str:
    """Return the split that a file's name says, or that of its folder; "" where neither does."""
    whole, end = _WHOLE_STEM.fullmatch(file.stem), _END_OF_STEM.fullmatch(file.stem)
    found = whole[1] if whole else end[2] if end else file.parent.name
    return found if re.fullmatch(_SPLIT, found) else ""


def _subject(file: Path) -> str:
    end = _END_OF_STEM.fullmatch(file.stem)
    return file.parent.name if _WHOLE_STEM.fullmatch(file.stem) else end[1] if end else file.stem


def _chosen(path: Path, files: Sequence[Path], known: Format) -> tuple[str, list[Path], tuple[str, ...]]:
    """Return the split to ask, its files, and what is left out."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file), []).append(file)
    split = next((one for one in known.splits if one in by_split), next(iter(by_split)))
    asked = by_split.pop(split)
    # On Hugging Face a folder "all" holds what the others hold.
    several = [file for file in asked if file.parent.name != "all"] or asked
    left = sorted(one for one in by_split if one not in ("", known.examples))
    notes = [f"{path}: {split} is asked; left out: {', '.join(left)}"] if left else []
    notes += [f"{path}: all/ is left out, as the subjects are there"] if len(several) < len(asked) else []
    return split, several, tuple(notes)


def _examples(file: Path, split: str, known: Format) -> list[Entry]:
    """Return the examples that are published beside ``file``."""
    if split in ("", known.examples):
        return []
    name = re.sub(rf"(^|_){split}(?=[-.])", rf"\g<1>{known.examples}", file.name)
    places = (file.with_name(name), file.parents[1] / known.examples / name)
    beside = next((place for place in places if place != file and place.is_file()), None)
    return [] if beside is None else list(_entries(beside, known))


def _first(entries: Iterator[Entry], limit: int | None) -> Iterator[Entry]:
    return entries if limit is None else islice(entries, limit)


def _by_subject(entries: Sequence[Entry]) -> dict[str, tuple[Entry, ...]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.subject, []).append(entry)
    return {subject: tuple(some) for subject, some in found.items()}


def _named_apart(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return ``entries`` with ids that no two share."""
    ids = [entry.id for entry in entries]
    if len(set(ids)) == len(ids):
        return tuple(entries)
    return tuple(replace(entry, id=f"{entry.id}#{number}") for number, entry in enumerate(entries, 1))


def _input(file: Path, known: Format | None) -> InputFile:
    header = known.header if known and file.suffix == ".csv" else ()
    return find_files([DataSource(path=str(file), reading=Reading(header=header))]).files[0]


def _entries(file: Path, known: Format) -> Iterator[Entry]:
    """Yield the questions of a file. Raises DataError with its first faults, once it is read."""
    given, faults = _input(file, known), []
    for chunk in Sources([given]).chunks():
        for item in parse(chunk):
            try:
                yield _entry(item, known, file)
            except _Fault as error:
                faults.append((f"  {given.place(item.number, item.line)}: {error}", error.hint))
    if faults:
        more = [f"  and {len(faults) - _SHOWN_FAULTS} more"] if len(faults) > _SHOWN_FAULTS else []
        shown = [where for where, _ in faults[:_SHOWN_FAULTS]]
        hint = next((hint for _, hint in faults if hint), "")
        raise DataError(
            "\n".join([f"{file} is not {known.title} as it is published:", *shown, *more]),
            hint=hint or "was it edited? --exam none reads it as any other file, --exam NAME as another exam",
        )


def _entry(item: Record | Reject, known: Format, file: Path) -> Entry:
    if isinstance(item, Reject):
        raise _Fault(item.reason, item.hint)
    if not isinstance(item.value, dict):
        raise _Fault(f"the record is no object: {str(item.value)[:40]}")
    question, choices, answer = known.parts(item.value)
    # GSM8K has no subjects; on Hugging Face a column may name them.
    subject = str(item.value.get("subject") or _subject(file)) if known.has_letters else ""
    number = item.value.get("id", item.number)
    return Entry(
        id=f"{subject}/{number}".lstrip("/"), subject=subject, question=question, choices=choices, answer=answer
    )


# ------------------------------------------------------------------------------------------------ shapes


def _shape(file: Path) -> str | None:
    """Return the exam that the first record of ``file`` is of; None when it is of none."""
    try:
        return _shape_of_csv(file) if file.suffix == ".csv" else _shape_of_record(_first_record(file))
    except (DataError, OSError):
        return None  # whoever reads it says what is wrong with it


def _shape_of_csv(file: Path) -> str | None:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        first = next(csv.reader(lines), [])
    if {"id", "question", *LETTERS, "answer"} <= set(first):
        return "ceval"
    if {"Question", *LETTERS, "Answer"} <= set(first):
        return "cmmlu"
    is_mmlu = len(first) == len(FORMATS["mmlu"].header) and first[-1] in tuple(LETTERS) and "question" not in first
    return "mmlu" if is_mmlu else None


def _first_record(file: Path) -> Values:
    chunk = next(Sources([_input(file, None)]).chunks())
    item = next(iter(parse(chunk)))
    return item.value if isinstance(item, Record) and isinstance(item.value, dict) else {}


def _shape_of_record(values: Values) -> str | None:
    if {"question", "choices", "answer"} <= values.keys() and isinstance(values["choices"], list):
        return "mmlu"
    if {"id", "question", *LETTERS, "answer"} <= values.keys():
        return "ceval"
    if {"Question", *LETTERS, "Answer"} <= values.keys():
        return "cmmlu"
    is_gsm8k = values.keys() == {"question", "answer"} and _FINAL.search(str(values["answer"]))
    return "gsm8k" if is_gsm8k else None
