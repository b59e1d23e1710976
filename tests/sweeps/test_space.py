"""The settings that a sweep tries."""

from __future__ import annotations

import pytest

from launcher.errors import SpecError
from launcher.sweeps.space import all_settings, parse_axes

RATE = "training.lr_schedule.learning_rate"


def test_a_grid_is_every_combination_in_order() -> None:
    axes = parse_axes([f"{RATE}=1e-4,3e-4", "lora.r=8,16"])
    assert all_settings(axes, count=None, seed=0) == [
        {RATE: 1e-4, "lora.r": 8}, {RATE: 1e-4, "lora.r": 16}, {RATE: 3e-4, "lora.r": 8}, {RATE: 3e-4, "lora.r": 16},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lora.targets=[q,k],[q,k,v]", [["q", "k"], ["q", "k", "v"]]),
        ('name="a,b",c', ["a,b", "c"]),
        ("data.pack=true,false", [True, False]),
        ("model.preset=llama_7b,null", ["llama_7b", None]),
        ("data.sample={size: 8, seed: 1}", [{"size": 8, "seed": 1}]),
        ("lora.dropout=0", [0]),
        ("path=../a,../b", ["../a", "../b"]),
    ],
)
def test_values_are_yaml_between_commas(text: str, values: list[object]) -> None:
    (found,) = parse_axes([text]).values()
    assert found == values


def test_random_trials_are_different_and_the_same_for_a_seed() -> None:
    axes = parse_axes([f"{RATE}=log 1e-5..1e-3", "lora.r=4..32", "lora.dropout=0.0..0.5", "data.pack=true,false"])
    drawn = all_settings(axes, count=40, seed=1)

    assert drawn == all_settings(axes, count=40, seed=1) != all_settings(axes, count=40, seed=2)
    assert len({repr(one) for one in drawn}) == 40
    assert all(1e-5 <= one[RATE] <= 1e-3 and 0 <= one["lora.dropout"] <= 0.5 for one in drawn)
    assert {type(one["lora.r"]) for one in drawn} == {int}
    assert 10 <= sum(one[RATE] < 1e-4 for one in drawn) <= 30  # half of each decade
    grid = parse_axes(["lora.r=1,2,3", "lora.alpha=1,2"])
    every = all_settings(grid, count=6, seed=0)
    assert sorted(map(repr, every)) == sorted(map(repr, all_settings(grid, count=None, seed=0)))


@pytest.mark.parametrize(
    ("grid", "count", "said"),
    [
        ([], None, "needs something to vary"),
        (["lora.r"], None, "is not KEY=VALUE,VALUE"),
        (["=1"], None, "is not KEY=VALUE,VALUE"),
        (["lora.r=8", "lora.r=16"], None, "names lora.r twice"),
        (["lora.r=8,8"], None, "names a value twice"),
        (["lora.r=8..4"], 2, "is no range"),
        (["lora.r=log 0..4"], 2, "is no range"),
        (["lora.r=4..8"], None, "of which there is no grid"),
        (["lora.r=4,8"], 3, "there are 2 combinations"),
        (["lora.r=4..5"], 3, "only 2 different settings"),
        (["lora.r=4..9999"], 1001, "at most 1000"),
        ([f"a={','.join(map(str, range(40)))}", f"b={','.join(map(str, range(40)))}"], None, "that is 1600 trials"),
    ],
)
def test_what_is_no_sweep_is_refused(grid: list[str], count: int | None, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        all_settings(parse_axes(grid), count=count, seed=0)
