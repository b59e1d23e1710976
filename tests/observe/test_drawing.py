"""Curves of few points, and their drawings: SVG, PNG and braille."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from launcher.observe.braille import braille, sparkline
from launcher.observe.curves import make_curve, nice_ticks, number_text, smoothed
from launcher.observe.drawing import DARK, LIGHT, Chart, to_png, to_svg
from launcher.observe.history import Series

SVG = "{http://www.w3.org/2000/svg}"


def series(*values: float) -> Series:
    return Series(steps=np.arange(1.0, len(values) + 1), values=np.array(values, float))


def test_no_outlier_is_lost_between_buckets() -> None:
    values = np.ones(100_000)
    values[31_234], values[77_777] = 50.0, -3.0
    curve = make_curve(Series(steps=np.arange(1.0, 100_001), values=values), 1000)

    assert (len(curve.x), curve.per_point, curve.x[-1]) == (1000, 100, 100_000)
    assert (curve.high.max(), curve.low.min()) == (50.0, -3.0)
    assert curve.mean[312] == pytest.approx(1.49)


def test_the_last_bucket_is_of_what_is_left() -> None:
    curve = make_curve(series(1, 2, 3, 4, 5), 2)

    assert (curve.x.tolist(), curve.mean.tolist(), curve.last.tolist()) == ([3, 5], [2, 4.5], [3, 5])


def test_what_is_no_number_is_a_gap() -> None:
    curve = make_curve(series(1, math.inf, math.nan, 4), 4)

    assert np.isnan(curve.mean).tolist() == [False, True, True, False]
    assert make_curve(series(), 10).x.tolist() == []


def test_the_average_starts_at_the_first_value_and_leaves_gaps() -> None:
    found = smoothed(np.array([4.0, math.nan, 4.0, 0.0]), 0.5)

    assert found[0] == found[2] == 4.0
    assert math.isnan(found[1])
    assert found[3] == pytest.approx((0.125 * 4 + 0.25 * 4 + 0.5 * 0) / 0.875)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.19, [0.14, 0.16, 0.18]),
        (-5, 5, [-4, -2, 0, 2, 4]),
        (3, 3, [3]),
        (0, 1e-5, [0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1234, "1234"), (12345, "12.35k"), (5e-3, "0.005"), (1.25e-5, "1.25e-5"), (-2.5e6, "-2.5M")],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert number_text(value) == expected


def test_an_svg_has_a_line_for_each_part_and_follows_the_theme() -> None:
    curves = [make_curve(series(3, 2, math.nan, 1, 2), 9, "a<b"), make_curve(series(1, 1), 9, "second")]
    text = to_svg(Chart(curves=curves, title="Loss & more", unit="s"))
    root = ET.fromstring(text)  # noqa: S314 - made here

    assert [path.get("stroke") for path in root.iter(f"{SVG}path")] == ["var(--c0)", "var(--c0)", "var(--c1)"]
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"Loss & more", "s", "● a<b", "● second", "step"} <= words
    assert LIGHT[0] in text
    assert DARK[0] in text


@pytest.mark.parametrize("log", [False, True])
def test_the_spread_over_ranks_is_a_band(log: bool) -> None:
    spread = Series(
        steps=np.arange(1.0, 4), values=np.array([3.0, 2, 1]), low=np.array([2.0, 1, 0.5]), high=np.array([4.0, 3, 2])
    )
    text = to_svg(Chart(curves=[make_curve(spread, 9)], title="x", log=log))

    assert text.count('class="band"') == 1


def test_a_png_shows_the_curve_in_its_colour() -> None:
    image = Image.open(io.BytesIO(to_png(Chart(curves=[make_curve(series(5, 1, 4), 9)], title="Loss", width=480))))
    colours = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 20) or ()}

    assert image.size == (960, 800)
    assert tuple(bytes.fromhex(LIGHT[0][1:])) in colours


def test_a_falling_curve_falls_in_the_terminal() -> None:
    lines = braille([("a", series(*range(100, 0, -1)))], 60, 8, lambda text, number: text).split("\n")
    rows = [[ord(char) - 0x2800 for char in line[10:]] for line in lines[:8]]
    first = [next(place for place, dots in enumerate(row) if dots > 0) for row in rows]

    assert first == sorted(first)
    assert first[0] == 0
    assert lines[8].startswith("         └──")
    assert lines[9].split() == ["50", "100"]


def test_curves_are_painted_by_their_number() -> None:
    named = [("a", series(1, 1, 1)), ("b", series(5, 5, 5))]
    text = braille(named, 40, 6, lambda text, number: f"<{number}>" if text.strip() else text)

    assert text.index("<1>") < text.index("<0>")  # the higher one is drawn further up


def test_one_step_alone_is_a_dot() -> None:
    assert any(0x2800 < ord(char) < 0x28FF for char in braille([("a", series(1.0))], 40, 6, lambda text, _: text))


def test_a_sparkline_goes_from_its_lowest_to_its_highest() -> None:
    assert sparkline(np.array([1.0, 2, 3, 8]), 4) == "▁▂▃█"
    assert sparkline(np.array([math.nan]), 4) == ""
