"""Event files as columns: both ways to parse agree, what is damaged is counted, and a cache never changes a result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.observe import columns
from launcher.observe.columns import STEP_FIELDS, RankEvents, parse_fast, parse_lines, read_rank


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def step(number: int, **fields: Any) -> dict[str, Any]:
    known = {"time": 1000.0 + number, "rank_id": 0, "event": "step", "step": number, "loss": 7.5 / (number + 1),
             "lr": 1e-4, "overflow": number % 3 == 0, "grad_norm": None, "step_s": 0.25,
             "memory_mib": 1337}  # fmt: skip
    return {**known, **fields}


def as_lines(events: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()


MIXED = [
    {"time": 999.0, "rank_id": 0, "event": "begin", "pid": 3, "started": 1.0, "boot": "x"},
    step(1, loss="nan", grad_norm="inf"),
    step(2, loss="-inf", loss_scale=65536, tokens=120, input_s=0.001),
    {"time": 1002.5, "rank_id": 0, "event": "eval", "step": 2, "loss": 1.5, "seconds": 0.5},
    step(3, loss=None),
    {"time": 1003.5, "rank_id": 0, "event": "error", "type": "E", "message": 'said "nan"\nand 损失 {"event": "step"}'},
]


def same(one: RankEvents | Any, two: RankEvents | Any) -> None:
    for name in STEP_FIELDS:
        np.testing.assert_array_equal(one.steps[name], two.steps[name], err_msg=name)
    assert list(one.others) == list(two.others)
    assert one.damaged == two.damaged


def test_both_ways_to_parse_agree() -> None:
    data = as_lines([*MIXED, *(step(number) for number in range(4, 400))])
    fast, slow = parse_fast(data), parse_lines(data)

    same(fast, slow)
    assert slow.size == fast.size == len(data)
    assert [event["event"] for event in fast.others] == ["begin", "eval", "error"]


def test_a_number_that_is_none_is_told_from_one_that_was_not_reported() -> None:
    steps = parse_lines(as_lines(MIXED)).steps

    assert np.isinf(steps["loss"]).tolist() == [True, True, False]
    assert math.isnan(steps["loss"][2])
    assert steps["loss_scale"][1] == 65536
    assert np.isnan(steps["tokens"]).tolist() == [True, False, True]
    assert steps["overflow"].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"event": 3}', b'{"event": "step", "time": 1.0}', b"\xff\xfe", b""])
def test_damaged_lines_are_counted_and_the_rest_is_read(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_bytes(as_lines(MIXED) + bad + b"\n" + as_lines([step(4)]) + b'{"event": "st')
    found = read_rank(path, 0)

    assert found.damaged == 1
    assert found.steps["step"].tolist() == [1, 2, 3, 4]


def test_a_damaged_line_in_a_long_file_is_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_bytes(as_lines([step(number) for number in range(1, 6000)]) + b"{\n" + as_lines([step(6000)]))
    assert path.stat().st_size > columns.LONG

    found = read_rank(path, 0)

    assert (found.damaged, found.count) == (1, 6000)


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert read_rank(tmp_path / "none", 3).count == 0


def test_what_is_appended_is_added_to_what_was_cached(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_bytes(as_lines([*MIXED, *(step(number) for number in range(4, 8000))]))
    before = read_rank(path, 0)
    assert len(list(cache.rglob("*.npz"))) == 1
    same(read_rank(path, 0), before)

    with path.open("ab") as file:
        file.write(as_lines([step(8000, loss="nan"), {"time": 9e3, "rank_id": 0, "event": "done"}]))
    after = read_rank(path, 0)

    same(after, parse_lines(path.read_bytes()))
    assert after.count == before.count + 1


@pytest.mark.parametrize("harm", ["rewritten", "shorter", "damaged cache", "no cache folder"])
def test_a_cache_that_does_not_fit_is_not_used(tmp_path: Path, cache: Path, harm: str) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_bytes(as_lines([step(number) for number in range(1, 8000)]))
    if harm == "no cache folder":
        cache.write_text("a file is in its place")
    read_rank(path, 0)
    if harm == "rewritten":
        path.write_bytes(as_lines([step(number, loss=1.0) for number in range(1, 9000)]))
    elif harm == "shorter":
        path.write_bytes(as_lines([step(number) for number in range(1, 6000)]))
    elif harm == "damaged cache":
        (file,) = cache.rglob("*.npz")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    same(read_rank(path, 0), parse_lines(path.read_bytes()))
