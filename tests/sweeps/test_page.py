"""The page of a sweep."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from launcher.sweeps.page import WIDTH, axes, lines, make_page
from launcher.sweeps.record import DONE, PRUNED, Sweep, Trial


def a_sweep(*trials: Trial) -> Sweep:
    return Sweep(
        sweep_id="bcdfg-x", created="2026-01-01", spec="x", metric="loss", goal="min", parallel=1, prune=True,
        trials=trials, state=DONE,
    )  # fmt: skip


SWEEP = a_sweep(
    Trial(number=1, settings={"rate": 1e-5, "pack": True, "r": 8}, state="succeeded", value=2.0, step=9, job_id="j1"),
    Trial(number=2, settings={"rate": 1e-3, "pack": False, "r": 8}, state="succeeded", value=1.0, step=9, job_id="j2"),
    Trial(number=3, settings={"rate": 1e-4, "pack": True, "r": 8}, state=PRUNED, value=3.0, step=3, note="a <b> & c"),
    Trial(number=4, settings={"rate": 1e-4, "pack": False, "r": 8}, state="refused", note="no room"),
)


def test_each_setting_has_an_axis_and_numbers_over_decades_are_spread_by_their_logarithm() -> None:
    rate, pack, rank, loss = axes(SWEEP)
    assert [rate.place(value) for value in (1e-5, 1e-4, 1e-3)] == pytest.approx([0, 0.5, 1])
    assert [text for _, text in pack.ticks] == ["True", "False"]
    assert (pack.place(True), pack.place(False)) == (0.25, 0.75)
    assert rank.ticks == [(0.5, "8")]
    assert (loss.place(1.0), loss.place(3.0), loss.place(None)) == (0, 1, None)
    assert all(0 < axis.x < WIDTH for axis in (rate, pack, rank, loss))


def test_the_best_lies_on_top_and_one_without_a_value_ends_before_the_last_axis() -> None:
    ranked = sorted(SWEEP.trials, key=SWEEP.rank)
    drawn = lines(SWEEP, axes(SWEEP), ranked)
    assert [line["trial"].number for line in drawn] == [4, 3, 1, 2]
    assert [len(line["points"].split()) for line in drawn] == [3, 4, 4, 4]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_is_well_formed_and_says_everything(lang: str) -> None:
    page = make_page(SWEEP, lang, now=lambda: 0.0)
    drawing = re.search(r"<svg.*?</svg>", page, re.S)
    assert drawing
    svg = ET.fromstring(drawing[0])  # noqa: S314 - our own
    assert len(svg.findall("polyline")) == 4
    assert [line.get("class") for line in svg.findall("polyline")] == [None, None, None, "best"]
    assert "a &lt;b&gt; &amp; c" in page
    assert ("提前终止" in page) == (lang == "zh")
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_a_sweep_that_has_only_begun_has_a_page_too() -> None:
    page = make_page(a_sweep(*(replace(trial, value=None, state="waiting") for trial in SWEEP.trials)), "en")
    assert "No trial has ended with a value." in page
