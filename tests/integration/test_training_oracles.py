"""LoRA training against transformers and peft: two real ranks and torch take the same steps from the same start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.events import read_events
from support.oracles import Child
from support.shop import SEQ_LENGTH, VOCAB, Job, Workshop

from launcher.checkpoint.shards import TRAINABLE
from launcher.data.mindrecord import write_mindrecord
from launcher.data.rows import Samples, fit
from launcher.data.segments import Encoded
from launcher.models import registry
from launcher.models.names import SCHEMES, is_adapter, is_known_extra, is_weight
from launcher.worker.main import initial_adapter

pytestmark = pytest.mark.mindspore

RANKS, STEPS, ROWS, SEED = 2, 10, 2, 42
CONFIG: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": VOCAB, "max_position_embeddings": SEQ_LENGTH, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**CONFIG, "model_type": "llama"},
    "qwen2": {**CONFIG, "model_type": "qwen2", "rope_theta": 1e6, "use_sliding_window": False},
    "qwen3": {**CONFIG, "model_type": "qwen3", "rope_theta": 1e6, "head_dim": 16, "rms_norm_eps": 1e-6},
}
OPTIMIZER = {"lr": 2e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MAX_NORM = 0.3


def rows() -> np.ndarray[Any, Any]:
    """Tokens and labels, (rows, 2, tokens): a prompt and padding at the end are not in the loss."""
    random = np.random.default_rng(5)
    ids = random.integers(3, VOCAB, (RANKS * STEPS * ROWS, SEQ_LENGTH + 1)).astype(np.int32)
    labels = ids.copy()
    for row, wanted in zip(ids, labels, strict=True):
        prompt, end = random.integers(1, 20), random.integers(30, SEQ_LENGTH + 2)
        row[end:] = 0
        wanted[:prompt] = wanted[end:] = -100
    return np.stack([ids, labels], axis=1)


def packed_rows() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows of three samples of which the beginnings are not in the loss, some with padding; and where samples end."""
    random, count = np.random.default_rng(6), RANKS * STEPS * ROWS
    lengths = random.integers(12, 22, 5 * count).tolist()
    prompts = random.integers(1, 9, 5 * count).tolist()
    samples = [
        Encoded(random.integers(3, VOCAB, length).tolist(), b"\0" * prompt + b"\1" * (length - prompt))
        for length, prompt in zip(lengths, prompts, strict=True)
    ]
    laid = fit(Samples.of(samples), seq_length=SEQ_LENGTH, overflow="drop", packed=True).laid
    values = np.pad(laid.values, ((0, 0), (0, 0), (0, SEQ_LENGTH + 1 - laid.values.shape[2])))
    values[:, 1, laid.values.shape[2] :] = -100
    assert len(values) >= count
    return values[:count], laid.ends[:count]


def by_step(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What each rank sees in each step, (steps, ranks, rows, tokens): the file is dealt to the ranks row by row."""
    return column.reshape(STEPS, ROWS, RANKS, -1).swapaxes(1, 2)


def first_matrices(model: Mapping[str, Any], rank: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Module in transformers -> the A matrix that it begins with, by MindFormers' name; and those matrices."""
    family = registry.family_of(model)
    modules: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    scheme = SCHEMES[family.route]
    for layer in range(model["num_layers"]):
        for linear in family.linear_layers:
            stem = f"{scheme.layers}.{layer}.{family.path_of(linear)}"
            inputs = registry.shapes_of(model)[f"{stem}.weight"][1]
            name = stem + scheme.lora[0]
            arrays[name] = initial_adapter(name, (rank, inputs), SEED)
            modules |= dict.fromkeys(registry.hf_modules(stem), name)
    return modules, arrays


@pytest.mark.parametrize(
    ("name", "lora", "packed"),
    [("llama", True, False), ("qwen2", True, True), ("qwen3", True, False), ("qwen3", False, True)],
)
def test_two_ranks_take_the_steps_of_torch(
    name: str, lora: bool, packed: bool, workshop: Workshop, torch: Child, tmp_path: Path
) -> None:
    """All layers adapted, or all weights trained; torch computes the samples of packed rows one by one, from 0."""
    folder, data_file = tmp_path / name, f"oracle-{name}-{lora}.mindrecord"
    torch("make", folder=folder, config=CONFIGS[name], dtype="float32")
    (folder / "tokenizer.model").write_bytes((workshop.folder / "tokenizer.model").read_bytes())
    values, ends = packed_rows() if packed else (rows(), None)
    write_mindrecord(
        workshop.folder / data_file, [values], row_length=SEQ_LENGTH + 1, seams=() if ends is None else [ends]
    )
    spec = workshop.write_spec(
        f"oracle-{name}-{lora}", lora=lora, data=data_file, epochs=1, seed=SEED, max_grad_norm=MAX_NORM,
        data_options={"batch_size": ROWS, "shuffle": False, "packing": packed},
        optimizer={key: OPTIMIZER[key] for key in ("betas", "eps", "weight_decay")},
        lr_schedule={"type": "ConstantWarmUpLR", "learning_rate": OPTIMIZER["lr"], "warmup_steps": 0},
    )  # fmt: skip
    family = registry.family_of_config(CONFIGS[name])
    targets = "|".join(family.linear_layers)
    sets = (
        *(("lora.r=4", "lora.alpha=8", "lora.dropout=0.0", f"lora.target_modules={targets}") if lora else ()),
        f"evaluation.data={data_file}", f"evaluation.every_steps={STEPS}", f"checkpoint.adapters={lora}",
    )  # fmt: skip
    options = [part for text in sets for part in ("--set", text)]
    job = workshop.submit(spec, "--model", str(folder), "--cards", str(RANKS), *options)

    modules, arrays = first_matrices(registry.model_of_config(CONFIGS[name]), 4) if lora else ({}, {})
    data = tmp_path / "data.npz"
    seams = {} if ends is None else {"ends": by_step(ends)}
    np.savez(data, input_ids=by_step(values[:, 0]), labels=by_step(values[:, 1]), **seams, **arrays)
    expected, held_out = torch(
        "train", folder=folder, data=data, matrices=modules, lora={"r": 4, "lora_alpha": 8} if lora else None,
        optimizer=OPTIMIZER, max_norm=MAX_NORM,
    )  # fmt: skip
    assert len(expected) == STEPS
    assert np.abs(np.array([losses(job, "step", rank) for rank in range(RANKS)]).T - np.array(expected)).max() <= 1e-4
    for rank in range(RANKS):
        assert losses(job, "eval", rank) == [pytest.approx(held_out, abs=1e-4)]
    if lora:
        check_saved(job, set(arrays))


def losses(job: Job, kind: str, rank: int) -> list[float]:
    return [
        event["loss"]
        for event in read_events(job.paths.rank_events(rank))
        if event["event"] == kind and "loss" in event
    ]


def check_saved(job: Job, matrices: set[str]) -> None:
    """Adapters alone are trained, all of them, and the same on both ranks; the rest is the base, bit by bit."""
    ranks = [newest(job.paths.checkpoints / f"rank_{rank}") for rank in range(RANKS)]
    alone = [newest(job.paths.root / TRAINABLE / f"rank_{rank}") for rank in range(RANKS)]
    assert all(one.tobytes() == ranks[1][name].tobytes() for name, one in ranks[0].items())
    adapters = set(filter(is_adapter, ranks[0]))
    assert matrices < adapters
    assert len(adapters) == 2 * len(matrices)
    assert {name.removeprefix("adam_m.") for name in ranks[0] if name.startswith("adam_m.")} == adapters
    base = load_file(job.paths.root / "base" / "rank_0" / "base.safetensors")
    assert {name: array.tobytes() for name, array in ranks[0].items() if is_weight(name)} == {
        name: array.tobytes() for name, array in base.items()
    }
    assert not {name for name in ranks[0] if not (is_adapter(name) or is_weight(name) or is_known_extra(name))}
    for found in alone:
        assert {name: array.tobytes() for name, array in found.items() if is_adapter(name)} == {
            name: ranks[0][name].tobytes() for name in adapters
        }


def newest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_file(max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns))
    return found
