"""Semi-auto parallel from the base to the answer, for real: two and four CPU ranks share one model.

Each run is held to one rank that holds the whole model; merged weights to numpy alone.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator import emulator_in
from safetensors.numpy import load_file, save_file
from split_shop import ALPHA, MODEL, RANK, STEPS, SemiAuto, losses
from support.events import read_events
from support.shop import Job, Workshop

from launcher import jobs
from launcher.checkpoint.layout import boxes
from launcher.checkpoint.sharded import check_fits, read_sharded
from launcher.checkpoint.split_layout import SplitPlan, layout_of
from launcher.checkpoint.strategy import read_strategy
from launcher.models.registry import shapes_of
from launcher.plan.memory import split_plan
from launcher.runspec.sections import RunSpec

pytestmark = [pytest.mark.mindspore, pytest.mark.semi_auto]

TOLERANCE = 1e-6

# Which axis tensor parallel cuts, written down by hand: outputs of the first three, inputs of what follows them.
CUT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "wo": 1, "w2": 1}


@pytest.fixture(scope="session")
def semi_auto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SemiAuto]:
    """The folder, with a base that one rank trained: one file in both formats, and in shards of two and four ranks."""
    folder = tmp_path_factory.mktemp("semi_auto")
    shop = Workshop(folder=folder, cache=folder / "cache")
    with emulator_in(tmp_path_factory.mktemp("emulator")) as emulator:
        made = SemiAuto(shop=shop, emulator=emulator)
        first = shop.submit(made.write_spec("first", {"mode": "data"}), "--cards", "1", "--engine", "direct")
        shop.launcher("merge-ckpt", first.record.job_id, "-o", "whole")
        shop.launcher("merge-ckpt", first.record.job_id, "-o", "ckpt", "--file-format", "ckpt")
        for ranks in ("2", "4"):
            shop.launcher("split-ckpt", "whole", "--mp", ranks, "-o", f"shards_{ranks}")
        forms = {"whole": "whole", "ckpt": "ckpt/model.ckpt", "shards_2": "shards_2", "shards_4": "shards_4"}
        yield SemiAuto(shop=shop, emulator=emulator, forms=forms)


@pytest.fixture(scope="session")
def one_rank(semi_auto: SemiAuto) -> Job:
    """LoRA from the base on one rank, which holds the whole model: what every split must equal."""
    spec = semi_auto.write_spec("one_rank", {"mode": "data"})
    return semi_auto.shop.submit(spec, "--cards", "1", "--engine", "direct", "--checkpoint", "whole")


def newest(job: Job, rank_id: int) -> dict[str, Any]:
    files = (job.paths.checkpoints / f"rank_{rank_id}").glob("*.safetensors")
    tensors: dict[str, Any] = load_file(
        max(files, key=lambda path: tuple(map(int, path.stem.rpartition("-")[2].split("_"))))
    )
    return tensors


def axis_of(name: str) -> int | None:
    """The axis that ``name`` is cut along; None for what every rank holds whole."""
    axis = next((axis for part, axis in CUT.items() if f".{part}." in name), None)
    if name.endswith("lora_a"):
        return 1 if axis == 1 else None
    if name.endswith("lora_b"):
        return 0 if axis == 0 else None
    return axis


def joined(job: Job) -> dict[str, Any]:
    """Whole tensors of the newest step, by numpy alone."""
    ranks = [newest(job, rank_id) for rank_id in range(job.record.cards)]
    whole = {}
    for name in ranks[0]:
        axis = axis_of(name)
        whole[name] = ranks[0][name] if axis is None else np.concatenate([rank[name] for rank in ranks], axis)
        if axis is None and name.startswith("model."):
            assert all(rank[name].tobytes() == whole[name].tobytes() for rank in ranks), name
    return whole


def check_merged(job: Job, target: Path) -> None:
    """W + alpha / r x B A in float64, for every weight."""
    tensors, merged = joined(job), load_file(target)
    scale = ALPHA / RANK
    folded = 0
    for name, weight in merged.items():
        expected = tensors[name].astype(np.float64)
        low = name.removesuffix(".weight") + ".mindpet_delta_lora_"
        if f"{low}a" in tensors:
            expected += scale * tensors[f"{low}b"].astype(np.float64) @ tensors[f"{low}a"].astype(np.float64)
            folded += 1
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-6, err_msg=name)
    assert folded == 4 * int(MODEL["num_layers"])
    assert set(merged) == {name for name in tensors if name.startswith(("model.", "lm_head")) and "lora" not in name}


@pytest.mark.parametrize(
    ("cards", "engine", "form"),
    [
        (2, "direct", "whole"), (2, "msrun", "ckpt"), (2, "msrun", "shards_2"),
        (4, "msrun", "whole"), (4, "direct", "shards_4"),
    ],
)  # fmt: skip
def test_a_split_model_trains_as_on_one_rank_and_merges(
    semi_auto: SemiAuto, one_rank: Job, cards: int, engine: str, form: str
) -> None:
    job = semi_auto.submit("split", "--engine", engine, "--checkpoint", semi_auto.forms[form], cards=cards)
    expected = losses(one_rank)

    assert list(expected) == list(range(1, STEPS + 1))
    for rank_id in range(cards):
        found = losses(job, rank_id=rank_id)
        assert found == pytest.approx(expected, abs=TOLERANCE), (rank_id, found)
    said = semi_auto.shop.launcher("merge-ckpt", job.record.job_id, "--verify", "full").stdout
    assert "8 folded" in said
    check_merged(job, job.paths.merged / "model.safetensors")


QWEN2 = {**MODEL, "family": "qwen2", "n_kv_heads": 2, "rope_theta": 1.0e6}


def test_a_split_qwen2_has_its_biases_cut_and_merges(semi_auto: SemiAuto) -> None:
    """MindFormers cuts the biases of wq, wk and wv with the outputs, from a whole base and from shards alike."""
    random = np.random.default_rng(2)
    weights = {
        name: np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes_of(QWEN2).items()
    }
    (semi_auto.shop.folder / "qwen2").mkdir()
    save_file(weights, semi_auto.shop.folder / "qwen2" / "model.safetensors")
    semi_auto.shop.launcher("split-ckpt", "qwen2", "--mp", "2", "-o", "qwen2_shards")
    spec = semi_auto.write_spec("qwen2_one", {"mode": "data"}, QWEN2)
    whole = semi_auto.shop.submit(spec, "--cards", "1", "--engine", "direct", "--checkpoint", "qwen2")

    for number, form in enumerate(("qwen2", "qwen2_shards")):
        job = semi_auto.submit(f"qwen2_{number}", "--checkpoint", form, "--engine", "direct", model=QWEN2)
        assert losses(job) == pytest.approx(losses(whole), abs=TOLERANCE)
        ranks = [newest(job, rank_id) for rank_id in (0, 1)]
        for name in (name for name in weights if name.endswith(".bias")):
            halves = [rank[name] for rank in ranks]
            assert halves[0].shape == (weights[name].shape[0] // 2,)
            assert np.concatenate(halves).tobytes() == weights[name].tobytes()
        semi_auto.shop.launcher("merge-ckpt", job.record.job_id, "--verify", "full")
        merged = load_file(job.paths.merged / "model.safetensors")
        assert set(merged) == set(weights)
        assert all(merged[name].tobytes() == weights[name].tobytes() for name in weights if name.endswith(".bias"))
        check_merged(job, job.paths.merged / "model.safetensors")


def test_a_split_model_is_evaluated_as_on_one_rank(semi_auto: SemiAuto, one_rank: Job) -> None:
    rows = json.loads(one_rank.paths.plan.read_text())["dataset"]
    sets = ("--set", f"evaluation.data={rows}", "--set", "evaluation.every_steps=4")
    options = (*sets, "--engine", "direct", "--checkpoint", "whole")
    spec = semi_auto.write_spec("whole_evaluated", {"mode": "data"})
    jobs_of = semi_auto.shop.submit(spec, "--cards", "1", *options), semi_auto.submit("evaluated", *options)
    whole, split = ({event["step"]: event.get("loss") for event in evaluations(job)} for job in jobs_of)

    assert list(whole) == [4, 8]
    assert split == pytest.approx(whole, abs=TOLERANCE)


def evaluations(job: Job) -> list[dict[str, Any]]:
    return [event for event in read_events(job.paths.rank_events(0)) if event["event"] == "eval"]


def test_without_a_base_the_start_follows_from_the_seed_and_not_from_the_split(semi_auto: SemiAuto) -> None:
    """LoRA's A of every layer after a run whose learning rate is nothing: as it began."""
    still = ("--set", "training.lr_schedule.learning_rate=1e-30", "--engine", "direct", "--set", "training.steps=4")
    two = semi_auto.submit("two", *still)
    other = semi_auto.submit("other", *still, "--set", "training.seed=7")
    spec = semi_auto.write_spec("alone", {"mode": "data"})
    one = semi_auto.shop.submit(spec, "--cards", "1", *still)

    semi_auto.shop.launcher("merge-ckpt", two.record.job_id)
    starts = [joined(job) for job in (one, two, other)]
    names = [name for name in starts[0] if name.startswith("model.") and name.endswith("lora_a")]
    assert len(names) == 4 * int(MODEL["num_layers"])
    for name in names:
        np.testing.assert_allclose(starts[0][name], starts[1][name], rtol=0, atol=1e-12, err_msg=name)
        assert np.abs(starts[1][name] - starts[2][name]).max() > 0.01, name
    values = [starts[0][name] for name in names]
    assert len({value.tobytes() for value in values}) == len(values)  # no two layers alike
    bound = 1 / np.sqrt(values[0].shape[1])
    assert all(0.9 * bound < np.abs(value).max() <= bound for value in values)


def test_killed_and_resumed_it_is_the_run_in_one_go(semi_auto: SemiAuto, one_rank: Job) -> None:
    """Rank 1 dies after step 6, the last whole step being 4, and again in the second attempt, before it compiles.

    No attempt after the first touches the strategy files that the checkpoints were cut by.
    """
    base = ("--engine", "msrun", "--checkpoint", "whole")
    failed = semi_auto.submit("killed", *base, code=7, env={"LAUNCHER_TEST_DIE": "1:step:6"})
    assert failed.record.verdict is not None
    assert (failed.record.state, failed.record.verdict["rank_id"]) == (jobs.FAILED, 1)
    before = {file.name: file.read_bytes() for file in failed.paths.strategies.iterdir()}
    assert len(before) == 2

    semi_auto.shop.launcher("resume", "last", code=7, env=semi_auto.env(2, LAUNCHER_TEST_DIE="2:ready:"))
    semi_auto.shop.launcher("resume", "last", env=semi_auto.env(2))
    resumed = semi_auto.shop.job("last")
    expected = losses(one_rank)
    assert losses(resumed, 3) == pytest.approx({step: expected[step] for step in range(5, STEPS + 1)}, abs=TOLERANCE)
    assert {file.name: file.read_bytes() for file in resumed.paths.strategies.iterdir()} == before
    semi_auto.shop.launcher("merge-ckpt", "last", "--verify", "full")
    check_merged(resumed, resumed.paths.merged / "model.safetensors")


def test_stopped_with_save_it_goes_on_where_it_stopped(semi_auto: SemiAuto, one_rank: Job) -> None:
    """Asked to save after step 2, all ranks save step 3 or soon after; nothing of the run differs."""
    spec = semi_auto.write_spec("stopped", {"mode": "semi_auto", "data_parallel": 1, "model_parallel": 2})
    options = ("--cards", "2", "--engine", "direct", "--checkpoint", "whole", "--detach")
    semi_auto.shop.launcher("submit", spec, *options, env=semi_auto.env(2, LAUNCHER_TEST_SLOW_S="4"))
    job = semi_auto.shop.job("last")
    wait_for(lambda: len(losses(job)) >= 2)
    semi_auto.shop.launcher("stop", "last", "--save")
    stopped = max(losses(job))
    assert stopped < STEPS
    semi_auto.shop.launcher("resume", "last", env=semi_auto.env(2))

    found = {**losses(job), **losses(job, 2)}
    assert min(losses(job, 2)) == stopped + 1
    assert found == pytest.approx(losses(one_rank), abs=TOLERANCE)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_merged_model_answers_and_is_exported(semi_auto: SemiAuto) -> None:
    shop = semi_auto.shop
    job = semi_auto.submit("answers", "--engine", "direct", "--checkpoint", "whole")
    shop.launcher("merge-ckpt", job.record.job_id)
    options = ("--format", "jsonl", "--max-new-tokens", "8")
    answer = json.loads(shop.launcher("infer", job.record.job_id, "--prompt", "1 + 2", *options).stdout)
    shop.launcher("merge-ckpt", job.record.job_id, "--format", "hf", "-o", "exported")
    rows = json.loads(job.paths.plan.read_text())["dataset"]
    held_out = ("--data", rows, "--limit", "16", "--questions", "1", "--max-new-tokens", "4", "--format", "json")
    base, adapted, merged = json.loads(shop.launcher("eval", job.record.job_id, *held_out).stdout)["models"]

    assert answer["new_tokens"] > 0
    assert [model["role"] for model in (base, adapted, merged)] == ["base", "base + adapter", "merged"]
    assert adapted["loss"] < base["loss"]
    assert merged["loss"] == pytest.approx(adapted["loss"], abs=1e-5)
    weights = load_file(shop.folder / "exported" / "model.safetensors")
    own = load_file(job.paths.merged / "model.safetensors")
    assert weights["model.embed_tokens.weight"].tobytes() == own["model.tok_embeddings.embedding_weight"].tobytes()
    assert len(weights) == len(own)


@pytest.mark.parametrize(
    ("name", "cards", "parallel", "options"),
    [
        ("dp_mp", 4, {"data_parallel": 2, "model_parallel": 2}, ()),
        # Wider, so that some weights are above the 64 KB below which MindSpore leaves them whole.
        (
            "optimizer",
            4,
            {"data_parallel": 2, "model_parallel": 2, "optimizer_shard": "states"},
            ("--set", "model.intermediate_size=512"),
        ),
        ("sequence", 2, {"model_parallel": 2, "sequence_parallel": True}, ()),
        ("vocabulary", 2, {"model_parallel": 2, "vocab_split": True}, ("--set", "model.vocab_size=1022")),
        ("pipeline", 4, {"model_parallel": 2, "pipeline_stage": 2, "micro_batches": 2}, ()),
    ],
)
def test_what_cpu_has_no_kernel_for_compiles_and_its_strategies_cut_and_merge(
    semi_auto: SemiAuto, name: str, cards: int, parallel: dict[str, Any], options: tuple[str, ...]
) -> None:
    """The run ends at the missing kernel. MindSpore cuts a whole set by the strategies; merge-ckpt joins it again.

    The launcher's own split lays every weight as the strategies do: such shards are what a run of this kind loads.
    """
    shop = semi_auto.shop
    job = semi_auto.submit(
        name,
        "--engine",
        "direct",
        *options,
        cards=cards,
        code=7,
        env={"LAUNCHER_TEST_STRATEGIES": str(cards)},
        **parallel,
    )
    assert len(list(job.paths.strategies.iterdir())) == cards
    whole = make_whole(shop.folder / f"{name}_whole", job)
    cut_by_mindspore(shop.folder / f"{name}_whole", job, shop.folder / f"{name}_cut")

    strategies = ("--strategy", str(job.paths.strategies))
    shop.launcher("merge-ckpt", f"{name}_cut", *strategies, "-o", f"{name}_merged", "--with-optimizer", "--no-fold")
    found: dict[str, Any] = {}
    for file in (shop.folder / f"{name}_merged").glob("*.safetensors"):
        found |= load_file(file)
    assert {key: value.tobytes() for key, value in found.items()} == {
        key: value.tobytes() for key, value in whole.items()
    }
    (shop.folder / f"{name}_cut" / "strategy").symlink_to(job.paths.strategies)
    spec = json.loads(job.paths.spec.read_text())["parallel"]
    plan = SplitPlan(
        data_parallel=spec["data_parallel"], model_parallel=spec["model_parallel"],
        pipeline_stage=spec["pipeline_stage"], cut_vocabulary=spec["vocab_split"],
        optimizer_shards=1 if spec["optimizer_shard"] == "off" else -1,
    )  # fmt: skip
    base = read_sharded(shop.folder / f"{name}_cut")
    check_fits(base, plan)
    cut_again = [key for layouts in base.stages.values() for key, layout in layouts.items() if layout.opt_step]
    assert bool(cut_again) == (name == "optimizer")


QWEN3 = {**MODEL, "family": "qwen3", "n_kv_heads": 2, "head_dim": 24, "intermediate_size": 512, "vocab_size": 1024}


@pytest.mark.parametrize(
    ("name", "cards", "parallel"),
    [
        ("qwen3_mp", 2, {"model_parallel": 2}),
        ("qwen3_all", 4, {"data_parallel": 2, "model_parallel": 2, "optimizer_shard": "states",
                          "sequence_parallel": True}),
    ],
)  # fmt: skip
def test_a_split_qwen3_compiles_and_is_cut_as_the_launcher_cuts_it(
    semi_auto: SemiAuto, name: str, cards: int, parallel: dict[str, Any]
) -> None:
    """The run ends at a kernel that CPU lacks; by then MindSpore has said how it lays every weight and adapter."""
    layers = "linear_qkv|linear_proj|linear_fc1|linear_fc2"
    job = semi_auto.submit(
        name, "--engine", "direct", "--set", f"lora.target_modules={layers}", cards=cards, code=7, model=QWEN3,
        env={"LAUNCHER_TEST_STRATEGIES": str(cards)}, **parallel,
    )  # fmt: skip
    spec = RunSpec.model_validate_json(job.paths.spec.read_text())
    shapes = shapes_of(spec.model.model_dump())
    for stem in [key.removesuffix(".weight") for key in shapes if ".linear_" in key]:
        outputs, inputs = shapes[f"{stem}.weight"]
        shapes |= {f"{stem}.lora_A.weight": (RANK, inputs), f"{stem}.lora_B.weight": (outputs, RANK)}
    assert job.record.verdict is not None
    said = job.paths.rank_log(job.record.verdict["rank_id"]).read_text(encoding="utf-8")
    assert "Unsupported op [ReduceScatter] on CPU" in said
    for file in job.paths.strategies.iterdir():
        (found,) = read_strategy(file).values()
        assert set(shapes) <= set(found)
        for key, shape in shapes.items():
            ours = layout_of(key, shape, split_plan(spec), nbytes=4 * math.prod(shape))
            for device in range(cards):
                assert boxes(found[key], device, shape) == boxes(ours, device, shape), key
        assert any(layout.opt_step for layout in found.values()) == (name == "qwen3_all")


def make_whole(folder: Path, job: Job) -> dict[str, Any]:
    """Random tensors under every name that the strategies know, and the adapters' description."""
    spec = json.loads(job.paths.spec.read_text())["model"]
    hidden, inner, vocab = spec["hidden_size"], spec["intermediate_size"], spec["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.tok_embeddings.embedding_weight": (vocab, hidden),
        "model.norm_out.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(spec["num_layers"]):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.{part}.weight": (hidden,) for part in ("attention_norm", "ffn_norm")}
        shapes |= {f"{stem}.feed_forward.{part}.weight": (inner, hidden) for part in ("w1", "w3")}
        shapes[f"{stem}.feed_forward.w2.weight"] = (hidden, inner)
        for part in ("wq", "wk", "wv", "wo"):
            low = {f"{stem}.attention.{part}.mindpet_delta_lora_a": (RANK, hidden)}
            low[f"{stem}.attention.{part}.mindpet_delta_lora_b"] = (hidden, RANK)
            shapes |= {f"{stem}.attention.{part}.weight": (hidden, hidden), **low}
            shapes |= {f"{moment}.{key}": shape for key, shape in low.items() for moment in ("adam_m", "adam_v")}
    random = np.random.default_rng(5)
    whole = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    folder.mkdir()
    save_file(whole, folder / "model.safetensors")
    return whole


def cut_by_mindspore(whole: Path, job: Job, target: Path) -> None:
    merged = target.with_suffix(".ckpt")
    code = CUT_BY_MINDSPORE.format(strategies=job.paths.strategies, merged=merged, whole=whole, target=target)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300, cwd=whole)
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["wq", "wk", "wv", "wo"]}
    (target / "adapter_config.json").write_text(json.dumps(config))


CUT_BY_MINDSPORE = """
import mindspore as ms
ms.merge_pipeline_strategys("{strategies}", "{merged}")
ms.load_distributed_checkpoint(network=None, predict_strategy="{merged}", format="safetensors",
                               unified_safetensors_dir="{whole}", dst_safetensors_dir="{target}")
"""


def test_shards_that_are_cut_otherwise_are_refused_before_anything_starts(semi_auto: SemiAuto) -> None:
    spec = semi_auto.write_spec("refused", {"mode": "semi_auto", "data_parallel": 1, "model_parallel": 2})
    submit = ("submit", spec, "--cards", "2")
    said = semi_auto.shop.launcher(*submit, "--checkpoint", "shards_4", code=4, env=semi_auto.env(2)).stderr

    assert "it has shards of 4 rank(s), the run has 2" in said
    assert "launcher merge-ckpt" in said
