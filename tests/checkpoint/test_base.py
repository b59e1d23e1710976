"""A base that is not what the run spec describes is refused by its header, with what to type; a good one is taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launcher.checkpoint import convert_model
from launcher.checkpoint.base import check_tensors
from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.split import SplitPlan, split
from launcher.checkpoint.tensorfile import TensorFile
from launcher.cluster.imagined import imagined_cluster
from launcher.control import prepare, start
from launcher.control.preview import preview
from launcher.doctor.job import check_base, needs_of_spec
from launcher.errors import CheckpointError, HostError
from launcher.jobs import FAILED, write_record
from launcher.models.names import LEGACY, SCHEMES, adapters_of
from launcher.models.registry import shapes_of
from launcher.plan import inputs
from launcher.runspec.checking import load_spec
from launcher.runspec.layers import parse_sets
from launcher.runspec.presets import all_presets
from launcher.runspec.sections import ModelSpec, RunSpec

EMBEDDING = SCHEMES[LEGACY].embedding
HEAD = SCHEMES[LEGACY].head

PRESETS = {preset.name: preset for preset in all_presets()}

WQ = "model.layers.0.attention.wq.weight"


def weights(dtype: Any = np.float32, **model: Any) -> dict[str, Array]:
    shapes = shapes_of({**PRESETS["tiny_cpu"].model, **model})
    return {name: np.full(shape, 0.5, dtype) for name, shape in shapes.items()}


def spec_of(checkpoint: Path, **model: Any) -> RunSpec:
    spec = load_spec("tiny_cpu")
    changed = ModelSpec(**{**spec.model.model_dump(), "checkpoint": str(checkpoint), **model})
    return spec.model_copy(update={"model": changed})


def refusal(file: Path, **model: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        inputs.resolve(spec_of(file, **model))
    return caught.value


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base.safetensors"


def test_a_merged_folder_and_a_folder_of_shards_are_checked_as_a_file_is(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    save_file(weights(), merged / "model.safetensors")
    with TensorFile(merged / "model.safetensors") as source:
        split(source, tmp_path / "shards", SplitPlan(model_parallel=2))
    whole, _ = inputs.resolve(spec_of(merged))
    cut, _ = inputs.resolve(spec_of(tmp_path / "shards"))

    assert (whole.checkpoint, whole.shards) == (str(merged / "model.safetensors"), None)
    assert cut.checkpoint == str(tmp_path / "shards")
    assert cut.shards is not None
    assert len(cut.shards.files) == 2
    for folder in (merged, tmp_path / "shards"):
        assert "num_layers: the weights have 3, the model 2" in refusal(folder, num_layers=2).message


def test_a_job_is_no_base_until_it_is_merged(tmp_path: Path) -> None:
    (tmp_path / "bcdfg-x" / "checkpoint" / "rank_0").mkdir(parents=True)
    (tmp_path / "bcdfg-x" / "job.json").write_text("{}")
    error = refusal(tmp_path / "bcdfg-x")

    assert "is a job's folder" in error.message
    assert error.hint == f"launcher merge-ckpt bcdfg-x; then --checkpoint {tmp_path / 'bcdfg-x' / 'merged'}"


@pytest.mark.parametrize(
    ("base_has", "spec_says", "expected", "hint"),
    [
        ({"num_layers": 2}, {}, "num_layers: the weights have 2, the model 3", "--set model.num_layers=2"),
        ({"num_layers": 4}, {}, "num_layers: the weights have 4, the model 3", "--set model.num_layers=4"),
        ({"vocab_size": 1025}, {}, "vocab_size: the weights have 1025, the model 1024", "--set model.vocab_size=1025"),
        ({"n_kv_heads": 2}, {}, "n_kv_heads: the weights have 2, the model 4", "--set model.n_kv_heads=2"),
        (
            {"intermediate_size": 128},
            {},
            "intermediate_size: the weights have 128",
            "--set model.intermediate_size=128",
        ),
        ({"hidden_size": 64}, {}, "hidden_size: the weights have 64, the model 96", "describe the base in the spec"),
        ({"tie_word_embeddings": True}, {}, f"without {HEAD}", "--set model.tie_word_embeddings=true"),
        ({}, {"tie_word_embeddings": True}, f"with an {HEAD} of its own", "--set model.tie_word_embeddings=false"),
        ({}, {"num_layers": 5, "vocab_size": 2048}, "num_layers: the weights have 3", "model.preset tiny_cpu"),
    ],
)
def test_another_model_is_named_by_the_keys_that_differ(
    base: Path, base_has: dict[str, Any], spec_says: dict[str, Any], expected: str, hint: str
) -> None:
    save_file(weights(**base_has), base)
    error = refusal(base, **spec_says)

    assert str(error).startswith(f"{base} is not the base of this model\n")
    assert expected in str(error)
    assert hint in error.hint


def test_the_hint_is_true(base: Path) -> None:
    save_file(weights(num_layers=2, vocab_size=1030), base)
    error = refusal(base)
    sets = [part for part in error.hint.split() if part.startswith("model.")]

    assert sets == ["model.num_layers=2", "model.vocab_size=1030"]
    found, _ = inputs.resolve(spec_of(base, num_layers=2, vocab_size=1030))
    assert found.checkpoint == str(base)


def test_what_no_key_explains_is_named_tensor_by_tensor(base: Path) -> None:
    tensors = weights()
    del tensors["model.layers.1.ffn_norm.weight"], tensors["model.layers.2.ffn_norm.weight"]
    tensors["model.layers.0.attention.w_qkv.weight"] = np.zeros((4, 4), np.float32)
    tensors[WQ] = np.zeros((96, 95), np.float32)
    save_file(tensors, base)
    text = str(refusal(base))

    assert "2 weights are missing: model.layers.1.ffn_norm.weight, model.layers.2.ffn_norm.weight" in text
    assert "1 weights are of no LLaMA: model.layers.0.attention.w_qkv.weight" in text
    assert f"1 weights have another shape: {WQ} is [96, 95], not [96, 96]" in text


def test_a_layer_number_that_no_model_has_builds_nothing(base: Path) -> None:
    save_file({**weights(), "model.layers.999999999.ffn_norm.weight": np.zeros(96, np.float32)}, base)

    assert "1 weights are of no LLaMA: model.layers.999999999.ffn_norm.weight" in str(refusal(base))


def test_a_file_of_something_else_names_what_is_wanted(base: Path) -> None:
    save_file({"foo": np.zeros(3, np.float32)}, base)
    error = refusal(base)

    assert "holds no weight of a LLaMA; its 1 tensor(s): foo" in str(error)
    assert EMBEDDING in error.hint


def test_weights_that_are_no_floats_are_refused(base: Path) -> None:
    save_file(weights(np.int8), base)

    assert "30 weights are no floating-point numbers" in str(refusal(base))


def huggingface_folder(folder: Path) -> Path:
    """A folder as transformers writes it; made by the launcher's own conversion, which is tested against it."""
    source = folder / "ours"
    source.mkdir()
    save_file(weights(), source / "model.safetensors")
    model = load_spec("tiny_cpu").model.model_dump(mode="json")
    (source / "launcher_model.json").write_text(json.dumps({"model": model, "template": "plain"}))
    return convert_model(source, folder / "hf").folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_with_hugging_faces_names_is_given_by_its_folder(tmp_path: Path) -> None:
    folder = huggingface_folder(tmp_path)
    error = refusal(folder / "model.safetensors")
    assert "has Hugging Face's names: model.embed_tokens.weight" in str(error)
    assert error.hint == f"give the folder as it is: --checkpoint {folder}"
    (folder / "config.json").unlink()
    assert refusal(folder / "model.safetensors").hint.startswith("launcher convert-ckpt ")


def test_a_hugging_face_folder_is_converted_once_and_found_again(tmp_path: Path, cache: Path) -> None:
    folder = huggingface_folder(tmp_path)
    found, pending = inputs.resolve(spec_of(folder))
    assert pending is not None
    assert found.checkpoint is not None
    assert Path(found.checkpoint).is_relative_to(cache / "bases")
    assert not (cache / "bases").exists()  # nothing is written yet
    assert f"base: made of {folder}" in found.notes
    assert f"converting the base {folder} to {Path(found.checkpoint).parent}" in pending.describe()

    base = inputs.pending_base(spec_of(folder).model)
    assert base is not None
    base.make()
    made = Path(found.checkpoint)
    assert {name: array.tobytes() for name, array in load_file(made).items()} == {
        name: array.tobytes() for name, array in weights().items()
    }
    before = made.stat()
    base.make()  # another process that came second
    assert made.stat() == before
    assert inputs.pending_base(spec_of(folder).model) is None
    assert inputs.find_base(spec_of(folder).model.model_dump(mode="json"), str(folder))[0].path == made
    assert (made.parent / "config.json").read_bytes() == (folder / "config.json").read_bytes()

    changed = {name: array + 1 for name, array in load_file(folder / "model.safetensors").items()}
    save_file(changed, folder / "model.safetensors")
    assert inputs.pending_base(spec_of(folder).model) is not None


def test_a_converted_base_is_verified_value_by_value(tmp_path: Path, cache: Path) -> None:
    """One value that no sample of a tensor has: only the full comparison finds it, before anything is started."""
    folder = huggingface_folder(tmp_path)
    model = spec_of(folder).model
    assert inputs.verify_base(model) == "nothing to verify: the base is not converted yet"
    base = inputs.pending_base(model)
    assert base is not None
    base.make()
    made = inputs.find_base(model.model_dump(mode="json"), str(folder))[0].path
    assert f"Every value of the base {made.parent} is that of {folder}." in verified(folder, tmp_path).notes

    arrays = load_file(made)
    arrays[WQ][1, 7] += 1
    save_file(arrays, made)
    with pytest.raises(CheckpointError, match="differs from it") as caught:
        verified(folder, tmp_path)
    assert str(caught.value.hint).startswith(f"rm -r {made.parent};")
    assert inputs.verify_base(load_spec("tiny_cpu").model).startswith("nothing to verify")


def verified(base: Path, folder: Path) -> prepare.PreparedRun:
    """What submit --verify full prepares."""
    return prepare.prepare(
        "tiny_cpu", cards=1, checkpoint=str(base), port=None, jobs_dir=folder / "jobs", verify_base=True
    )


def test_a_hugging_face_folder_that_is_not_the_base_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = huggingface_folder(tmp_path)
    error = refusal(folder, num_layers=2)
    assert f"{folder} is not the base of this model" in error.message
    assert "num_layers: the weights have 3, the model 2" in error.message
    assert "num_heads" in refusal(folder, num_heads=8).message
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(folder).message == f"{folder} lacks model-00002-of-00002.safetensors"
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    error = refusal(folder)
    assert "only pickled weights, which are not opened" in error.message
    assert f"AutoModelForCausalLM.from_pretrained('{folder}', torch_dtype='auto').save_pretrained(" in error.hint
    assert not cache.exists()


def test_a_base_that_the_cache_has_no_room_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = huggingface_folder(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", "/proc/cache")
    base = inputs.pending_base(spec_of(folder).model)
    assert base is not None
    with pytest.raises(HostError) as caught:
        base.make()
    assert "LAUNCHER_CACHE" in caught.value.hint


def test_adapters_are_never_left_out_in_silence(tmp_path: Path) -> None:
    rank = tmp_path / "jobs" / "abcde-x" / "checkpoint" / "rank_0"
    rank.mkdir(parents=True)
    lora_a, lora_b = adapters_of(WQ)
    adapters = {lora_a: np.ones((4, 96), np.float32), lora_b: np.ones((96, 4), np.float32)}
    for file, hint in ((rank / "x_rank_0-1_2.safetensors", "merge-ckpt abcde-x"), (tmp_path / "x.safetensors", "JOB")):
        save_file({**weights(), **adapters}, file)
        error = refusal(file)

        assert f"it holds 2 LoRA adapters beside its weights, which are not folded in: {lora_a}, {lora_b}" in str(error)
        assert hint in error.hint


def test_what_one_rank_of_several_saved_leads_to_merge_ckpt(tmp_path: Path) -> None:
    rank = tmp_path / "rank_1"
    rank.mkdir()
    cut = {name: array[: len(array) // 2] for name, array in weights().items()}
    save_file(cut, rank / "base.safetensors")

    assert f"launcher merge-ckpt {tmp_path}" in refusal(rank / "base.safetensors").hint


def test_optimizer_states_beside_whole_weights_are_said_to_be_unused(base: Path) -> None:
    save_file({**weights(), f"adam_m.{WQ}": np.zeros((96, 96), np.float32)}, base)
    found, _ = inputs.resolve(spec_of(base))

    assert found.notes == (f"base: 1 tensors of {base.name} are no weights and are not used, such as adam_m.{WQ}",)


def test_a_folder_that_says_another_number_of_heads_is_another_model(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    model = load_spec("tiny_cpu").model.model_dump(mode="json")
    (tmp_path / "launcher_model.json").write_text(json.dumps({"model": {**model, "rope_theta": 5e5}}))
    error = refusal(tmp_path, num_heads=2)
    found, _ = inputs.resolve(spec_of(tmp_path))

    assert "num_heads 4, as its folder says; the spec has 2" in str(error)
    assert error.hint == "--set model.num_heads=4"
    assert found.notes == ("base: its folder says rope_theta 500000.0, the spec 10000.0",)


def test_a_base_in_another_precision_is_taken_and_the_rounding_is_said(base: Path) -> None:
    save_file(weights(), base)
    told = {}
    for params in ("float16", "float32"):
        sets = parse_sets([f"model.checkpoint={base}", f"precision.params={params}", "precision.compute=float16"])
        told[params] = preview("tiny_cpu", imagined_cluster(1, "A2"), sets, Path("jobs")).notes
    save_file(weights(ml_dtypes.bfloat16), base)

    assert "base: its float32 weights are rounded to float16 (precision.params)" in told["float16"]
    assert not [note for note in told["float32"] if "rounded" in note]
    assert inputs.resolve(spec_of(base))[0].base_dtypes == ("bfloat16",)


def test_plan_and_doctor_refuse_it_too(base: Path) -> None:
    save_file(weights(num_layers=2), base)
    with pytest.raises(CheckpointError, match="num_layers: the weights have 2, the model 3"):
        preview("tiny_cpu", imagined_cluster(2, "A2"), parse_sets([f"model.checkpoint={base}"]), Path("jobs"))
    (bad,) = check_base(needs_of_spec(spec_of(base)))
    (good,) = check_base(needs_of_spec(spec_of(base, num_layers=2)))

    assert (bad.status, good.status) == ("fail", "pass")
    assert "num_layers" in bad.what
    assert "--set model.num_layers=2" in bad.fix
    assert list(check_base(needs_of_spec(load_spec("llama_7b_lora")))) == []


def test_a_70b_is_checked_by_names_alone() -> None:
    """What a sharded base is held against: the shapes of its whole tensors, wherever they come from."""
    model = PRESETS["llama2_70b"].model
    found = {name: (shape, "bfloat16") for name, shape in shapes_of(model).items()}
    assert check_tensors(found, model, Path("base")).dtypes == ("bfloat16",)
    with pytest.raises(CheckpointError) as caught:
        check_tensors(found, PRESETS["llama2_7b"].model, Path("base"))

    assert "num_layers: the weights have 80, the model 32" in str(caught.value)
    assert "--set model.preset=llama2_70b" in caught.value.hint


def test_resume_from_the_beginning_checks_the_base_again(tmp_path: Path, base: Path) -> None:
    """Nothing is started, and the job can be resumed once the base is put back."""
    save_file(weights(), base)
    prepared = prepare.prepare("tiny_cpu", cards=1, checkpoint=str(base), port=None, jobs_dir=tmp_path / "jobs")
    record = replace(start.write_job(prepared.plan), state=FAILED)
    write_record(prepared.plan.paths, record)
    before = {*prepared.plan.paths.root.rglob("*"), prepared.plan.paths.resume_lock}
    save_file(weights(num_layers=2), base)
    with pytest.raises(CheckpointError, match="num_layers: the weights have 2, the model 3"):
        start.begin_again(prepared.plan.paths, record)
    base.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        start.begin_again(prepared.plan.paths, record)

    assert set(prepared.plan.paths.root.rglob("*")) == before
