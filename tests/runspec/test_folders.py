"""A run spec's model from a Hugging Face folder: what fills in what, which ids are taken, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.control import configs
from launcher.control.prepare import overrides
from launcher.errors import SpecError
from launcher.runspec.checking import load_source, load_spec, parse_spec
from launcher.runspec.folders import model_of_folder

CONFIG: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000, "bos_token_id": 3, "eos_token_id": [5, 6],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "my model"
    root.mkdir()
    (root / "config.json").write_text(json.dumps(CONFIG))
    (root / "tokenizer.json").write_text("{}")
    return root


def write_spec(model: dict[str, Any], data: dict[str, Any] | None = None) -> str:
    spec = {"name": "mine", "model": model, "data": data or {"train": "t.mindrecord"}, "lora": {}}
    Path("mine.yaml").write_text(yaml.safe_dump(spec))
    return "mine.yaml"


def test_a_folder_fills_what_the_spec_leaves_out(folder: Path) -> None:
    source = load_source(write_spec({"folder": folder.name, "seq_length": 64}))
    model = parse_spec(source).model
    assert (model.family, model.hidden_size, model.kv_heads, model.rope_theta) == ("qwen2", 32, 2, 1e6)
    assert (model.seq_length, model.max_position_embedding) == (64, 32768)
    assert (model.checkpoint, model.tokenizer, model.folder) == (folder.name,) * 3
    assert (model.bos_token_id, model.eos_token_id, model.pad_token_id) == (3, 5, 0)
    assert source.place(("model", "hidden_size")) == folder.name
    assert load_spec(write_spec({"folder": folder.name})).model.seq_length == 4096


def test_ids_that_config_json_leaves_out_are_those_of_the_files_beside_it(folder: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if not key.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    tokenizer = {
        "pad_token": {"content": "<pad>"}, "bos_token": "<begin>",
        "added_tokens_decoder": {"9": {"content": "<pad>"}, "10": {"content": "<begin>"}, "x": {"content": "<pad>"}},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    found = model_of_folder(str(folder))
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (10, 7, 9)
    for text in ("[]", "{", '{"pad_token": 3, "added_tokens_decoder": [1]}'):
        (folder / "tokenizer_config.json").write_text(text)
        assert model_of_folder(str(folder))["pad_token_id"] == 0


def test_the_option_takes_the_place_of_a_preset_and_of_keys(folder: Path) -> None:
    changes = overrides(["model.eos_token_id=6"], model=folder.name, data="rows.jsonl")
    spec = load_spec("tiny_cpu", changes)
    assert (spec.model.preset, spec.model.folder, spec.model.hidden_size) == (None, folder.name, 32)
    assert (spec.model.eos_token_id, spec.model.seq_length) == (6, 4096)
    assert (spec.data.train, spec.data.sample) == ("rows.jsonl", None)
    own = write_spec({"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8, "vocab_size": 8,
                      "seq_length": 16})  # fmt: skip
    spec = load_spec(own, overrides([], model=folder.name))
    assert (spec.model.hidden_size, spec.model.seq_length, spec.model.family) == (32, 16, "qwen2")


def test_a_new_spec_of_a_folder_is_whole(folder: Path) -> None:
    path = configs.write_new("mine", folder=folder.name, force=False)
    spec = load_spec(str(path))
    assert (spec.model.folder, spec.model.family, spec.data.template) == (folder.name, "qwen2", "chatml")
    assert (spec.model.checkpoint, spec.model.tokenizer) == (folder.name, folder.name)
    for given in ({}, {"preset": "llama_7b", "folder": folder.name}):
        with pytest.raises(SpecError, match="give one of --preset and --model"):
            configs.write_new("other", force=False, **given)


def test_what_a_folder_cannot_be_is_said(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.folder and model\.preset both say"):
        load_spec(write_spec({"folder": folder.name, "preset": "llama_7b"}))
    with pytest.raises(SpecError) as caught:
        load_spec(write_spec({"folder": folder.name}, {"sample": {"size": 4}}))
    assert "data.sample makes a tokenizer of its own" in str(caught.value)
    with pytest.raises(SpecError, match="model folder nowhere: there is none"):
        load_spec(write_spec({"folder": "nowhere"}))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "qwen3_moe"}))
    with pytest.raises(SpecError, match=r"model_type is 'qwen3_moe', of no known family .*known are llama"):
        overrides([], model=folder.name)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(SpecError, match="'hidden_size' is missing"):
        overrides([], model=folder.name)


def test_a_spec_of_a_preset_has_its_family_s_template_tokenizer_and_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {
        name: load_spec(str(configs.write_new(name, preset=name, force=False)))
        for name in ("qwen2_5_7b", "qwen3_8b", "llama2_7b")
    }

    said = {
        name: (spec.data.template, Path(str(spec.model.tokenizer)).name, spec.lora and spec.lora.target_modules)
        for name, spec in written.items()
    }
    assert said == {
        "qwen2_5_7b": ("chatml", "tokenizer.json", "wq|wk|wv|wo"),
        "qwen3_8b": ("chatml", "tokenizer.json", "linear_qkv|linear_proj"),
        "llama2_7b": ("vicuna", "tokenizer.model", "wq|wk|wv|wo"),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "it has no config.json"),
        ('{"model_type": "qwen2",\n "vocab_size": }', "config.json is not JSON: line 2, column 16: Expecting value"),
        ("[1]", "config.json holds no JSON object"),
        ("{}", "config.json holds nothing"),
        ("\udcff", "config.json is not JSON"),
    ],
)
def test_what_is_wrong_with_a_config_is_said_with_its_place(tmp_path: Path, text: str | None, said: str) -> None:
    """A comma too many in a config.json was "no config.json that can be read"."""
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SpecError) as caught:
        model_of_folder(str(tmp_path))
    assert caught.value.message == f"model folder {tmp_path}: {said}"
