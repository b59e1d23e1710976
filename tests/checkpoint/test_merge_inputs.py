"""What a merge takes for the same, for whole and for a model: shards that change, lack tensors, are damaged or odd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_sets import (
    ALPHA,
    MODEL,
    RANK,
    corpus,
    folded,
    launcher,
    llama,
    read,
    run_merge,
    write,
    write_ranks,
    write_shards,
)

from launcher.checkpoint import list_steps, open_step
from launcher.checkpoint.compare import check_crc
from launcher.checkpoint.convert import convert, open_model
from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.entries import DamagedFile
from launcher.checkpoint.lora import read_lora, read_single_scale
from launcher.checkpoint.merge import PEFT, Merged, Options, Source, merge, plan_merge
from launcher.checkpoint.safetensors_format import header_bytes
from launcher.checkpoint.split_layout import SplitPlan, layout_of
from launcher.checkpoint.steps import BY_NAME, BY_TENSOR, Step, check_steps
from launcher.checkpoint.strategy import read_strategy
from launcher.checkpoint.tensorfile import TensorFile
from launcher.common.folders import only_writer, real_path
from launcher.errors import CheckpointError
from launcher.models.names import GLOBAL_STEP, LEGACY, SCHEMES, adapters_of, is_adapter, is_weight
from launcher.models.registry import hf_name

EMBEDDING = SCHEMES[LEGACY].embedding
HEAD = SCHEMES[LEGACY].head

WQ, W1 = "model.layers.0.attention.wq.weight", "model.layers.1.feed_forward.w1.weight"
LORA_A = adapters_of(WQ)[0]
_VOCABULARY = 2_200_000  # 281 MB of embedding: the files of such a set are not hashed whole


# ------------------------------------------------------------------------------------------------ the same merge


def _large(folder: Path, arrays: dict[str, Array]) -> Path:
    """A shard whose embedding is of zeros that take no room on the disk, as header and holes are written."""
    shape: tuple[int, ...] = (_VOCABULARY, MODEL["hidden_size"])
    rows = [(EMBEDDING, "float32", shape, _VOCABULARY * MODEL["hidden_size"] * 4)]
    rows += [(name, str(array.dtype), array.shape, array.nbytes) for name, array in arrays.items() if name != EMBEDDING]
    path = folder / "rank_0" / "x_rank_0-1_1.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "wb") as out:
        out.write(header_bytes(rows, {}))
        out.seek(rows[0][3], os.SEEK_CUR)
        out.write(b"".join(arrays[name].tobytes() for name, *_ in rows[1:]))
    return path


def _adapters_alone(folder: Path, output: Path, *, full: bool = False, force: bool = False) -> Merged:
    with ExitStack() as stack:
        plan = plan_merge(Source(name="t", folder=folder), Options(layout=PEFT, verify_full=full), stack)
        return merge(plan, output, force=force)


def _large_set(root: Path) -> tuple[Path, Path, dict[str, Array]]:
    arrays = llama({**MODEL, "vocab_size": 40})
    arrays[HEAD] = np.zeros((0, 0), np.float32)
    del arrays[HEAD], arrays["loss_scale"]
    path = _large(root / "set", arrays)
    (root / "set" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    return root / "set", path, arrays


def test_a_run_into_the_same_folder_is_another_merge(tmp_path: Path) -> None:
    """Less than a hundredth of the file changes, at the same length, and the clock is turned back."""
    folder, path, arrays = _large_set(tmp_path)
    before = path.stat()
    assert _adapters_alone(folder, tmp_path / "out").fresh
    assert not _adapters_alone(folder, tmp_path / "out").fresh
    _large(folder, {name: array * 2 if name == LORA_A else array for name, array in arrays.items()})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(CheckpointError, match=r"x_rank_0-1_1\.safetensors is another file than then, or has changed"):
        _adapters_alone(folder, tmp_path / "out")
    assert _adapters_alone(folder, tmp_path / "out", force=True).fresh


def test_a_file_that_was_written_again_is_known_by_a_full_comparison(tmp_path: Path) -> None:
    folder, path, _ = _large_set(tmp_path)
    _adapters_alone(folder, tmp_path / "out")
    os.utime(path)
    with pytest.raises(CheckpointError, match=r"was written again since, .*--verify full"):
        _adapters_alone(folder, tmp_path / "out")
    assert not _adapters_alone(folder, tmp_path / "out", full=True).fresh
    assert not _adapters_alone(folder, tmp_path / "out").fresh  # the record has the new time


def test_a_result_that_the_shards_do_not_give_is_said_to_be_that(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()})
    run_merge(folder, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(
        CheckpointError, match=r"another merge: it is not what these shards give: .*rows from"
    ) as caught:
        run_merge(folder, tmp_path / "out", Options(verify_full=True))
    assert "--force" in caught.value.hint
    assert run_merge(folder, tmp_path / "out", Options(verify_full=True), force=True).fresh


# ------------------------------------------------------------------------------------------------ names of all ranks


def _without(arrays: dict[str, Array], *parts: str) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize("file_format", ["ckpt", "safetensors"])
def test_a_head_that_only_the_second_rank_has_is_merged(tmp_path: Path, file_format: str) -> None:
    arrays = llama(lora=False)
    files = {f"rank_0/a.{file_format}": _without(arrays, HEAD), f"rank_1/a.{file_format}": arrays}
    run_merge(write_ranks(tmp_path / "set", files), tmp_path / "out")
    assert read(tmp_path / "out" / "model.safetensors")[HEAD].tobytes() == arrays[HEAD].tobytes()


def test_optimizer_state_that_only_the_second_rank_has_is_kept(tmp_path: Path) -> None:
    arrays = llama()
    files = {"rank_0/a.ckpt": _without(arrays, "adam_v"), "rank_1/a.ckpt": arrays}
    run_merge(write_ranks(tmp_path / "set", files), tmp_path / "out", Options(with_optimizer=True))
    kept = read(tmp_path / "out" / "optimizer.safetensors")
    assert {name for name in arrays if "adam_" in name} <= kept.keys()


def test_half_of_the_optimizer_state_is_refused(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": _without(llama(), "adam_v")})
    assert run_merge(folder, tmp_path / "out").fresh  # which leaves the state out
    with pytest.raises(CheckpointError, match=r"adam_m\.\S+ is there and adam_v\.\S+ is on no rank"):
        run_merge(folder, tmp_path / "other", Options(with_optimizer=True))


def test_a_head_with_optimizer_state_is_not_tied(tmp_path: Path) -> None:
    arrays = _without(llama(lora=False), HEAD) | {f"adam_m.{HEAD}": np.zeros(3, np.float32)}
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    with pytest.raises(CheckpointError, match=f"{HEAD} is missing, though adam_m.{HEAD} is there"):
        run_merge(folder, tmp_path / "out")


def test_a_model_without_a_head_is_said_to_be_taken_for_tied(tmp_path: Path) -> None:
    write_ranks(tmp_path / "set", {"rank_0/a.ckpt": _without(llama(lora=False), HEAD)})
    done = launcher("merge-ckpt", "set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"note   no {HEAD} on any of 1 ranks: taken for a model whose head is its embedding" in done.stdout
    assert ": 1 rank\n" in done.stdout
    assert "from 1 file;" in done.stdout


def test_tensors_that_are_each_on_one_rank_are_put_together(tmp_path: Path) -> None:
    arrays, ranks = llama(), 4
    names = sorted(arrays)
    shares = {f"rank_{rank}/a-1_7.ckpt": {name: arrays[name] for name in names[rank::ranks]} for rank in range(ranks)}
    folder = write_ranks(tmp_path / "set", shares)
    with open_step(folder, fold=False, optimizer=True) as step:
        assert step.number == 7
        assert {name: step[name].tobytes() for name in step} == {name: arrays[name].tobytes() for name in arrays}
    assert [step.said_by for step in list_steps(folder)] == [GLOBAL_STEP]  # which is not on the first rank
    del shares["rank_3/a-1_7.ckpt"][names[3]]
    write_ranks(tmp_path / "other", shares)
    with pytest.raises(CheckpointError, match=r"is missing|missing model|is on no rank"):
        run_merge(tmp_path / "other", tmp_path / "out", Options(with_optimizer=True))


# ------------------------------------------------------------------------------------------------ finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_weight_that_is_not_finite_is_refused_wherever_it_is(tmp_path: Path, dtype: str, value: float) -> None:
    arrays = llama(dtype=dtype)
    arrays[W1][17, 3] = value
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    with pytest.raises(CheckpointError, match=rf"{W1} has 1 values that are not finite in {dtype}, in rows .*a\.ckpt"):
        run_merge(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_value_that_a_cast_makes_infinite_is_refused(tmp_path: Path) -> None:
    arrays = llama({**MODEL, "vocab_size": 400})
    arrays[HEAD][101, 3] = 1e6
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    with pytest.raises(CheckpointError, match=f"{HEAD} has 1 values that are not finite in float16") as caught:
        run_merge(folder, tmp_path / "out", Options(dtype="float16"))
    assert "--dtype float32" in caught.value.hint
    assert run_merge(folder, tmp_path / "out", Options(dtype="bfloat16")).fresh


def test_the_largest_numbers_are_finite_and_the_optimizer_may_have_any(tmp_path: Path) -> None:
    arrays = llama(dtype="float16")
    arrays[W1][0, 0], arrays[W1][0, 1] = np.finfo(np.float16).max, np.finfo(np.float16).min
    arrays[f"adam_v.{LORA_A}"][0, 0] = np.inf
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    run_merge(folder, tmp_path / "out", Options(with_optimizer=True))
    assert read(tmp_path / "out" / "model.safetensors")[W1].tobytes() == arrays[W1].tobytes()
    assert read(tmp_path / "out" / "optimizer.safetensors")[f"adam_v.{LORA_A}"][0, 0] == np.inf


def test_converting_and_splitting_refuse_it_too(tmp_path: Path) -> None:
    arrays = _without(llama(lora=False), "adam", "step", "loss_scale")
    arrays[W1][17, 3] = np.nan
    write(tmp_path / "base.safetensors", arrays)
    write(tmp_path / "hf" / "model.safetensors", {hf_name(name): array for name, array in arrays.items()})
    (tmp_path / "hf" / "config.json").write_text(json.dumps(_HF_CONFIG))
    for argv in (("split-ckpt", "base.safetensors", "--mp", "2"), ("convert-ckpt", "hf")):
        done = launcher(*argv, "-o", "out", cwd=tmp_path)
        assert done.returncode == 4, done.stderr
        assert "values that are not finite in float32" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "hf"]


# ------------------------------------------------------------------------------------------------ adapter_config.json


def _config(folder: Path, **more: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA, **more}))
    return folder


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"use_rslora": True}, ALPHA / RANK**0.5),
        ({"alpha_pattern": {"wq": 3}}, 3 / RANK),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 5}}, 3 / RANK),
        ({"alpha_pattern": {r"model\.layers\.1\..*": 3}}, ALPHA / RANK),
        ({"r": 99, "rank_pattern": {"wq|wo": RANK}, "use_rslora": True}, ALPHA / RANK**0.5),
    ],
)
def test_the_scale_is_that_of_the_settings(tmp_path: Path, more: dict[str, Any], scale: float) -> None:
    arrays = llama()
    folder = _config(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays}), **more)
    run_merge(folder, tmp_path / "out", Options(verify_full=True))
    delta = folded(arrays, WQ) - arrays[WQ]
    wanted = arrays[WQ] + delta * scale / (ALPHA / RANK)
    assert abs(read(tmp_path / "out" / "model.safetensors")[WQ] - wanted).max() < 1e-6


def test_peft_is_told_the_folder_that_the_base_was_converted_from(tmp_path: Path) -> None:
    arrays = llama()
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    described = {"model": MODEL, "template": "vicuna", "precision": {"params": "float32", "compute": "float32"}}
    run_merge(folder, tmp_path / "hf", Options(layout="hf"), model=described)
    with ExitStack() as stack:
        convert(open_model(tmp_path / "hf", None, stack), tmp_path / "base")
    done = launcher("merge-ckpt", "set", "--format", "peft", "--base", "base", "-o", "peft", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "names no base" not in done.stdout
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "hf")
    unknown = launcher("merge-ckpt", "set", "--format", "peft", "-o", "alone", cwd=tmp_path)
    assert unknown.stdout.count("adapter_config.json names no base") == 1
    assert json.loads((tmp_path / "alone" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_scales_by_weight_are_said_recorded_and_exported(tmp_path: Path) -> None:
    arrays = llama()
    folder = _config(
        write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays}), alpha_pattern={"layers.1.attention.wo": 3}
    )
    done = launcher("merge-ckpt", "set", cwd=tmp_path)
    assert "LoRA of several scales" in done.stdout
    assert "note   LoRA scales by weight: 0.75, 2" in done.stdout
    record = json.loads((folder / "merged" / "merge.json").read_text())
    assert sorted(set(record["lora_scale"].values())) == [3 / RANK, ALPHA / RANK]
    run_merge(folder, tmp_path / "peft", Options(layout=PEFT))
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (RANK, ALPHA, {})
    assert config["alpha_pattern"] == {"model.layers.1.self_attn.o_proj": 3}
    found = read_lora(tmp_path / "peft" / "adapter_config.json")
    assert [found.scale_of(f"model.layers.{layer}.attention.wo.weight") for layer in (0, 1, 11)] == [2, 0.75, 2]
    with pytest.raises(CheckpointError, match=r"different scales: 0\.75, 2") as caught:
        run_merge(folder, tmp_path / "apart", Options(fold=False))
    assert "--format peft" in caught.value.hint


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"use_dora": True}, "is not of plain LoRA: use_dora: true"),
        ({"bias": "all"}, 'is not of plain LoRA: bias: "all"'),
        ({"peft_type": "ADALORA"}, 'is not of plain LoRA: peft_type: "ADALORA"'),
        ({"modules_to_save": ["lm_head"]}, "is not of plain LoRA: modules_to_save"),
        ({"alpha_pattern": {"w9": 3}}, "the pattern 'w9' of adapter_config.json matches none"),
        ({"alpha_pattern": {"(": 3}}, "r and lora_alpha are missing or wrong: pattern"),
        ({"alpha_pattern": "wq"}, "alpha_pattern is 'wq', not an object"),
        ({"alpha_pattern": {"wq": -3}}, "r and lora_alpha are missing or wrong: lora_alpha -3"),
        ({"rank_pattern": {"wq": 2}}, "has rank 4, the run says r = 2"),
        ({"r": 4.5}, "r and lora_alpha are missing or wrong"),
    ],
)
def test_settings_that_are_not_folded_are_refused_by_name(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    folder = _config(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()}), **more)
    with pytest.raises(CheckpointError) as caught:
        run_merge(folder, tmp_path / "out")
    assert said in caught.value.message
    assert caught.value.hint


def test_what_takes_one_scale_refuses_several(tmp_path: Path) -> None:
    """launcher infer --adapter keeps LoRA apart, in cells that have one scale."""
    assert read_single_scale(_config(tmp_path, use_rslora=True) / "adapter_config.json") == ALPHA / RANK**0.5
    with pytest.raises(CheckpointError, match="different scales") as caught:
        read_single_scale(_config(tmp_path, alpha_pattern={"wq": 3}) / "adapter_config.json")
    assert "merge_and_unload" in caught.value.hint


def test_weights_of_whole_numbers_are_no_model(tmp_path: Path) -> None:
    arrays = _without(llama(lora=False), "adam", "step", "loss_scale")
    arrays[W1] = arrays[W1].astype(np.int8)
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    with pytest.raises(CheckpointError, match=f"{W1} is of type int8"):
        run_merge(folder, tmp_path / "out")
    write(tmp_path / "base.safetensors", arrays)
    done = launcher("split-ckpt", "base.safetensors", "-o", "out", cwd=tmp_path)
    assert (done.returncode, f"{W1} is of type int8" in done.stderr) == (4, True)


# ------------------------------------------------------------------------------------------------ damaged files


def _two_steps(root: Path, suffix: str) -> Path:
    files = {
        f"rank_{rank}/x_rank_{rank}-1_{step}{suffix}": {**llama(), GLOBAL_STEP: np.array([step], np.int32)}
        for rank in (0, 1)
        for step in (2, 4)
    }
    return write_ranks(root / "set", files)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_torn_newest_file_is_skipped_and_said(tmp_path: Path, suffix: str, rank: int) -> None:
    folder = _two_steps(tmp_path, suffix)
    path = folder / f"rank_{rank}" / f"x_rank_{rank}-1_4{suffix}"
    path.write_bytes(path.read_bytes()[:-50])
    listed = launcher("merge-ckpt", "set", "--list", cwd=tmp_path)
    assert listed.stdout.rstrip().endswith(f"no: rank {rank} damaged")
    steps = json.loads(launcher("merge-ckpt", "set", "--list", "--format", "json", cwd=tmp_path).stdout)
    assert [(step["complete"], step["damaged"]) for step in steps] == [(True, []), (False, [rank])]
    assert [str(step) for step in list_steps(folder)] == ["step 2"]
    done = launcher("merge-ckpt", "set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"skipped 1_4: set/rank_{rank}/{path.name} is damaged: " in done.stdout
    assert json.loads((folder / "merged" / "merge.json").read_text())["step"] == 2
    again = launcher("merge-ckpt", "set", "--step", "2", cwd=tmp_path)
    assert again.stdout == "already merged: set/merged (step 2)\n"
    asked = launcher("merge-ckpt", "set", "--step", "4", cwd=tmp_path)
    assert asked.returncode == 4
    assert "is damaged" in asked.stderr


def test_of_many_ranks_those_that_are_not_needed_must_be_whole_too(tmp_path: Path) -> None:
    """Of 130 ranks every other one is asked for its step; the damaged one is not, and a resume would not take it."""
    counter = {GLOBAL_STEP: np.array([4], np.int32)}
    paths = [write(tmp_path / f"rank_{rank}.safetensors", counter) for rank in range(130)]
    step = Step(moment=(1, 4), number=4, said_by=BY_NAME)
    assert check_steps(step, paths, {}, full=False).said_by == BY_TENSOR
    paths[101].write_bytes(paths[101].read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"rank_101\.safetensors is damaged"):
        check_steps(step, paths, {}, full=False)


def test_when_every_step_is_damaged_the_last_is_named(tmp_path: Path) -> None:
    folder = _two_steps(tmp_path, ".safetensors")
    for path in folder.glob("rank_0/*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"rank_0-1_2\.safetensors is damaged"):
        run_merge(folder, tmp_path / "out")


def test_a_damaged_base_is_no_reason_for_an_older_step(tmp_path: Path) -> None:
    adapters = {name: array for name, array in llama().items() if is_adapter(name)}
    names = [f"checkpoint_trainable/rank_0/x_rank_0-trainable_params-1_{step}.ckpt" for step in (2, 4)]
    folder = write_ranks(tmp_path / "set", dict.fromkeys(names, adapters))
    (tmp_path / "base.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"base\.safetensors is damaged"):
        run_merge(folder, tmp_path / "out", base=tmp_path / "base.safetensors")


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_the_crc_of_a_counter_is_of_as_many_zeros(tmp_path: Path, dtype: type) -> None:
    """bytes(numpy.array(5)) are five zeros: what MindSpore hashes. A list of one number is hashed by its bytes."""
    listed: Array = np.array([7], dtype)
    crc = zlib.crc32(bytes(200), zlib.crc32(b"step_num", zlib.crc32(listed.tobytes(), zlib.crc32(b"a"))))
    arrays: dict[str, Array] = {"a": listed, "step_num": np.array(200, dtype)}
    with TensorFile(write(tmp_path / "a.safetensors", arrays, {"crc_num": str(crc)})) as file:
        assert check_crc(file)
    arrays["step_num"] = np.array(199, dtype)
    with (
        TensorFile(write(tmp_path / "b.safetensors", arrays, {"crc_num": str(crc)})) as file,
        pytest.raises(CheckpointError, match="its CRC is not that of its bytes"),
    ):
        check_crc(file)


def test_a_counter_below_zero_has_no_crc(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"step_num": np.array(-1)}, {"crc_num": "1"})
    with (
        TensorFile(path) as file,
        pytest.raises(CheckpointError, match="step_num is -1, of which mindspore makes no CRC"),
    ):
        check_crc(file)


# ------------------------------------------------------------------------------------------------ what is not needed


def test_adapters_are_kept_apart_without_their_settings(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()})
    (folder / "adapter_config.json").unlink()
    done = launcher("merge-ckpt", "set", "--no-fold", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note   no adapter_config.json: the scale is not written" in done.stdout
    names = ["adapter.safetensors", "base.safetensors", "merge.json"]
    assert sorted(path.name for path in (folder / "merged").iterdir()) == names


def test_peft_of_adapters_alone_needs_no_base(tmp_path: Path) -> None:
    adapters = {name: array for name, array in llama().items() if is_adapter(name)}
    folder = write_ranks(tmp_path / "set", {"checkpoint_trainable/rank_0/x_rank_0-trainable_params-1_4.ckpt": adapters})
    run_merge(folder, tmp_path / "out", Options(layout=PEFT))
    assert len(read(tmp_path / "out" / "adapter_model.safetensors")) == len(adapters)
    model = {"model": {**MODEL, "hidden_size": 64}, "template": None, "precision": {}}
    with pytest.raises(CheckpointError, match=r"and its adapters .* do not fit"):
        run_merge(folder, tmp_path / "other", Options(layout=PEFT), model=model)
    del adapters[LORA_A]
    write_ranks(tmp_path / "half", {"checkpoint_trainable/rank_0/x_rank_0-1_4.ckpt": adapters})
    with pytest.raises(CheckpointError, match="has one LoRA adapter of two"):
        run_merge(tmp_path / "half", tmp_path / "other", Options(layout=PEFT))


# ------------------------------------------------------------------------------------------------ at once, links


def test_equal_merges_at_once_make_one(tmp_path: Path) -> None:
    """The result is put in place while the others wait: none works for nothing, none fails."""
    write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()})
    command = [sys.executable, "-m", "launcher", "merge-ckpt", "set"]
    with only_writer(tmp_path / "set" / "merged"):
        several = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
            for _ in range(4)
        ]
        for process in several:  # each is seen to wait
            assert process.stderr is not None
            assert process.stderr.readline() == "waiting: another process writes set/merged\n"
        assert not (tmp_path / "set" / "merged").exists()
    said = [process.communicate(timeout=60)[0] for process in several]
    assert [process.returncode for process in several] == [0, 0, 0, 0]
    assert sorted("already merged" in text for text in said) == [False, True, True, True]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["adapter_config.json", "merged", "rank_0"]


@pytest.mark.parametrize("command", ["split-ckpt", "convert-ckpt"])
def test_an_output_that_another_process_writes_is_refused(tmp_path: Path, command: str) -> None:
    write(_hugging_face(tmp_path / "hf") / "base.safetensors", llama(lora=False))
    source = "hf/base.safetensors" if command == "split-ckpt" else "hf"
    with only_writer(tmp_path / "out"):
        done = launcher(command, source, "-o", "out", cwd=tmp_path)
    assert done.returncode == 4
    assert "another process writes out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert launcher(command, source, "-o", "out", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_as_output_is_followed_and_stays(tmp_path: Path, *, is_there: bool) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()})
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    (real if is_there else real.parent).mkdir(parents=True)
    link.symlink_to(real)
    assert real_path(link) == real
    assert run_merge(folder, link).folder == link
    assert not run_merge(folder, link).fresh
    assert run_merge(folder, link, Options(dtype="float16"), force=True).fresh
    assert link.is_symlink()
    assert read(real / "model.safetensors")[WQ].dtype == np.float16
    assert [path.name for path in real.parent.iterdir()] == ["real"]
    for command in ("split-ckpt", "convert-ckpt"):
        done = launcher(command, real, "-o", link)
        assert done.returncode == 4
        assert "link exists" in done.stderr or "does not" in done.stderr or "has no config" in done.stderr


# ------------------------------------------------------------------------------------------------ memory

_WITH_PEAK = """
import atexit, sys
from launcher.common.peak_memory import peak_so_far
atexit.register(lambda: print("peak", peak_so_far()))
from launcher.cli.app import main
main()
"""


@pytest.mark.parametrize("options", [(), ("--verify", "full"), ("--dtype", "bfloat16")])
def test_no_more_memory_is_needed_than_is_said(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The whole process counts: the interpreter, the indexes of many ranks, writing and verifying."""
    model = {**MODEL, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 16_000}
    plan = SplitPlan(data_parallel=8, model_parallel=4, optimizer_shards=-1, optimizer_threshold_kib=0)
    write_shards(tmp_path / "set", llama(model, dtype="float16"), plan)
    command = [sys.executable, "-c", _WITH_PEAK, "merge-ckpt", "set", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.search(r"needs  ([\d,]+) MB of memory at most.*^peak (\d+)$", done.stdout, re.DOTALL | re.MULTILINE)
    assert found, done.stdout
    said, peak = int(found[1].replace(",", "")), int(found[2]) / 1e6
    assert peak <= said < peak + 250


def test_ranks_with_slices_at_the_same_places_share_one_index(tmp_path: Path) -> None:
    """Of 64 ranks there is one index in memory, in either format; another layout has its own."""
    for file_format in ("ckpt", "safetensors"):
        folder = write_shards(tmp_path / file_format, llama(), SplitPlan(data_parallel=64), file_format=file_format)
        with ExitStack() as stack:
            files = [stack.enter_context(TensorFile(path)) for path in sorted(folder.glob(f"rank_*/*.{file_format}"))]
            other = stack.enter_context(TensorFile(write(tmp_path / f"other.{file_format}", llama(lora=False))))
            assert len({id(file.entries) for file in files}) == 1
            assert other.entries.keys() != files[0].entries.keys()
            assert all((file.array(WQ) == llama()[WQ]).all() for file in (files[0], files[-1]))


# ------------------------------------------------------------------------------------------------ converting

_HF_CONFIG: dict[str, Any] = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2}
_HF_CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 40}
_HF_CONFIG |= {"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ROPE |= {"original_max_position_embeddings": 32}


def _hugging_face(folder: Path, **more: Any) -> Path:
    weights = {hf_name(name): array for name, array in llama(lora=False).items() if is_weight(name)}
    write(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({**_HF_CONFIG, **more}))
    return folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"high_freq_factor": 1.0}, "rope_scaling: high_freq_factor 1.0 must be above low_freq_factor"),
        ({"original_max_position_embeddings": 64}, "rope_scaling needs max_position_embedding above its original"),
        ({"factor": 0.5}, "rope_scaling.factor: Input should be greater than or equal to 1"),
    ],
)
def test_a_rope_that_cannot_be_asked_is_not_converted(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    _hugging_face(tmp_path / "hf", rope_scaling={**_ROPE, **changed})
    done = launcher("convert-ckpt", "hf", "-o", "base", cwd=tmp_path)
    assert done.returncode == 4
    assert said in done.stderr
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("more", [{}, {"pad_token_id": None}, {"pad_token_id": 3}, {"eos_token_id": [2, 5]}])
def test_special_ids_come_back_as_they_were(tmp_path: Path, more: dict[str, Any]) -> None:
    _hugging_face(tmp_path / "hf", rope_scaling=_ROPE, **more)
    for source, target in (("hf", "base"), ("base", "back")):
        done = launcher("convert-ckpt", source, "-o", target, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    wanted = {**_HF_CONFIG, **more}
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert {key: back[key] for key in keys if key in back} == {key: wanted[key] for key in keys if key in wanted}
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert ("pad_token_id" in generation) == ("pad_token_id" in wanted)


# ------------------------------------------------------------------------------------------------ splitting


def _layouts(plan: SplitPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Layouts of the corpus as MindSpore wrote them, and as ``plan`` has them."""
    folder = corpus("dp2mp2opt")
    theirs = read_strategy(folder / "strategy" / "ckpt_strategy_rank_0.ckpt")[0]
    with np.load(folder / "expected.npz") as whole:
        sizes = {name: (whole[name].shape, whole[name].nbytes) for name in theirs}
    return theirs, {name: layout_of(name, shape, plan, nbytes=nbytes) for name, (shape, nbytes) in sizes.items()}


def test_layouts_are_those_of_mindspore() -> None:
    """The corpus was cut with parallel_optimizer_threshold 0."""
    plan = SplitPlan(data_parallel=2, model_parallel=2, optimizer_shards=-1, optimizer_threshold_kib=0)
    theirs, ours = _layouts(plan)
    assert len(theirs) == 69
    assert ours == theirs


def test_small_parameters_are_not_cut_for_the_optimizer() -> None:
    """Only the head has 64 KiB or more; the embedding has too, and MindFormers keeps it out.

    What mindspore 2.9.0 wrote into strategy files of dp 2 x mp 2: a parameter of 64 KiB is cut, also when its slice
    has 32, and one of 62 KiB is not.
    """
    _, ours = _layouts(SplitPlan(data_parallel=2, model_parallel=2, optimizer_shards=-1))
    assert [name for name, layout in ours.items() if layout.opt_step] == [HEAD]
    plan = SplitPlan(data_parallel=2, optimizer_shards=-1)
    assert layout_of(WQ, (128, 128), plan, nbytes=64 << 10).opt_size == -1
    assert layout_of(WQ, (128, 128), plan, nbytes=(64 << 10) - 1).opt_size == 0
    plan = SplitPlan(data_parallel=2, model_parallel=2, optimizer_shards=-1)
    assert layout_of(WQ, (128, 128), plan, nbytes=64 << 10).opt_step == 2
    assert layout_of(WQ, (124, 128), plan, nbytes=62 << 10).opt_step == 0


def test_state_of_the_optimizer_is_cut_as_what_it_is_of(tmp_path: Path) -> None:
    model = {**MODEL, "hidden_size": 128, "intermediate_size": 64, "vocab_size": 64}
    arrays = llama(model, dtype="float16", lora=False)  # wq has 32 KiB, its state 64
    arrays |= {f"adam_m.{WQ}": np.zeros((128, 128), np.float32), f"adam_v.{WQ}": np.zeros((128, 128), np.float32)}
    write(tmp_path / "whole.safetensors", arrays)
    for threshold, cut in ((), set()), (("--optimizer-threshold", "32"), {WQ, f"adam_m.{WQ}", f"adam_v.{WQ}"}):
        target = tmp_path / f"shards{len(threshold)}"
        options = ("--dp", "2", "--optimizer-parallel", *threshold)
        done = launcher("split-ckpt", tmp_path / "whole.safetensors", "-o", target, *options)
        assert done.returncode == 0, done.stderr
        layouts = read_strategy(target / "strategy" / "ckpt_strategy_rank_0.ckpt")[0]
        assert {name for name, layout in layouts.items() if layout.opt_step and "layers.0.attention.wq" in name} == cut
    wrong = launcher("split-ckpt", tmp_path / "whole.safetensors", "-o", "x", "--optimizer-threshold", "32")
    assert wrong.returncode == 2
    assert "without --optimizer-parallel" in wrong.stderr
