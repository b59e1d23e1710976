"""A packed row teaches what its samples teach one by one: gradients, in MindFormers' network and in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support.oracles import HF_CONFIG, Child

from launcher.data.mindrecord import Ints
from launcher.data.rows import IGNORED_LABEL, Samples, fit, pack, unpacked
from launcher.data.segments import Encoded
from launcher.upstream.packed_rows import SEAMS, masks

SEQ_LENGTH, VOCAB, PAD = 31, 40, 0

# Built as a rank does (worker/main.py), with its hooks on data sets that give one batch.
MINDFORMERS = """
import numpy as np
from types import SimpleNamespace

def gradients(route, data, target):
    import mindspore as ms
    from mindspore.dataset import NumpySlicesDataset
    from launcher.upstream import cpu_mcore, packed_rows, shifted_rows
    with np.load(data) as file:
        rows = {name: file[name] for name in file}
    packed = packed_rows.SEAMS in rows
    columns = ["input_ids", "labels", *([packed_rows.SEAMS] if packed else [])]
    def create():
        made = NumpySlicesDataset({name: rows[name] for name in columns}, shuffle=False)
        return made.batch(len(rows["input_ids"])).project(columns)
    trainer = SimpleNamespace(create_train_dataset=create, create_eval_dataset=create)
    network = (legacy if route == "legacy" else mcore)(rows["input_ids"].shape[1] - 1)
    config = SimpleNamespace(
        use_legacy=route == "legacy", context=SimpleNamespace(device_target="CPU"),
        train_dataset=SimpleNamespace(input_columns=columns),
        model=SimpleNamespace(model_config=SimpleNamespace(pad_token_id=0)),
    )
    packed_rows.prepare(trainer, config)
    if route == "mcore":
        shifted_rows.shift_datasets(trainer)
    network = network()
    network.set_train()
    random = np.random.default_rng(0)
    weights = sorted(network.trainable_params(), key=lambda one: one.name)
    for one in weights:
        if "norm" not in one.name:
            one.set_data(ms.Tensor(random.normal(0, 0.2, one.shape).astype(np.float32)))
    (batch,) = trainer.create_train_dataset().create_tuple_iterator(num_epochs=1)
    keys = packed_rows.arguments(tuple(columns), "CPU")
    from mindformers.wrapper.wrapper import DataOrderWrapperCell
    whole = DataOrderWrapperCell(keys, network)
    # mcore networks return other losses beside the loss.
    value, found = ms.value_and_grad(whole, None, weights, has_aux=route == "mcore")(*batch)
    np.savez(target, **{one.name: grad.asnumpy() for one, grad in zip(weights, found)})
    return float((value[0] if isinstance(value, tuple) else value).asnumpy())
from launcher.upstream.light_imports import light_imports

def legacy(seq_length):
    import mindspore as ms
    with light_imports():
        import mindformers
    ms.set_context(mode=0, device_target="CPU")
    from mindformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        batch_size=1, seq_length=seq_length, hidden_size=32, num_layers=2, num_heads=4, n_kv_heads=2, vocab_size=40,
        intermediate_size=48, pad_token_id=0, compute_dtype="float32", param_init_type="float32", use_past=False,
        layernorm_compute_type="float32", softmax_compute_type="float32", rotary_dtype="float32",
        use_flash_attention=False, fused_rms_norm=False, use_rope_slice=True,
    )
    return lambda: LlamaForCausalLM(config)

def mcore(seq_length):
    with light_imports():
        import mindformers
    mindformers.build_context(mindformers.MindFormerConfig(
        use_legacy=False, use_parallel=False, run_mode="finetune", context={"mode": 0, "device_target": "CPU"},
        parallel={"parallel_mode": 0}, parallel_config={},
    ))
    from launcher.upstream import cpu_mcore
    cpu_mcore.prepare_network()
    from mindformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from mindformers.models.qwen3.modeling_qwen3_train import TrainingQwen3ForCausalLM
    config = Qwen3Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, seq_length=seq_length, params_dtype="float32",
        compute_dtype="float32", layernorm_compute_dtype="float32", softmax_compute_dtype="float32",
        rotary_dtype="float32", tie_word_embeddings=False, hidden_dropout=0.0, attention_dropout=0.0,
        position_embedding_type="rope", pad_token_id=0, use_flash_attention=False,
    )
    return lambda: TrainingQwen3ForCausalLM(config)
"""


@pytest.fixture(scope="module")
def samples() -> list[Encoded]:
    """Samples of 2 to 14 tokens of which the first few are not in the loss."""
    random = np.random.default_rng(3)
    sizes = [(1 + length // 4, length - length // 4) for length in random.integers(2, 13, 12).tolist()]
    return [
        Encoded(random.integers(3, VOCAB, asked + answered).tolist(), b"\0" * asked + b"\1" * answered)
        for asked, answered in sizes
    ]


def packed_and_apart(samples: list[Encoded]) -> tuple[dict[str, Ints], dict[str, Ints]]:
    """Rows that the samples share, and rows of one sample each."""
    made = fit(Samples.of(samples), seq_length=SEQ_LENGTH, overflow="drop", packed=True)
    laid = [made.laid, pack(made.open, SEQ_LENGTH, last=True)[0]]
    rows = {
        "input_ids": np.concatenate([padded(one.values[:, 0], PAD) for one in laid]),
        "labels": np.concatenate([padded(one.values[:, 1], IGNORED_LABEL) for one in laid]),
        SEAMS: np.concatenate([one.ends for one in laid]),
    }
    parts = [part for row in range(len(rows[SEAMS])) for part in unpacked({name: rows[name][row] for name in rows})]
    assert len(parts) == len(samples)
    assert len(rows[SEAMS]) < len(samples) / 2
    return rows, {name: np.stack([part[name] for part in parts]) for name in ("input_ids", "labels")}


def padded(column: Ints, padding: int) -> Ints:
    return np.pad(column, ((0, 0), (0, SEQ_LENGTH + 1 - column.shape[1])), constant_values=padding)


def largest_difference(one: Path, other: Path) -> float:
    with np.load(one) as mine, np.load(other) as theirs:
        assert set(mine) == set(theirs)
        assert max(np.abs(mine[name]).max() for name in mine) > 1e-2
        return float(max(np.abs(mine[name] - theirs[name]).max() for name in mine))


@pytest.mark.mindspore
@pytest.mark.parametrize("route", ["legacy", "mcore"])
def test_mindformers_gradient_of_packed_rows_is_that_of_their_samples(
    route: str, samples: list[Encoded], tmp_path: Path
) -> None:
    """Both losses are means over all tokens in the loss, so a sample counts by its tokens, packed or not."""
    child = Child(sys.executable, MINDFORMERS, tmp_path)
    losses = []
    packed, apart = packed_and_apart(samples)
    # In this order: what the ranks of packed rows replace in MindFormers stays replaced.
    for name, rows in (("apart", apart), ("packed", packed)):
        np.savez(tmp_path / f"{name}-rows.npz", **rows)
        losses.append(
            child("gradients", route=route, data=tmp_path / f"{name}-rows.npz", target=tmp_path / f"{name}.npz")
        )
    child.close()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert largest_difference(tmp_path / "packed.npz", tmp_path / "apart.npz") <= 1e-6


@pytest.mark.slow
def test_in_float64_the_gradients_are_one_wherever_positions_begin(
    samples: list[Encoded], torch: Child, tmp_path: Path
) -> None:
    """Rotary positions are relative: where they go on through a row, their sines differ by the rounding of float32,
    in which transformers computes them whatever the weights are in."""
    config = {**HF_CONFIG, "model_type": "llama", "initializer_range": 0.2}
    torch("make", folder=tmp_path / "model", config=config, dtype="float32")
    packed, apart = packed_and_apart(samples)
    one_sample = np.full((len(samples), 1), SEQ_LENGTH, dtype=np.int32)
    on = np.tile(np.arange(SEQ_LENGTH), (len(samples), 1))
    cases = {
        "apart": (apart, one_sample, on),
        "anew": (packed, packed[SEAMS], np.stack([positions_anew(ends) for ends in packed[SEAMS]])),
        "on": (packed, packed[SEAMS], on),
        "unmasked": (packed, one_sample, on),
    }
    for name, (rows, ends, positions) in cases.items():
        data, count = tmp_path / f"{name}-rows.npz", len(rows["labels"])
        hidden = masks(rows["input_ids"], ends[:count], PAD)
        values = {"tokens": rows["input_ids"], "labels": rows["labels"], "positions": positions[:count]}
        np.savez(data, **values, hidden=hidden)
        torch("gradients", folder=tmp_path / "model", data=data, target=tmp_path / f"{name}.npz")
    assert largest_difference(tmp_path / "anew.npz", tmp_path / "apart.npz") <= 1e-12
    assert largest_difference(tmp_path / "on.npz", tmp_path / "apart.npz") <= 1e-6
    assert largest_difference(tmp_path / "unmasked.npz", tmp_path / "apart.npz") > 1e-3


def positions_anew(ends: Ints) -> Ints:
    places = np.arange(SEQ_LENGTH)
    starts = np.array([0, *ends])[np.searchsorted(ends, places, side="right")]
    anew: Ints = places - starts
    return anew
