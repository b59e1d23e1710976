"""What a rank does beside training, without MindSpore."""

from __future__ import annotations

import math

import pytest

from launcher.known_errors import recognise
from launcher.worker import LossCheck


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
