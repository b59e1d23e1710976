"""The course of a job: what counts of attempts and ranks, and the figures that follow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.job_folders import BEGAN, SPEC, Made, MadeJob, plain_loss, text

from launcher import jobs
from launcher.errors import SpecError
from launcher.observe.flops import PEAKS, flops_per_step
from launcher.observe.history import read_history
from launcher.observe.metrics import METRICS, metric_of, nothing_of
from launcher.observe.summary import summarize


def values(job: MadeJob, folder: Path, key: str) -> list[float]:
    found: list[float] = METRICS[key].read(job.history(folder)).values.tolist()
    return found


def test_the_loss_is_the_mean_over_ranks_with_their_spread(tmp_path: Path) -> None:
    series = METRICS["loss"].read(MadeJob().history(tmp_path))

    assert series.steps.tolist() == [1, 2, 3, 4]
    assert series.values.tolist() == [8.25, 4.25, pytest.approx(8 / 3 + 0.25), 2.25]
    assert series.low is not None
    assert series.high is not None
    assert (series.high - series.low).tolist() == [0.5] * 4


def test_in_a_pipeline_only_the_last_stage_has_a_loss(tmp_path: Path) -> None:
    spec = {**SPEC, "parallel": {"mode": "semi_auto", "pipeline_stage": 2}}
    attempt = Made(ended=30.0, loss=lambda rank_id, step: None if rank_id < 2 else 1.0 * step)
    history = MadeJob(cards=4, spec=spec, attempts=(attempt,)).history(tmp_path)

    assert history.loss_rank == 2
    assert METRICS["loss"].read(history).values.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert METRICS["loss"].read(history).low is None


def test_of_a_step_that_was_done_again_the_newest_attempt_counts(tmp_path: Path) -> None:
    first = Made(ended=40.0, steps=6, reason="rank 1 died", saves=(4,))
    second = Made(began=50.0, ended=80.0, from_step=4, steps=4, loss=lambda rank_id, step: 100.0 + step)
    history = MadeJob(steps=8, attempts=(first, second)).history(tmp_path)
    losses = METRICS["loss"].read(history)

    assert losses.steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert losses.values[4:].tolist() == [105.0, 106.0, 107.0, 108.0]
    assert history.redone_steps == 2
    assert [attempt.from_step for attempt in history.attempts] == [0, 4]
    assert history.attempts[0].reason == "rank 1 died"


def test_steps_after_the_checkpoint_of_a_resume_are_lost_before_they_are_done_again(tmp_path: Path) -> None:
    attempts = (Made(ended=40.0, steps=6), Made(began=50.0, from_step=4, steps=0))
    history = MadeJob(state=jobs.RUNNING, steps=8, attempts=attempts).history(tmp_path)

    assert (history.done_steps, history.redone_steps) == (4, 2)


def test_a_rank_that_is_behind_counts_where_it_has_been(tmp_path: Path) -> None:
    job = MadeJob()
    paths = job.write(tmp_path)
    path = paths.rank_events(1)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    losses = METRICS["loss"].read(read_history(paths, job.make_record()))

    assert losses.values.tolist() == [8.25, 4.25, pytest.approx(8 / 3), 2.0]


def test_tokens_are_summed_where_ranks_see_different_rows(tmp_path: Path) -> None:
    attempt = Made(ended=30.0, more=lambda rank_id, step: {"tokens": 100 + rank_id, "input_s": 0.1 * rank_id})
    job = MadeJob(attempts=(attempt,))
    assert values(job, tmp_path / "a", "loss-tokens") == [201.0] * 4
    assert values(job, tmp_path / "a2", "input-wait") == pytest.approx([0.1] * 4)

    spec = {**SPEC, "parallel": {"mode": "semi_auto", "pipeline_stage": 1}}
    assert values(replace(job, spec=spec), tmp_path / "b", "loss-tokens") == [100.5] * 4


def test_checkpoints_evaluations_and_phases(tmp_path: Path) -> None:
    history = MadeJob(attempts=(Made(ended=30.0, saves=(2, 4), held_out=(2, 4)),)).history(tmp_path)
    phases = {phase.kind: phase.seconds for phase in history.attempts[0].phases}

    assert [(one.step, one.seconds, one.ranks) for one in history.checkpoints] == [(2, 0.25, 2), (4, 0.25, 2)]
    assert [(one.step, one.loss) for one in history.held_out] == [(2, 4.5), (4, 2.25)]
    assert phases == {"start": 10.0, "compile": 10.0, "train": 3.0, "stop": 7.0, "save": 0.25, "evaluate": 0.5}


def test_a_checkpoint_in_two_parts_takes_as_long_as_both(tmp_path: Path) -> None:
    job = MadeJob(cards=1)
    paths = job.write(tmp_path)
    parts = [{"time": BEGAN + 25 + n, "rank_id": 0, "event": "save", "step": 4, "seconds": 0.5} for n in (0, 1)]
    with paths.rank_events(0).open("a") as file:
        file.write(text(parts))
    (one,) = read_history(paths, job.make_record()).checkpoints

    assert (one.seconds, one.ranks) == (1.0, 1)


def test_the_figures_of_a_job_that_was_resumed(tmp_path: Path) -> None:
    first = Made(ended=40.0, steps=6)
    second = Made(began=50.0, ended=80.0, from_step=4, steps=4, held_out=(6, 8))
    found = summarize(MadeJob(steps=8, attempts=(first, second)).history(tmp_path))

    assert (found.done_steps, found.total_steps, found.attempts, found.redone_steps) == (8, 8, 2, 2)
    assert (found.first_loss, found.last_loss) == (8.25, 1.25)
    assert found.best_held_out is not None
    assert (found.best_held_out.step, found.best_held_out.loss) == (8, 9 / 8)
    assert (found.goodput.running_s, found.goodput.parts["idle"]) == (70.0, 10.0)
    assert found.goodput.productive_s == 7.5  # a second a step, the first without its compiling; half was evaluation
    assert (found.step_s, found.tokens, found.tokens_per_s) == (1.0, 8 * 32 * 96, 32 * 96)
    assert found.left_s is None
    assert found.memory_mib == 1001


def test_time_left_of_a_job_that_runs(tmp_path: Path) -> None:
    job = MadeJob(state=jobs.RUNNING, steps=10, attempts=(Made(),))
    found = summarize(job.history(tmp_path), now=lambda: BEGAN + 100)

    assert (found.left_s, found.goodput.running_s) == (6.0, 100.0)


def test_a_job_without_any_step_has_no_figures(tmp_path: Path) -> None:
    found = summarize(MadeJob(state=jobs.FAILED, attempts=(Made(ended=5.0, steps=0),)).history(tmp_path))

    assert found.done_steps == 0
    assert [found.first_loss, found.step_s, found.memory_mib, found.tokens, found.tokens_per_s] == [None] * 5


@pytest.mark.parametrize("text_", ["", "null", "[]", '{"model": 3}'])
def test_a_folder_with_damaged_files_is_still_read(tmp_path: Path, text_: str) -> None:
    job = MadeJob()
    paths = job.write(tmp_path)
    paths.spec.write_text(text_)
    paths.plan.write_text(text_)
    found = summarize(read_history(paths, job.make_record()))

    assert (found.done_steps, found.total_steps, found.flops_per_step) == (4, None, None)


def test_steps_whose_loss_is_no_number_are_counted(tmp_path: Path) -> None:
    attempt = Made(ended=30.0, loss=lambda rank_id, step: plain_loss(rank_id, step))
    job = MadeJob(attempts=(attempt,))
    paths = job.write(tmp_path)
    path = paths.rank_events(0)
    path.write_text(path.read_text().replace('"loss": 4.0', '"loss": "nan"'))
    history = read_history(paths, job.make_record())

    assert summarize(history).bad_steps == 1
    assert np.isinf(METRICS["loss"].read(history).values).tolist() == [False, True, False, False]


# ------------------------------------------------------------------------------------------------ operations


def model(**more: Any) -> dict[str, Any]:
    return {"model": {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 16, "vocab_size": 32,
                      "seq_length": 4}, **more}  # fmt: skip


def test_operations_of_a_step_by_hand() -> None:
    weights = 2 * (4 * 8 * 8 + 3 * 8 * 16) + 32 * 8  # two layers and the output layer; the embedding multiplies nothing
    attention = 12 * 2 * 8 * 4
    adapters = 2 * 2 * (8 + 8) * 3  # two layers, wq and wv, rank 3

    assert flops_per_step(model(), rows=5) == 5 * 4 * (6 * weights + attention)
    lora = {"r": 3, "alpha": 3, "target_modules": "wq|wv"}
    assert flops_per_step(model(lora=lora), rows=5) == 5 * 4 * (4 * weights + 6 * adapters + attention)
    assert flops_per_step({}, rows=5) is None


def test_utilization_is_of_the_cards_peak_and_unknown_on_cpu(tmp_path: Path) -> None:
    flops = flops_per_step(SPEC, 32)
    assert flops is not None
    on_cards = summarize(MadeJob(target="Ascend", kind="A2").history(tmp_path / "a"))
    assert on_cards.mfu == pytest.approx(flops / (2 * PEAKS["A2"].tera * 1e12))
    for name, target, kind in (("b", "CPU", None), ("c", "Ascend", "310P")):
        assert summarize(MadeJob(target=target, kind=kind).history(tmp_path / name)).mfu is None


def test_only_what_needs_the_model_s_sizes_is_left_out_without_flops(tmp_path: Path) -> None:
    history = MadeJob(target="Ascend", kind="A2").history(tmp_path)

    assert replace(summarize(history), flops_per_step=None, mfu=None) == summarize(history, flops=False)


def test_a_metric_that_is_none_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="no metric 'los'") as caught:
        metric_of("los")
    assert caught.value.hint.startswith("did you mean loss?")


def test_throughput_of_a_step_without_a_time_is_unknown(tmp_path: Path) -> None:
    attempt = Made(ended=30.0, more=lambda rank_id, step: {"step_s": 0.0} if step == 2 else {})
    assert math.isnan(values(MadeJob(attempts=(attempt,)), tmp_path, "tokens-per-second")[1])


def test_why_there_is_no_held_out_loss(tmp_path: Path) -> None:
    """With evaluation.fraction and a late every_steps the user was told to name rows that were there."""
    plain = MadeJob().history(tmp_path / "a")
    late = MadeJob(spec={**SPEC, "evaluation": {"fraction": 0.1, "every_steps": 1000}}).history(tmp_path / "b")

    assert nothing_of(METRICS["eval-loss"], plain).startswith("no held-out rows were evaluated: evaluation.data or")
    assert nothing_of(METRICS["eval-loss"], late).startswith("no evaluation was due: evaluation.every_steps")
