"""Hugging Face folders of a small Qwen2 and a small Qwen3: trained on two ranks, merged, asked, written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.shop import SEQ_LENGTH, VOCAB, Workshop

from launcher import jobs
from launcher.jobs.events import read_events
from launcher.models.names import is_adapter, is_weight
from launcher.models.registry import model_of_config, part_shapes, shapes_of

pytestmark = pytest.mark.mindspore

COMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": VOCAB,
    "max_position_embeddings": SEQ_LENGTH, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
    "use_sliding_window": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **COMMON, "sliding_window": 4096},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **COMMON, "head_dim": 12},
}
# What LoRA adapts unless told otherwise.
ADAPTED = {
    "qwen2": [f"model.layers.{n}.attention.{path}.weight" for n in (0, 1) for path in ("wq", "wk", "wv", "wo")],
    "qwen3": [
        f"decoder.layers.{n}.self_attention.{path}.weight" for n in (0, 1) for path in ("linear_qkv", "linear_proj")
    ],
}


def make_folder(workshop: Workshop, family: str) -> Path:
    """The model as the hub has it: in two files with an index, its tokenizer beside it."""
    root, random, model = workshop.folder / family, np.random.default_rng(1), model_of_config(CONFIGS[family])
    root.mkdir()
    shapes = [part_shapes(name, shape, model) for name, shape in shapes_of(model).items()]
    weights = {
        name: np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.1, shape).astype(np.float32)
        for parts in shapes
        for name, shape in parts.items()
    }
    parts = {f"model-0000{number}-of-00002.safetensors": list(weights)[number - 1 :: 2] for number in (1, 2)}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, root / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / "config.json").write_text(json.dumps(CONFIGS[family]))
    (root / "tokenizer.model").write_bytes((workshop.folder / "tokenizer.model").read_bytes())
    return root


def merged_files(folder: Path) -> dict[str, Any]:
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_hugging_face_folder_is_trained_merged_and_asked(workshop: Workshop, family: str) -> None:
    folder = make_folder(workshop, family)
    spec = workshop.write_spec(family, lora=True, epochs=1, steps=8)
    options = (spec, "--model", folder.name, "--set", "lora.dropout=0.0", "--cards", "2")
    first = workshop.launcher("plan", *options).stdout
    assert f"note      converting the base {folder} to " in first
    job = workshop.submit(*options)
    assert job.record.state == jobs.SUCCEEDED
    assert "converting" not in workshop.launcher("plan", *options).stdout

    steps = [event for event in read_events(job.paths.rank_events(0)) if event["event"] == "step"]
    assert len(steps) == 8
    assert steps[-1]["loss"] < steps[0]["loss"]
    ranks = [merged_files(job.paths.checkpoints / f"rank_{rank_id}") for rank_id in (0, 1)]
    assert all(ranks[0][name].tobytes() == ranks[1][name].tobytes() for name in ranks[0])
    workshop.launcher("convert-ckpt", folder.name, "-o", f"{family}-base")
    base = merged_files(workshop.folder / f"{family}-base")
    assert {name for name in ranks[0] if is_weight(name)} == set(base)
    assert all(ranks[0][name].tobytes() == base[name].tobytes() for name in base)
    assert sum(map(is_adapter, ranks[0])) == 2 * len(ADAPTED[family])

    workshop.launcher("merge-ckpt", job.record.job_id)
    workshop.launcher("merge-ckpt", job.record.job_id, "--format", "hf", "-o", f"{family}-tuned")
    workshop.launcher("convert-ckpt", f"{family}-tuned", "-o", f"{family}-again")
    ours = load_file(job.paths.merged / "model.safetensors")
    again = load_file(workshop.folder / f"{family}-again" / "model.safetensors")
    assert set(ours) == set(again)
    # Parts of a fused layer are folded one by one, where sums may round in another way.
    assert max(np.abs(ours[name] - again[name]).max() for name in ours) <= 1e-7
    assert {name for name in base if (base[name] != ours[name]).any()} == set(ADAPTED[family])
    config = json.loads((workshop.folder / f"{family}-tuned" / "config.json").read_text())
    assert {key: config[key] for key in CONFIGS[family]} == CONFIGS[family]
    described = json.loads((job.paths.merged / "launcher_model.json").read_text())
    assert described["model"]["family"] == family

    question = ("--prompt", "小红有15元", "--max-new-tokens", "12", "--format", "jsonl", "--template", "plain")
    asked = [workshop.launcher("infer", model, *question).stdout for model in (job.record.job_id, f"{family}-tuned")]
    one, other = (json.loads(text.splitlines()[-1]) for text in asked)
    assert one["text"] == other["text"]
    assert one["new_tokens"] > 0
