"""Merging sharded sets: bit for bit what was sharded, LoRA folded exactly, and refused when it cannot be proven."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoint_sets import (
    ALPHA,
    MODEL,
    RANK,
    corpus,
    folded,
    llama,
    read,
    run_merge,
    write,
    write_ranks,
    write_shards,
)

from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.gather import OpenShards, gather
from launcher.checkpoint.merge import Options, Source, plan_merge
from launcher.checkpoint.shards import UNNUMBERED, find_shards
from launcher.checkpoint.split import SplitPlan, split
from launcher.checkpoint.steps import choose_step
from launcher.checkpoint.strategy import Layout, write_strategy
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.verify import verify_files
from launcher.common.folders import whole_folder
from launcher.errors import CheckpointError, HostError
from launcher.models.names import GLOBAL_STEP, LEGACY, SCHEMES, adapters_of, is_adapter, is_weight
from launcher.models.registry import hf_name

HEAD = SCHEMES[LEGACY].head
_TWO = SplitPlan(model_parallel=2)
WQ = "model.layers.0.attention.wq.weight"


def whole_set(folder: Path, moment: tuple[int, int] | None = None) -> dict[str, Array]:
    shards = find_shards(folder)
    with OpenShards(shards.at(moment or shards.complete()[-1])) as opened:
        return {name: whole.read() for name, whole in gather(opened, shards.strategies).tensors.items()}


def same(found: dict[str, Array], expected: Any) -> bool:
    return set(found) == set(expected) and all(
        found[name].shape == expected[name].shape and found[name].tobytes() == expected[name].tobytes()
        for name in found
    )


# ------------------------------------------------------------------------------------------------ the corpus


@pytest.mark.parametrize(
    ("name", "moment", "expected"),
    [
        ("mp2", (1, 8), "expected_step8.npz"),
        ("mp2", (1, 2), "expected_step2.npz"),
        ("dp2mp2opt", UNNUMBERED, "expected.npz"),
        ("pp2", UNNUMBERED, "expected.npz"),
    ],
)
def test_corpus_bit_for_bit(name: str, moment: tuple[int, int], expected: str) -> None:
    folder = corpus(name)
    with np.load(folder / expected) as arrays:
        assert same(whole_set(folder, moment), arrays)


@pytest.mark.parametrize("name", ["mp2", "dp2mp2opt", "pp2"])
def test_corpus_merged_and_folded(tmp_path: Path, name: str) -> None:
    folder = corpus(name)
    merged = run_merge(folder, tmp_path / "out", Options(verify_full=True))
    assert merged.verified is not None
    assert merged.verified.tensors == merged.num_tensors == 21
    expected = next(iter(sorted(folder.glob("expected*.npz"), reverse=True)))
    with np.load(expected) as arrays:
        for key, tensor in read(tmp_path / "out" / "model.safetensors").items():
            assert is_weight(key)
            wanted = arrays[key].astype(np.float64)
            if adapters_of(key)[0] in arrays:
                wanted += 16 / 8 * (arrays[adapters_of(key)[1]].astype(np.float64) @ arrays[adapters_of(key)[0]])
                assert abs(tensor - wanted).max() < 1e-7
            else:
                assert (tensor == wanted).all()


def test_the_newest_step_is_newest_by_number(tmp_path: Path) -> None:
    """By name -1_96 comes after -1_112: the official tool takes it."""
    early, late = llama(seed=1), llama(seed=2)
    early[GLOBAL_STEP], late[GLOBAL_STEP] = np.array([96], np.int32), np.array([112], np.int32)
    files = {
        f"rank_{rank}/x_rank_{rank}-1_{step}.ckpt": arrays
        for rank in (0, 1)
        for step, arrays in ((96, early), (112, late))
    }
    folder = write_ranks(tmp_path / "set", files)
    assert run_merge(folder, tmp_path / "new").step == 112
    assert run_merge(folder, tmp_path / "old", Options(step=96)).step == 96
    with pytest.raises(CheckpointError, match=r"step 97 is not complete.*96, 112"):
        run_merge(folder, tmp_path / "none", Options(step=97))


def test_a_later_epoch_is_newer_than_a_higher_step(tmp_path: Path) -> None:
    files = {f"rank_0/x_rank_0-{moment}.ckpt": llama() for moment in ("1_9", "2_3", "10_1")}
    assert find_shards(write_ranks(tmp_path / "set", files)).complete() == [(1, 9), (2, 3), (10, 1)]


# ------------------------------------------------------------------------------------------------ folding


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_fold_by_hand(tmp_path: Path, dtype: str) -> None:
    """One element of A and one of B are not zero: one element of W changes, by alpha / r times their product."""
    arrays = llama(dtype=dtype)
    lora_a, lora_b = adapters_of(WQ)
    arrays[lora_a][:], arrays[lora_b][:], arrays[WQ][:] = 0, 0, 0.25
    arrays[lora_a][1, 5], arrays[lora_b][7, 1] = 0.5, 2.0
    run_merge(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays}), tmp_path / "out")
    result = read(tmp_path / "out" / "model.safetensors")[WQ].astype(np.float32)
    expected = np.full((32, 32), 0.25, np.float32)
    expected[7, 5] = 0.25 + ALPHA / RANK * 0.5 * 2.0
    assert (result == expected).all()


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
def test_cast_is_rounded_once(tmp_path: Path, source: str, target: str) -> None:
    arrays = llama(dtype=source)
    folder = write_ranks(tmp_path / "set", {"rank_0/a.safetensors": arrays})
    run_merge(folder, tmp_path / "out", Options(dtype=target, verify_full=True))
    for name, tensor in read(tmp_path / "out" / "model.safetensors").items():
        kind = ml_dtypes.bfloat16 if target == "bfloat16" else np.dtype(target)
        if adapters_of(name)[0] not in arrays:
            assert tensor.tobytes() == arrays[name].astype(kind).tobytes()
        else:
            error = abs(tensor.astype(np.float64) - folded(arrays, name)).max()
            assert error <= {"float32": 1e-7, "float16": 2.0**-12, "bfloat16": 2.0**-9}[target]


def test_a_large_tensor_is_folded_in_blocks(tmp_path: Path) -> None:
    """Rows of several blocks and tiles, tensor parallel along both axes."""
    model = {**MODEL, "hidden_size": 1536, "num_layers": 1, "intermediate_size": 64}
    arrays = llama(model, dtype="float16")
    run_merge(write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2)), tmp_path / "out")
    found = read(tmp_path / "out" / "model.safetensors")
    for name in (WQ, WQ.replace("wq", "wo")):
        assert found[name].tobytes() == folded(arrays, name).astype(np.float32).astype(np.float16).tobytes() or (
            abs(found[name].astype(np.float64) - folded(arrays, name)).max() < 2.0**-11
        )


def test_no_fold_and_optimizer_state(tmp_path: Path) -> None:
    arrays = llama()
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2))
    run_merge(folder, tmp_path / "out", Options(fold=False, with_optimizer=True, file_format="ckpt"))
    files = {path.name: read(path) for path in (tmp_path / "out").glob("*.ckpt")}
    assert same(files["base.ckpt"], {name: array for name, array in arrays.items() if is_weight(name)})
    assert same(files["adapter.ckpt"], {name: array for name, array in arrays.items() if is_adapter(name)})
    assert {**files["base.ckpt"], **files["adapter.ckpt"], **files["optimizer.ckpt"]}.keys() == arrays.keys()


# ------------------------------------------------------------------------------------------------ split and merge


@st.composite
def _plans(draw: st.DrawFn) -> SplitPlan:
    degree = st.sampled_from([1, 2, 4])
    data_parallel = draw(st.sampled_from([1, 2, 3, 4]))
    return SplitPlan(
        data_parallel=data_parallel,
        model_parallel=draw(degree),
        pipeline_stage=draw(st.sampled_from([1, 2])),
        optimizer_shards=draw(st.sampled_from([1, -1] + ([2] if data_parallel % 2 == 0 else []))),
        optimizer_threshold_kib=draw(st.sampled_from([0, 3])),
        cut_vocabulary=draw(st.booleans()),
    )


@pytest.mark.slow
@given(
    plan=_plans(),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    file_format=st.sampled_from(["ckpt", "safetensors"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_split_then_merge_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, plan: SplitPlan, dtype: str, file_format: str, seed: int
) -> None:
    root = tmp_path_factory.mktemp("s")
    arrays = llama(dtype=dtype, seed=seed)
    folder = write_shards(root / "set", arrays, plan, file_format=file_format)
    assert same(whole_set(folder), arrays)
    shutil.rmtree(root)


def test_an_uneven_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be cut"):
        write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=3))
    with pytest.raises(CheckpointError, match="2 layers for 3 stages"):
        write_shards(tmp_path / "other", llama(), SplitPlan(pipeline_stage=3))
    assert not list(tmp_path.glob(".set*"))


def test_split_does_not_overwrite(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.ckpt", llama())
    with TensorFile(whole) as source, pytest.raises(CheckpointError, match="exists"):
        split(source, tmp_path, SplitPlan())


def test_only_the_ranks_needed_are_opened(tmp_path: Path) -> None:
    """128 data-parallel copies of 2 tensor-parallel shards: two files make the model."""
    arrays = llama(lora=False)
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(data_parallel=128, model_parallel=2))
    shards = find_shards(folder)
    with OpenShards(shards.at(UNNUMBERED)) as opened:
        found = gather(opened, shards.strategies)
        assert list(opened.opened) == [0, 1]
        assert same({name: whole.read() for name, whole in found.tensors.items()}, arrays)


def test_redundancy_removed_sets(tmp_path: Path) -> None:
    """MindSpore leaves a slice on one of the ranks that hold it."""
    arrays = llama()
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(data_parallel=2, model_parallel=2), file_format="ckpt")
    for number, path in enumerate(sorted(folder.glob("rank_*/*.ckpt"))):
        held = read(path)
        kept = {name: array for at, (name, array) in enumerate(held.items()) if at % 2 == number // 2}
        write(path, kept)
    assert same(whole_set(folder), arrays)
    assert run_merge(folder, tmp_path / "out").num_folded == 4


def test_a_slice_on_no_rank_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    path = folder / "rank_1" / "split_rank_1.safetensors"
    write(path, {name: array for name, array in read(path).items() if name != WQ})
    with pytest.raises(CheckpointError, match=rf"a slice of {WQ} is on none of the ranks 1"):
        run_merge(folder, tmp_path / "out")


def test_uneven_rows_and_fields_are_put_together(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(8, 3)
    layouts = {
        "uneven": Layout(device_matrix=(2,), tensor_map=((0,), ()), split_rows=(5, 3)),
        "field": Layout(device_matrix=(2,), tensor_map=((0,), ()), field=2),
    }
    slices = {
        0: {"uneven": whole[:5], "field": whole[[0, 1, 4, 5]]},
        1: {"uneven": whole[5:], "field": whole[[2, 3, 6, 7]]},
    }
    folder = write_ranks(tmp_path / "set", {f"rank_{rank}/a.ckpt": arrays for rank, arrays in slices.items()})
    (folder / "strategy").mkdir()
    (folder / "strategy" / "all.ckpt").write_bytes(write_strategy(0, layouts))
    assert same(whole_set(folder), {"uneven": whole, "field": whole})


# ------------------------------------------------------------------------------------------------ refusals


def _set(root: Path, plan: SplitPlan = _TWO) -> Path:
    return write_shards(root / "set", llama(), plan)


def _refused(folder: Path, match: str, **known: Any) -> CheckpointError:
    target = folder.parent / "out"
    with pytest.raises(CheckpointError, match=match) as caught:
        run_merge(folder, target, **known)
    assert caught.value.hint
    assert not target.exists()
    assert not list(folder.parent.glob(".out*"))
    return caught.value


def test_a_missing_rank(tmp_path: Path) -> None:
    folder = _set(tmp_path, SplitPlan(model_parallel=4))
    shutil.rmtree(folder / "rank_2")
    _refused(folder, "3 of 4 ranks: rank 2 missing")


def test_a_missing_last_rank(tmp_path: Path) -> None:
    folder = _set(tmp_path, SplitPlan(model_parallel=4))
    shutil.rmtree(folder / "rank_3")
    _refused(folder, "strategy files of 4 ranks .*, checkpoints of 3 ranks")
    (folder / "strategy" / "ckpt_strategy_rank_3.ckpt").unlink()
    _refused(folder, r"1 stage\(s\) with 4 rank\(s\) each, the checkpoints are of 3 ranks")


def test_more_ranks_than_the_job_had(tmp_path: Path) -> None:
    _refused(_set(tmp_path), "a rank 1, the job had 1", num_ranks=1)


def test_a_missing_pipeline_stage(tmp_path: Path) -> None:
    folder = _set(tmp_path, SplitPlan(pipeline_stage=2))
    shutil.rmtree(folder / "rank_1")
    shutil.rmtree(folder / "strategy")
    error = _refused(folder, r"missing model\.norm_out\.weight")
    assert "the shards are not all there" in error.hint


def test_pipeline_stages_without_strategy_are_whole_by_themselves(tmp_path: Path) -> None:
    """Every tensor is whole on the rank that has it: what the stages hold together is the model."""
    folder = _set(tmp_path, SplitPlan(pipeline_stage=2))
    (folder / "strategy").rename(tmp_path / "elsewhere")
    assert same(whole_set(folder), llama())
    assert run_merge(folder, tmp_path / "out").num_folded == 4
    assert not run_merge(folder, tmp_path / "out", strategy=tmp_path / "elsewhere").fresh


def test_tensor_shards_without_strategy(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    shutil.rmtree(folder / "strategy")
    _refused(folder, "differs between rank 0 and rank 1|not those of the model")


def test_copies_that_differ(tmp_path: Path) -> None:
    folder = _set(tmp_path, SplitPlan(data_parallel=2))
    path = folder / "rank_1" / "split_rank_1.safetensors"
    arrays = read(path)
    arrays[adapters_of(WQ)[1]][3, 1] += 1e-3
    write(path, arrays)
    error = _refused(folder, f"{adapters_of(WQ)[1]} differs between rank 0 and rank 1")
    assert str(path) in error.message


def test_a_difference_in_a_large_copy_is_found_in_full(tmp_path: Path) -> None:
    model = {**MODEL, "vocab_size": 4000}
    folder = write_shards(tmp_path / "set", llama(model), SplitPlan(data_parallel=2))
    path = folder / "rank_1" / "split_rank_1.safetensors"
    arrays = read(path)
    arrays[HEAD][777, 7] += 1
    write(path, arrays)
    with pytest.raises(CheckpointError, match=f"{HEAD} differs between rank 0 and rank 1"):
        run_merge(folder, tmp_path / "out", Options(verify_full=True))


def test_mixed_steps_behind_equal_names(tmp_path: Path) -> None:
    late = llama()
    late[GLOBAL_STEP] = np.array([32], np.int32)
    files = {"rank_0/a-1_32.ckpt": late, "rank_1/a-1_32.ckpt": llama()}
    folder = write_ranks(tmp_path / "set", files)
    _refused(folder, r"mixed steps in files of the same name: step 32 on rank 0; step 7 on rank 1")


def test_steps_that_no_two_ranks_share(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a-1_32.ckpt": llama(), "rank_1/a-1_16.ckpt": llama()})
    error = _refused(folder, "no step in .* is complete on all 2 ranks")
    assert "rank 0: 1_32" in error.message
    assert "rank 1: 1_16" in error.message


def test_mixed_steps_on_a_rank_that_is_not_compared(tmp_path: Path) -> None:
    """Sixteen copies with the same weights, of which a sample is compared; one was saved earlier."""
    arrays = llama()
    files = {f"rank_{rank}/x_rank_{rank}-1_8.ckpt": dict(arrays) for rank in range(16)}
    files["rank_2/x_rank_2-1_8.ckpt"][GLOBAL_STEP] = np.array([4], np.int32)
    error = _refused(write_ranks(tmp_path / "set", files), "mixed steps")
    assert error.message.endswith("step 7 on ranks 0-1, 3-15; step 4 on rank 2")


def test_a_file_in_the_folder_of_another_rank(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    shutil.copyfile(folder / "rank_1" / "split_rank_1.safetensors", folder / "rank_0" / "split_rank_1.safetensors")
    (folder / "rank_0" / "split_rank_0.safetensors").unlink()
    _refused(folder, "is a file of rank 1 in the folder of rank 0")


def test_a_file_copied_from_another_rank_under_the_right_name(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    one, other = (folder / f"rank_{rank}" / f"split_rank_{rank}.safetensors" for rank in (0, 1))
    shutil.copyfile(other, one)
    error = _refused(folder, "has the same bytes as .* different slices of")
    assert str(one) in error.message
    assert str(other) in error.message


def test_slices_that_are_equal_by_themselves_are_no_copies(tmp_path: Path) -> None:
    """Fresh adapters are zero everywhere, and a weight may have the same rows twice."""
    arrays = llama()
    for name, array in arrays.items():
        if is_adapter(name):
            array[:] = 0
    arrays[WQ][16:] = arrays[WQ][:16]
    assert run_merge(write_shards(tmp_path / "set", arrays, _TWO), tmp_path / "out").num_folded == 4
    constant = {name: np.full_like(array, 7) for name, array in arrays.items()}
    folder = write_shards(tmp_path / "constant", constant, _TWO)
    files = [path.read_bytes() for path in sorted(folder.glob("rank_*/*"))]
    assert files[0] == files[1]
    assert run_merge(folder, tmp_path / "constant-out").num_folded == 4


def test_mixed_formats(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a-1_1.ckpt": llama(), "rank_1/a-1_1.safetensors": llama()})
    _refused(folder, "mixed formats")


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a-1_1.ckpt": llama(), "rank_0/b-1_1.ckpt": llama()})
    _refused(folder, "two files of the same step")


def test_a_truncated_file(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    path = folder / "rank_1" / "split_rank_1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _refused(folder, r"split_rank_1\.safetensors is damaged")


def test_a_strategy_of_another_run(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    layouts = {WQ: Layout(device_matrix=(2,), tensor_map=((0,), (), ()))}
    for path in (folder / "strategy").iterdir():
        path.write_bytes(write_strategy(0, layouts))
    _refused(folder, "3 axes in the strategy, 2 in the file")


def test_shapes_of_another_model(tmp_path: Path) -> None:
    model = {"model": {**MODEL, "num_layers": 3}, "template": "plain", "precision": {}}
    _refused(_set(tmp_path), "missing model.layers.2", model=model)


def test_adapters_without_a_scale_or_partner(tmp_path: Path) -> None:
    arrays = llama()
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    (folder / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    _refused(folder, "has rank 4, the run says r = 8")
    for content in (
        '{"r": 0, "lora_alpha": 16}',
        '{"r": 1e999, "lora_alpha": 16}',
        '{"r": 4, "lora_alpha": NaN}',
        "[]",
    ):
        (folder / "adapter_config.json").write_text(content)
        _refused(folder, "r and lora_alpha are missing or wrong")
    (folder / "adapter_config.json").unlink()
    _refused(folder, "no adapter_config.json")
    del arrays[adapters_of(WQ)[1]]
    _refused(write_ranks(tmp_path / "other", {"rank_0/a.ckpt": arrays}), "one LoRA adapter of two")
    arrays = llama()
    del arrays[WQ]
    _refused(write_ranks(tmp_path / "third", {"rank_0/a.ckpt": arrays}), "missing " + WQ)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    arrays = llama()
    arrays[WQ][:] = np.nan
    _refused(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays}), "not finite")


def test_a_folder_without_shards(tmp_path: Path) -> None:
    _refused(tmp_path, "holds no checkpoint")
    _refused(tmp_path / "none", "no folder")


# ------------------------------------------------------------------------------------------------ adapters alone


def test_adapters_with_their_base(tmp_path: Path) -> None:
    arrays = llama()
    base = write(tmp_path / "base.safetensors", {name: array for name, array in arrays.items() if is_weight(name)})
    adapters = {name: array for name, array in arrays.items() if is_adapter(name)}
    folder = write_ranks(
        tmp_path / "set",
        {f"checkpoint_trainable/rank_{rank}/x_rank_{rank}-trainable_params-1_4.ckpt": adapters for rank in (0, 1)},
    )
    merged = run_merge(folder, tmp_path / "out", base=base)
    assert merged.num_folded == 4
    found = read(tmp_path / "out" / "model.safetensors")
    assert abs(found[WQ] - folded(arrays, WQ)).max() < 1e-6
    with pytest.raises(CheckpointError, match="holds adapters only"):
        run_merge(folder, tmp_path / "other")


def test_the_base_may_be_a_merged_folder(tmp_path: Path) -> None:
    arrays = llama()
    base = {name: array for name, array in arrays.items() if is_weight(name)}
    run_merge(
        write_ranks(tmp_path / "base-set", {"rank_0/a.ckpt": base}), tmp_path / "base", Options(file_format="ckpt")
    )
    adapters = {name: array for name, array in arrays.items() if is_adapter(name)}
    folder = write_ranks(tmp_path / "set", {"checkpoint_trainable/rank_0/a_rank_0-1_4.ckpt": adapters})
    assert run_merge(folder, tmp_path / "out", base=tmp_path / "base").num_folded == 4
    inputs = json.loads((tmp_path / "out" / "merge.json").read_text())["inputs"]
    assert [item["path"] for item in inputs if item["kind"] == "base"] == [str(tmp_path / "base" / "model.ckpt")]
    (tmp_path / "base" / "model.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"base has no model\.safetensors nor model\.ckpt"):
        run_merge(folder, tmp_path / "other", base=tmp_path / "base")


def test_a_step_that_only_the_name_says(tmp_path: Path) -> None:
    arrays = llama()
    base = write(tmp_path / "base.safetensors", {name: array for name, array in arrays.items() if is_weight(name)})
    adapters = {name: array for name, array in arrays.items() if is_adapter(name)}
    names = [f"checkpoint_trainable/rank_0/x_rank_0-trainable_params-{moment}.ckpt" for moment in ("1_4", "2_4", "2_6")]
    folder = write_ranks(tmp_path / "set", dict.fromkeys(names, adapters))
    assert run_merge(folder, tmp_path / "out", base=base).step == 6
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (record["step"], record["step_from"], record["recipe"]["moment"]) == (6, "file name", "2_6")
    step = choose_step(find_shards(folder), None)
    assert str(step) == "step 6 of epoch 2 (by the file name: there is no global_step in it)"
    with pytest.raises(CheckpointError, match="step 4 is in several epochs: 1_4, 2_4"):
        run_merge(folder, tmp_path / "other", Options(step=4), base=base)
    assert run_merge(folder, tmp_path / "other", Options(step=(1, 4)), base=base).step == 4


def test_a_step_that_nothing_says(tmp_path: Path) -> None:
    arrays = {name: array for name, array in llama().items() if name != GLOBAL_STEP}
    assert run_merge(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays}), tmp_path / "out").step is None
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["step"] is None


# ------------------------------------------------------------------------------------------------ the result


def test_the_same_merge_writes_nothing_and_another_needs_force(tmp_path: Path) -> None:
    folder, out = _set(tmp_path), tmp_path / "out"
    assert run_merge(folder, out).fresh
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not run_merge(folder, out).fresh
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(CheckpointError, match="another merge: dtype not given there, 'float16' here"):
        run_merge(folder, out, Options(dtype="float16"))
    assert run_merge(folder, out, Options(dtype="float16"), force=True).fresh
    assert read(out / "model.safetensors")[WQ].dtype == np.float16
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_configuration_is_another_merge(tmp_path: Path) -> None:
    folder, model = _set(tmp_path), {"model": MODEL, "template": "plain", "precision": {}}
    run_merge(folder, tmp_path / "out", model=model)
    assert not run_merge(folder, tmp_path / "out", model=model).fresh
    with pytest.raises(CheckpointError, match="another merge: another configuration or tokenizer"):
        run_merge(folder, tmp_path / "out", model={**model, "template": "vicuna"})


def test_changed_shards_are_another_merge(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    run_merge(folder, tmp_path / "out")
    path = folder / "rank_0" / "split_rank_0.safetensors"
    arrays = read(path)
    arrays[WQ][0, 0] += 1
    write(path, arrays)
    with pytest.raises(CheckpointError, match=r"split_rank_0\.safetensors is another file than then, or has changed"):
        run_merge(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "content", ['{"step": 7}', '{"step": 7, "recipe": []}', '{"step": 7, "recipe": {}, "inputs": 3}']
)
def test_a_merge_of_another_version_is_another_merge(tmp_path: Path, content: str) -> None:
    folder, out = _set(tmp_path), tmp_path / "out"
    run_merge(folder, out)
    (out / "merge.json").write_text(content)
    with pytest.raises(CheckpointError, match="another merge: one of another version of launcher"):
        run_merge(folder, out)
    assert run_merge(folder, out, force=True).fresh


@pytest.mark.parametrize("record", [None, "{", "[]", "[" * 5000])
def test_a_folder_that_is_no_merge_is_never_replaced(tmp_path: Path, record: str | None) -> None:
    folder, out = _set(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    if record is not None:
        (out / "merge.json").write_text(record)
    with pytest.raises(CheckpointError, match=r"merge\.json is missing or damaged"):
        run_merge(folder, out, force=True)
    assert (out / "precious.txt").read_text() == "mine"


def test_the_record(tmp_path: Path) -> None:
    run_merge(_set(tmp_path), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (record["step"], record["lora_scale"], record["folded"]) == (7, ALPHA / RANK, 4)
    kinds = [(item["kind"], item.get("rank")) for item in record["inputs"]]
    assert kinds == [("shard", 0), ("shard", 1), ("strategy", None), ("adapter_config", None)]
    assert all(len(item["sha256"]) == 64 and item["bytes"] > 0 for item in record["inputs"])
    assert all(Path(item["path"]).is_file() for item in record["inputs"])


def test_the_record_lists_every_copy_that_was_compared(tmp_path: Path) -> None:
    run_merge(_set(tmp_path, SplitPlan(data_parallel=3)), tmp_path / "out")
    inputs = json.loads((tmp_path / "out" / "merge.json").read_text())["inputs"]
    assert [item["rank"] for item in inputs if item["kind"] == "shard"] == [0, 1, 2]


def test_the_same_merge_can_be_verified_in_full_later(tmp_path: Path) -> None:
    folder, out = _set(tmp_path, SplitPlan(data_parallel=16)), tmp_path / "out"
    run_merge(folder, out)
    again = run_merge(folder, out, Options(verify_full=True))
    assert not again.fresh
    assert again.verified is not None
    assert again.verified.tensors == 21
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckpointError, match="rows from"):
        run_merge(folder, out, Options(verify_full=True))


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run_merge(_set(tmp_path), tmp_path / "out").fresh


def test_verification_finds_a_flipped_bit(tmp_path: Path) -> None:
    folder = _set(tmp_path)
    run_merge(folder, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    with ExitStack() as stack:
        plan = plan_merge(Source(name="t", folder=folder), Options(), stack)
        outputs = plan.files[0].outputs
        assert verify_files({path: outputs}, full=True).tensors == 21
        with TensorFile(path) as file:
            (offset, _), *_ = file.entries[WQ].extents
        data = bytearray(path.read_bytes())
        data[offset + 2] ^= 0x40
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{WQ}, rows from 0 on: an error of"):
            verify_files({path: outputs}, full=True)


@pytest.mark.parametrize(
    ("command", "limit"), [("merge", 20000), ("merge", 1000), ("split", 20000), ("split", 1000), ("convert", 20000)]
)
def test_a_full_disk(tmp_path: Path, command: str, limit: int) -> None:
    """A limit on file size is met at the same place as a full disk."""
    folder = _set(tmp_path)
    write(
        tmp_path / "hf" / "model.safetensors",
        {hf_name(name): array for name, array in llama(lora=False).items() if is_weight(name)},
    )
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 40}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    source = {"merge": folder, "split": tmp_path / "set-whole.safetensors", "convert": tmp_path / "hf"}[command]
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from launcher.cli.app import main\n"
        "main()"
    )
    # -B: Python 3.11 would leave compiled modules behind that are cut off at the limit.
    argv = [sys.executable, "-B", "-c", code, f"{command}-ckpt", str(source), "-o", str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == HostError.exit_code, done.stderr
    assert done.stderr.startswith("error: cannot write")
    assert "hint: " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "set", "set-whole.safetensors"]


def test_a_full_disk_when_only_the_record_is_left_to_write(tmp_path: Path) -> None:
    with (
        pytest.raises(HostError, match=r"cannot write .*: No space left on device"),
        whole_folder(tmp_path / "out", replace=False),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


_KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from launcher.checkpoint.merge import Options, Source, merge, plan_merge
from contextlib import ExitStack

folder, out, replace = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "replace"
TYPES = ["float16", "bfloat16"]

def run(dtype):
    with ExitStack() as stack:
        plan = plan_merge(Source(name="t", folder=folder), Options(dtype=dtype), stack)
        merge(plan, out, force=replace)

def child(dtype, seconds):
    pid = os.fork()
    if pid == 0:
        try:
            run(dtype)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

whole = {}
for dtype in reversed(TYPES):
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    run(dtype)
    spent = time.monotonic() - start
    whole[(out / "model.safetensors").read_bytes()] = dtype
rng = random.Random(7)
cut = 0
for number in range(50):
    if not replace:
        shutil.rmtree(out, ignore_errors=True)
    before = whole[(out / "model.safetensors").read_bytes()] if replace else None
    dtype = next(item for item in TYPES if item != before)
    child(dtype, rng.random() * spent * 1.2)
    if not out.exists():
        assert not replace
        cut += 1
        continue
    assert sorted(os.listdir(out)) == ["merge.json", "model.safetensors"], os.listdir(out)
    cut += whole[(out / "model.safetensors").read_bytes()] == before
if not replace:
    shutil.rmtree(out, ignore_errors=True)
run(dtype)
assert whole[(out / "model.safetensors").read_bytes()] == dtype
left = [name for name in os.listdir(out.parent) if name.startswith(".")]
assert not left, left
print(cut)
"""

_LARGE = {**MODEL, "hidden_size": 256, "intermediate_size": 768, "vocab_size": 500}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["new", "replace"])
def test_killed_at_50_random_moments_the_result_is_whole_or_absent(tmp_path: Path, mode: str) -> None:
    """When an older result is replaced, either is there whole."""
    folder = write_shards(tmp_path / "set", llama(_LARGE, dtype="float16"), SplitPlan(model_parallel=2))
    arguments = [str(folder), str(tmp_path / "place" / "out"), mode]
    done = subprocess.run([sys.executable, "-c", _KILLER, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5  # the kills did come in the middle
