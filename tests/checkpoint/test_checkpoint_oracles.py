"""Others agree: MindSpore's own merge and MindFormers' LLaMA, and transformers and peft on what is exported for them.

MindSpore and torch each run in one child process for the whole module: importing them takes seconds. torch is that of
this interpreter or of the one that LAUNCHER_TORCH_PYTHON names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_sets import ALPHA, MODEL, RANK, llama, read, run_merge, write, write_ranks, write_shards
from support.data_tools import make_hugging_face, make_sentencepiece
from support.oracles import HF_CONFIG, IDS, LLAMA3_ROPE, Child, torch_logits

from launcher.checkpoint.compare import check_crc
from launcher.checkpoint.convert import convert, open_model, run_section
from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.merge import Options
from launcher.checkpoint.split import SplitPlan
from launcher.checkpoint.tensorfile import TensorFile
from launcher.data.messages import Message
from launcher.data.templates import get_template
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import CheckpointError
from launcher.models.names import LEGACY, SCHEMES, is_weight
from launcher.models.registry import hf_name
from launcher.runspec.sections import ModelSpec

HEAD = SCHEMES[LEGACY].head
INFO = {"model": MODEL, "template": "vicuna", "precision": {"params": "float32", "compute": "float32"}}


@pytest.fixture(scope="module")
def mindspore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(sys.executable, _MINDSPORE, tmp_path_factory.mktemp("mindspore"))
    yield child
    child.close()


# ------------------------------------------------------------------------------------------------ MindSpore

_MINDSPORE = """
os.environ["RUN_MODE"] = "predict"
import numpy as np, mindspore as ms

def transform(source, target, strategies):
    strategy = strategies + "/ckpt_strategy_rank_0.ckpt"
    if target.endswith("pp2"):
        strategy = target + ".strategy.ckpt"
        ms.merge_pipeline_strategys(strategies, strategy)
    ms.transform_checkpoints(source, target, "m", strategy, None)
    found = ms.load_checkpoint(target + "/rank_0/m0.ckpt")
    np.savez(target + "/all.npz", **{name: value.asnumpy() for name, value in found.items()})

def unify(source, target, strategies):
    ms.parallel.unified_safetensors(source, strategies + "/ckpt_strategy_rank_0.ckpt", target, file_suffix="")

def encrypt(folder):
    items = [{"name": "w", "data": ms.Tensor(np.ones((3, 2), np.float32))}]
    for mode in ("AES-GCM", "AES-CBC"):
        ms.save_checkpoint(items, f"{folder}/{mode}.ckpt", enc_key=b"0123456789abcdef", enc_mode=mode)
    for form in ("ckpt", "safetensors"):  # counters as MindFormers' callback adds them
        counters = {"epoch_num": 1, "step_num": 70_000}
        ms.save_checkpoint(items, f"{folder}/crc.{form}", crc_check=True, format=form, append_dict=counters)

def share(names, ranks, target):
    from mindspore.train._utils import remove_param_redundancy
    shares = remove_param_redundancy({name: (tuple(range(ranks)),) for name in sorted(names)})
    with open(target, "w") as out:
        json.dump([sorted(shares[rank]) for rank in range(ranks)], out)

def logits(weights, model, ids, target):
    from launcher.upstream.light_imports import light_imports
    with light_imports():
        import mindformers
    from mindformers import LlamaConfig, LlamaForCausalLM
    ms.set_context(mode=0, device_target="CPU")
    keys = ("hidden_size", "num_layers", "num_heads", "n_kv_heads", "intermediate_size", "vocab_size", "rms_norm_eps")
    config = {key: model[key] for key in keys}
    scaling = model.get("rope_scaling")
    if scaling:
        scaling["original_max_position_embeddings"] = scaling.pop("original_max_position_embedding")
        config.update(extend_method="LLAMA3", scaling_factor=scaling)
    network = LlamaForCausalLM(LlamaConfig(
        **config, batch_size=1, seq_length=32, theta=model["rope_theta"],
        max_position_embedding=model.get("max_position_embedding") or model["seq_length"],
        tie_word_embeddings=model.get("tie_word_embeddings", False), compute_dtype="float32",
        param_init_type="float32", softmax_compute_type="float32", rotary_dtype="float32",
        use_flash_attention=False, fused_rms_norm=False, use_rope_slice=True, checkpoint_name_or_path=""))
    network.set_train(False)
    left = ms.load_param_into_net(network, ms.load_checkpoint(weights, format=weights.rpartition(".")[2]))
    assert left == ([], []), left
    row = np.pad(np.array([ids], np.int32), ((0, 0), (0, 32 - len(ids))))
    np.save(target, network(ms.Tensor(row)).asnumpy().reshape(-1, model["vocab_size"])[: len(ids)])
"""

PLANS = {
    "mp2": SplitPlan(model_parallel=2),
    "mp4": SplitPlan(model_parallel=4, cut_vocabulary=True),
    "dp2mp2": SplitPlan(data_parallel=2, model_parallel=2),
    "dp2mp2opt": SplitPlan(data_parallel=2, model_parallel=2, optimizer_shards=-1, optimizer_threshold_kib=0),
    "dp4mp2opt2": SplitPlan(data_parallel=4, model_parallel=2, optimizer_shards=2, optimizer_threshold_kib=0),
    "pp2": SplitPlan(pipeline_stage=2, model_parallel=2),
}


def _rank_folders(folder: Path, target: Path) -> Path:
    """Links to the rank folders alone: MindSpore takes every file it finds."""
    target.mkdir()
    for path in folder.glob("rank_*"):
        (target / path.name).symlink_to(path)
    return target


@pytest.mark.mindspore
@pytest.mark.parametrize("name", PLANS)
def test_transform_checkpoints_agrees(tmp_path: Path, name: str, mindspore: Child) -> None:
    arrays = llama(dtype="float32")
    folder = write_shards(tmp_path / "set", arrays, PLANS[name], file_format="ckpt")
    ranks = _rank_folders(folder, tmp_path / "ranks")
    mindspore("transform", source=ranks, target=tmp_path / name, strategies=folder / "strategy")
    run_merge(folder, tmp_path / "ours", Options(fold=False, with_optimizer=True))
    ours = {name: array for path in (tmp_path / "ours").glob("*.safetensors") for name, array in read(path).items()}
    with np.load(tmp_path / name / "all.npz") as theirs:
        assert set(theirs.files) == set(ours) == set(arrays)
        assert all(theirs[name].tobytes() == ours[name].tobytes() for name in ours)


@pytest.mark.mindspore
@pytest.mark.parametrize("name", ["mp2", "dp2mp2opt"])
def test_unified_safetensors_agrees(tmp_path: Path, name: str, mindspore: Child) -> None:
    folder = write_shards(tmp_path / "set", llama(lora=False), PLANS[name])
    ranks = _rank_folders(folder, tmp_path / "ranks")
    mindspore("unify", source=ranks, target=tmp_path / "theirs", strategies=folder / "strategy")
    run_merge(folder, tmp_path / "ours")
    theirs = {name: array for path in (tmp_path / "theirs").glob("*.safetensors") for name, array in read(path).items()}
    for weight, array in read(tmp_path / "ours" / "model.safetensors").items():
        assert theirs[weight].tobytes() == array.tobytes()


@pytest.mark.mindspore
def test_files_that_mindspore_encrypts_and_checks(tmp_path: Path, mindspore: Child) -> None:
    mindspore("encrypt", folder=tmp_path)
    for mode in ("AES-GCM", "AES-CBC"):
        with pytest.raises(CheckpointError, match="is encrypted"):
            TensorFile(tmp_path / f"{mode}.ckpt")
    for name in ("crc.ckpt", "crc.safetensors"):
        with TensorFile(tmp_path / name) as file:
            assert check_crc(file)
            assert (file.array("w") == 1).all()
            assert file.array("step_num") == 70_000


@pytest.mark.mindspore
@pytest.mark.parametrize("ranks", [2, 4])
def test_what_mindspore_leaves_on_each_data_parallel_rank_is_put_together(
    tmp_path: Path, ranks: int, mindspore: Child
) -> None:
    """ModelCheckpoint(remove_redundancy=True): no strategy file, and each tensor on one rank."""
    arrays = llama()
    mindspore("share", names=sorted(arrays), ranks=ranks, target=tmp_path / "shares.json")
    shares = json.loads((tmp_path / "shares.json").read_text())
    files = {f"rank_{rank}/a.ckpt": {name: arrays[name] for name in share} for rank, share in enumerate(shares)}
    folder = write_ranks(tmp_path / "set", files)
    run_merge(folder, tmp_path / "out", Options(fold=False, with_optimizer=True))
    found = {name: array for path in (tmp_path / "out").glob("*.safetensors") for name, array in read(path).items()}
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def mindspore_logits(child: Child, weights: Path, model: Any) -> Array:
    """Logits (tokens, vocabulary) in MindFormers."""
    target = weights.parent.with_name(f"{weights.parent.name}-mindspore.npy")
    child("logits", weights=weights, model=dict(model), ids=IDS, target=target)
    found: Array = np.load(target)
    return found


# ------------------------------------------------------------------------------------------------ transformers


@pytest.mark.mindspore
def test_logits_agree_in_mindspore_and_transformers(tmp_path: Path, torch: Child, mindspore: Child) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    run_merge(folder, tmp_path / "ms", model=INFO)
    run_merge(folder, tmp_path / "hf", Options(layout="hf", max_shard_bytes=20_000), model=INFO)
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    ours = mindspore_logits(mindspore, tmp_path / "ms" / "model.safetensors", MODEL)
    assert abs(ours - torch_logits(torch, tmp_path / "hf")).max() < 1e-5


def test_base_with_the_peft_adapter_equals_the_merged_model(tmp_path: Path, torch: Child) -> None:
    arrays = llama()
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2))
    run_merge(folder, tmp_path / "hf", Options(layout="hf"), model=INFO)
    run_merge(folder, tmp_path / "peft", Options(layout="peft"))
    base = write_ranks(
        tmp_path / "base-set", {"rank_0/a.ckpt": {name: arrays[name] for name in arrays if is_weight(name)}}
    )
    run_merge(base, tmp_path / "base", Options(layout="hf"), model=INFO)
    merged, plain = torch_logits(torch, tmp_path / "hf"), torch_logits(torch, tmp_path / "base")
    assert abs(merged - torch_logits(torch, tmp_path / "base", tmp_path / "peft")).max() < 1e-5
    assert abs(merged - plain).max() > 1e-3


def test_the_adapter_config_says_alpha(tmp_path: Path) -> None:
    run_merge(write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()}), tmp_path / "out", Options(layout="peft"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (RANK, ALPHA, ["o_proj", "q_proj"])
    names = read(tmp_path / "out" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names


_TURNS = [
    {"role": "user", "content": "小红有15元，每周存4元"},
    {"role": "assistant", "content": "1. 存下：4元\n答案：19"},
    {"role": "user", "content": " 12 plus 4 is?"},
]
_CHATS = [_TURNS[:1], _TURNS, [{"role": "system", "content": "Be brief."}, *_TURNS]]


@pytest.mark.parametrize(
    ("kind", "template"),
    [(kind, name) for kind in ("sentencepiece", "metaspace") for name in ("plain", "vicuna", "alpaca", "llama2")]
    + [("bytes", "llama3"), ("bytes", "chatml")],
)
def test_transformers_makes_the_prompts_of_training(tmp_path: Path, kind: str, template: str, torch: Child) -> None:
    if kind == "sentencepiece":
        tokenizer = make_sentencepiece(tmp_path / "tokenizer.model")
    else:
        tokenizer = make_hugging_face(tmp_path / "tokenizer.json", kind)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        specials = {"bos_token": "<s>", "eos_token": "</s>"}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(specials))
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": llama()})
    info = {**INFO, "template": template}
    run_merge(folder, tmp_path / "hf", Options(layout="hf"), model=info, tokenizer=tokenizer)
    found = torch("prompts", folder=tmp_path / "hf", chats=_CHATS)
    encode, trained = get_template(template).encode_prompt, load_tokenizer(tokenizer)
    assert found == [encode(trained, [Message(turn["role"], turn["content"]) for turn in chat]) for chat in _CHATS]


def _convert(source: Path, target: Path, **options: Any) -> Any:
    with ExitStack() as stack:
        return convert(open_model(source, None, stack), target, **options)


def _tensors(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for path in folder.glob("*.safetensors") for name, array in read(path).items()}


_TIED_LLAMA3 = {**HF_CONFIG, "tie_word_embeddings": True, "rope_scaling": LLAMA3_ROPE, "initializer_range": 0.2}


@pytest.mark.mindspore
@pytest.mark.parametrize(
    ("config", "dtype"), [(HF_CONFIG, "bfloat16"), (_TIED_LLAMA3, "float32")], ids=["gqa", "tied-llama3"]
)
def test_hugging_face_there_and_back(
    tmp_path: Path, config: dict[str, Any], dtype: str, torch: Child, mindspore: Child
) -> None:
    """Grouped-query attention in bfloat16; tied embeddings and llama3 rope scaling in float32."""
    torch("make", folder=tmp_path / "hf", config={"model_type": "llama", **config}, dtype=dtype)
    there = _convert(tmp_path / "hf", tmp_path / "ms")
    tied = config.get("tie_word_embeddings", False)
    assert (there.layout, there.num_weights) == ("mindspore", 20 if tied else 21)
    assert (HEAD in read(tmp_path / "ms" / "model.safetensors")) is not tied
    assert _convert(tmp_path / "ms", tmp_path / "back", max_shard_bytes=20_000).layout == "hf"
    assert _tensors(tmp_path / "back") == _tensors(tmp_path / "hf")
    first = torch_logits(torch, tmp_path / "hf")
    assert (first == torch_logits(torch, tmp_path / "back")).all()
    if dtype == "float32":
        ours = mindspore_logits(mindspore, tmp_path / "ms" / "model.safetensors", there.model)
        assert abs(ours - first).max() < 1e-5
        plain = {**there.model, "rope_scaling": None}
        assert abs(mindspore_logits(mindspore, tmp_path / "ms" / "model.safetensors", plain) - first).max() > 1e-3


def test_the_model_section_of_a_converted_model_is_one(tmp_path: Path) -> None:
    source = _hf_folder(tmp_path / "hf", rope_scaling=LLAMA3_ROPE, eos_token_id=[7, 9], max_position_embeddings=131072)
    made = _convert(source, tmp_path / "ms")
    spec = ModelSpec.model_validate(run_section(made.model, made.folder))
    assert (spec.seq_length, spec.max_position_embedding, spec.eos_token_id) == (4096, 131072, 7)
    assert spec.rope_scaling is not None
    assert spec.rope_scaling.original_max_position_embedding == 32
    assert any("eos_token_id is [7, 9]" in note for note in made.notes)
    back = _convert(tmp_path / "ms", tmp_path / "back")
    config = json.loads((back.folder / "config.json").read_text())
    assert (config["eos_token_id"], config["rope_scaling"]) == ([7, 9], LLAMA3_ROPE)


def test_a_job_with_llama3_rope_scaling_is_exported_with_it(tmp_path: Path) -> None:
    scaling = {
        key: value for key, value in LLAMA3_ROPE.items() if key not in ("rope_type", "original_max_position_embeddings")
    }
    model = {
        **MODEL, "max_position_embedding": 64, "eos_token_id": 33, "tie_word_embeddings": True,
        "rope_scaling": {**scaling, "original_max_position_embedding": 32},
    }  # fmt: skip
    arrays = {name: array for name, array in llama().items() if name != HEAD}
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": arrays})
    run_merge(folder, tmp_path / "hf", Options(layout="hf"), model={**INFO, "model": model})
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"] == LLAMA3_ROPE
    assert (config["tie_word_embeddings"], config["max_position_embeddings"], config["eos_token_id"]) == (True, 64, 33)
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == 33


def _hf_folder(root: Path, **config: Any) -> Path:
    arrays = {hf_name(name): array for name, array in llama(lora=False).items() if is_weight(name)}
    write(root / "model.safetensors", arrays)
    (root / "config.json").write_text(json.dumps({"model_type": "llama", **HF_CONFIG, **config}))
    return root


def test_there_and_back_without_torch(tmp_path: Path) -> None:
    source = _hf_folder(tmp_path / "hf")
    _convert(source, tmp_path / "ms", file_format="ckpt", verify_full=True)
    _convert(tmp_path / "ms", tmp_path / "back")
    assert _tensors(tmp_path / "back") == _tensors(source)
    with pytest.raises(CheckpointError, match="exists"):
        _convert(source, tmp_path / "ms")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear' is not supported"),
        ({"head_dim": 16}, "head_dim is 16, not 8"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_attention_heads": "four"}, "does not describe a model that is known"),
        ({"num_attention_heads": 0}, "does not describe a model that is known"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"rope_scaling": [8.0]}, "does not describe a model that is known"),
    ],
)
def test_a_config_that_no_run_could_train_is_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        _convert(_hf_folder(tmp_path / "hf", **config), tmp_path / "out")


def test_what_is_no_llama_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'gpt2', of no known family"):
        _convert(_hf_folder(tmp_path / "a", model_type="gpt2"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="num_layers: the weights have 2, the model 3"):
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


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", 7, ["x"], "a.bin", "gone.safetensors"])
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
