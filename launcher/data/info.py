"""Describe a dataset on disk, without MindSpore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from launcher.common.nearest import path_hint
from launcher.data.mindrecord_header import header_columns, header_rows, least_size, read_header
from launcher.data.tokenizer import TokenizerInfo
from launcher.errors import DataError

# Counts by the names that earlier versions wrote.
_RENAMED = {"learnt_tokens": "loss_tokens", "unlearnt": "without_loss"}

# What another version of launcher wrote beside these is left unread.
_TOKENIZER = frozenset(part.name for part in fields(TokenizerInfo))


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A MindRecord dataset of one or more ``files``.

    ``rows`` are seq_length + 1 tokens long. Fields from the statistics of ``launcher data preprocess`` are None or
    empty for files of other origin: ``seq_length`` (tokens), ``template``, ``tokenizer``, ``counts``,
    ``fingerprint``, and ``stats``, the complete statistics.
    """

    path: Path
    files: tuple[Path, ...]
    rows: int
    columns: tuple[str, ...]
    seq_length: int | None = None
    template: str | None = None
    tokenizer: TokenizerInfo | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fill(self) -> float:
        """Return the part of the rows' tokens that is not padding."""
        return self.counts["tokens"] / max(self.counts["tokens"] + self.counts["padding"], 1)

    @property
    def samples_a_row(self) -> float:
        """Return how many samples a packed row holds on average."""
        left_out = self.counts.get("dropped", 0) + self.counts.get("without_loss", 0)
        return (self.counts["conversations"] - left_out) / max(self.rows, 1)


def shared_warning(counts: Mapping[str, int]) -> str:
    """Return a warning of held-out records that are in the training rows too, "" where there are none.

    ``counts``: those of the held-out rows.
    """
    if not (shared := counts.get("in_training", 0)):
        return ""
    what = f"{shared:,} of {counts['conversations']:,} held-out records are in the training rows too"
    return f"{what}: the loss on them says little. --dedup (data.dedup: true in a run spec) leaves them out"


def stats_path(dataset: Path) -> Path:
    """Return the path of the statistics that ``launcher data preprocess`` writes for ``dataset``."""
    return dataset.with_name(f"{dataset.name}.stats.json")


def no_dataset(path: Path) -> DataError:
    """Return the error for a ``path`` of which ``read_info`` knows nothing."""
    makes = "launcher data preprocess makes one"
    if path.exists():
        return DataError(f"{path} is not a MindRecord file", hint=f"{makes} of raw records")
    return DataError(f"no dataset {path}", hint=path_hint(path, makes))


def read_info(path: Path) -> DatasetInfo | None:
    """Read the description of the dataset ``path``; None when it is missing or not a MindRecord.

    A dataset of several shards is named without the number at the end of each file. Raises DataError for a file that
    is shorter than its header says.
    """
    stats = read_stats(path) or {}
    names = stats.get("files") or _shard_names(path)
    files = tuple(path.with_name(Path(name).name) for name in names)
    headers = [read_header(file) for file in files]
    if not headers or not all(headers):
        return None
    for file, header in zip(files, headers, strict=True):
        _check_whole(file, header or {})
    rows = sum(header_rows(header) for header in headers if header)
    known = _known(stats) if stats.get("rows") == rows else {}
    return DatasetInfo(path=path, files=files, rows=rows, columns=header_columns(headers[0] or {}), **known)


def whole_info(path: Path) -> DatasetInfo | None:
    """Return the description of the dataset ``path``; None also when one of its files breaks off."""
    try:
        return read_info(path)
    except BrokenOffError:
        return None


class BrokenOffError(DataError):
    """A file of a dataset is shorter than its header says."""


def _check_whole(file: Path, header: dict[str, Any]) -> None:
    size, needed = file.stat().st_size, least_size(header)
    if size < needed:
        raise BrokenOffError(
            f"{file} breaks off: it has {size:,} bytes, and by its header at least {needed:,}",
            hint="copy it again, with its .db; or make it again: launcher data preprocess with --force",
        )


def _shard_names(path: Path) -> list[str]:
    if path.is_file():
        return [path.name]
    first = sorted(path.parent.glob(f"{path.name}0")) or sorted(path.parent.glob(f"{path.name}00*"))
    header = read_header(first[0]) if first else None
    return list(map(str, header.get("shard_addresses", ()))) if header else []


def read_stats(dataset: Path) -> dict[str, Any] | None:
    """Return the statistics of ``dataset``, or None."""
    try:
        stats = json.loads(stats_path(dataset).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stats if isinstance(stats, dict) and isinstance(stats.get("counts"), dict) else None


def _known(stats: dict[str, Any]) -> dict[str, Any]:
    known = {key: stats.get(key) for key in ("seq_length", "template", "fingerprint")}
    return {
        **known,
        "tokenizer": TokenizerInfo(**{key: value for key, value in stats["tokenizer"].items() if key in _TOKENIZER}),
        "counts": {_RENAMED.get(key, key): count for key, count in stats["counts"].items()},
        "stats": stats,
    }
