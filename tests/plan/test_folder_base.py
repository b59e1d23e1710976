"""A run of a Hugging Face folder as the hub has Qwen2.5: byte-level tokenizer.json, no bos, ids in tokenizer_config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.data_tools import make_hugging_face

from launcher.control import prepare
from launcher.data.info import read_info
from launcher.data.sample import sample_lines
from launcher.errors import SpecError
from launcher.models.registry import hf_name, model_of_config, shapes_of

CONFIG: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 1000, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False,
    "sliding_window": 32768,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model, in a working folder with conversations and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    Path("my.jsonl").write_text("\n".join(sample_lines(40, 3)), encoding="utf-8")
    root = tmp_path / "Qwen2.5-tiny"
    root.mkdir()
    make_hugging_face(root / "tokenizer.json", "bytes")
    added = {token["id"]: token for token in json.loads((root / "tokenizer.json").read_text())["added_tokens"]}
    ids = {token["content"]: number for number, token in added.items()}
    named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<unk>"}
    described = {**named, "added_tokens_decoder": {str(number): token for number, token in added.items()}}
    (root / "tokenizer_config.json").write_text(json.dumps(described))
    config = {**CONFIG, "bos_token_id": ids["<unk>"], "eos_token_id": ids["<|im_end|>"]}
    (root / "config.json").write_text(json.dumps(config))
    shapes = shapes_of(model_of_config(config))
    save_file({hf_name(name): np.ones(shape, np.float32) for name, shape in shapes.items()}, root / "model.safetensors")
    return root


def prepared(folder: Path, *sets: str) -> prepare.PreparedRun:
    own = ("data.template=chatml", "model.seq_length=64", *sets)
    return prepare.prepare(
        "tiny_cpu", cards=1, checkpoint=None, port=None, jobs_dir=Path("jobs"), sets=own, model=str(folder),
        data="my.jsonl",
    )  # fmt: skip


def test_rows_and_base_are_made_first_and_found_again(folder: Path) -> None:
    run = prepared(folder)
    assert run.pending is not None
    said = run.pending.describe()
    assert "tokenizing" in said
    assert f"converting the base {folder}" in said
    model = run.plan.spec.model
    assert (model.family, model.bos_token_id, model.eos_token_id) == ("qwen2", *ids_of(folder))
    assert model.pad_token_id == model.bos_token_id
    whole = prepare.complete(run)
    assert whole.pending is None
    assert whole.plan.inputs.checkpoint == run.plan.inputs.checkpoint
    assert Path(str(whole.plan.inputs.checkpoint)).is_file()
    info = read_info(Path(whole.plan.inputs.dataset))
    assert info is not None
    assert info.tokenizer is not None
    assert info.tokenizer.path == str(folder / "tokenizer.json")
    assert not any("chat template" in note for note in whole.notes)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    again = prepared(folder)
    said = f"Prompts are in template chatml, not in the chat template of {folder / 'chat_template.jinja'}."
    assert said in again.notes
    assert again.pending is None
    rank = next(file.text for file in again.plan.files if file.path == "ranks/rank_0.yaml")
    assert "    qkv_has_bias: True\n    tie_word_embeddings: True\n" in rank


def ids_of(folder: Path) -> tuple[int, int]:
    config = json.loads((folder / "config.json").read_text())
    return config["bos_token_id"], config["eos_token_id"]


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 500}))
    with pytest.raises(
        SpecError, match=r"model\.vocab_size is 500 \(.*config\.json\), but .*\.json has \d+ pieces"
    ) as told:
        prepared(folder)
    assert "model.resize_token_embeddings(" in told.value.message
    assert "set model.vocab_size" not in told.value.message  # the base would refuse another one


def test_special_tokens_that_are_not_the_tokenizer_s_are_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.eos_token_id is 40 .*has another token for it"):
        prepared(folder, "model.eos_token_id=40")


def test_a_run_without_a_spec_has_the_model_s_name_and_needs_data(folder: Path) -> None:
    def submitted(data: str | None) -> prepare.PreparedRun:
        own = ("data.template=chatml", "model.seq_length=64") if data else ("model.seq_length=64",)
        return prepare.prepare(
            None, cards=1, checkpoint=None, port=None, jobs_dir=Path("jobs"), sets=own, model=f"{folder}/", data=data
        )

    run = submitted("my.jsonl")
    assert run.plan.spec.name == "Qwen2.5-tiny"
    assert run.plan.paths.job_id.endswith("-Qwen2.5-tiny")
    assert "No SPEC given: all settings but the model and its data are those of tiny_cpu." in run.notes
    with pytest.raises(SpecError, match="nothing says on what") as told:
        submitted(None)
    assert "--data FILE" in told.value.hint
