"""merge.json: the record of a merge's inputs and options, and its comparison with another merge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import CheckpointError

MERGE_RECORD = "merge.json"
# How inputs are told apart: merges recorded in another way are not known to be the same.
RECORD_VERSION = 2


def record_text(record: Mapping[str, Any]) -> bytes:
    """Return ``record`` as the text of its file."""
    return (json.dumps(record, indent=2) + "\n").encode()


def read_record(folder: Path) -> dict[str, Any]:
    """Read merge.json of ``folder``. Raises CheckpointError when it is missing or damaged."""
    try:
        record = json.loads((folder / MERGE_RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError("it is no record of a merge")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} exists but its {MERGE_RECORD} is missing or damaged: {error}",
            hint=f"move it away (mv {folder} {folder}.old), or give another --output",
        ) from error
    return record


def differences(
    record: Mapping[str, Any], recipe: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], *, compared: bool
) -> list[str]:
    """Return how the merge of ``record`` differs from one of ``recipe`` and ``inputs``, in words; empty for none.

    Files that only one of them read do not count: a full comparison reads more. compared: the result will be compared
    with every byte of the inputs, so a file that was rewritten with the same bytes does not count either.
    """
    try:
        known = record["recipe"]
        found = [_difference(key, known[key], recipe[key]) for key in recipe if known[key] != recipe[key]]
        then = {_key(item): item for item in record["inputs"]}
    except (KeyError, TypeError):
        return ["one of another version of launcher"]
    known_inputs = ((item, then[_key(item)]) for item in inputs if _key(item) in then)
    odd = [f"{item['path']} {how}" for item, one in known_inputs if (how := _change(one, item, compared=compared))]
    return found or odd[:3]


def _difference(key: str, there: Any, here: Any) -> str:
    if key == "small_files":
        return "another configuration or tokenizer"
    then, now = ("not given" if value is None else repr(value) for value in (there, here))
    return f"{key} {then} there, {now} here"


def _key(item: Mapping[str, Any]) -> tuple[Any, Any]:
    return item["kind"], Path(item["path"]).name if item["kind"] == "strategy" else item.get("rank")


def _change(one: Mapping[str, Any], two: Mapping[str, Any], *, compared: bool) -> str:
    """Describe the change from the file ``one`` to ``two``; empty when they are the same."""
    if _differ(one, two, ("bytes", "fingerprint", "sha256")):
        return "is another file than then, or has changed"
    proven = compared or ("sha256" in one and "sha256" in two)
    if not proven and _differ(one, two, ("mtime_ns", "inode")):
        return "was written again since, with the same samples (--verify full compares all of it)"
    return ""


def _differ(one: Mapping[str, Any], two: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return any(one[key] != two[key] for key in keys if key in one and key in two)
