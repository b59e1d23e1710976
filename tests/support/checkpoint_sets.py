"""Small checkpoints for tests: arrays, files, sharded sets, jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.checkpoint import ckpt
from launcher.checkpoint.dtypes import Array, numpy_dtype
from launcher.checkpoint.merge import Merged, Options, Source, merge, plan_merge
from launcher.checkpoint.safetensors_format import header_bytes
from launcher.checkpoint.split import SplitPlan, split
from launcher.checkpoint.tensorfile import TensorFile
from launcher.jobs import JobPaths, JobRecord, now, write_record
from launcher.models.names import GLOBAL_STEP, adapters_of
from launcher.models.registry import shapes_of

ROOT = Path(__file__).resolve().parents[2]
MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "n_kv_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 40,
    "seq_length": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "checkpoint": None,
    "tokenizer": None,
}
RANK, ALPHA = 4, 8
ADAPTED = ("attention.wq.weight", "attention.wo.weight", "linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight")
WHOLE = SplitPlan()


def corpus(name: str) -> Path:
    """A folder of real checkpoints, or a skip."""
    root = Path(os.environ.get("LAUNCHER_CORPUS") or ROOT.parent / "shared" / "corpus")
    if not (root / "checkpoints" / name).is_dir():
        pytest.skip(f"no corpus at {root}: set LAUNCHER_CORPUS")
    return root / "checkpoints" / name


def llama(
    model: Mapping[str, Any] = MODEL, *, dtype: str = "float32", lora: bool = True, seed: int = 0
) -> dict[str, Array]:
    """Random weights by MindFormers' names, adapters on some layers, a little optimizer state, and counters."""
    rng, kind = np.random.default_rng(seed), numpy_dtype(dtype)
    found: dict[str, Array] = {}
    for name, shape in shapes_of({**model, "tie_word_embeddings": False}).items():
        found[name] = (rng.standard_normal(shape) * 0.1).astype(kind)
        if lora and name.endswith(ADAPTED):
            lora_a, lora_b = adapters_of(name)
            found[lora_a] = (rng.standard_normal((RANK, shape[1])) * 0.1).astype(kind)
            found[lora_b] = (rng.standard_normal((shape[0], RANK)) * 0.1).astype(kind)
            found |= {f"{moment}.{lora_a}": np.zeros((RANK, shape[1]), np.float32) for moment in ("adam_m", "adam_v")}
    found[GLOBAL_STEP] = np.array([7], np.int32)
    found["loss_scale"] = np.array(1.0, np.float32)
    return found


def write(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Path:
    """``arrays`` as the .ckpt or .safetensors file that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(name, str(array.dtype), array.shape, array.nbytes) for name, array in arrays.items()]
    if path.suffix == ".ckpt":
        parts = [
            part
            for (name, dtype, shape, size) in rows
            for part in (ckpt.frame(name, dtype, shape, size), arrays[name].tobytes())
        ]
        path.write_bytes(b"".join(parts))
    else:
        path.write_bytes(header_bytes(rows, metadata or {}) + b"".join(array.tobytes() for array in arrays.values()))
    return path


def write_shards(
    folder: Path, arrays: Mapping[str, Array], plan: SplitPlan = WHOLE, *, file_format: str = "safetensors"
) -> Path:
    """A sharded set of ``arrays`` with strategies and adapter_config.json."""
    whole = write(folder.with_name(folder.name + "-whole.safetensors"), arrays)
    with TensorFile(whole) as source:
        split(source, folder, plan, file_format=file_format)
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    return folder


def write_ranks(folder: Path, files: Mapping[str, Mapping[str, Array]]) -> Path:
    """``files`` by their path below ``folder``, and adapter_config.json."""
    for name, arrays in files.items():
        write(folder / name, arrays)
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    return folder


def write_job(root: Path, *, cards: int = 2, state: str = "succeeded", tokenizer: Path | None = None) -> JobPaths:
    """The record, spec and plan of a job as submit leaves them; checkpoints are the test's."""
    paths = JobPaths(root=root)
    root.mkdir(parents=True)
    record = JobRecord(
        job_id=root.name,
        name="t",
        state=state,
        created=now(),
        host="h",
        cards=cards,
        target="CPU",
        versions={},
    )
    write_record(paths, record)
    spec = {
        "model": MODEL,
        "lora": {"r": RANK, "alpha": ALPHA, "dropout": 0.0, "target_modules": "wq|wo"},
        "data": {"template": "vicuna"},
        "precision": {"params": "float32", "compute": "float32"},
    }
    paths.spec.write_text(json.dumps(spec))
    paths.plan.write_text(json.dumps({"tokenizer": tokenizer and str(tokenizer), "checkpoint": None}))
    return paths


def run_merge(folder: Path, target: Path, options: Options | None = None, **known: Any) -> Merged:
    """Plan and merge ``folder`` into ``target``."""
    force = known.pop("force", False)
    with ExitStack() as stack:
        plan = plan_merge(Source(name="t", folder=folder, **known), options or Options(), stack)
        return merge(plan, target, force=force)


def read(path: Path) -> dict[str, Array]:
    """Every tensor of a file."""
    with TensorFile(path) as file:
        return {name: file.array(name) for name in file.entries}


def folded(arrays: Mapping[str, Array], name: str) -> Array:
    """W + (alpha / r) B A in float64."""
    lora_a, lora_b = (arrays[adapter].astype(np.float64) for adapter in adapters_of(name))
    return np.asarray(arrays[name].astype(np.float64) + ALPHA / RANK * (lora_b @ lora_a))


def launcher(*argv: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line of this checkout."""
    command = [sys.executable, "-m", "launcher", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
