"""The main job with real MindSpore: two ranks train data-parallel, shards are merged, the merged model answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.events import read_events
from support.shop import SEQ_LENGTH, TIMEOUT_S, VOCAB, Job, Trained, Workshop

from launcher import jobs
from launcher.control import prepare, start

pytestmark = pytest.mark.mindspore


def steps(job: Job, rank_id: int) -> list[dict[str, Any]]:
    return [event for event in read_events(job.paths.rank_events(rank_id)) if event["event"] == "step"]


def newest(job: Job, rank_id: int) -> dict[str, Any]:
    files = list((job.paths.checkpoints / f"rank_{rank_id}").glob("*.safetensors"))
    tensors: dict[str, Any] = load_file(max(files, key=lambda path: path.stat().st_mtime_ns))
    return tensors


def test_the_job_is_recorded_as_it_was(trained: Trained) -> None:
    record, paths = trained.lora.record, trained.lora.paths

    assert (record.state, record.exit_code, record.cards, record.target) == (jobs.SUCCEEDED, 0, 2, "CPU")
    assert {"launcher", "mindspore", "mindformers", "python"} <= set(record.versions)
    assert set(record.processes) == {"rank_0", "rank_1"}
    assert [event["event"] for event in read_events(paths.rank_events(1))][-1] == "done"


def test_ranks_see_different_rows(trained: Trained) -> None:
    """Each rank reports the loss of its own part of the batch."""
    losses = [[event["loss"] for event in steps(trained.lora, rank_id)] for rank_id in (0, 1)]

    assert len(losses[0]) == len(losses[1]) == 16  # 256 rows, 2 ranks, batch 8
    assert all(one != other for one, other in zip(*losses, strict=True))


def test_steps_report_the_tokens_in_the_loss_and_the_wait_for_rows(trained: Trained) -> None:
    """In one epoch every token in the loss is counted once, on one of the ranks."""
    ranks = [steps(trained.lora, rank_id) for rank_id in (0, 1)]
    counted = json.loads((trained.workshop.folder / "train.mindrecord.stats.json").read_text())["counts"]["loss_tokens"]

    assert sum(step["tokens"] for rank in ranks for step in rank) == counted
    assert ["input_s" in step for step in ranks[0]] == [False] + [True] * 15
    assert all(0 <= step["input_s"] < 60 for step in ranks[0][1:])
    assert {step["loss_scale"] for step in ranks[1]} == {1.0}


def test_evaluations_are_reported_with_their_step(trained: Trained) -> None:
    events = [event for event in read_events(trained.lora.paths.rank_events(1)) if event["event"] == "eval"]

    assert [(event["step"], "loss" in event) for event in events] == [(8, False), (8, True), (16, False), (16, True)]
    assert 0 < events[3]["loss"] < events[1]["loss"] < 10


def test_the_evaluation_is_the_cross_entropy_of_all_tokens_in_the_loss(trained: Trained) -> None:
    """Of both ranks' rows, by another computation: the logits of the merged model, in float64."""
    events = read_events(trained.lora.paths.rank_events(0)), read_events(trained.lora.paths.rank_events(1))
    found = [[event["loss"] for event in ranks if event["event"] == "eval" and "loss" in event] for ranks in events]
    options = ("--data", "held_out.mindrecord", "--questions", "0", "--format", "json")
    scored = json.loads(trained.workshop.launcher("eval", str(trained.lora.paths.merged), *options).stdout)

    assert found[0] == found[1]
    assert found[0][-1] == pytest.approx(scored["models"][0]["loss"], abs=1e-5)


def test_a_program_submits_follows_reads_and_merges_a_job(trained: Trained) -> None:
    found, events = trained.from_python, steps(trained.base, 0)

    assert found["begun"] in ("planned", "starting")
    assert found["state"] == "succeeded"
    assert found["losses"] == [event["loss"] for event in events]
    assert found["metrics"]["step"] == [1, 2, 3, 4, 5, 6]
    both = zip(events, steps(trained.base, 1), strict=True)
    assert found["metrics"]["loss"] == pytest.approx([(one["loss"] + other["loss"]) / 2 for one, other in both])
    assert found["merged"] == str(trained.base.paths.merged)
    assert found["same"] == [str(trained.base.paths.root)]
    (note,) = found["notes"]
    assert "are longer than seq_length 64 and cut" in note


def test_weights_are_bit_identical_after_the_last_step(trained: Trained) -> None:
    for job in (trained.base, trained.lora):
        one, other = newest(job, 0), newest(job, 1)

        assert set(one) == set(other)
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_lora_starts_from_the_base_and_leaves_its_weights_alone(trained: Trained) -> None:
    base, tuned = load_file(trained.base.paths.merged / "model.safetensors"), newest(trained.lora, 0)

    assert all(tensor.tobytes() == tuned[name].tobytes() for name, tensor in base.items())
    assert steps(trained.lora, 0)[0]["loss"] < steps(trained.base, 0)[0]["loss"]


def test_the_merged_model_is_base_plus_scaled_product(trained: Trained) -> None:
    tensors = newest(trained.lora, 0)
    merged = load_file(trained.lora.paths.merged / "model.safetensors")
    scale = 16 / 16

    assert not [name for name in merged if "lora" in name or "adam" in name]
    for layer in (0, 1):
        for part in ("wq", "wk", "wv", "wo"):
            stem = f"model.layers.{layer}.attention.{part}"
            product = tensors[f"{stem}.mindpet_delta_lora_b"] @ tensors[f"{stem}.mindpet_delta_lora_a"]
            assert np.abs(product).max() > 0
            np.testing.assert_allclose(
                merged[f"{stem}.weight"], tensors[f"{stem}.weight"] + scale * product, rtol=0, atol=1e-6
            )


def test_a_base_that_changes_after_it_was_checked_fails_the_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The ranks count themselves what was not loaded; MindFormers trains on what the base lacks from random weights."""
    shop = trained.workshop
    monkeypatch.chdir(shop.folder)
    tensors = load_file(trained.base.paths.merged / "model.safetensors")
    base, lost = tmp_path / "base.safetensors", "model.layers.1.attention.wv.weight"
    save_file(tensors, base)
    spec = shop.write_spec("changed", lora=True, steps=2)
    prepared = prepare.prepare(spec, cards=2, checkpoint=str(base), port=None, jobs_dir=Path("jobs"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, base)
    guard = start.begin(prepared.plan).guard
    assert guard is not None
    guard.wait(TIMEOUT_S)
    job = shop.job(prepared.plan.paths.job_id)

    assert job.record.state == jobs.FAILED
    assert job.record.verdict is not None
    assert job.record.verdict["reason"].startswith("CheckpointError: 1 parameters are not in ")
    assert lost in job.record.verdict["reason"]
    assert not [event for rank_id in (0, 1) for event in steps(job, rank_id)]


def test_a_second_merge_writes_nothing(trained: Trained) -> None:
    folder = trained.lora.paths.merged
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = trained.workshop.launcher("merge-ckpt", trained.lora.record.job_id)

    assert result.stdout.startswith("already merged")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert json.loads((folder / "merge.json").read_text())["step"] == 16


def test_status_logs_and_jobs_know_the_job(trained: Trained) -> None:
    shop, job_id = trained.workshop, trained.lora.record.job_id

    assert "state     succeeded" in shop.launcher("status", job_id[:5]).stdout
    assert job_id in shop.launcher("jobs").stdout
    assert "Training Over" in shop.launcher("logs", job_id, "--rank", "1").stdout


def test_merge_before_a_checkpoint_says_what_is_missing(trained: Trained, tmp_path: Path) -> None:
    job_id = "zzzzz-empty"
    paths = jobs.JobPaths(root=tmp_path / job_id)
    paths.root.mkdir()
    paths.spec.write_bytes(trained.lora.paths.spec.read_bytes())
    paths.plan.write_bytes(trained.lora.paths.plan.read_bytes())
    text = trained.lora.record.to_json().replace(trained.lora.record.job_id, job_id)
    paths.record.write_text(text, encoding="utf-8")
    where = ("--jobs-dir", str(tmp_path))

    for command in (("merge-ckpt", job_id), ("infer", job_id, "--prompt", "x")):
        assert "holds no checkpoint" in trained.workshop.launcher(*command, *where, code=4).stderr
    assert not paths.merged.exists()


def write_full_rows(path: Path, rows: int, length: int) -> None:
    """Random tokens, all in_loss, none of them padding: every rank has the same number of tokens in the loss."""
    from launcher.data.mindrecord import write_mindrecord

    tokens = np.random.default_rng(7).integers(3, VOCAB, (rows, 1, length)).astype(np.int32)
    write_mindrecord(path, [np.repeat(tokens, 2, axis=1)], row_length=length)


def test_two_ranks_make_the_gradient_step_of_one_rank_on_the_whole_batch(workshop: Workshop) -> None:
    """AdamW's first moment after one step is (1 - beta1) times the gradient: compared to 1e-6 of its largest value.

    MindSpore averages over tokens on each rank, then over ranks; so both are the same where ranks have equally many
    tokens in the loss, as here.
    """
    write_full_rows(workshop.folder / "full.mindrecord", 16, SEQ_LENGTH + 1)
    gradients = []
    for cards, batch in ((1, 16), (2, 8)):
        spec = workshop.write_spec(
            f"grad{cards}", lora=False, data="full.mindrecord", epochs=1,
            data_options={"batch_size": batch, "shuffle": False},
        )  # fmt: skip
        tensors = newest(workshop.submit(spec, "--cards", str(cards)), 0)
        gradients.append({name: tensor for name, tensor in tensors.items() if name.startswith("adam_m.")})
    one, two = gradients

    assert set(one) == set(two)
    assert len(one) > 10
    for name, gradient in one.items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        assert np.abs(gradient - two[name]).max() <= 1e-6 * max(largest, 1e-3), name


def test_a_rank_that_fails_is_named_with_its_traceback(workshop: Workshop) -> None:
    """Rows of a foreign dataset with the wrong length are found by the ranks themselves."""
    write_full_rows(workshop.folder / "long.mindrecord", 32, SEQ_LENGTH + 9)
    spec = workshop.write_spec("wrong", lora=True, data="long.mindrecord")
    result = workshop.launcher("submit", spec, "--cards", "2", code=7)

    assert "failed first, before its first step: ValueError" in result.stderr
    assert f"has rows of {SEQ_LENGTH + 9} tokens; model.seq_length {SEQ_LENGTH} needs {SEQ_LENGTH + 1}" in result.stderr
    assert "Traceback (most recent call last)" in result.stderr
    assert "check_rows" in result.stderr
    assert workshop.job("last").record.state == jobs.FAILED
