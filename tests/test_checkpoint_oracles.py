"""Others agree: MindSpore's own merge, and transformers and peft on what is exported for them.

MindSpore runs in a child process. transformers, peft and CPU torch (the test extra "torch") are used in a child too, of
this interpreter or of the one that LAUNCHER_TORCH_PYTHON names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_sets import ALPHA, MODEL, RANK, llama, read, run_merge, write, write_ranks, write_shards

from launcher.checkpoint.convert import convert, open_model
from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.huggingface import hf_name
from launcher.checkpoint.merge import Options
from launcher.checkpoint.names import HEAD, is_weight
from launcher.checkpoint.split import SplitPlan
from launcher.errors import CheckpointError

INFO = {"model": MODEL, "template": "vicuna", "precision": {"params": "float32", "compute": "float32"}}
IDS = [1, 5, 9, 30, 2, 17, 8, 33]


def child(python: str, code: str, *arguments: object) -> str:
    command = [python, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "GLOG_v": "3", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def torch_python() -> str:
    """An interpreter with torch, transformers and peft, or a skip."""
    given = os.environ.get("LAUNCHER_TORCH_PYTHON")
    if given:
        return given
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install '.[test]', or set LAUNCHER_TORCH_PYTHON")
    return sys.executable


# ------------------------------------------------------------------------------------------------ MindSpore

_TRANSFORM = """
import sys, numpy as np, mindspore as ms
source, target, strategy, kind = sys.argv[1:]
if kind == "ckpt":
    ms.transform_checkpoints(source, target, "m", strategy, None)
    found = ms.load_checkpoint(target + "/rank_0/m0.ckpt")
    np.savez(target + "/all.npz", **{name: value.asnumpy() for name, value in found.items()})
else:
    ms.parallel.unified_safetensors(source, strategy, target, file_suffix="")
"""


@pytest.mark.mindspore
@pytest.mark.parametrize(
    "plan",
    [SplitPlan(model_parallel=2), SplitPlan(data_parallel=2, model_parallel=2, optimizer_shards=-1)],
    ids=["mp2", "dp2mp2opt"],
)
def test_transform_checkpoints_agrees(tmp_path: Path, plan: SplitPlan) -> None:
    arrays = llama(dtype="float32")
    folder = write_shards(tmp_path / "set", arrays, plan, file_format="ckpt")
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    for path in folder.glob("rank_*"):
        (ranks / path.name).symlink_to(path)
    child(
        sys.executable,
        _TRANSFORM,
        ranks,
        tmp_path / "theirs",
        folder / "strategy" / "ckpt_strategy_rank_0.ckpt",
        "ckpt",
    )
    run_merge(folder, tmp_path / "ours", Options(fold=False, with_optimizer=True))
    ours = {name: array for path in (tmp_path / "ours").glob("*.safetensors") for name, array in read(path).items()}
    with np.load(tmp_path / "theirs" / "all.npz") as theirs:
        assert set(theirs.files) == set(ours) == set(arrays)
        assert all(theirs[name].tobytes() == ours[name].tobytes() for name in ours)


@pytest.mark.mindspore
def test_unified_safetensors_agrees(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", llama(lora=False), SplitPlan(model_parallel=2))
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    for path in folder.glob("rank_*"):
        (ranks / path.name).symlink_to(path)
    child(
        sys.executable, _TRANSFORM, ranks, tmp_path / "theirs", folder / "strategy" / "ckpt_strategy_rank_0.ckpt", "st"
    )
    run_merge(folder, tmp_path / "ours")
    theirs = {name: array for path in (tmp_path / "theirs").glob("*.safetensors") for name, array in read(path).items()}
    for name, array in read(tmp_path / "ours" / "model.safetensors").items():
        assert theirs[name].tobytes() == array.tobytes()


_ENCRYPT = """
import sys, numpy as np, mindspore as ms
items = [{"name": "w", "data": ms.Tensor(np.ones((3, 2), np.float32))}]
for mode in ("AES-GCM", "AES-CBC"):
    ms.save_checkpoint(items, f"{sys.argv[1]}/{mode}.ckpt", enc_key=b"0123456789abcdef", enc_mode=mode)
ms.save_checkpoint(items, f"{sys.argv[1]}/crc.ckpt", crc_check=True)
ms.save_checkpoint(items, f"{sys.argv[1]}/crc.safetensors", crc_check=True, format="safetensors")
"""


@pytest.mark.mindspore
def test_files_that_mindspore_encrypts_and_checks(tmp_path: Path) -> None:
    from launcher.checkpoint.compare import check_crc
    from launcher.checkpoint.tensorfile import TensorFile

    child(sys.executable, _ENCRYPT, tmp_path)
    for mode in ("AES-GCM", "AES-CBC"):
        with pytest.raises(CheckpointError, match="is encrypted"):
            TensorFile(tmp_path / f"{mode}.ckpt")
    for name in ("crc.ckpt", "crc.safetensors"):
        with TensorFile(tmp_path / name) as file:
            assert check_crc(file)
            assert (file.array("w") == 1).all()


# ------------------------------------------------------------------------------------------------ transformers

_MINDSPORE_LOGITS = """
import json, sys, numpy as np
from pathlib import Path
from launcher.infer import _build, open_merged
network = _build(open_merged(Path(sys.argv[1])), 1)
from mindspore import Tensor
ids = np.array([json.loads(sys.argv[3])], np.int32)
ids = np.pad(ids, ((0, 0), (0, 32 - ids.shape[1])))
np.save(sys.argv[2], network(Tensor(ids)).asnumpy())
"""

# Importing torch and transformers takes seconds: one process answers for all models of a test.
_TORCH_LOGITS = """
import json, sys, numpy as np, torch
from transformers import AutoModelForCausalLM
for folder, adapter, target in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        np.save(target, model(torch.tensor([json.loads(sys.argv[2])])).logits[0].numpy())
"""


def torch_logits(python: str, *models: Path | tuple[Path, Path]) -> list[Array]:
    """Logits (tokens, vocabulary) of each model, or model with adapter, in transformers."""
    pairs = [model if isinstance(model, tuple) else (model, None) for model in models]
    root = pairs[0][0].parent
    jobs = [
        (str(model), adapter and str(adapter), str(root / f"{at}.npy")) for at, (model, adapter) in enumerate(pairs)
    ]
    child(python, _TORCH_LOGITS, json.dumps(jobs), json.dumps(IDS))
    return [np.load(target) for _, _, target in jobs]


@pytest.mark.mindspore
def test_logits_agree_in_mindspore_and_transformers(tmp_path: Path, torch_python: str) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    run_merge(folder, tmp_path / "ms", model=INFO)
    run_merge(folder, tmp_path / "hf", Options(layout="hf", max_shard_bytes=20_000), model=INFO)
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    child(sys.executable, _MINDSPORE_LOGITS, tmp_path / "ms", tmp_path / "ours.npy", json.dumps(IDS))
    ours = np.load(tmp_path / "ours.npy").reshape(-1, MODEL["vocab_size"])[: len(IDS)]
    (theirs,) = torch_logits(torch_python, tmp_path / "hf")
    assert abs(ours - theirs).max() < 1e-5


def test_base_with_the_peft_adapter_equals_the_merged_model(tmp_path: Path, torch_python: str) -> None:
    arrays = llama()
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2))
    run_merge(folder, tmp_path / "hf", Options(layout="hf"), model=INFO)
    run_merge(folder, tmp_path / "peft", Options(layout="peft"))
    base = write_ranks(
        tmp_path / "base-set", {"rank_0/a.ckpt": {name: arrays[name] for name in arrays if is_weight(name)}}
    )
    run_merge(base, tmp_path / "base", Options(layout="hf"), model=INFO)
    models = (tmp_path / "hf", (tmp_path / "base", tmp_path / "peft"), tmp_path / "base")
    merged, adapted, plain = torch_logits(torch_python, *models)
    assert abs(merged - adapted).max() < 1e-5
    assert abs(merged - plain).max() > 1e-3


def test_the_adapter_config_says_alpha(tmp_path: Path) -> None:
    run_merge(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()}), tmp_path / "out", Options(layout="peft"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (RANK, ALPHA, ["o_proj", "q_proj"])
    names = read(tmp_path / "out" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names


_MAKE_HF = """
import json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
for folder, config, dtype in json.loads(sys.argv[1]):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="20KB")
"""
_HF_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _convert(source: Path, target: Path, **options: Any) -> Any:
    with ExitStack() as stack:
        return convert(open_model(source, None, stack), target, **options)


def _tensors(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for path in folder.glob("*.safetensors") for name, array in read(path).items()}


def test_hugging_face_there_and_back(tmp_path: Path, torch_python: str) -> None:
    """Grouped-query attention in bfloat16; tied embeddings and llama3 rope scaling in float32."""
    tied = {**_HF_CONFIG, "tie_word_embeddings": True, "rope_scaling": _LLAMA3}
    wanted = [(str(tmp_path / "gqa"), _HF_CONFIG, "bfloat16"), (str(tmp_path / "tied"), tied, "float32")]
    child(torch_python, _MAKE_HF, json.dumps(wanted))
    for name, notes in (("gqa", 0), ("tied", 2)):
        there = _convert(tmp_path / name, tmp_path / f"{name}-ms")
        assert (there.layout, there.num_weights, len(there.notes)) == ("mindspore", 21, notes)
        assert HEAD in read(tmp_path / f"{name}-ms" / "model.safetensors")
        assert _convert(tmp_path / f"{name}-ms", tmp_path / f"{name}-back", max_shard_bytes=20_000).layout == "hf"
        assert _tensors(tmp_path / f"{name}-back") == _tensors(tmp_path / name)
    models = [tmp_path / name for name in ("gqa", "gqa-back", "tied", "tied-back")]
    first, again, tied_first, tied_again = torch_logits(torch_python, *models)
    assert (first == again).all()
    assert (tied_first == tied_again).all()


def _hf_folder(root: Path, **config: Any) -> Path:
    arrays = {hf_name(name): array for name, array in llama(lora=False).items() if is_weight(name)}
    write(root / "model.safetensors", arrays)
    (root / "config.json").write_text(json.dumps({"model_type": "llama", **_HF_CONFIG, **config}))
    return root


def test_there_and_back_without_torch(tmp_path: Path) -> None:
    source = _hf_folder(tmp_path / "hf")
    _convert(source, tmp_path / "ms", file_format="ckpt", verify_full=True)
    _convert(tmp_path / "ms", tmp_path / "back")
    assert _tensors(tmp_path / "back") == _tensors(source)
    with pytest.raises(CheckpointError, match="exists"):
        _convert(source, tmp_path / "ms")


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'gpt2', not 'llama'"):
        _convert(_hf_folder(tmp_path / "a", model_type="gpt2"), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.2"):
        _convert(_hf_folder(tmp_path / "b", num_hidden_layers=3), tmp_path / "out")
    folder = _hf_folder(tmp_path / "c")
    write(
        folder / "model.safetensors", {"model.embed_tokens.weight": np.ones((2, 2), np.float32), "h.0.attn": np.ones(1)}
    )
    with pytest.raises(CheckpointError, match=r"h\.0\.attn is no weight of a LLaMA"):
        _convert(folder, tmp_path / "out")
    folder = _hf_folder(tmp_path / "d")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"d has no config\.json"):
        _convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", 7, "a.bin", "gone.safetensors"])
def test_an_index_that_names_other_files_is_refused(tmp_path: Path, name: object) -> None:
    folder = _hf_folder(tmp_path / "hf")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match=r"names a file|lacks gone"):
        _convert(folder, tmp_path / "out")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    folder = _hf_folder(tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights, which are not opened"):
        _convert(folder, tmp_path / "out")
