"""What a rank does beside training, without MindSpore."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from launcher.errors import CheckpointError
from launcher.supervise.known_errors import recognise
from launcher.worker.loading import Loads
from launcher.worker.main import LossCheck, loss_parts, step_fields, tokens_in_loss
from launcher.worker.steps import StepClock


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
    outputs = (np.float32(12.0), False, np.float32(1024.0), np.float32(1e-4), np.float32(2.0))
    assert step_fields(3, outputs, {"step_s": 0.5})["loss_scale"] == 1024.0
    values = {parts: step_fields(3, outputs, {"step_s": 0.5}, parts)["loss"] for parts in (1, 4, None)}

    assert values == {1: 12.0, 4: 3.0, None: None}


def test_saving_and_evaluating_are_neither_step_nor_wait() -> None:
    """Saved at a step's end, before our callback sees it; evaluated after it."""
    times = iter([0.0, 100.0, 103.0, 110.5, 112.5])
    clock = StepClock(lambda: next(times))

    assert clock.begin() is None
    clock.put_aside(1.0)
    assert clock.end() == 2.0
    clock.put_aside(7.0)
    assert clock.begin() == 0.5
    assert clock.end() == 2.0


class Column:
    """A column of a batch as MindSpore's dataset gives it."""

    def __init__(self, *rows: list[int]) -> None:
        self._rows = np.array(rows, np.int32)

    def asnumpy(self) -> Any:
        return self._rows


def test_tokens_in_the_loss_are_counted_as_the_loss_counts_them() -> None:
    """A token counts where its label is one and the token before it no padding."""
    model = {"seq_length": 4, "pad_token_id": 0}
    ids, labels = Column([1, 5, 6, 7, 0], [1, 5, 6, 0, 0]), Column([-100, -100, 6, 7, -100], [-100, 5, 6, -100, 3])

    assert tokens_in_loss((ids, labels), model) == 4
    cut = Column([1, 5, 6, 7], [1, 5, 6, 0]), Column([-100, 6, 7, -100], [5, 6, -100, 3])
    assert tokens_in_loss((*cut, "a third column"), model) == 4


@pytest.mark.parametrize("columns", [None, (), (Column([1]),), "sink"])
def test_tokens_that_never_pass_the_host_are_unknown(columns: object) -> None:
    assert tokens_in_loss(columns, {"seq_length": 4, "pad_token_id": 0}) is None


WEIGHT, ADAPTER = "model.layers.0.attention.wq.weight", "model.layers.0.attention.wq.mindpet_delta_lora_a"


def test_weights_that_did_not_come_from_the_base_end_the_run() -> None:
    loads = Loads("base.ckpt", resumed=False)
    with pytest.raises(CheckpointError, match=r"loaded nothing of base\.ckpt"):
        loads.check()
    loads.note([ADAPTER, f"adam_m.{ADAPTER}", "global_step"], [WEIGHT])
    loads.check()
    others = [WEIGHT.replace("0", str(layer)) for layer in range(1, 5)]
    loads.note([WEIGHT, *others], [])
    with pytest.raises(CheckpointError, match=rf"4 parameters are not in base.ckpt .*: {others[0]}, .* and 1 more"):
        loads.check()


@pytest.mark.parametrize("left", [WEIGHT, ADAPTER, f"adam_v.{ADAPTER}"])
def test_a_run_goes_on_with_all_that_it_had(left: str) -> None:
    loads = Loads("1_8.safetensors", resumed=True)
    loads.note(["global_step"], [])
    loads.check()
    loads.note([left], [])
    with pytest.raises(CheckpointError, match="1 parameters are not in"):
        loads.check()


def test_without_a_base_nothing_is_asked_for() -> None:
    Loads("", resumed=False).check()


OPTIMIZER = """
import numpy as np
from launcher.upstream.light_imports import light_imports
with light_imports():
    import mindformers
from mindspore import Parameter, Tensor, nn
from mindformers.core import build_optim
from mindformers.tools import MindFormerConfig
from launcher.upstream import old_optimizer
old_optimizer.register()
old_optimizer.register()  # a second time does nothing
start = np.linspace(-1, 1, 12).reshape(3, 4)

def optimizer(dtype, make):
    weight = Parameter(Tensor(start.astype(dtype)), name="w")
    return weight, make([{"params": [weight], "weight_decay": 0.1}])

def ours(params):
    section = dict(type="FP32StateAdamWeightDecay", beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    return build_optim(MindFormerConfig(**section), default_args={"params": params, "learning_rate": 1e-2})

def plain(params):
    return nn.AdamWeightDecay(params, learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)

(one, step_one), (two, step_two) = optimizer("float32", ours), optimizer("float32", plain)
half, step_half = optimizer("float16", ours)
worst = 0.0
for number in range(1, 5):
    gradient = np.cos(start * number).astype("float32")
    step_one((Tensor(gradient),)), step_two((Tensor(gradient),)), step_half((Tensor(gradient.astype("float16")),))
    worst = max(worst, float(np.abs(one.asnumpy() - two.asnumpy()).max()))
moved = float(np.abs(one.asnumpy() - start).max())
print("RESULT", worst < 1e-7, moved > 1e-2, half.dtype, step_half.moments2[0].dtype)
"""


@pytest.mark.mindspore
def test_the_old_optimizer_is_mindspores_rule_with_float32_states() -> None:
    """First updates as nn.AdamWeightDecay makes them: AdamW's are other ones, as it corrects the bias."""
    result = subprocess.run([sys.executable, "-c", OPTIMIZER], capture_output=True, text=True, timeout=300)
    said = next((line for line in result.stdout.splitlines() if line.startswith("RESULT")), result.stderr)

    assert said == "RESULT True True Float16 Float32"
