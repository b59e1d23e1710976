"""What a dataset on disk holds, read without MindSpore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.data.mindrecord import header_columns, header_rows, read_header
from launcher.data.tokenizer import TokenizerInfo


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A MindRecord dataset.

    ``rows`` are seq_length + 1 tokens long. What only ``launcher data preprocess`` knows is None or empty for
    a file that somebody else wrote: ``seq_length`` (tokens), ``template``, ``tokenizer``, ``counts`` and
    ``fingerprint``.
    """

    path: Path
    rows: int
    columns: tuple[str, ...]
    seq_length: int | None = None
    template: str | None = None
    tokenizer: TokenizerInfo | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str | None = None


def stats_path(dataset: Path) -> Path:
    """Where ``launcher data preprocess`` writes what it knows about ``dataset``."""
    return dataset.with_name(f"{dataset.name}.stats.json")


def read_info(path: Path) -> DatasetInfo | None:
    """What the MindRecord file ``path`` holds, or None when it is missing or not a MindRecord."""
    header = read_header(path)
    if header is None:
        return None
    stats = _read_stats(stats_path(path))
    known = _known(stats) if stats and stats.get("rows") == header_rows(header) else {}
    return DatasetInfo(path=path, rows=header_rows(header), columns=header_columns(header), **known)


def _read_stats(path: Path) -> dict[str, Any] | None:
    try:
        stats = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stats if isinstance(stats, dict) else None


def _known(stats: dict[str, Any]) -> dict[str, Any]:
    known = {key: stats.get(key) for key in ("seq_length", "template", "fingerprint")}
    return {**known, "tokenizer": TokenizerInfo(**stats["tokenizer"]), "counts": stats["counts"]}
