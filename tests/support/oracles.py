"""Processes of other frameworks that answer calls: torch, transformers and peft, as the oracle of exported models."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.checkpoint.dtypes import Array

IDS = [1, 5, 9, 30, 2, 17, 8, 33]
# config.json of small models, the keys that every family has.
HF_CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


class Child:
    """A process that answers calls: one JSON line [function, arguments] in, one JSON line out."""

    _LOOP = """
for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
        answer = {"value": globals()[name](**arguments)}
    except BaseException:
        import traceback
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""
    _START = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
"""

    def __init__(self, python: str, code: str, folder: Path) -> None:
        environment = {**os.environ, "GLOG_v": "3", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [python, "-c", self._START + code + self._LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,  # mindformers writes where it stands
            env=environment,
        )

    def __call__(self, function: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([function, arguments], default=str), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline() or '{"error": "it died"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        self.process.kill()  # leaving takes torch and MindSpore seconds
        self.process.communicate(timeout=60)


TORCH = """
import logging
import numpy as np, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

def make(folder, config, dtype, bias=0.5):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0, bias)
            elif name.endswith("norm.weight"):  # ones would hide a norm in the wrong place
                parameter.uniform_(0.5, 1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="20KB")

class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []
    def emit(self, record):
        self.texts.append(record.getMessage())

def loads(folder):
    said = Said()
    logging.getLogger("transformers").addHandler(said)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    logging.getLogger("transformers").removeHandler(said)
    kept = {key: sorted(map(str, value)) for key, value in info.items() if value}
    return {"class": type(model).__name__, "warnings": said.texts, "keys": kept}

def logits(folder, adapter, ids, target):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        np.save(target, model(torch.tensor([ids])).logits[0].numpy())

def apart(model, rows, ends):
    # Logits of all tokens of packed rows, each sample by itself and at positions from 0.
    found = []
    for ids, stops in zip(rows, ends):
        places = [0, *stops.unique().tolist()]
        found += [model(ids[None, begin:end]).logits[0] for begin, end in zip(places, places[1:])]
    return torch.cat(found)

def gradients(folder, data, target):
    # The gradient of the loss, the mean over all tokens in it, in float64. data: tokens and labels (rows, tokens + 1),
    # positions (rows, tokens), hidden: 1 where attention does not look, (rows, 1, tokens, tokens).
    with np.load(data) as file:
        ids, labels, positions, hidden = map(torch.tensor, map(file.get, ("tokens", "labels", "positions", "hidden")))
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float64, attn_implementation="eager")
    mask = hidden.double() * -1e30
    logits = model(ids[:, :-1].long(), position_ids=positions.long(), attention_mask=mask).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].long().flatten()).backward()
    np.savez(target, **{name: one.grad.numpy() for name, one in model.named_parameters()})

def train(folder, data, matrices, lora, optimizer, max_norm):
    # data: input_ids and labels, (steps, ranks, rows, tokens), and ends of the samples in packed rows.
    # lora: options of peft; None trains all weights.
    # matrices: module -> the A matrix in data that it begins with; modules with the same one share it, as the parts of
    # a fused layer do.
    with np.load(data) as file:
        arrays = {name: torch.tensor(file[name]) for name in file}
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(lora_dropout=0.0, target_modules=list(matrices), **lora))
    shared = {name: torch.nn.Parameter(arrays[name]) for name in matrices.values()}
    for module, name in matrices.items():
        model.base_model.model.get_submodule(module).lora_A["default"].weight = shared[name]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # MindFormers lets no vector decay (trainer/optimizer_grouped_parameters.py).
    groups = [{"params": [one for one in trained if one.ndim > 1]},
              {"params": [one for one in trained if one.ndim == 1], "weight_decay": 0.0}]
    rule = torch.optim.AdamW([group for group in groups if group["params"]], **optimizer)
    losses = []
    # Without seams each row is one sample.
    ends = arrays.get("ends", torch.full((*arrays["input_ids"].shape[:3], 1), arrays["input_ids"].shape[3] - 1))
    for ids, labels, stops in zip(arrays["input_ids"].long(), arrays["labels"].long(), ends):
        logits = [apart(model, rows[:, :-1], row_ends) for rows, row_ends in zip(ids, stops)]
        step = [torch.nn.functional.cross_entropy(*pair) for pair in zip(logits, labels[:, :, 1:].flatten(1))]
        rule.zero_grad()
        (sum(step) / len(step)).backward()  # a rank's loss is the mean over its tokens, a gradient that over the ranks
        if max_norm:
            torch.nn.utils.clip_grad_norm_(trained, max_norm)
        rule.step()
        losses.append([float(loss) for loss in step])
    with torch.no_grad():
        ids, labels, stops = (one.long().flatten(0, 2) for one in (arrays["input_ids"], arrays["labels"], ends))
        held_out = torch.nn.functional.cross_entropy(apart(model, ids[:, :-1], stops), labels[:, 1:].flatten())
    return losses, float(held_out)

def prompts(folder, chats):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
"""


def torch_python() -> str:
    """The interpreter that has torch, transformers and peft: this one, or LAUNCHER_TORCH_PYTHON; or a skip."""
    python = os.environ.get("LAUNCHER_TORCH_PYTHON")
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing and not python:
        pytest.skip(f"no {', '.join(missing)}: pip install '.[test]', or set LAUNCHER_TORCH_PYTHON")
    return python or sys.executable


def torch_logits(child: Child, model: Path, adapter: Path | None = None) -> Array:
    """Logits (tokens, vocabulary) of a model, or of a model with an adapter, in transformers."""
    target = model.with_name(f"{model.name}-{adapter.name if adapter else 'alone'}.npy")
    child("logits", folder=model, adapter=adapter and str(adapter), ids=IDS, target=target)
    found: Array = np.load(target)
    return found
