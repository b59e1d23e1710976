"""What a rank does beside training, without MindSpore."""

from __future__ import annotations

import math

import numpy as np
import pytest

from launcher.known_errors import recognise
from launcher.worker import LossCheck, loss_parts, step_fields


def test_a_loss_that_stays_no_number_ends_the_run() -> None:
    losses = LossCheck(3)
    for step, loss in enumerate([1.0, math.nan, math.inf, 0.5, None, math.nan, math.nan], start=1):
        losses.note(step, loss)
    with pytest.raises(ArithmeticError, match="loss is nan since step 6") as caught:
        losses.note(8, math.nan)

    known = recognise([f"ArithmeticError: {caught.value}"])
    assert known is not None
    assert known.name == "loss is not a number"


def test_0_lets_it_go_on() -> None:
    losses = LossCheck(0)
    for step in range(1, 100):
        losses.note(step, math.nan)


def pipeline(stages: int, micro_batches: int, accumulation: int = 1) -> dict[str, dict[str, int]]:
    return {
        "parallel": {"pipeline_stage": stages, "micro_batches": micro_batches},
        "training": {"gradient_accumulation": accumulation},
    }


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (pipeline(1, 1), [1] * 8),
        (pipeline(1, 1, accumulation=3), [3] * 8),
        (pipeline(2, 4), [None] * 4 + [4] * 4),
        (pipeline(4, 8), [None] * 6 + [8] * 2),
    ],
)
def test_only_the_last_stage_s_loss_counts_and_it_is_a_sum(
    spec: dict[str, dict[str, int]], parts: list[int | None]
) -> None:
    assert [loss_parts(spec, rank_id, 8) for rank_id in range(8)] == parts


def test_a_step_reports_the_mean_over_its_batches_or_nothing() -> None:
    outputs = (np.float32(12.0), False, None, np.float32(1e-4), np.float32(2.0))
    values = {parts: step_fields(3, outputs, 0.5, parts)["loss"] for parts in (1, 4, None)}

    assert values == {1: 12.0, 4: 3.0, None: None}
