"""launcher config and launcher plan as a user meets them, and MindFormers YAMLs given as SPEC."""

from __future__ import annotations

import json
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import pytest
import yaml

from launcher.cli.app import main
from launcher.cluster.imagined import imagined_cluster
from launcher.control.preview import preview
from launcher.control.simulation import run as simulate
from launcher.errors import HostError, SpecError
from launcher.jobs import JobPaths
from launcher.models.llama import LLAMA
from launcher.runspec.checking import load_source, parse_spec
from launcher.runspec.layers import parse_sets
from launcher.runspec.passthrough import with_passed_through
from launcher.runspec.schema import BEGIN, END, reference, schema_text, with_reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def launcher(*arguments: str, code: int = 0) -> str:
    """What a command prints, errors and all."""
    result = click.testing.CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments], capture_output=True, text=True, encoding="utf-8", timeout=120
    )


# --------------------------------------------------------------------------------------------------- config


def test_a_new_spec_is_good_is_listed_and_is_never_overwritten(here: Path) -> None:
    assert "launcher plan mine --cards 8 --kind A2" in launcher("config", "new", "mine", "--preset", "llama2_7b")
    text = Path("configs/mine.yaml").read_text()

    assert text.startswith("# yaml-language-server: $schema=run.schema.json\n")
    assert Path("configs/run.schema.json").read_text() == schema_text()
    said = launcher("config", "check", "mine")
    assert "mine: good" in said
    for absent in ("dataset data/train.mindrecord", "tokenizer checkpoints/tokenizer.model", "base checkpoint check"):
        assert f"  note: {absent}" in said
    assert "llama2_7b, 6.74 B" in launcher("config", "list")
    assert "exists already" in launcher("config", "new", "mine", "--preset", "llama2_7b", code=2)
    assert Path("configs/mine.yaml").read_text() == text


def test_a_small_model_is_planned_on_this_host(here: Path) -> None:
    assert launcher("config", "new", "small", "--preset", "tiny_cpu").endswith("Next: launcher plan small\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("new", "../x", "--preset", "llama_7b"), "is not a valid name for a spec"),
        (("new", "x", "--preset", "llama_8b"), "there is no preset 'llama_8b'"),
        (("check", "none.yaml"), "1 of 1 spec(s) wrong: none.yaml"),
        (("show", "tiny_cpu", "--set", "lora.r=0"), "--set lora.r=0: lora.r: input should be greater than or equal"),
        (("schema", "--check", "none.json"), "cannot read none.json"),
        (("reference", "--check", "none.md"), "cannot read none.md"),
    ],
)
def test_mistakes_are_named(here: Path, arguments: tuple[str, ...], expected: str) -> None:
    code = 2 if arguments[0] in ("new", "check", "show") else 1

    assert expected in launcher("config", *arguments, code=code)


def test_a_folder_that_takes_no_files_is_named(here: Path) -> None:
    """A file stands where a folder is to be made: what root may not do either, as in a read-only folder."""
    Path("configs").touch()
    text = launcher("config", "new", "mine", "--preset", "tiny_cpu", code=5)
    demo = launcher("demo", "--folder", "configs/demo", code=5)

    assert f"error: cannot write {here}/configs/mine.yaml: " in text
    assert f"error: cannot make {here}/configs/demo/1: " in demo
    assert "hint: cd to a folder that you can write to, or pass --folder DIR" in demo


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [
        ("rows.json", "rows.json is no .yaml file", "data is named in one: data.train"),
        ("mine", "no run spec 'mine' in configs/", "did you mean the file mine.yaml?"),
        ("sub/other", "no run spec 'sub/other' in configs/", "did you mean the file sub/other.yml?"),
        ("llama2_70b", "llama2_70b is a preset, which is a model", "launcher config new NAME --preset llama2_70b"),
        ("llama_7b_lor", "no run spec 'llama_7b_lor'", "did you mean llama_7b_lora?"),
    ],
)
def test_what_is_no_run_spec_is_called_what_it_is(here: Path, name: str, said: str, hint: str) -> None:
    Path("sub").mkdir()
    for file in ("rows.json", "mine.yaml", "sub/other.yml"):
        Path(file).write_text("{}")
    for command in (("submit", name, "--dry-run"), ("plan", name, "--cards", "1", "--kind", "A2")):
        text = launcher(*command, code=2)

        assert said in text
        assert hint in text


def test_accumulation_on_the_cpu_is_refused_for_what_it_is(here: Path) -> None:
    text = launcher("plan", "tiny_cpu", "--cards", "1", "--set", "training.gradient_accumulation=2", code=2)

    assert "MindFormers accumulates in parallel.mode semi_auto alone" in text
    assert "data.batch_size: 32" in text
    assert "collectives" not in text


def test_every_problem_of_every_spec_is_printed_and_the_exit_code_is_2(here: Path) -> None:
    Path("bad.yaml").write_text("name: x\nmodel: {preset: llama_7b, num_layer: 3}\ndata: {train: a}\nlora: {r: -1}\n")
    result = run("config", "check", "tiny_cpu", "bad.yaml")

    assert result.returncode == 2
    assert "tiny_cpu: good" in result.stdout
    assert "bad.yaml:2: unknown key model.num_layer; did you mean num_layers?" in result.stderr
    assert "bad.yaml:4: lora.r: input should be greater than or equal to 1, got -1" in result.stderr


def test_the_shipped_schema_is_the_one_of_the_code() -> None:
    assert (ROOT / "configs" / "run.schema.json").read_text() == schema_text()


def test_a_stale_reference_is_found_and_brought_up_to_date(here: Path) -> None:
    page = Path("page.md")
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert "out of date" in launcher("config", "reference", "--check", "page.md", code=1)
    launcher("config", "reference", "--update", "page.md")
    launcher("config", "reference", "--check", "page.md")

    assert page.read_text() == f"before\n{reference()}\nafter\n"
    assert "| `target_modules` | text, list |" in page.read_text()
    assert with_reference("no markers") is None


# --------------------------------------------------------------------------------------------------- plan


def test_plan_prints_memory_groups_commands_and_writes_nothing(here: Path) -> None:
    text = launcher("plan", "llama_7b_lora", "--cards", "16", "--kind", "910", "--set", "model.preset=llama_65b")

    assert list(here.iterdir()) == []
    for part in (
        "65,285,660,672 parameters; LoRA r 16 on wq, wk, wv, wo",
        "data_parallel 2 x model_parallel 8 x pipeline_stage 1",
        "model_parallel: 2 group(s) of 8: 0-7  8-15",
        "ranks 8-15  node1",
        "--node_rank=1",
        "base weights",
        "fits: ",
        "ranks/rank_0.yaml to rank_15.yaml  (16 file(s)",
    ):
        assert part in text


def test_plan_as_json_is_json(here: Path) -> None:
    made = json.loads(launcher("plan", "tiny_cpu", "--cards", "2", "--format", "json"))

    assert made["target"] == "CPU"
    assert [term["name"] for term in made["memory"]["terms"]][:2] == ["base weights", "LoRA weights"]
    assert made["tokens_per_step"] == 32 * 128


def test_a_plan_that_does_not_fit_says_what_would(here: Path) -> None:
    text = launcher(
        "plan", "llama_7b_lora", "--cards", "1", "--kind", "910", "--set", "data.batch_size=16", "--set",
        "parallel.mode=data",
    )  # fmt: skip

    assert "does not fit: " in text
    assert "any one of these makes it fit\n  --set data.batch_size=4  (" in text


def test_more_cards_than_there_are_can_still_be_planned_for(here: Path) -> None:
    assert "--kind A2 plans for cards that are not here" in launcher("plan", "tiny_cpu", "--cards", "9999", code=5)


@pytest.mark.parametrize("key", ["model_parallel=2", "pipeline_stage=2", "optimizer_shard=true", "mode=semi_auto"])
def test_what_cpu_cannot_do_is_refused_in_the_plan(here: Path, key: str) -> None:
    text = launcher("plan", "tiny_cpu", "--cards", "2", "--set", f"parallel.{key}", code=2)

    assert "MindSpore has no CPU kernels for the collectives of" in text
    assert "hint: set parallel: {mode: data}" in text


def test_simulation_needs_cann_and_reads_the_peak_it_logs(here: Path) -> None:
    plan = preview("llama_7b_lora", imagined_cluster(2, "A2"), parse_sets([]), Path("jobs")).plan
    with pytest.raises(HostError, match="there is no CANN on this host"):
        simulate(plan, root=here)
    info = here / "usr/local/Ascend/ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("version=9.0.0\n")
    checks = "test $MS_SIMULATION_LEVEL = 1 && test $RANK_SIZE = 2 && test -f $3/ranks/rank_0.yaml"
    good = _program(here / "good", f"{checks} && echo 'Actual peak memory usage (with fragments): 17321M'")
    bad = _program(here / "bad", "echo no operator; exit 3")

    assert simulate(plan, root=here, python=good).peak_mib == 17321
    assert "17,321 MiB" in simulate(plan, root=here, python=good).describe()
    with pytest.raises(HostError, match="compiling rank 0 failed:\nno operator"):
        simulate(plan, root=here, python=bad)


def _program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# --------------------------------------------------------------------------------------------------- MindFormers YAML


def recipe(**changes: Any) -> dict[str, Any]:
    """A LoRA recipe as MindFormers' configurations of 1.3 write one; small, of our own."""
    values: dict[str, Any] = {
        "seed": 0, "output_dir": "./output", "load_checkpoint": "", "run_mode": "finetune", "use_parallel": True,
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "small lora"},
        "runner_config": {"epochs": 2, "batch_size": 4, "sink_mode": False, "sink_size": 2},
        "optimizer": {"type": "FP32StateAdamWeightDecay", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                      "learning_rate": 1e-4},
        "lr_schedule": {"type": "CosineWithWarmUpLR", "learning_rate": 1e-4, "lr_end": 0, "warmup_ratio": 0.03,
                        "total_steps": -1},
        "train_dataset": {"data_loader": {"type": "MindDataset", "dataset_dir": "rows.mindrecord", "shuffle": True},
                          "input_columns": ["input_ids", "labels"], "num_parallel_workers": 2, "batch_size": 4,
                          "drop_remainder": True},
        "parallel": {"parallel_mode": 1, "full_batch": True, "enable_parallel_optimizer": False},
        "parallel_config": {"data_parallel": 8, "model_parallel": 1, "pipeline_stage": 1, "micro_batch_num": 1,
                            "vocab_emb_dp": True},
        "recompute_config": {"recompute": False, "select_recompute": True},
        "callbacks": [{"type": "MFLossMonitor"}, {"type": "CheckpointMointor", "save_checkpoint_steps": 7}],
        "context": {"mode": 0, "device_target": "Ascend", "max_device_memory": "31GB"},
        "model": {
            "model_config": {
                "type": "LlamaConfig", "seq_length": 64, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
                "vocab_size": 640, "multiple_of": 32, "rms_norm_eps": 1e-6, "pad_token_id": 640,
                "compute_dtype": "float32", "param_init_type": "float32", "softmax_compute_dtype": "float32",
                "rotary_dtype": "float32", "use_flash_attention": False, "top_k": 3,
                "pet_config": {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0,
                               "target_modules": ".*wq|.*wv"},
            },
            "arch": {"type": "LlamaForCausalLM"},
        },
        "runner_wrapper": {"type": "MFTrainOneStepCell", "scale_sense": 1.0, "use_clip_grad": True},
        "layer_decay": 0.65,
    }  # fmt: skip
    return {**values, **changes}


def write(values: dict[str, Any]) -> str:
    Path("run_small_lora.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return "run_small_lora.yaml"


def test_a_mindformers_yaml_is_a_spec_and_says_what_became_of_it(here: Path) -> None:
    source = load_source(write(recipe()))
    spec = parse_spec(source)

    assert spec.name == "small_lora"
    assert (spec.model.intermediate_size, spec.model.pad_token_id, spec.data.train) == (192, 0, "rows.mindrecord")
    assert (spec.data.batch_size, spec.training.epochs, spec.checkpoint.every_steps) == (4, 2, 7)
    assert spec.training.optimizer.betas == (0.9, 0.95)
    assert spec.training.max_grad_norm == 1.0
    assert spec.lora is not None
    assert (spec.lora.r, spec.lora.scale, spec.lora.targets_in(LLAMA)) == (4, 2.0, ("wq", "wv"))
    assert (spec.parallel.mode, spec.runtime.max_device_memory_gib) == ("data", 31.0)
    assert spec.mindformers == {"model": {"model_config": {"top_k": 3}}}
    for change in (
        "run_small_lora.yaml is a MindFormers YAML: read as a run spec",
        "model.pad_token_id: 640 is not below vocab_size 640; 0 stands in",
        "parallel_config.data_parallel 8: follows from --cards instead",
        "left out: runner_config.sink_size, recompute_config.select_recompute, layer_decay",
        "passed through: model.model_config.top_k: 3",
    ):
        assert change in source.changes


def test_older_lora_recipes_adapt_what_their_release_adapted(here: Path) -> None:
    newer = recipe()
    del newer["model"]["model_config"]["pet_config"]["target_modules"]
    older = recipe()
    pet = older["model"]["model_config"].pop("pet_config")
    del pet["target_modules"]
    older["model"]["arch"] = {"type": "LlamaForCausalLMWithLora", "pet": {"pet_type": "lora", "pet_config": pet}}
    found = [parse_spec(load_source(write(values))).lora for values in (newer, older)]

    assert [lora and lora.targets_in(LLAMA) for lora in found] == [("wq", "wk", "wv", "wo"), ("wq", "wv")]
    assert [lora and lora.r for lora in found] == [4, 4]


def test_a_mistake_in_a_mindformers_yaml_points_at_its_line(here: Path) -> None:
    values = recipe()
    values["model"]["model_config"]["pet_config"]["lora_rank"] = 0
    name = write(values)
    line = next(n for n, text in enumerate(Path(name).read_text().splitlines(), 1) if "lora_rank" in text)
    with pytest.raises(SpecError) as caught:
        parse_spec(load_source(name))

    assert caught.value.problems == (f"{name}:{line}: lora.r: input should be greater than or equal to 1, got 0",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parallel_config": {"model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4}}, ("semi_auto", 2, 2, 4)),
        ({"parallel": {"parallel_mode": 1, "enable_parallel_optimizer": True}}, ("semi_auto", 1, 1, None)),
        ({"parallel": {"parallel_mode": 0}}, ("data", 1, 1, None)),
    ],
)
def test_degrees_of_a_mindformers_yaml_are_kept(here: Path, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    parallel = parse_spec(load_source(write(recipe(**changes)))).parallel

    found = (parallel.mode, parallel.model_parallel, parallel.pipeline_stage, parallel.micro_batches)
    assert found == expected


def put(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``values`` with ``value`` at the dotted ``path``, sections on the way made."""
    section = values
    *above, last = path.split(".")
    for key in above:
        section = section.setdefault(key, {})
    section[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run_mode", "predict"),
        ("run_mode", "export"),
        ("use_legacy", False),
        ("resume_training", True),
        ("model.arch.type", "Baichuan13BForCausalLM"),
        ("model.arch.type", "InternLM2ForCausalLM"),
        ("model.model_config.type", "QwenConfig"),
        ("moe_config.expert_num", 8),
        ("model.model_config.use_past", True),
        ("model.model_config.qkv_concat", True),
        ("model.model_config.extend_method", "PI"),
        ("model.model_config.pet_config.pet_type", "prefixtuning"),
        ("model.model_config.pet_config.pet_type", "slora"),
        ("model.model_config.pet_config.pet_type", "adalora"),
        ("model.model_config.pet_config.freeze_include", ["*wq*"]),
        ("model.model_config.pet_config.freeze_exclude", ["*lora*"]),
        ("freeze_include", ["*"]),
        ("parallel_config.context_parallel", 2),
        ("parallel_config.expert_parallel", 4),
        ("parallel.pipeline_config.pipeline_interleave", True),
        ("model.model_config.pet_config.pre_seq_len", 10),
        ("model.model_config.attention_sink", 4),
        ("optimizer.momentum", 0.9),
        ("lr_schedule.warmup_epochs", 1),
        ("swap_config.swap", True),
    ],
)
def test_what_would_train_something_else_is_refused_by_name(here: Path, path: str, value: Any) -> None:
    name = write(put(recipe(), path, value))
    with pytest.raises(SpecError) as caught:
        load_source(name)

    (problem,) = caught.value.problems
    assert f": {path}: " in problem
    assert problem.startswith(f"{name}:")
    assert "--set mindformers.KEY=VALUE" in caught.value.hint


@pytest.mark.parametrize(("biases", "family"), [(True, "qwen2"), (False, "llama")])
def test_biases_on_q_k_and_v_are_those_of_qwen2(here: Path, biases: bool, family: str) -> None:
    name = write(put(recipe(), "model.model_config.qkv_has_bias", biases))
    plan = preview(name, imagined_cluster(2, "A2"), parse_sets([]), Path("jobs")).plan
    rank = yaml.safe_load(next(file.text for file in plan.files if file.path == "ranks/rank_1.yaml"))

    assert plan.spec.model.family == family
    assert rank["model"]["model_config"].get("qkv_has_bias", False) is biases


def test_an_adapter_without_a_kind_and_a_model_without_a_name_are_refused(here: Path) -> None:
    values = recipe()
    del values["model"]["model_config"]["pet_config"]["pet_type"]
    del values["model"]["model_config"]["type"], values["model"]["arch"]
    with pytest.raises(SpecError) as caught:
        load_source(write(values))

    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        "model.model_config.pet_config has no pet_type; the launcher does lora",
        "model.arch.type is missing; the launcher trains LlamaForCausalLM",
    ]


def test_lists_for_each_stage_reach_the_ranks(here: Path) -> None:
    values = recipe(parallel_config={"model_parallel": 1, "pipeline_stage": 2, "micro_batch_num": 4})
    put(put(values, "recompute_config.recompute", [1, 2]), "model.model_config.offset", [-1, 1])
    put(values, "model.model_config.num_layers", 4)
    plan = preview(write(values), imagined_cluster(2, "A2"), parse_sets([]), Path("jobs")).plan
    rank = yaml.safe_load(next(file.text for file in plan.files if file.path == "ranks/rank_1.yaml"))

    assert rank["recompute_config"]["recompute"] == [1, 2]
    assert rank["model"]["model_config"]["offset"] == [-1, 1]
    for path, value, expected in (
        ("model.model_config.offset", [-1, 2], "layer_offset [-1, 2] adds up to 1, not 0"),
        ("model.model_config.offset", [1, 0, -1], "is not one number for each of 2 stage(s)"),
        ("model.model_config.offset", [-2, 2], "leaves a stage of 2 without a layer"),
        ("recompute_config.recompute", [1, 1, 1], "runtime.recompute [1, 1, 1]: one number for each of 2 stage(s)"),
    ):
        wrong = write(put(put(put(recipe(), "parallel_config", values["parallel_config"]),
                              "model.model_config.num_layers", 4), path, value))  # fmt: skip
        with pytest.raises(SpecError) as caught:
            preview(wrong, imagined_cluster(2, "A2"), parse_sets([]), Path("jobs"))
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "note"),
    [
        ("parallel_config.use_seq_parallel", True, "parallel_config.use_seq_parallel: left out, it has no effect with"),
        ("runner_wrapper.scale_sense", {"type": "DynamicLossScaleUpdateCell", "loss_scale_value": 4294967296},
         "runner_wrapper.scale_sense.loss_scale_value 4294967296: 65536 stands in"),
        ("model.model_config.checkpoint_name_or_path", "llama_7b", "give the weights with --checkpoint"),
        ("train_dataset.data_loader.type", "HFDataLoader", "train_dataset.data_loader.type HFDataLoader: the launcher"),
        ("optimizer.eps", None, "optimizer.eps: 1e-6, what FP32StateAdamWeightDecay has unasked"),
        ("model.model_config.fine_grain_interleave", 2, "left out: runner_config.sink_size"),
    ],
)  # fmt: skip
def test_what_is_decided_otherwise_is_said(here: Path, path: str, value: Any, note: str) -> None:
    changes = load_source(write(put(recipe(), path, value))).changes

    assert [change for change in changes if note in change]


def test_a_fixed_loss_scale_and_the_optimizer_are_kept(here: Path) -> None:
    plan = preview(write(recipe()), imagined_cluster(1, "A2"), parse_sets([]), Path("jobs")).plan
    rank = yaml.safe_load(next(file.text for file in plan.files if file.path == "ranks/rank_0.yaml"))

    assert rank["runner_wrapper"]["scale_sense"] == 1.0
    assert rank["optimizer"] == {
        "type": "FP32StateAdamWeightDecay", "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0,
    }  # fmt: skip
    assert any("no bias correction" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("config", "level", "said"),
    [
        ({}, "states", ""),
        ({"gradient_accumulation_shard": False, "parallel_optimizer_threshold": 64}, "states", ""),
        ({"gradient_accumulation_shard": True}, "gradients", ""),
        ({"optimizer_level": "level3", "parallel_optimizer_threshold": 128}, "weights", "threshold 128: 64 stands in"),
        ({"optimizer_weight_shard_size": 4}, "states", "optimizer_weight_shard_size 4: -1 stands in"),
    ],
)
def test_the_level_of_a_mindformers_yaml_s_optimizer_parallel_is_kept(
    here: Path, config: dict[str, Any], level: str, said: str
) -> None:
    parallel = {"parallel_mode": 1, "enable_parallel_optimizer": True, "parallel_optimizer_config": config}
    source = load_source(write(recipe(parallel=parallel)))

    assert parse_spec(source).parallel.optimizer_shard == level
    assert said in "; ".join(source.changes)


@pytest.mark.parametrize("key", ["gradient_accumulation_shard", "optimizer_weight_shard_size"])
def test_what_the_level_decides_does_not_pass_through(key: str) -> None:
    extra = {"parallel": {"parallel_optimizer_config": {key: 1}}}
    with pytest.raises(SpecError, match=r"the launcher sets parallel\.parallel_optimizer_config itself"):
        with_passed_through("parallel: {parallel_mode: 1}", extra)


def test_a_yaml_without_data_says_how_to_give_some(here: Path) -> None:
    name = write(recipe(train_dataset={"data_loader": {"dataset_dir": ""}}))
    with pytest.raises(SpecError) as caught:
        parse_spec(load_source(name))

    assert "--set data.train=FILE.mindrecord" in caught.value.hint
    named = write(recipe(load_checkpoint="llama_7b"))
    assert any("give the weights with --checkpoint" in text for text in load_source(named).changes)
    given = load_source(named, parse_sets(["model.checkpoint=x.ckpt"]))
    assert not any("--checkpoint" in text for text in given.changes)
    assert parse_spec(load_source(name, parse_sets(["data.train=x.mindrecord"]))).data.train == "x.mindrecord"


def test_what_passes_through_reaches_every_rank_and_never_overrules(here: Path) -> None:
    name = write(recipe())
    plan = preview(name, imagined_cluster(2, "A2"), parse_sets([]), Path("jobs")).plan
    texts = {file.path: file.text for file in plan.files}

    for rank_id in range(2):
        text = texts[f"ranks/rank_{rank_id}.yaml"]
        assert text.startswith(f"# MindFormers configuration of rank {rank_id} of 2")
        assert yaml.safe_load(text)["model"]["model_config"]["top_k"] == 3
        assert yaml.safe_load(text)["context"]["device_id"] == rank_id
    with pytest.raises(SpecError, match=r"mindformers: the launcher sets a\.b itself"):
        with_passed_through("a: {b: 1}\n", {"a": {"b": 2}})


@pytest.mark.parametrize("seed", range(30))
def test_hostile_mindformers_yamls_are_read_or_refused(here: Path, seed: int) -> None:
    chance = random.Random(seed)
    values = recipe()
    section = chance.choice(list(values))
    odd: Any = chance.choice([None, [], {}, "x", -1, 10**30, {"a": {}}, [{}], True, 1.5])
    if isinstance(values[section], dict) and seed % 2:
        values[section][chance.choice(list(values[section]))] = odd
    else:
        values[section] = odd
    try:
        spec = parse_spec(load_source(write(values)))
    except SpecError as error:
        assert str(error)  # noqa: PT017 - either outcome is good; any other exception is not
    else:
        assert spec.model.hidden_size == 64


@pytest.mark.mindspore
def test_a_mindformers_yaml_trains_on_this_machine(here: Path) -> None:
    for arguments in (
        ("data", "sample", "--size", "64", "--seed", "3", "-o", "math.jsonl"),
        ("data", "convert", "math.jsonl", "-o", "conversations.json"),
        ("data", "tokenizer", "conversations.json", "--vocab-size", "640", "-o", "tokenizer.model"),
        ("data", "preprocess", "conversations.json", "--tokenizer", "tokenizer.model", "--seq-length", "64",
         "--template", "plain", "-o", "rows.mindrecord"),
    ):  # fmt: skip
        result = run(*arguments)
        assert result.returncode == 0, result.stderr
    name = write(recipe())
    result = run("submit", name, "--cards", "1", "--set", "training.steps=2", "--set", "data.template=plain")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "is a MindFormers YAML: read as a run spec." in result.stdout
    job = JobPaths(root=next(path for path in Path("jobs").iterdir() if path.is_dir()))
    assert yaml.safe_load(job.rank_config(0).read_text())["model"]["model_config"]["top_k"] == 3
    assert list(job.checkpoints.iterdir())


def test_a_file_in_configs_presets_is_a_preset(here: Path) -> None:
    """A user adds a model by adding a file; it stands in the list, in the schema and in a spec."""
    folder = here / "configs" / "presets"
    folder.mkdir(parents=True)
    text = (ROOT / "configs" / "presets" / "tiny_cpu.yaml").read_text()
    (folder / "mine_1b.yaml").write_text(text.replace("num_layers: 3", "num_layers: 5"))

    listed = json.loads(launcher("config", "presets", "--format", "json"))
    mine = next(item for item in listed if item["name"] == "mine_1b")
    assert (mine["model"]["num_layers"], mine["file"]) == (5, str(folder / "mine_1b.yaml"))
    schema = json.loads(launcher("config", "schema"))
    assert "mine_1b" in schema["$defs"]["ModelSpec"]["properties"]["preset"]["enum"]
    launcher("config", "new", "run", "--preset", "mine_1b")
    assert '"num_layers": 5' in launcher("config", "show", "run", "--format", "json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source: x\nmodel: {hidden_size: 64}\ncolour: red\n", "mine.yaml:3: unknown key colour"),
        ("source: x\n", "missing key model"),
        ("source: x\nmodel:\n  hidden_size: big\n", "mine.yaml:3: model.hidden_size:"),
        (
            "source: x\nmodel:\n  hiden_size: 64\n",
            "mine.yaml:3: unknown key model.hiden_size; did you mean hidden_size?",
        ),
        ("a: [\n", "is not YAML"),
    ],
)
def test_a_wrong_preset_file_is_named_with_its_line(here: Path, text: str, said: str) -> None:
    folder = here / "configs" / "presets"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text)

    assert said in launcher("config", "presets", code=2)


@pytest.mark.parametrize("argv", [("list",), ("show", "tiny_cpu"), ("presets",)])
def test_listings_are_there_for_programs_too(here: Path, argv: tuple[str, ...]) -> None:
    assert json.loads(launcher("config", *argv, "--format", "json"))
