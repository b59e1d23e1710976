"""Find the files of a source (a file, a folder, a pattern) and tell what each of them is.

In a folder the files are those whose names or first bytes are known, sorted by name, in folders below it too. Where
names tell the splits of a dataset apart (train, validation, test), only those of train are read.
"""

from __future__ import annotations

import glob
import json
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.common.nearest import path_hint
from launcher.data.compression import uncompressed_name
from launcher.data.reading import DataSource, FileFormat, Reading
from launcher.errors import DataError

_BY_SUFFIX: dict[str, FileFormat] = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
    ".txt": "text", ".md": "text",
}  # fmt: skip
_BY_MAGIC: tuple[tuple[bytes, FileFormat], ...] = (
    (b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow"),
)  # fmt: skip
_SPREADSHEET = "is a spreadsheet, which holds formulas and layout beside the data"
_SAVE_AS_CSV = "save the sheet as CSV (UTF-8) and name that, or in Python: pandas.read_excel(...).to_parquet(...)"
_UNPACK = "unpack it first, and name the folder"
_BY_SUFFIX_REFUSED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), (_SPREADSHEET, _SAVE_AS_CSV)),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), ("is an archive", _UNPACK)),
    **dict.fromkeys(
        (".bz2", ".xz", ".lz4"), ("is compressed in a way that is not read", "unpack it, or use .gz or .zst")
    ),
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".npy"), ("is not read: a pickle can run any code", "save it as parquet")
    ),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), ("is a database", "export the table as csv")),
    ".mindrecord": ("holds rows that are tokenized already", "give the records that it was made of"),
}
_BY_MAGIC_REFUSED = (
    (b"PK\x03\x04", ".zip"),
    (b"\xd0\xcf\x11\xe0", ".xls"),
    (b"SQLite format", ".db"),
    (b"BZh", ".bz2"),
    (b"\xfd7zXZ", ".xz"),
)
# What lies beside the data in the folders of Hugging Face and is no data.
_BESIDE = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_SPLIT = re.compile(r"(?:^|[-_./])(train|training|validation|valid|val|dev|test|eval)(?:[-_./0-9]|$)", re.IGNORECASE)
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file to read. ``shown``: its name in what is said; ``source``: which source it belongs to, from 0."""

    path: Path
    shown: str
    source: int
    format: FileFormat
    reading: Reading

    def place(self, number: int, line: int) -> str:
        """Return where in the file the record ``number`` from 0 is, which begins on ``line``."""
        if self.format in ("parquet", "arrow"):
            return f"{self.shown}: row {line}"
        return f"{self.shown}:{line} (row {number + 1})" if self.format in ("csv", "tsv") else f"{self.shown}:{line}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files of all sources in order, and notes on what was passed over."""

    files: tuple[InputFile, ...]
    notes: tuple[str, ...]

    @property
    def shown(self) -> str:
        """Return the names of the files."""
        return _some([Path(file.shown) for file in self.files]) if len(self.files) > 1 else self.files[0].shown

    @property
    def text_bytes(self) -> int:
        """Return about how many bytes of text the files hold, which is more than the size of those that are packed."""
        return sum(_text_bytes(file) for file in self.files if file.path.is_file())


def find_files(sources: Sequence[DataSource], *, text: bool = False) -> Found:
    """Return the files of ``sources``; ``text``: files whose names say nothing hold plain text.

    Raises DataError for a source without files, and for a file of a kind that is not read.
    """
    files: list[InputFile] = []
    notes: list[str] = []
    for number, source in enumerate(sources):
        paths, remarks = _paths(source.path)
        notes += remarks
        for path in paths:
            shown = source.shown or str(path)
            what = source.reading.format or _format(path, shown, text=text)
            files.append(InputFile(path=path, shown=shown, source=number, format=what, reading=source.reading))
    return Found(files=tuple(files), notes=tuple(notes))


_BYTES_A_ROW = 200
_PACKED = 4


def _text_bytes(file: InputFile) -> int:
    size = file.path.stat().st_size
    if file.format == "parquet":
        from launcher.data.tables import rows_of

        return max(size, _BYTES_A_ROW * (rows_of(file.path) or 0))
    return size if uncompressed_name(file.path.name) == file.path.name else _PACKED * size


def _paths(path: str) -> tuple[list[Path], list[str]]:
    found = Path(path)
    if found.is_dir():
        return _of_folder(found)
    if found.exists() or not glob.has_magic(path):
        return [found], []
    matches = sorted(Path(name) for name in glob.glob(path, recursive=True))  # noqa: PTH207 - patterns may be absolute
    if not matches:
        raise DataError(f"no file matches {path}", hint="a pattern in quotes is matched here: 'data/*.parquet'")
    files: list[Path] = []
    notes: list[str] = []
    for match in matches:
        more, remarks = _of_folder(match) if match.is_dir() else ([match], [])
        files += more
        notes += remarks
    return files, notes


def _of_folder(folder: Path) -> tuple[list[Path], list[str]]:
    saved = _saved(folder)
    if saved is not None:
        return saved, []
    splits = _saved_splits(folder)
    if splits:
        return _chosen_split(folder, splits)
    names = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    data = [path for path in names if _is_data(path)]
    if not data:
        raise DataError(
            f"{folder} holds no data: {_some(names) or 'it is empty'}",
            hint="json, jsonl, csv, tsv, parquet, arrow and txt are read, also as .gz and .zst",
        )
    passed = [path for path in names if path not in data and path.name not in _BESIDE]
    notes = [f"{folder}: not read: {_some(passed)}"] if passed else []
    return _of_train(folder, data, notes)


def _of_train(folder: Path, data: list[Path], notes: list[str]) -> tuple[list[Path], list[str]]:
    """Return those files of ``data`` that are not of a validation or test split, when there are splits."""
    splits: dict[str, list[Path]] = {}
    for path in data:
        match = _SPLIT.search(str(path.relative_to(folder)))
        splits.setdefault("" if match is None else match[1].lower(), []).append(path)
    train = [*splits.pop("train", []), *splits.pop("training", [])]
    rest = splits.pop("", [])
    others = [path for paths in splits.values() for path in paths]
    if not others:
        return data, notes
    if not train and not rest:
        raise DataError(f"{folder} has splits {', '.join(splits)} and none named train", hint="name the files to read")
    left = f"{folder}: only train is read; left out: {_some(others)}"
    return sorted(train or rest), [*notes, left]


def _saved(folder: Path) -> list[Path] | None:
    """Return the files of a dataset that Hugging Face's ``save_to_disk`` wrote; None for another folder."""
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        names = [str(entry["filename"]) for entry in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} is not what save_to_disk writes: {error}", hint="save the dataset again") from error
    return [folder / Path(name).name for name in names]


def _saved_splits(folder: Path) -> list[str]:
    file = folder / "dataset_dict.json"
    try:
        return [str(name) for name in json.loads(file.read_text("utf-8"))["splits"]] if file.is_file() else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not what save_to_disk writes: {error}", hint="save the dataset again") from error


def _chosen_split(folder: Path, splits: list[str]) -> tuple[list[Path], list[str]]:
    chosen = splits[0] if len(splits) == 1 else "train"
    if chosen not in splits:
        raise DataError(f"{folder} has splits {', '.join(splits)}", hint=f"name one: {folder / splits[0]}")
    others = [name for name in splits if name != chosen]
    notes = [f"{folder}: only {chosen} is read; left out: {', '.join(others)}"] if others else []
    return _of_folder(folder / chosen)[0], notes


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _is_data(path: Path) -> bool:
    suffix = Path(uncompressed_name(path.name)).suffix.lower()
    return suffix in _BY_SUFFIX and suffix != ".md" and path.name not in _BESIDE


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:_SHOWN])
    return f"{names} and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else names


def _format(path: Path, shown: str, *, text: bool) -> FileFormat:
    suffix = Path(uncompressed_name(path.name)).suffix.lower()
    start = _beginning(path, shown)
    by_magic = next((name for magic, name in _BY_MAGIC_REFUSED if start.startswith(magic)), "")
    refused = _BY_SUFFIX_REFUSED.get(suffix) or _BY_SUFFIX_REFUSED.get(by_magic)
    if refused:
        raise DataError(f"{shown} {refused[0]}", hint=refused[1])
    found = next((kind for magic, kind in _BY_MAGIC if start.startswith(magic)), _BY_SUFFIX.get(suffix))
    if found in (None, "text") and not text:
        return _json(start, shown)
    return found or "text"


def _json(start: bytes, shown: str) -> FileFormat:
    """Return "json" if a file whose name says nothing may be that. Raises DataError."""
    visible = start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")
    if visible and not visible.startswith((b"{", b"[", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        raise DataError(
            f"{shown} is neither JSON nor of a kind that its name tells",
            hint="launcher data preprocess --type text reads it as plain text; "
            "--input-format csv (tsv, json, parquet, arrow) says what it is",
        )
    return "json"


def _beginning(path: Path, shown: str) -> bytes:
    try:
        # A pipe gives its bytes once.
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror}", hint=path_hint(path)) from error
