"""The problems of the shipped base: right, the same on every machine, and none of the held-out ones trained on."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from support.data_tools import ROOT

from launcher.data.arithmetic import KINDS, arithmetic_lines
from launcher.errors import DataError

BASE = ROOT / "configs" / "bases" / "tiny_cpu"


def rows(kind: str, size: int, seed: int, *, held_out: bool = False) -> list[tuple[str, str]]:
    found = map(json.loads, arithmetic_lines(kind, size, seed, held_out=held_out))
    return [(row["instruction"], row["output"]) for row in found]


def bare(question: str) -> str:
    return question.partition("：")[2]


def test_no_held_out_problem_is_trained_on() -> None:
    trained = {bare(question) for question, _ in rows("base", 40_000, 1)} - {""}
    trained |= {bare(json.loads(line)["instruction"]) for line in (BASE / "train.jsonl").read_text().splitlines()}

    for kind, size, seed in (("steps", 50, 3), ("short", 200, 2)):
        held_out = [bare(question) for question, _ in rows(kind, size, seed, held_out=True)]

        assert len(set(held_out)) == size
        assert not trained & set(held_out)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sum_is_right(kind: str) -> None:
    for question, answer in rows(kind, 500, 7):
        sums = re.findall(r"(\d+)([-+×])(\d+)=(\d+)", answer)
        for left, sign, right, value in sums:
            made = {"+": int(left) + int(right), "-": int(left) - int(right), "×": int(left) * int(right)}
            assert made[sign] == int(value)
        if sums and question != "口算":
            assert answer.endswith(f"答案：{sums[-1][3]}")


def test_the_shipped_rows_are_those_that_the_command_makes() -> None:
    made = "".join(arithmetic_lines("steps", 1600, 4))

    assert (BASE / "train.jsonl").read_text(encoding="utf-8") == made
    assert hashlib.sha256(made.encode()).hexdigest().startswith("3c9708b29e535e48")


def test_no_more_held_out_problems_than_there_are() -> None:
    with pytest.raises(DataError, match="there are no more than"):
        list(arithmetic_lines("short", 10_000, 1, held_out=True))
