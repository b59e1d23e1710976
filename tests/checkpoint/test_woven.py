"""Fused layers by hand: what is woven of what, in whatever blocks and shards it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.checkpoint_sets import MODEL, folded, llama, read, run_merge, write, write_ranks, write_shards

from launcher.checkpoint.api import convert_model
from launcher.checkpoint.dtypes import Array, numpy_dtype
from launcher.checkpoint.gather import single_file
from launcher.checkpoint.layout import optimizer_cuts
from launcher.checkpoint.merge import Options
from launcher.checkpoint.split_layout import SplitPlan, layout_of
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Whole, unwoven, woven
from launcher.errors import CheckpointError
from launcher.models.names import LEGACY, MCORE, SCHEMES, is_weight

QWEN3 = {**MODEL, "family": "qwen3", "head_dim": 12}
INFO = {"model": QWEN3, "template": "chatml", "precision": {"params": "float32", "compute": "float32"}}
QKV, FC1 = "decoder.layers.0.self_attention.linear_qkv.weight", "decoder.layers.1.mlp.linear_fc1.weight"


def rows(whole: Whole, start: int, stop: int) -> Array:
    out = np.empty((stop - start, *whole.shape[1:]), numpy_dtype(whole.dtype))
    whole.read_rows(start, stop, out, np.empty(whole.scratch_bytes(stop - start), np.uint8))
    return out


@pytest.mark.parametrize("runs", [(3, 1, 1), (1, 1), (4, 2, 2), (5,)])
def test_any_rows_of_a_woven_tensor_and_of_its_parts(tmp_path: Path, runs: tuple[int, ...]) -> None:
    groups, random = 4, np.random.default_rng(0)
    parts = [random.standard_normal((groups * run, 3)).astype(np.float32) for run in runs]
    grouped = [part.reshape(groups, run, 3) for part, run in zip(parts, runs, strict=True)]
    expected = np.concatenate(grouped, axis=1).reshape(-1, 3)
    path = write(tmp_path / "a.safetensors", {**{str(n): part for n, part in enumerate(parts)}, "fused": expected})
    with TensorFile(path) as file:
        found = single_file(file)
        made = woven("w", [found[str(number)] for number in range(len(runs))], runs)
        assert (made.shape, made.nbytes) == (expected.shape, expected.nbytes)
        for start in range(len(expected)):
            for stop in range(start + 1, len(expected) + 1):
                assert (rows(made, start, stop) == expected[start:stop]).all()
        for number, part in enumerate(parts):
            taken = unwoven(found["fused"], runs, number)
            assert taken.shape == part.shape
            for start in range(len(part)):
                for stop in range(start + 1, len(part) + 1):
                    assert (rows(taken, start, stop) == part[start:stop]).all()
            # Taken out of what was woven of it, it is read where it lies; of another weave, by way of the whole.
            assert unwoven(made, runs, number).pieces[0].entry.name == str(number)
            again = unwoven(made, (1, sum(runs) - 1), 0)
            assert (again.read() == expected[:: sum(runs)]).all()


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("plan", [
    SplitPlan(model_parallel=2, pipeline_stage=2, cut_vocabulary=True),
    # 96 rows of q, k and v by 2 x 4 ranks: the cuts lie within groups of 48 rows, and within runs.
    SplitPlan(data_parallel=4, model_parallel=2, optimizer_shards=-1, optimizer_threshold_kib=0),
], ids=["stages", "optimizer"])  # fmt: skip
def test_parts_of_any_shards_are_folded_and_verified_whole(tmp_path: Path, plan: SplitPlan, dtype: str | None) -> None:
    arrays = llama(QWEN3)
    folder = write_shards(tmp_path / "set", arrays, plan)
    done = run_merge(folder, tmp_path / "hf", Options(layout="hf", dtype=dtype, verify_full=True), model=INFO)
    assert (done.num_tensors, done.num_folded) == (3 + 2 * 11, 2 * 6)
    found = read(tmp_path / "hf" / "model.safetensors")
    within = {None: 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    qkv, fc1 = folded(arrays, QKV).reshape(2, 48, 32), folded(arrays, FC1)
    parts = {"self_attn.q": qkv[:, :24], "self_attn.k": qkv[:, 24:36], "self_attn.v": qkv[:, 36:]}
    for name, part in parts.items():
        assert abs(found[f"model.layers.0.{name}_proj.weight"] - part.reshape(-1, 32)).max() <= within
    for name, part in {"gate": fc1[0::2], "up": fc1[1::2]}.items():
        assert abs(found[f"model.layers.1.mlp.{name}_proj.weight"] - part).max() <= within


def test_a_value_that_is_not_finite_is_found_in_its_part_and_file(tmp_path: Path) -> None:
    arrays = {name: array for name, array in llama(QWEN3).items() if is_weight(name)}
    arrays[QKV][50, 3] = np.nan  # the second group begins at row 48: row 2 of its queries
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.weight has 1 values that are not finite .*a\.ckpt"):
        run_merge(folder, tmp_path / "hf", Options(layout="hf"), model=INFO)


def test_a_lost_shard_of_a_fused_layer_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", llama(QWEN3), SplitPlan(model_parallel=2))
    next((folder / "rank_1").iterdir()).unlink()
    with pytest.raises(CheckpointError, match=r"rank_1|rank 1"):
        run_merge(folder, tmp_path / "hf", Options(layout="hf"), model=INFO)


def test_a_rank_of_a_fused_model_is_no_base_and_lora_of_it_needs_both_sides(tmp_path: Path) -> None:
    arrays = llama(QWEN3)
    del arrays[QKV.replace(".weight", ".lora_B.weight")]
    with pytest.raises(CheckpointError, match=r"linear_qkv\.weight has one LoRA adapter of two"):
        run_merge(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays}), tmp_path / "out", model=INFO)
    del arrays["decoder.layers.1.self_attention.q_layernorm.weight"]
    with pytest.raises(CheckpointError, match=r"missing decoder\.layers\.1\.self_attention\.q_layernorm\.weight"):
        run_merge(write_ranks(tmp_path / "two", {"rank_0/a.ckpt": arrays}), tmp_path / "out", model=INFO)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_fused_base_is_the_same_in_both_kinds_of_file(tmp_path: Path, dtype: str | None) -> None:
    arrays = {name: array for name, array in llama(QWEN3).items() if is_weight(name)}
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    run_merge(folder, tmp_path / "hf", Options(layout="hf", max_shard_bytes=9_000), model=INFO)
    convert_model(tmp_path / "hf", tmp_path / "st", dtype=dtype)
    convert_model(tmp_path / "hf", tmp_path / "ckpt", dtype=dtype, file_format="ckpt")
    expected = {name: array.astype(numpy_dtype(dtype or "float32")).tobytes() for name, array in arrays.items()}
    for path in (tmp_path / "st" / "model.safetensors", tmp_path / "ckpt" / "model.ckpt"):
        assert {name: array.tobytes() for name, array in read(path).items()} == expected


def test_the_optimizer_cuts_the_embedding_of_mcore_and_not_that_of_legacy() -> None:
    plan = SplitPlan(data_parallel=2, optimizer_shards=-1, optimizer_threshold_kib=0)
    cuts = {
        route: optimizer_cuts(layout_of(scheme.embedding, (40, 32), plan, nbytes=5120))
        for route, scheme in SCHEMES.items()
    }
    assert cuts == {LEGACY: 1, MCORE: 2}
