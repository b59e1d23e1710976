"""merge-ckpt of a data-parallel job: the right step, the right scale, whole or absent."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launcher import jobs
from launcher.errors import CheckpointError, JobError
from launcher.jobs import JobPaths, JobRecord
from launcher.merging import fold, merge_job, newest_complete
from launcher.processes import ProcessId
from launcher.spec import load_spec

STEM = "model.layers.0.attention.wq"


def one_hot(shape: tuple[int, int], place: tuple[int, int], value: float, dtype: str = "float32") -> Any:
    array = np.zeros(shape, dtype=dtype)
    array[place] = value
    return array


def tensors(step: int, *, lora: bool = True, dtype: str = "float32") -> dict[str, Any]:
    """Weights with one non-zero element each, so that the fold can be computed by hand."""
    found = {
        f"{STEM}.weight": one_hot((4, 6), (0, 0), 1.0, dtype),
        "lm_head.weight": np.full((3, 4), 0.5, dtype=dtype),
        "adam_m." + STEM: np.ones((4, 6), dtype="float32"),
        "global_step": np.array([step], dtype="int32"),
        "loss_scale": np.array(1.0, dtype="float32"),
    }
    if lora:
        found[f"{STEM}.mindpet_delta_lora_a"] = one_hot((2, 6), (1, 5), 3.0, dtype)
        found[f"{STEM}.mindpet_delta_lora_b"] = one_hot((4, 2), (2, 1), 5.0, dtype)
    return found


def save(checkpoints: Path, rank: int, name: str, content: dict[str, Any]) -> Path:
    folder = checkpoints / f"rank_{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"launcher_rank_{rank}-{name}.safetensors"
    save_file(content, path)
    return path


def make_job(root: Path, *, state: str = jobs.SUCCEEDED, alpha: int = 4, r: int = 2) -> tuple[JobPaths, JobRecord]:
    spec = load_spec("tiny_cpu")
    assert spec.lora is not None
    spec = spec.model_copy(update={"lora": spec.lora.model_copy(update={"alpha": alpha, "r": r})})
    paths = JobPaths(root=root / "bcdfg-x")
    paths.root.mkdir()
    paths.spec.write_text(spec.model_dump_json())
    (root / "tokenizer.model").write_bytes(b"tokens")
    paths.plan.write_text(json.dumps({"tokenizer": str(root / "tokenizer.model")}))
    record = JobRecord(
        job_id="bcdfg-x",
        name="x",
        state=state,
        created=jobs.now(),
        host=socket.gethostname(),
        cards=2,
        target="CPU",
        argv=(),
        versions={},
        supervisor=ProcessId.current(),
    )
    return paths, record


def test_the_fold_is_base_plus_alpha_over_r_times_b_a(tmp_path: Path) -> None:
    paths, record = make_job(tmp_path, alpha=4, r=2)
    for rank in (0, 1):
        save(paths.checkpoints, rank, "1_8", tensors(8))
    merged = merge_job(paths, record)

    weights = load_file(paths.merged / "model.safetensors")
    expected = one_hot((4, 6), (0, 0), 1.0) + one_hot((4, 6), (2, 5), 2.0 * 5.0 * 3.0)
    np.testing.assert_array_equal(weights[f"{STEM}.weight"], expected)
    assert set(weights) == {f"{STEM}.weight", "lm_head.weight"}
    assert (merged.step, merged.num_weights, merged.num_folded, merged.fresh) == (8, 2, 1, True)
    assert (paths.merged / "tokenizer.model").read_bytes() == b"tokens"
    note = json.loads((paths.merged / "merge.json").read_text())
    assert (note["step"], note["lora_scale"], len(note["inputs"])) == (8, 2.0, 2)


def test_the_result_has_the_dtype_of_the_weight() -> None:
    folded = dict(fold(tensors(1, dtype="float16"), 2.0))

    assert {str(tensor.dtype) for tensor in folded.values()} == {"float16"}
    assert folded[f"{STEM}.weight"][2, 5] == 30.0


def test_adapters_without_a_scale_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has LoRA adapters, but the run had no LoRA"):
        dict(fold(tensors(1), None))


def test_the_newest_step_counts_by_number_not_by_name(tmp_path: Path) -> None:
    for rank in (0, 1):
        for name, step in (("1_96", 96), ("1_112", 112), ("2_8", 120), ("10_4", 900)):
            save(tmp_path, rank, name, tensors(step))

    assert [path.name for path in newest_complete(tmp_path, 2)] == [
        f"launcher_rank_{rank}-10_4.safetensors" for rank in (0, 1)
    ]


def test_a_step_that_one_rank_lacks_is_passed_over(tmp_path: Path) -> None:
    for rank, names in ((0, ("1_8", "1_16")), (1, ("1_8",))):
        for name in names:
            save(tmp_path, rank, name, tensors(8))

    assert [path.name for path in newest_complete(tmp_path, 2)] == [
        "launcher_rank_0-1_8.safetensors",
        "launcher_rank_1-1_8.safetensors",
    ]


def test_no_common_step_says_which_rank_has_what(tmp_path: Path) -> None:
    save(tmp_path, 0, "1_16", tensors(16))
    save(tmp_path, 1, "1_8", tensors(8))
    with pytest.raises(CheckpointError) as caught:
        newest_complete(tmp_path, 3)

    for line in ("rank 0: 1_16", "rank 1: 1_8", "rank 2: nothing"):
        assert line in str(caught.value)


def test_no_checkpoint_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        newest_complete(tmp_path, 2)


def test_ranks_that_disagree_are_named_with_the_tensor_and_nothing_is_written(tmp_path: Path) -> None:
    paths, record = make_job(tmp_path)
    save(paths.checkpoints, 0, "1_8", tensors(8))
    other = tensors(8)
    other["lm_head.weight"] = other["lm_head.weight"] + 1e-7
    save(paths.checkpoints, 1, "1_8", other)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs between rank 0 and rank 1"):
        merge_job(paths, record)

    assert not [path for path in paths.root.iterdir() if "merged" in path.name]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"\xff" * 7, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    paths, record = make_job(tmp_path)
    save(paths.checkpoints, 0, "1_8", tensors(8))
    save(paths.checkpoints, 1, "1_8", tensors(8)).write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"launcher_rank_1-1_8\.safetensors is damaged"):
        merge_job(paths, record)

    assert not paths.merged.exists()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    paths, record = make_job(tmp_path)
    for rank in (0, 1):
        path = save(paths.checkpoints, rank, "1_8", tensors(8))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is damaged"):
        merge_job(paths, record)


def test_a_second_merge_writes_nothing_and_a_damaged_one_is_not_overwritten(tmp_path: Path) -> None:
    paths, record = make_job(tmp_path)
    for rank in (0, 1):
        save(paths.checkpoints, rank, "1_8", tensors(8))
    merge_job(paths, record)
    for rank in (0, 1):
        save(paths.checkpoints, rank, "1_16", tensors(16))

    assert merge_job(paths, record).fresh is False
    assert merge_job(paths, record).step == 8
    (paths.merged / "merge.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"its merge\.json is missing or damaged"):
        merge_job(paths, record)


def test_a_running_job_is_not_merged(tmp_path: Path) -> None:
    paths, record = make_job(tmp_path, state=jobs.RUNNING)
    with pytest.raises(JobError, match="is still running"):
        merge_job(paths, replace(record))
