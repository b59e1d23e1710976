"""A base in shards: what is read of it, and which runs can load it as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.checkpoint_sets import llama, write

from launcher.checkpoint.sharded import check_fits, holds_shards, read_sharded
from launcher.checkpoint.split import SplitPlan, split
from launcher.checkpoint.tensorfile import TensorFile
from launcher.errors import CheckpointError

PLANS = {
    "tensor": SplitPlan(model_parallel=2),
    "data": SplitPlan(data_parallel=2, model_parallel=2),
    "pipeline": SplitPlan(model_parallel=2, pipeline_stage=2),
    "vocabulary": SplitPlan(model_parallel=2, cut_vocabulary=True),
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.safetensors"
    write(path, llama(lora=False))
    return path


def cut(whole: Path, plan: SplitPlan) -> Path:
    target = whole.parent / "shards"
    with TensorFile(whole) as source:
        split(source, target, plan)
    return target


@pytest.mark.parametrize("name", PLANS)
def test_shards_fit_the_run_that_cuts_alike_and_no_other(whole: Path, name: str) -> None:
    folder = cut(whole, PLANS[name])
    base = read_sharded(folder)

    assert holds_shards(folder)
    with TensorFile(whole) as source:
        shapes = {key: tensor.shape for key, tensor in base.tensors.items()}
        assert shapes == {key: entry.shape for key, entry in source.entries.items()}
    assert [Path(file).parent.name for file in base.files] == [f"rank_{rank}" for rank in range(PLANS[name].num_ranks)]
    check_fits(base, PLANS[name])
    for other, plan in PLANS.items():
        if other != name:
            with pytest.raises(CheckpointError, match="not cut as this run cuts the model") as caught:
                check_fits(base, plan)
            assert f"--mp 2 --pp {plan.pipeline_stage}" in (caught.value.hint or "")
            assert ("--cut-vocabulary" in (caught.value.hint or "")) == plan.cut_vocabulary


def test_shards_that_say_nothing_of_their_cuts_are_refused(whole: Path) -> None:
    folder = cut(whole, PLANS["tensor"])
    shutil.rmtree(folder / "strategy")

    with pytest.raises(CheckpointError, match="has no strategy files"):
        read_sharded(folder)


def test_a_folder_without_ranks_holds_no_shards(whole: Path) -> None:
    assert not holds_shards(whole.parent)
    assert not holds_shards(whole)
