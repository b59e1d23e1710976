"""merge.json: what a merge was made of, and whether another would give the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import CheckpointError

MERGE_RECORD = "merge.json"


def read_record(folder: Path) -> dict[str, Any]:
    """merge.json of ``folder``. Raises CheckpointError when it is missing or damaged."""
    try:
        record = json.loads((folder / MERGE_RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError("it is no record of a merge")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} exists but its {MERGE_RECORD} is missing or damaged: {error}",
            hint=f"move it away (mv {folder} {folder}.old), or give another --output",
        ) from error
    return record


def differences(record: Mapping[str, Any], recipe: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the merge of ``record`` differs from one of ``recipe`` and ``inputs``, in words; empty when it does not.

    Files that only one of them read are no difference: a full comparison reads more.
    """
    try:
        known = record["recipe"]
        found = [_difference(key, known[key], recipe[key]) for key in recipe if known[key] != recipe[key]]
        then = {_key(item): item for item in record["inputs"]}
    except (KeyError, TypeError):
        return ["one of another version of launcher"]
    odd = [item for item in inputs if _key(item) in then and not _same_input(then[_key(item)], item)]
    return found or [f"{item['path']} is another file than then, or has changed" for item in odd[:3]]


def _difference(key: str, there: Any, here: Any) -> str:
    if key == "small_files":
        return "another configuration or tokenizer"
    return f"{key} {there!r} there, {here!r} here"


def _key(item: Mapping[str, Any]) -> tuple[Any, Any]:
    return item["kind"], Path(item["path"]).name if item["kind"] == "strategy" else item.get("rank")


def _same_input(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    both = ("bytes", "fingerprint", "sha256")
    return all(one[key] == two[key] for key in both if key in one and key in two)
