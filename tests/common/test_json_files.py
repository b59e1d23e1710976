"""JSON files: read as the module json reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.common.json_files import fault_of, json_or_empty, parse_json, read_json

BLOCK = 1 << 16  # bytes that a read asks for at a time


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": "\\ud800"}', '{"a": 1e5, "b": [null, true]}']
)
def test_what_json_takes_is_taken(text: str) -> None:
    assert repr(parse_json(text)) == repr(parse_json(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_file_is_read_whole_wherever_blocks_end(tmp_path: Path, blocks: int, more: int) -> None:
    text = '{"loss": NaN, "a": "%s"}'
    value = "b" * (blocks * BLOCK + more - len(text % ""))
    (tmp_path / "a.json").write_text(text % value)

    assert read_json(tmp_path / "a.json")["a"] == value


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
