"""Checkpoints of MindFormers' newer format (use_legacy_format: False): a folder a step, and metadata.json in it."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_sets import launcher, llama, read, run_merge, write

from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.merge import Options
from launcher.checkpoint.shards import find_shards
from launcher.checkpoint.split_layout import SplitPlan, layout_of, stage_of
from launcher.checkpoint.steps import list_steps
from launcher.errors import CheckpointError

RANKS, PER_STAGE = 8, 4  # two stages of two data times two tensor
PLAN = SplitPlan(data_parallel=2, model_parallel=2, pipeline_stage=2)

# Saves as mindformers' save_checkpoint does, for ranks that are not there: its own names, slices and metadata.
_BY_THE_WHEEL = """
import os, sys
import numpy as np
import mindspore as ms
from mindspore.parallel import Layout
from launcher.upstream.light_imports import light_imports
with light_imports():
    from mindformers.checkpoint import metadata
from mindformers.checkpoint.checkpoint import CommonInfo
from mindformers.checkpoint.sharded_tensor import get_sharded_tensor_from_strategy_metadata
from mindformers.checkpoint.utils import FileType, get_checkpoint_iter_dir, get_checkpoint_name
from mindformers.checkpoint.utils import get_common_filename, get_metadata_filename

root, arrays, ranks, per_stage = sys.argv[1], dict(np.load(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
metadata.get_group_size = lambda: ranks
folder = get_checkpoint_iter_dir(root, 10)
os.makedirs(folder)
metas = {}
for rank in range(ranks):
    stage, device = divmod(rank, per_stage)
    layout = Layout((2, 2), ("dp", "tp"), list(range(stage * per_stage, (stage + 1) * per_stage)))
    infos, held = {}, []
    for key, whole in arrays.items():
        at, cut, name = key.split("|")
        if int(at) == stage:
            axes = ["tp" if str(axis) == cut else "None" for axis in range(whole.ndim)]
            array = whole if cut == "-" else np.split(whole, 2, int(cut))[device % 2]
            infos[name] = (layout(*axes), ms.float32, tuple(whole.shape))
            held.append({"name": name, "data": ms.Tensor(array)})
    metas[rank] = get_sharded_tensor_from_strategy_metadata(infos, rank)
    state = [{"name": "adam_m." + held[0]["name"], "data": held[0]["data"]}]
    for kind, saved in ((FileType.MODEL, held), (FileType.OPTIMIZER, state)):
        ms.save_checkpoint(saved, get_checkpoint_name(folder, "llama", rank, ranks, kind), format="safetensors")
names = {key.split("|")[2] for key in arrays}
mappings = metadata.get_total_params_file_mapping_info(metas, "llama", names)
metadata.save_metadata(metas, mappings, get_metadata_filename(root, 10))
CommonInfo(global_step=10).save_common(get_common_filename(root, 10))
"""


def weights() -> dict[str, Array]:
    return {name: array for name, array in llama(lora=False).items() if array.ndim and name != "global_step"}


def placed() -> dict[tuple[int, str, int | None], Array]:
    """Every weight by its stage, its name and the axis that tensor parallel cuts."""
    found: dict[tuple[int, str, int | None], Array] = {}
    for name, array in weights().items():
        layout = layout_of(name, array.shape, PLAN, nbytes=array.nbytes)
        axis = next((number for number, dims in enumerate(layout.tensor_map) if dims), None)
        found |= {(stage, name, axis): array for stage in stage_of(name, 2, PLAN)}
    return found


def described(stage: int, array: Array, axis: int | None) -> dict[str, Any]:
    """What metadata.json says of a parameter, as far as a merge reads it."""
    layout = {
        "device_matrix": [2, 2],
        "tensor_map": [0 if number == axis else -1 for number in range(array.ndim)],
        "interleaved_parallel": False,
        "alias_name": ["dp", "tp"],
        "rank_list": list(range(stage * PER_STAGE, (stage + 1) * PER_STAGE)),
    }
    return {"global_shape": list(array.shape), "layout": layout}


def write_step(root: Path, step: int, seed: int = 0, drop: Mapping[int, str] | None = None) -> Path:
    """A step as the format has it. drop: a name that a rank leaves to its copies."""
    place = root / f"iteration_{step:08d}"
    listed, arrays = {}, llama(lora=False, seed=seed)
    for rank in range(RANKS):
        stage, device = divmod(rank, PER_STAGE)
        held = {}
        for (at, name, axis), _ in placed().items():
            if at == stage:
                array = arrays[name]
                listed[name] = described(stage, array, axis)
                held[name] = array if axis is None else np.ascontiguousarray(np.split(array, 2, axis)[device % 2])
        held.pop((drop or {}).get(rank, ""), None)
        write(place / f"llama-model-{rank:07d}-{RANKS:07d}.safetensors", held)
    (place / "metadata.json").write_text(json.dumps({"state_dict_metadata": listed, "storage_data": {}}))
    return root


@pytest.mark.mindspore
@pytest.mark.slow
def test_what_the_wheel_saves_is_merged(tmp_path: Path) -> None:
    source = tmp_path / "whole.npz"
    named = {
        f"{stage}|{'-' if axis is None else axis}|{name}": array for (stage, name, axis), array in placed().items()
    }
    np.savez(source, **named)
    argv = [sys.executable, "-c", _BY_THE_WHEEL, str(tmp_path / "run"), str(source), str(RANKS), str(PER_STAGE)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = write_step(tmp_path / "ours", 10)
    metas = [
        json.loads((root / "iteration_00000010" / "metadata.json").read_text()) for root in (tmp_path / "run", ours)
    ]
    theirs, mine = (meta["state_dict_metadata"] for meta in metas)
    assert {name: {key: theirs[name][key] for key in ("global_shape", "layout")} for name in theirs} == mine
    merged = launcher("merge-ckpt", tmp_path / "run", "-o", tmp_path / "out")
    assert merged.returncode == 0, merged.stderr
    assert f"step 10 of {tmp_path}/run: 8 ranks, 2 pipeline stages" in merged.stdout
    found = read(tmp_path / "out" / "model.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in weights().items()
    }


def test_steps_are_listed_and_the_newest_whole_one_is_merged(tmp_path: Path) -> None:
    root = write_step(write_step(tmp_path / "checkpoint", 9, seed=1), 100, drop={1: "lm_head.weight", 2: "model.norm"})
    (root / "latest_checkpointed_iteration.txt").write_text("100")
    assert [str(step) for step in list_steps(find_shards(tmp_path))] == ["step 9", "step 100"]
    assert run_merge(tmp_path, tmp_path / "out").step == 100
    found = read(tmp_path / "out" / "model.safetensors")
    assert all(found[name].tobytes() == array.tobytes() for name, array in weights().items())
    newest = root / "iteration_00000100" / f"llama-model-0000003-{RANKS:07d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert run_merge(tmp_path, tmp_path / "older").step == 9
    newest.unlink()
    assert run_merge(tmp_path, tmp_path / "older again").step == 9
    assert run_merge(tmp_path, tmp_path / "asked", Options(step=9)).step == 9
    shutil.rmtree(root / "iteration_00000009")
    with pytest.raises(CheckpointError, match="rank 3: nothing"):
        run_merge(tmp_path, tmp_path / "none")


def test_what_follows_the_layouts_is_not_read(tmp_path: Path) -> None:
    """It says of every slice which ranks have it: gigabytes at thousands of ranks."""
    path = write_step(tmp_path, 1) / "iteration_00000001" / "metadata.json"
    path.write_text(path.read_text().removesuffix("{}}") + '{"a": [' + "1," * (16 << 20))
    assert run_merge(tmp_path, tmp_path / "out").step == 1


def test_a_run_of_one_rank_has_no_list(tmp_path: Path) -> None:
    write(tmp_path / "iteration_00000003" / "model-0000000-0000001.safetensors", weights())
    assert run_merge(tmp_path, tmp_path / "out").step == 3


def without(path: Path) -> None:
    path.unlink()


def interleaved(path: Path) -> None:
    change(path, "interleaved_parallel", True)


def on_odd_ranks(path: Path) -> None:
    change(path, "rank_list", [0, 2, 4, 6])


def on_no_ranks(path: Path) -> None:
    change(path, "rank_list", [])


def on_other_devices(path: Path) -> None:
    change(path, "device_matrix", [3, 2])


def of_no_layout(path: Path) -> None:
    path.write_text(json.dumps({"state_dict_metadata": {"w": {"layout": None}}}))


def no_mapping(path: Path) -> None:
    path.write_text('{"state_dict_metadata": 3}')


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def change(path: Path, key: str, value: Any) -> None:
    read_ = json.loads(path.read_text())
    for item in read_["state_dict_metadata"].values():
        item["layout"] = copy.deepcopy({**item["layout"], key: value})
    path.write_text(json.dumps(read_))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without, "metadata.json is missing: nothing says how 8 ranks share the weights"),
        (interleaved, "is cut for interleaved parallel"),
        (on_odd_ranks, "is on ranks [0, 2, 4, 6], which are no pipeline stage"),
        (on_no_ranks, "is on ranks [], which are no pipeline stage"),
        (on_other_devices, "which are no pipeline stage"),
        (of_no_layout, "is no strategy file"),
        (no_mapping, "is no strategy file"),
        (deep, "is no strategy file"),
    ],
)
def test_a_list_that_is_missing_or_odd_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    damage(write_step(tmp_path, 1) / "iteration_00000001" / "metadata.json")
    with pytest.raises(CheckpointError) as caught:
        run_merge(tmp_path, tmp_path / "out")
    assert said in caught.value.message
    assert caught.value.hint


def test_files_of_two_runs_the_optimizer_and_empty_steps_are_refused(tmp_path: Path) -> None:
    place = write_step(tmp_path, 1) / "iteration_00000001"
    with pytest.raises(CheckpointError, match="keeps the optimizer's state in files of its own"):
        run_merge(tmp_path, tmp_path / "out", Options(with_optimizer=True))
    shutil.copy(
        place / f"llama-model-0000000-{RANKS:07d}.safetensors", place / "zlama-model-0000000-0000008.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"one of two of its rank, among those of 8"):
        run_merge(tmp_path, tmp_path / "out")
    (tmp_path / "empty" / "iteration_00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="its steps are empty"):
        run_merge(tmp_path / "empty", tmp_path / "out")
