"""Arithmetic problems: every template's answer is computed again from the numbers in the question."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.sample import TEMPLATES, Dice, problems, sample_lines
from launcher.errors import DataError

# From the numbers of the question, in the order in which they stand, to the answer.
ANSWERS: dict[str, Callable[..., float | Fraction]] = {
    "total_price": lambda n, p: n * p,
    "change": lambda paid, n, p: paid - n * p,
    "two_goods": lambda p, q, a, b: p * a + q * b,
    "unit_price": lambda n, cost: cost / n,
    "discount": lambda price, tenths: price * tenths / 10,
    "discount_saved": lambda price, tenths: price * (10 - tenths) / 10,
    "saving_money": lambda start, week, weeks: start + week * weeks,
    "distance": lambda v, t: v * t,
    "travel_time": lambda way, v: way / v,
    "speed": lambda t, way: way / t,
    "meeting": lambda v, w, t: (v + w) * t,
    "catch_up": lambda ahead, slow, fast: ahead / (fast - slow),
    "work_days": lambda total, per_day: total / per_day,
    "work_left": lambda total, per_day, days: total - per_day * days,
    "work_together": lambda v, w, total: total / (v + w),
    "work_fraction": lambda a, b: 1 / (Fraction(1, a) + Fraction(1, b)),
    "fraction_of": lambda total, top, bottom: Fraction(total * top, bottom),
    "fraction_left": lambda total, top, bottom: total * (1 - Fraction(top, bottom)),
    "fraction_whole": lambda top, bottom, part: part / Fraction(top, bottom),
    "fraction_sum": lambda a, b, c, d: Fraction(a, b) + Fraction(c, d),
    "percent": lambda total, percent: Fraction(total * percent, 100),
    "interest": lambda money, rate, years: Fraction(money * rate * years, 100),
    "rectangle_perimeter": lambda long, wide: 2 * long + 2 * wide,
    "rectangle_area": lambda long, wide: long * wide,
    "square_area": lambda around: Fraction(around, 4) ** 2,
    "triangle_area": lambda base, height: Fraction(base * height, 2),
    "box_volume": lambda a, b, c: a * b * c,
    "age_gap": lambda age, gap, later: age + gap + later,
    "age_times": lambda elder, times: elder - Fraction(elder, times),
    "average_three": lambda a, b, c: Fraction(a + b + c, 3),
    "average_missing": lambda mean, first: 2 * mean - first,
    "share_equally": lambda total, people: Fraction(total, people),
    "share_rest": lambda total, people, each: total - people * each,
    "share_given": lambda a, b: Fraction(a - b, 2),
    "temperature_gap": lambda high, below: high + below,
    "temperature_change": lambda start, up, down: start + up - down,
    "times_more": lambda n, times: n * (1 + times),
    "rows_of_trees": lambda way, gap: way / gap + 1,
    "legs": lambda hens, rabbits: 2 * hens + 4 * rabbits,
    "boats": lambda people, seats: -(-people // seats),
}


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def value(expression: str) -> Fraction:
    """An expression of a solution, computed exactly by precedence: only numbers, + - × ÷ and brackets."""
    assert re.fullmatch(r"[\d +×÷()/-]+", expression)
    text = re.sub(r"\d+", r"Fraction(\g<0>)", expression.replace("×", "*").replace("÷", "/"))
    return Fraction(eval(text, {"Fraction": Fraction}))  # noqa: S307 - the line above let numbers through only


def test_every_template_has_an_independent_answer() -> None:
    assert set(ANSWERS) == set(TEMPLATES)
    assert len(TEMPLATES) >= 30


@pytest.mark.parametrize("kind", TEMPLATES)
def test_answers_follow_from_the_question(kind: str) -> None:
    dice = Dice(7)
    for _ in range(200):
        question, _, answer = TEMPLATES[kind](dice)
        assert Fraction(answer) == Fraction(ANSWERS[kind](*numbers(question))), question


@given(st.integers(0, 2**32))
def test_every_step_of_a_solution_is_right_and_the_last_one_is_the_answer(seed: int) -> None:
    for problem in problems(5, seed):
        results = []
        for step in problem.steps:
            left, right = step.split("：")[1].split(" = ")
            found = re.match(r"-?[\d/]+", right)
            assert found is not None
            results.append(Fraction(found[0]))
            assert value(left) == results[-1], step
        assert Fraction(problem.answer) == results[-1]


def test_no_problem_comes_twice() -> None:
    records = [json.loads(line) for line in sample_lines(20_000, 3)]
    assert len({record["instruction"] for record in records}) == 20_000


def test_records_have_the_schema_of_belle() -> None:
    for record in map(json.loads, sample_lines(100, 0)):
        assert list(record) == ["instruction", "input", "output"]
        assert record["instruction"].startswith("题目：")
        assert record["input"] == ""
        assert re.fullmatch(r"答案：[\d/]+", record["output"].splitlines()[-1])


def test_a_small_dataset_is_the_beginning_of_a_larger_one() -> None:
    assert list(sample_lines(50, 9)) == list(islice(sample_lines(1000, 9), 50))
    assert list(sample_lines(50, 9)) != list(sample_lines(50, 10))


def test_the_first_problem_is_the_same_on_every_machine() -> None:
    assert next(sample_lines(1, 1)) == (
        '{"instruction": "题目：小东买一套原价240元的图书，打6折，比原价便宜多少元？", "input": "", '
        '"output": "1. 现价：240 × 6 ÷ 10 = 144元\\n2. 便宜：240 - 144 = 96元\\n答案：96"}\n'
    )


def test_asking_for_more_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="no new problem after 1"):
        list(problems(2, 0, {"only": lambda _: ("1加1是多少？", ("和：1 + 1 = 2",), 2)}))
