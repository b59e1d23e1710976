"""Every family against transformers, peft and MindSpore: names, numbers, logits and slices, on small random models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_sets import MODEL, llama, read, run_merge, write, write_ranks, write_shards
from support.oracles import HF_CONFIG, IDS, LLAMA3_ROPE, Child, torch_logits

from launcher.checkpoint.base import check_file
from launcher.checkpoint.convert import convert, open_model
from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.merge import Options
from launcher.checkpoint.split import SplitPlan
from launcher.errors import CheckpointError
from launcher.models.names import LEGACY, SCHEMES, is_adapter, is_weight

EMBEDDING = SCHEMES[LEGACY].embedding
HEAD = SCHEMES[LEGACY].head

CONFIG: dict[str, Any] = {**HF_CONFIG, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
QWEN2 = {**CONFIG, "model_type": "qwen2", "rope_theta": 1e6, "sliding_window": 4096, "use_sliding_window": False}
QWEN3 = {**CONFIG, "model_type": "qwen3", "rope_theta": 1e6, "head_dim": 12}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": QWEN2,
    "qwen2-tied": {**QWEN2, "tie_word_embeddings": True},
    "qwen2-heads": {**QWEN2, "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "qwen2-one-key": {**QWEN2, "num_key_value_heads": 1, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen3": QWEN3,
    "qwen3-tied": {**QWEN3, "tie_word_embeddings": True, "head_dim": 8},
    "qwen3-heads": {**QWEN3, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "head_dim": 20},
    "qwen3-one-key": {**QWEN3, "num_key_value_heads": 1, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen3-wide": {**QWEN3, "hidden_size": 64, "head_dim": 24, "intermediate_size": 100},
    "qwen3-narrow": {**QWEN3, "hidden_size": 64, "head_dim": 6, "num_attention_heads": 8, "intermediate_size": 3},
    "llama": {**CONFIG, "model_type": "llama"},
    "llama3-tied": {**CONFIG, "model_type": "llama", "tie_word_embeddings": True, "rope_scaling": LLAMA3_ROPE},
    "mistral": {**CONFIG, "model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
}
QWEN2_MODEL = {**MODEL, "family": "qwen2", "rope_theta": 1e6}
INFO = {"model": QWEN2_MODEL, "template": "chatml", "precision": {"params": "float32", "compute": "float32"}}


_OURS = """
os.environ["LAUNCHER_NO_GRAPH_CACHE"] = "1"
import numpy as np
from pathlib import Path
from launcher.inference.cached import Cache, CompiledSteps
from launcher.inference.network import build
from launcher.inference.model import is_plain
from launcher.inference.plain import load
from launcher.inference.sources import Given, find_model

def plain(model, ids):
    cache = Cache(load(model))
    cached = cache.all_logits(np.array([ids]))[0]
    rows = np.array([ids, ids[1:] + ids[:1]], np.int32)  # a second row of another prompt, longer by one token
    cache.begin(2)
    steps = [cache.forward(input_ids=rows, valid_length_each_example=[n, n + 1])[0][0] for n in range(1, len(ids))]
    return cached, np.array([*steps, cached[-1]])

def logits(folder, adapter, ids, target):
    model = find_model(folder, Path("."), Given(adapter=adapter))
    if is_plain(model):
        cached, whole = plain(model, ids)
        np.savez(target, cached=cached, whole=whole)
        return
    built = build(model, batch_size=1)
    cached = Cache(CompiledSteps(built.network, built.described)).all_logits(np.array([ids]))[0]
    from mindspore import Tensor
    row = np.pad(np.array([ids], np.int32), ((0, 0), (0, model.context - len(ids))))
    whole = built.network(Tensor(row)).asnumpy().reshape(-1, cached.shape[-1])[: len(ids)]
    np.savez(target, cached=cached, whole=whole)
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(sys.executable, _OURS, tmp_path_factory.mktemp("ours"))
    yield child
    child.close()


def our_logits(child: Child, model: Path, adapter: Path | None = None) -> tuple[Array, Array]:
    """Logits (tokens, vocabulary) of the cached decoder, and of MindFormers' network on whole rows."""
    target = model.with_name(f"{model.name}-ours.npz")
    child("logits", folder=model, adapter=adapter and str(adapter), ids=IDS, target=target)
    with np.load(target) as found:
        return found["cached"], found["whole"]


def converted(source: Path, target: Path, **options: Any) -> Path:
    with ExitStack() as stack:
        return convert(open_model(source, None, stack), target, **options).folder


def tensors(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for path in folder.glob("*.safetensors") for name, array in read(path).items()}


@pytest.mark.mindspore
@pytest.mark.parametrize("name", CONFIGS)
def test_a_hugging_face_model_there_and_back_and_asked_on_the_way(
    tmp_path: Path, name: str, torch: Child, ours: Child
) -> None:
    torch("make", folder=tmp_path / "hf", config=CONFIGS[name], dtype="float32")
    there = converted(tmp_path / "hf", tmp_path / "ms")
    back = converted(there, tmp_path / "back", max_shard_bytes=20_000)
    assert tensors(back) == tensors(tmp_path / "hf")
    first, again = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "hf", back))
    differ = {key: again.get(key) for key in first if again.get(key) != first[key]}
    assert not differ.keys() - {"dtype", "rope_parameters", "pad_token_id"}
    loaded = torch("loads", folder=back)
    assert loaded == {"class": first["architectures"][0], "warnings": [], "keys": {}}

    expected = torch_logits(torch, tmp_path / "hf")
    assert abs(expected).max() > 0.1
    assert (expected == torch_logits(torch, back)).all()
    for folder in (tmp_path / "hf", there):
        for found in our_logits(ours, folder):
            assert abs(found - expected).max() <= 1e-5


@pytest.mark.mindspore
@pytest.mark.parametrize("stages", [1, 2])
def test_lora_of_qwen2_folded_and_apart(tmp_path: Path, stages: int, torch: Child, ours: Child) -> None:
    """Shards with biases cut: merged for both, the adapter for peft, and each asked; biases pass through."""
    arrays = llama(QWEN2_MODEL)
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2, pipeline_stage=stages))
    run_merge(folder, tmp_path / "ms", model=INFO)
    run_merge(folder, tmp_path / "hf", Options(layout="hf", max_shard_bytes=20_000), model=INFO)
    run_merge(folder, tmp_path / "peft", Options(layout="peft"))
    plain = {name: array for name, array in arrays.items() if is_weight(name)}
    run_merge(
        write_ranks(tmp_path / "b", {"rank_0/a.ckpt": plain}), tmp_path / "base", Options(layout="hf"), model=INFO
    )

    merged = read(tmp_path / "ms" / "model.safetensors")
    assert all((merged[name] == arrays[name]).all() for name in arrays if name.endswith(".bias"))
    assert torch("loads", folder=tmp_path / "hf") == {"class": "Qwen2ForCausalLM", "warnings": [], "keys": {}}
    expected = torch_logits(torch, tmp_path / "hf")
    assert abs(expected - torch_logits(torch, tmp_path / "base", tmp_path / "peft")).max() <= 1e-5
    assert abs(expected - torch_logits(torch, tmp_path / "base")).max() > 1e-3
    both = (*our_logits(ours, tmp_path / "ms"), *our_logits(ours, tmp_path / "base", tmp_path / "peft"))
    for found in both:
        assert abs(found - expected).max() <= 1e-5


def test_biases_are_cut_with_the_outputs(tmp_path: Path) -> None:
    arrays = llama(QWEN2_MODEL)
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(data_parallel=2, model_parallel=2, optimizer_shards=-1,
                                                             optimizer_threshold_kib=0))  # fmt: skip
    for rank_id in range(4):
        found = read(folder / f"rank_{rank_id}" / f"split_rank_{rank_id}.safetensors")
        for path, rows in (("wq", 16), ("wk", 8), ("wv", 8)):
            name = f"model.layers.1.attention.{path}.bias"
            start = rank_id % 2 * rows
            assert found[name].tobytes() == arrays[name][start : start + rows].tobytes()
    run_merge(folder, tmp_path / "out")
    merged = read(tmp_path / "out" / "model.safetensors")
    assert all(merged[name].tobytes() == arrays[name].tobytes() for name in arrays if name.endswith(".bias"))


_SLICER = """
os.environ["RUN_MODE"] = "predict"
import numpy as np, mindspore as ms

def cut(source, target, strategy):
    ms.transform_checkpoints(source, target, "m", None, strategy)

def join(strategies, target):
    ms.merge_pipeline_strategys(strategies, target)
"""


@pytest.mark.mindspore
@pytest.mark.parametrize("stages", [1, 2])
def test_slices_that_mindspore_cuts_merge_bit_for_bit(tmp_path: Path, stages: int) -> None:
    arrays = {name: array for name, array in llama(QWEN2_MODEL).items() if is_weight(name) or is_adapter(name)}
    write(tmp_path / "whole" / "rank_0" / "whole.ckpt", arrays)
    plan = SplitPlan(model_parallel=2, pipeline_stage=stages)
    strategies = write_shards(tmp_path / "set", arrays, plan, file_format="ckpt") / "strategy"
    slicer = Child(sys.executable, _SLICER, tmp_path)
    joined = tmp_path / "joined.ckpt"
    slicer("join", strategies=strategies, target=joined)
    slicer("cut", source=tmp_path / "whole", target=tmp_path / "cut", strategy=joined)
    slicer.close()

    found = read(tmp_path / "cut" / "rank_1" / "m1.ckpt")
    assert found["model.layers.0.attention.wk.bias"].shape == (8,)
    (tmp_path / "cut" / "adapter_config.json").write_text((tmp_path / "set" / "adapter_config.json").read_text())
    run_merge(tmp_path / "cut", tmp_path / "out", Options(fold=False), strategy=strategies)
    merged = {name: array for path in (tmp_path / "out").glob("*.safetensors") for name, array in read(path).items()}
    assert {name: array.tobytes() for name, array in merged.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


# ------------------------------------------------------------------------------------------------ refused


def hf_folder(root: Path, **config: Any) -> Path:
    from launcher.models.registry import hf_name

    arrays = {hf_name(name): array for name, array in llama(QWEN2_MODEL, lora=False).items() if is_weight(name)}
    write(root / "model.safetensors", arrays)
    (root / "config.json").write_text(json.dumps({**QWEN2, **config}))
    return root


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_sliding_window": True}, "sliding_window is 4096: attention over a window is not supported"),
        ({"model_type": "qwen3"}, "model_type is 'qwen3', of no known family .*mcore.*known are llama"),
        ({"model_type": "llama", "sliding_window": None}, "6 weights are of no LLaMA|family: the weights have qwen2"),
        ({"num_hidden_layers": 3}, "num_layers: the weights have 2, the model 3"),
        ({"vocab_size": 64}, "vocab_size: the weights have 40, the model 64"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_config_that_is_not_of_the_weights_is_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    source = hf_folder(tmp_path / "hf", **config)
    if "tie_word_embeddings" in config:  # any truth ties, as in transformers: the head of the file is not used
        assert HEAD not in read(converted(source, tmp_path / "out") / "model.safetensors")
        return
    with pytest.raises(CheckpointError, match=reason):
        converted(source, tmp_path / "out")


def test_a_tensor_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    arrays = read(source / "model.safetensors")
    write(source / "model.safetensors", {**arrays, "model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)})
    with pytest.raises(CheckpointError, match=r"q_norm\.weight is no weight of a Qwen2"):
        converted(source, tmp_path / "out")
    write(source / "model.safetensors", {**arrays, "model.layers.0.self_attn.o_proj.bias": np.ones(32, np.float32)})
    with pytest.raises(CheckpointError, match=r"1 weights are of no Qwen2: model\.layers\.0\.attention\.wo\.bias"):
        converted(source, tmp_path / "out")
    del arrays["model.layers.1.self_attn.k_proj.bias"]
    write(source / "model.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"1 weights are missing: model\.layers\.1\.attention\.wk\.bias"):
        converted(source, tmp_path / "out")


def test_a_base_of_the_other_family_is_refused_with_the_key_to_set(tmp_path: Path) -> None:
    for family, other in (("qwen2", "llama"), ("llama", "qwen2")):
        weights = {name: array for name, array in llama({**MODEL, "family": family}).items() if is_weight(name)}
        path = write(tmp_path / f"{family}.safetensors", weights)
        check_file(path, {**MODEL, "family": family})
        with pytest.raises(CheckpointError, match=f"family: the weights have {family}, the model {other}") as caught:
            check_file(path, {**MODEL, "family": other})
        assert f"--set model.family={family}" in caught.value.hint
        with pytest.raises(CheckpointError, match="holds no weight of a Qwen2"):
            check_file(write(tmp_path / "odd.safetensors", {"w": weights[EMBEDDING]}), {**MODEL, "family": "qwen2"})
