"""A small LLaMA of random weights as a merged folder, and children that ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from launcher.data.sample import sample_lines
from launcher.data.tokenizer import train_tokenizer
from launcher.models.registry import shapes_of
from launcher.runspec.sections import ModelSpec

VOCAB = 700
CONTEXT = 96
MODEL = ModelSpec(
    hidden_size=32, num_layers=2, num_heads=4, n_kv_heads=2, intermediate_size=64, vocab_size=VOCAB, seq_length=CONTEXT
)


def make_model(folder: Path, *, template: str = "plain", **changes: Any) -> Path:
    """A merged folder. Large random weights, so that answers differ and no two tokens are nearly as likely."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    spec = MODEL.model_copy(update=changes)
    weights = {
        name: np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes_of(spec.model_dump()).items()
    }
    save_file(weights, folder / "model.safetensors")
    described = {"model": spec.model_dump(mode="json"), "template": template, "precision": {"params": "float32"}}
    (folder / "launcher_model.json").write_text(json.dumps(described))
    texts = [json.dumps(json.loads(line), ensure_ascii=False) for line in sample_lines(200, 1)]
    train_tokenizer(
        [*texts, "I love Beijing, because LLaMA is a company"], folder / "tokenizer.model", vocab_size=VOCAB
    )
    return folder


def prompts(count: int) -> list[str]:
    """School problems of many lengths."""
    found = [json.loads(line)["instruction"] for line in sample_lines(count, 9)]
    return [text[: 6 + 3 * (number % 10)] for number, text in enumerate(found)]


def alike(found: Any, expected: Any) -> bool:
    """Whether two answers in JSON are the same, but for what another order of float32 sums does to logarithms."""
    if isinstance(expected, dict):
        same_keys = isinstance(found, dict) and found.keys() == expected.keys()
        return same_keys and all(alike(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        same_length = isinstance(found, list) and len(found) == len(expected)
        return same_length and all(map(alike, found, expected))
    if isinstance(expected, float):
        return isinstance(found, float) and abs(found - expected) <= 1e-4
    return bool(found == expected)


def child(code: str, *arguments: object, python: str = sys.executable, **env: str) -> Any:
    """The JSON that ``code`` prints last. It runs in a process of its own, as MindSpore is set up once a process."""
    environment = {**os.environ, "GLOG_v": "3", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **env}
    command = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
