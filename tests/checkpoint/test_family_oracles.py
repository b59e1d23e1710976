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
from support.checkpoint_sets import MODEL, RANK, llama, read, run_merge, write, write_ranks, write_shards
from support.oracles import HF_CONFIG, IDS, LLAMA3_ROPE, Child, torch_logits

from launcher.checkpoint.base import check_file
from launcher.checkpoint.convert import convert, open_model
from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.merge import Options
from launcher.checkpoint.split import SplitPlan
from launcher.errors import CheckpointError
from launcher.models import names
from launcher.models.base import parameter_count
from launcher.models.names import LEGACY, SCHEMES, adapters_of, has_head, is_adapter, is_weight
from launcher.models.qwen3 import QWEN3 as QWEN3_FAMILY
from launcher.models.registry import model_of_config, shapes_of
from launcher.runspec.presets import all_presets
from launcher.runspec.sections import ModelSpec

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

QWEN3_MODEL = {**QWEN2_MODEL, "family": "qwen3", "head_dim": 12}
QWEN3_INFO = {**INFO, "model": QWEN3_MODEL}
MODELS = (QWEN2_MODEL, QWEN3_MODEL)

_OURS = """
import numpy as np
from pathlib import Path
from launcher.inference.cached import Cache, CachedDecoder
from launcher.inference.network import build
from launcher.inference.model import is_for_cpu
from launcher.inference.numpy_network import load
from launcher.inference.sources import Given, find_model

def mindformers(model, ids):
    from mindspore import Tensor
    row = np.pad(np.array([ids], np.int32), ((0, 0), (0, model.context - len(ids))))
    return build(model, batch_size=1)(Tensor(row)).asnumpy().reshape(model.context, -1)[: len(ids)]

def logits(folder, adapter, ids, target):
    model = find_model(folder, Path("."), Given(adapter=adapter))
    network = load(model)
    found = {"whole": CachedDecoder(network).all_logits(np.array([ids]))[0]}
    cache = Cache(network)
    first = cache.join([ids[:1], ids[1:3]])  # a second row of another prompt, which is longer
    found["cached"] = np.array([first[0], *(cache.step([token, 5])[0] for token in ids[1:])])
    if not is_for_cpu(model):
        found["mindformers"] = mindformers(model, ids)
    np.savez(target, **found)
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(sys.executable, _OURS, tmp_path_factory.mktemp("ours"))
    yield child
    child.close()


def our_logits(child: Child, model: Path, adapter: Path | None = None) -> list[Array]:
    """Logits (tokens, vocabulary) of whole rows, token by token, and of MindFormers' network where it has kernels."""
    target = model.with_name(f"{model.name}-ours.npz")
    child("logits", folder=model, adapter=adapter and str(adapter), ids=IDS, target=target)
    with np.load(target) as found:
        return list(found.values())


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
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["family"])
def test_lora_folded_and_apart(tmp_path: Path, stages: int, model: dict[str, Any], torch: Child, ours: Child) -> None:
    """Shards of cut layers: merged for both, the adapter for peft, and each asked; biases and norms pass through."""
    arrays, info = llama(model), {**INFO, "model": model}
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2, pipeline_stage=stages))
    run_merge(folder, tmp_path / "ms", model=info)
    run_merge(folder, tmp_path / "hf", Options(layout="hf", max_shard_bytes=20_000), model=info)
    run_merge(folder, tmp_path / "peft", Options(layout="peft"), model=info)
    run_merge(folder, tmp_path / "apart", Options(fold=False), model=info)
    plain = {name: array for name, array in arrays.items() if is_weight(name)}
    run_merge(
        write_ranks(tmp_path / "b", {"rank_0/a.ckpt": plain}), tmp_path / "base", Options(layout="hf"), model=info
    )

    merged = read(tmp_path / "ms" / "model.safetensors")
    same = [name for name in arrays if name.endswith((".bias", "norm.weight"))]
    assert all((merged[name] == arrays[name]).all() for name in same)
    kind = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model["family"]]
    assert torch("loads", folder=tmp_path / "hf") == {"class": kind, "warnings": [], "keys": {}}
    expected = torch_logits(torch, tmp_path / "hf")
    assert abs(expected - torch_logits(torch, tmp_path / "base", tmp_path / "peft")).max() <= 1e-5
    assert abs(expected - torch_logits(torch, tmp_path / "base")).max() > 1e-3
    both = (*our_logits(ours, tmp_path / "ms"), *our_logits(ours, tmp_path / "base", tmp_path / "peft"))
    for found in (*both, *our_logits(ours, tmp_path / "base", tmp_path / "apart")):
        assert abs(found - expected).max() <= 1e-5


def test_parts_of_a_fused_layer_are_its_rows_and_share_its_a(tmp_path: Path) -> None:
    """Two query heads of 12 for each key: rows 0 to 23 of a group are q, then 12 of k, then 12 of v."""
    arrays = llama(QWEN3_MODEL)
    folder = write_shards(tmp_path / "set", arrays, SplitPlan(model_parallel=2))
    plain = {name: array for name, array in arrays.items() if is_weight(name)}
    run_merge(
        write_ranks(tmp_path / "b", {"rank_0/a.ckpt": plain}), tmp_path / "hf", Options(layout="hf"), model=QWEN3_INFO
    )
    run_merge(folder, tmp_path / "peft", Options(layout="peft"), model=QWEN3_INFO)
    whole, adapters = read(tmp_path / "hf" / "model.safetensors"), read(tmp_path / "peft" / "adapter_model.safetensors")
    stem = "decoder.layers.1.self_attention.linear_qkv"
    groups = arrays[f"{stem}.weight"].reshape(2, 48, 32)
    places = {"q": slice(0, 24), "k": slice(24, 36), "v": slice(36, 48)}
    for part, place in places.items():
        module = f"model.layers.1.self_attn.{part}_proj"
        assert (whole[f"{module}.weight"] == groups[:, place].reshape(-1, 32)).all()
        lora_a, lora_b = (adapters[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        assert (lora_a == arrays[f"{stem}.lora_A.weight"]).all()
        assert (lora_b == arrays[f"{stem}.lora_B.weight"].reshape(2, 48, RANK)[:, place].reshape(-1, RANK)).all()
    fc1 = arrays["decoder.layers.0.mlp.linear_fc1.weight"]
    assert (whole["model.layers.0.mlp.gate_proj.weight"] == fc1[0::2]).all()
    assert (whole["model.layers.0.mlp.up_proj.weight"] == fc1[1::2]).all()
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    with pytest.raises(CheckpointError, match="how many attention heads the model has is not known"):
        run_merge(folder, tmp_path / "none", Options(layout="peft"))


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
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["family"])
def test_slices_that_mindspore_cuts_merge_bit_for_bit(tmp_path: Path, stages: int, model: dict[str, Any]) -> None:
    arrays = {name: array for name, array in llama(model).items() if is_weight(name) or is_adapter(name)}
    write(tmp_path / "whole" / "rank_0" / "whole.ckpt", arrays)
    plan = SplitPlan(model_parallel=2, pipeline_stage=stages)
    strategies = write_shards(tmp_path / "set", arrays, plan, file_format="ckpt") / "strategy"
    slicer = Child(sys.executable, _SLICER, tmp_path)
    joined = tmp_path / "joined.ckpt"
    slicer("join", strategies=strategies, target=joined)
    slicer("cut", source=tmp_path / "whole", target=tmp_path / "cut", strategy=joined)
    slicer.close()

    found = read(tmp_path / "cut" / "rank_1" / "m1.ckpt")
    for name, rows in {
        "model.layers.0.attention.wk.bias": 8,
        "decoder.layers.0.mlp.linear_fc1.lora_B.weight": 48,
    }.items():
        assert name not in arrays or len(found[name]) == rows
    (tmp_path / "cut" / "adapter_config.json").write_text((tmp_path / "set" / "adapter_config.json").read_text())
    run_merge(tmp_path / "cut", tmp_path / "out", Options(fold=False), strategy=strategies)
    merged = {name: array for path in (tmp_path / "out").glob("*.safetensors") for name, array in read(path).items()}
    assert {name: array.tobytes() for name, array in merged.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


_MCORE = """
os.environ["RUN_MODE"] = "train"
import numpy as np, mindspore as ms
ms.set_context(mode=0, device_target="CPU")
from launcher.upstream.light_imports import light_imports
with light_imports():
    import mindformers
context = sys.modules["mindformers.core.context.build_context"].MFContextOperator
asked = type("Asked", (), {"get_context": lambda self, key: {"use_legacy": False, "mode": 0}.get(key)})
context.get_mf_ctx_instance = staticmethod(asked)
from mindspore.nn.utils import no_init_parameters
from safetensors.numpy import load_file
from mindformers.models.qwen3.configuration_qwen3 import Qwen3Config
from mindformers.models.qwen3.modeling_qwen3_train import TrainingQwen3ForCausalLM
from mindformers.pet import get_pet_model
from mindformers.pet.pet_config import LoraConfig

def network(config):
    with no_init_parameters():  # shapes alone: a 32B model takes no memory
        return TrainingQwen3ForCausalLM(Qwen3Config(**config, seq_length=16, position_embedding_type="rope"))

def shapes(config, rank, targets):
    lora = LoraConfig(lora_rank=rank, lora_alpha=8, lora_dropout=0.0, target_modules=targets,
                      freeze_include=["*"], freeze_exclude=["*lora*"])
    with no_init_parameters():
        found = get_pet_model(network(config), lora)
    return {one.name: [list(one.shape), one.requires_grad] for one in found.get_parameters()}

def count(config):
    return sum(one.size for one in network(config).get_parameters())

def convert(config, folder, target):
    arrays = {}
    for file in os.listdir(folder):
        arrays |= load_file(os.path.join(folder, file)) if file.endswith(".safetensors") else {}
    template = network(config).template
    found = template.get_mf_state_dict(arrays)
    np.savez(target, **{name: value.asnumpy() for name, value in found.items()})
"""


@pytest.fixture(scope="module")
def mcore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = Child(sys.executable, _MCORE, tmp_path_factory.mktemp("mcore"))
    yield child
    child.close()


QWEN3_CONFIGS = [name for name in CONFIGS if name.startswith("qwen3")]


@pytest.mark.mindspore
@pytest.mark.parametrize("name", QWEN3_CONFIGS)
def test_names_shapes_and_rows_are_those_of_mindformers_own_network(
    tmp_path: Path, name: str, torch: Child, mcore: Child
) -> None:
    """Its own converter weaves q, k and v, and gate and up, into the very bytes that import writes."""
    model = model_of_config(CONFIGS[name])
    config = {**QWEN3_FAMILY.config.config_of_model(model, {}), "tie_word_embeddings": model["tie_word_embeddings"]}
    targets = tuple(QWEN3_FAMILY.linear_layers)
    found = mcore("shapes", config=config, rank=RANK, targets="|".join(targets))
    assert {key: tuple(shape) for key, (shape, trained) in found.items() if not trained} == shapes_of(model)
    trained = {key: tuple(shape) for key, (shape, is_trained) in found.items() if is_trained}
    adapted = [weight for weight in shapes_of(model) if names.module_of(weight).rpartition(".")[2] in targets]
    assert set(trained) == {adapter for weight in adapted for adapter in adapters_of(weight)}
    for key, shape in trained.items():
        outputs, inputs = shapes_of(model)[names.weight_of(key)]
        assert shape == ((RANK, inputs) if "lora_A" in key else (outputs, RANK))

    torch("make", folder=tmp_path / "hf", config=CONFIGS[name], dtype="float32")
    mcore("convert", config=config, folder=tmp_path / "hf", target=tmp_path / "theirs.npz")
    ours = read(converted(tmp_path / "hf", tmp_path / "ms") / "model.safetensors")
    with np.load(tmp_path / "theirs.npz") as theirs:
        kept = {key: theirs[key].tobytes() for key in theirs.files if key in ours or not model["tie_word_embeddings"]}
    assert {key: array.tobytes() for key, array in ours.items()} == kept


@pytest.mark.mindspore
def test_presets_of_qwen3_have_as_many_parameters_as_mindformers_builds(mcore: Child) -> None:
    for preset in (preset for preset in all_presets() if preset.model.get("family") == "qwen3"):
        model = ModelSpec.model_validate(preset.model)
        if model.num_layers > 28:  # three are enough: numbers of whole presets are held to published ones
            model = model.model_copy(update={"num_layers": 3})
        config = QWEN3_FAMILY.config.config_of_model(model.model_dump(), {})
        config["tie_word_embeddings"] = model.tie_word_embeddings
        assert mcore("count", config=config) == parameter_count(QWEN3_FAMILY, model.sizes), preset.name


# ------------------------------------------------------------------------------------------------ refused


def hf_folder(root: Path, model: dict[str, Any] = QWEN2_MODEL, **config: Any) -> Path:
    plain = {name: array for name, array in llama(model, lora=False).items() if is_weight(name)}
    run_merge(write_ranks(root / "b", {"rank_0/a.ckpt": plain}), root / "hf", Options(layout="hf"),
              model={**INFO, "model": model})  # fmt: skip
    described = {"qwen2": QWEN2, "qwen3": QWEN3}[model["family"]]
    (root / "hf" / "config.json").write_text(json.dumps({**described, **config}))
    return root / "hf"


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        (QWEN2_MODEL, {"use_sliding_window": True}, "sliding_window is 4096: attention over a window is not supported"),
        (QWEN2_MODEL, {"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe', of no known family .*experts.*known"),
        (QWEN2_MODEL, {"model_type": "llama", "sliding_window": None},
         "6 weights are of no LLaMA|family: the weights have qwen2"),
        (QWEN2_MODEL, {"num_hidden_layers": 3}, "num_layers: the weights have 2, the model 3"),
        (QWEN2_MODEL, {"vocab_size": 64}, "vocab_size: the weights have 40, the model 64"),
        (QWEN2_MODEL, {"tie_word_embeddings": "yes"}, ""),
        (QWEN3_MODEL, {"use_sliding_window": True, "sliding_window": 16}, "sliding_window is 16"),
        (QWEN3_MODEL, {"attention_bias": True}, "attention_bias is True, not False"),
        (QWEN3_MODEL, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "of type 'yarn' is not supported"),
        (QWEN3_MODEL, {"model_type": "qwen2", "head_dim": 8}, r"[qk]_norm\.weight is no weight of a Qwen2"),
        (QWEN3_MODEL, {"model_type": "qwen2"}, "head_dim is 12, not 8"),
        (QWEN3_MODEL, {"num_hidden_layers": 3}, "num_layers: the weights have 2, the model 3"),
        (QWEN3_MODEL, {"num_hidden_layers": 1}, "num_layers: the weights have 2, the model 1"),
        (QWEN3_MODEL, {"vocab_size": 64}, "vocab_size: the weights have 40, the model 64"),
        (QWEN3_MODEL, {"num_key_value_heads": 4}, r"k_proj\.weight is \[24, 32\], not \[48, 32\]"),
        (QWEN3_MODEL, {"head_dim": 8}, r"q_proj\.weight is \[48, 32\], not \[32, 32\]"),
        (QWEN3_MODEL, {"intermediate_size": 40}, r"gate_proj\.weight is \[48, 32\], not \[40, 32\]"),
        (QWEN3_MODEL, {"tie_word_embeddings": "yes"}, ""),
    ],
)  # fmt: skip
def test_a_config_that_is_not_of_the_weights_is_refused(
    tmp_path: Path, model: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    source = hf_folder(tmp_path, model, **config)
    if not reason:  # any truth ties, as in transformers: the head of the file is not used
        assert not has_head(read(converted(source, tmp_path / "out") / "model.safetensors"))
        return
    with pytest.raises(CheckpointError, match=reason):
        converted(source, tmp_path / "out")


def test_a_tensor_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    source = hf_folder(tmp_path)
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.layers.1.self_attn.k_proj.weight": None}, r"model\.layers\.1\.self_attn\.k_proj\.weight is missing"),
        ({"model.layers.1.self_attn.k_norm.weight": None}, r"1 weights are missing: decoder\.layers\.1\..*k_layernorm"),
        ({"model.layers.1.mlp.up_proj.weight": np.ones((48, 32), np.float16)}, "are of several dtypes"),
        ({"model.layers.1.self_attn.q_proj.bias": np.ones(48, np.float32)}, r"k_proj\.bias is missing"),
        (
            {"model.layers.2.self_attn.q_proj.weight": np.ones((48, 32), np.float32)},
            r"2\.self_attn\.k_proj\.weight is m",
        ),
        (
            {"model.layers.1.mlp.gate.weight": np.ones((4, 32), np.float32)},
            r"mlp\.gate\.weight is no weight of a Qwen3",
        ),
        ({"model.layers.1.self_attn.o_proj.bias": np.ones(32, np.float32)}, r"are of no Qwen3: .*linear_proj\.bias"),
    ],
)
def test_parts_of_fused_layers_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    source = hf_folder(tmp_path, QWEN3_MODEL)
    arrays = {**read(source / "model.safetensors"), **change}
    write(source / "model.safetensors", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(CheckpointError, match=reason):
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


def test_a_base_of_the_other_route_is_no_base(tmp_path: Path) -> None:
    for model, other in ((QWEN3_MODEL, QWEN2_MODEL), (QWEN2_MODEL, QWEN3_MODEL)):
        weights = {name: array for name, array in llama(model).items() if is_weight(name)}
        path = write(tmp_path / f"{model['family']}.safetensors", weights)
        check_file(path, model)
        title = {"qwen2": "Qwen2", "qwen3": "Qwen3"}[other["family"]]
        with pytest.raises(CheckpointError, match=f"holds no weight of a {title}"):
            check_file(path, other)
    for key, value, text in (
        ("head_dim", 8, "head_dim: the weights have 12, the model 8"),
        ("n_kv_heads", 4, "n_kv_heads: the weights have 2, the model 4"),
        ("intermediate_size", 40, "intermediate_size: the weights have 48, the model 40"),
    ):
        with pytest.raises(CheckpointError, match=text) as caught:
            check_file(tmp_path / "qwen3.safetensors", {**QWEN3_MODEL, key: value})
        assert f"--set model.{key}=" in caught.value.hint
