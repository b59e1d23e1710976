"""JSON files: read as the module json reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from launcher.common.json_files import fault_of, json_or_empty, parse_json, read_json


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": "\\ud800"}', '{"a": 1e5, "b": [null, true]}']
)
def test_what_json_takes_is_taken(text: str) -> None:
    assert repr(parse_json(text)) == repr(parse_json(text.encode())) == repr(json.loads(text))


def test_a_file_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    values = {"a": list(range(50_000)), "loss": math.nan}
    (tmp_path / "a.json").write_text(json.dumps(values))

    assert read_json(tmp_path / "a.json")["a"] == values["a"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{\n  oops}", "a.json is not JSON: line 2, column 3: Expecting property name enclosed in double quotes"),
        ("[" * 100_000, "a.json is not JSON"),
        ("[]", "a.json holds no JSON object"),
        ("{}", "a.json holds nothing"),
    ],
)
def test_a_fault_is_said_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)

    assert json_or_empty(path) == {}
    assert fault_of(path) == fault
