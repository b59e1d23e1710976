"""launcher.checkpoint from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint_sets import ALPHA, MODEL, RANK, folded, llama, write, write_shards

from launcher.checkpoint import convert_model, list_steps, merge_shards, open_step, read_file, split_checkpoint
from launcher.checkpoint.split import SplitPlan
from launcher.errors import CheckpointError
from launcher.models.names import GLOBAL_STEP, is_adapter, is_weight

WQ = "model.layers.0.attention.wq.weight"


def test_tensors_of_a_step(tmp_path: Path) -> None:
    arrays = llama(dtype="float16")
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(data_parallel=2, model_parallel=2))
    assert [step.number for step in list_steps(folder)] == [7]
    with open_step(str(folder)) as step:
        assert (step.number, step.scale, len(step)) == (7, ALPHA / RANK, 21)
        assert (step.shape(WQ), step.dtype(WQ)) == ((32, 32), "float16")
        assert set(step) == {name for name in arrays if is_weight(name)}
        for name, array in step.items():
            is_folded = name.endswith(("wq.weight", "wo.weight"))
            wanted = folded(arrays, name) if is_folded else arrays[name]
            assert array.dtype == np.float16
            assert abs(array.astype(np.float64) - wanted).max() <= (2.0**-11 if is_folded else 0)
    with open_step(folder, fold=False, optimizer=True) as step:
        assert all(step[name].tobytes() == arrays[name].tobytes() for name in step)
        assert set(step) == set(arrays)


def test_incomplete_steps_are_listed_when_asked_for(tmp_path: Path) -> None:
    for rank, steps in ((0, (4, 8)), (1, (4,))):
        for number in steps:
            arrays = {**llama(), GLOBAL_STEP: np.array([number], np.int32)}
            write(tmp_path / f"rank_{rank}" / f"x_rank_{rank}-1_{number}.ckpt", arrays)
    assert [step.number for step in list_steps(tmp_path)] == [4]
    assert [step.number for step in list_steps(tmp_path, complete=False)] == [4, 8]


def test_split_merge_and_convert(tmp_path: Path) -> None:
    arrays = llama()
    whole = write(tmp_path / "whole.ckpt", arrays)
    assert split_checkpoint(whole, tmp_path / "set", model_parallel=2, pipeline_stage=2) == 4
    (tmp_path / "set" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    described = {"model": MODEL, "template": "plain", "precision": {}}
    (tmp_path / "model.json").write_text(json.dumps(described))
    merged = merge_shards(tmp_path / "set", tmp_path / "hf", layout="hf", model=tmp_path / "model.json")
    assert (merged.fresh, merged.num_folded) == (True, 4)
    assert not merge_shards(tmp_path / "set", tmp_path / "hf", layout="hf", model=tmp_path / "model.json").fresh
    assert convert_model(tmp_path / "hf", tmp_path / "ms").layout == "mindspore"
    found = read_file(tmp_path / "ms" / "model.safetensors")
    assert abs(found[WQ] - folded(arrays, WQ)).max() < 1e-6
    assert not any(is_adapter(name) for name in found)
    with pytest.raises(CheckpointError, match="exists"):
        convert_model(tmp_path / "hf", tmp_path / "ms")
