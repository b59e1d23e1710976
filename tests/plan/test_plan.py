"""Plans: pure, complete, and refused when spec, cluster and inputs do not fit together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cluster.model import Cluster, Device, Host
from launcher.common.rendering import to_number
from launcher.common.yaml_lines import parse_text
from launcher.engines.base import Command
from launcher.errors import SpecError
from launcher.jobs import JobPaths
from launcher.plan.degrees import Degrees, check_target, resolve_defaults, with_degrees
from launcher.plan.launch_plan import Inputs, LaunchPlan, count_steps, make_plan, run_environment
from launcher.plan.placement import Placement, RunOptions
from launcher.runspec.checking import load_spec, parse_spec
from launcher.runspec.sections import HcclRetrySpec, ModelSpec, ParallelSpec, PrecisionSpec, ResilienceSpec, RunSpec

GOLDEN = Path(__file__).parent / "golden"


def cluster(target: str, cards: int, hosts: int = 1, kind: str | None = None) -> Cluster:
    """``hosts`` hosts with ``cards`` devices each."""
    return Cluster(target=target, kind=kind, hosts=tuple(_host(number, cards, kind) for number in range(hosts)))


def _host(number: int, cards: int, kind: str | None) -> Host:
    in_pod = kind == "A3"
    devices = tuple(
        Device(
            device_id=index,
            device_ip=f"10.1.{number}.{index + 1}",
            super_device_id=16 * number + index if in_pod else None,
        )
        for index in range(cards)
    )
    pod = "pod0" if in_pod else None
    return Host(name=f"node{number}", address=f"10.0.0.{number + 1}", devices=devices, super_pod_id=pod)


def plan(
    spec: RunSpec,
    target: str = "CPU",
    cards: int = 2,
    checkpoint: str | None = None,
    root: str = "/jobs/bcdfg-x",
    rows: int = 100,
    hosts: int = 1,
    kind: str | None = None,
) -> LaunchPlan:
    paths = JobPaths(root=Path(root))
    hardware = cluster(target, cards, hosts=hosts, kind=kind)
    inputs = Inputs(dataset="/data/t.mindrecord", rows=rows, tokenizer="/data/tokenizer.model", checkpoint=checkpoint)
    placement, options = Placement(cluster=hardware), RunOptions(program="/opt/bin/msrun")
    return make_plan(spec=spec, spec_name="x", placement=placement, inputs=inputs, paths=paths, options=options)


def rank_yaml(made: LaunchPlan, rank_id: int = 0) -> dict[str, Any]:
    (text,) = (file.text for file in made.files if file.path == f"ranks/rank_{rank_id}.yaml")
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def assert_golden(folder: Path, made: LaunchPlan) -> None:
    """Every file and no other file. REGOLD=1 rewrites the folder and still fails."""
    actual = {file.path: file.text for file in made.files}
    if os.environ.get("REGOLD") == "1":
        for name, text in actual.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        pytest.fail(f"rewrote {folder}; read the diff, then run again")
    found = (path for path in folder.rglob("*") if path.is_file())
    assert {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in found} == actual


def changed(spec: RunSpec, section: str, **changes: Any) -> RunSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=changes)})


SEMI_AUTO = {"mode": "semi_auto", "model_parallel": 4, "pipeline_stage": 1}
PIPELINE = {"mode": "semi_auto", "model_parallel": 4, "pipeline_stage": 2, "micro_batches": 4}
SHARDED = {"mode": "semi_auto", "model_parallel": 2, "pipeline_stage": 1, "optimizer_shard": "states",
           "sequence_parallel": True, "vocab_split": True}  # fmt: skip
RECIPE = {"mode": "semi_auto", "model_parallel": 4, "pipeline_stage": 4, "sequence_parallel": True,
          "micro_batches": 4}  # fmt: skip
LLAMA_7B, WHOLE = "/models/llama_7b.ckpt", "/models/base/model.safetensors"
# Qwen/Qwen3-32B's config.json, with the rows of MindFormers' own recipe (configs/qwen3/finetune_qwen3.yaml).
QWEN3: dict[str, Any] = {
    "family": "qwen3", "hidden_size": 5120, "num_layers": 64, "num_heads": 64, "n_kv_heads": 8, "head_dim": 128,
    "intermediate_size": 25600, "vocab_size": 151936, "seq_length": 4096, "max_position_embedding": 40960,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643,
}  # fmt: skip


def qwen3_spec(**model: Any) -> RunSpec:
    """The recipe's LoRA of llama_7b_lora for Qwen3."""
    spec = changed(load_spec("llama_7b_lora"), "lora", target_modules="linear_qkv|linear_proj|linear_fc1|linear_fc2")
    return spec.model_copy(update={"name": "qwen3_lora", "model": ModelSpec(**{**QWEN3, **model})})


def resilient_spec() -> RunSpec:
    """A spec with every switch of ``resilience:`` that needs no MindIO, and the norm that TRE watches."""
    spec = changed(load_spec("llama_7b_lora"), "training", max_grad_norm=1.0)
    switches = ResilienceSpec(tft=("TRE",), hccl_retry=HcclRetrySpec(times=3), compile_cache=True)
    watched = {"monitor_config": {"monitor_on": True, "global_norm_spike_threshold": 3.0}}
    return spec.model_copy(update={"name": "resilient", "resilience": switches, "mindformers": watched})


QWEN3_SMALL = {"hidden_size": 1024, "num_layers": 28, "num_heads": 16, "intermediate_size": 3072}

GOLDEN_PLANS: dict[str, tuple[str | RunSpec, dict[str, Any], dict[str, Any]]] = {
    "cpu_x2": ("tiny_cpu", {}, {"checkpoint": WHOLE}),
    "ascend_x8": ("llama_7b_lora", {"mode": "data"}, {"target": "Ascend", "cards": 8, "checkpoint": LLAMA_7B}),
    "semi_auto_dp2_mp4": ("llama_7b_lora", SEMI_AUTO, {"target": "Ascend", "cards": 8, "checkpoint": LLAMA_7B}),
    "pipeline_dp1_mp4_pp2": ("llama_7b_lora", PIPELINE, {"target": "Ascend", "cards": 8, "checkpoint": WHOLE}),
    "optimizer_shard_dp4_mp2": ("llama_7b_lora", SHARDED, {"target": "Ascend", "cards": 8}),
    "hosts_2x8": (
        "llama_7b_lora", {"mode": "data"}, {"target": "Ascend", "cards": 8, "hosts": 2, "checkpoint": WHOLE}
    ),
    "resilience_a3_x2": (resilient_spec(), {"mode": "data"}, {"target": "Ascend", "cards": 2, "kind": "A3"}),
    "qwen3_cpu_x2": (qwen3_spec(**QWEN3_SMALL), {}, {"checkpoint": WHOLE}),
    "qwen3_dp8": (qwen3_spec(**QWEN3_SMALL), {}, {"target": "Ascend", "cards": 8, "kind": "A2", "checkpoint": WHOLE}),
    "qwen3_dp1_mp4_pp4": (
        qwen3_spec(), RECIPE, {"target": "Ascend", "cards": 8, "hosts": 2, "kind": "A2", "checkpoint": WHOLE}
    ),
    "qwen3_optimizer_shard": (
        qwen3_spec(), SHARDED, {"target": "Ascend", "cards": 8, "kind": "A2", "checkpoint": WHOLE}
    ),
}  # fmt: skip


def golden_spec(name: str) -> RunSpec:
    spec, parallel, _ = GOLDEN_PLANS[name]
    return changed(load_spec(spec) if isinstance(spec, str) else spec, "parallel", **parallel)


def golden_plan(name: str, **more: Any) -> LaunchPlan:
    return plan(golden_spec(name), **GOLDEN_PLANS[name][2], **more)


@pytest.mark.parametrize("name", GOLDEN_PLANS)
def test_files_are_as_in_the_golden_folder(name: str) -> None:
    assert_golden(GOLDEN / name, golden_plan(name))


def test_switches_of_resilience_are_in_the_environment_of_every_rank() -> None:
    made = golden_plan("resilience_a3_x2")
    assert {name: value for name, value in made.launch.env.items() if "TFT" in name or "RETRY" in name} == {
        "MS_ENABLE_TFT": "{TRE:1}",
        "HCCL_OP_RETRY_ENABLE": "L1:1,L2:1",
        "HCCL_OP_RETRY_PARAMS": "MaxCnt:3,HoldTime:5000,IntervalTime:1000",
    }
    assert rank_yaml(made)["monitor_config"]["global_norm_spike_threshold"] == 3.0


# Run in a child process: importing mindformers takes seconds, and its warnings are not ours.
LOAD = """
import json, sys
from launcher.upstream.light_imports import light_imports
with light_imports():
    import mindformers
import mindspore as ms
from mindformers import LlamaConfig, MindFormerConfig
from mindformers.core.context.parallel import ParallelOperator
from mindformers.core.context.validators import validate_parallel_mode
from mindformers.core.parallel_config import build_parallel_config
from mindspore.parallel._auto_parallel_context import auto_parallel_context


def level(config):
    # What MindSpore's context holds once MindFormers has set it: on, gradients too, weights too, threshold.
    ms.reset_auto_parallel_context()
    validate_parallel_mode(config)
    ParallelOperator._set_ms_auto_parallel_context(**dict(config.parallel))
    held, handle = auto_parallel_context(), auto_parallel_context()._context_handle
    return [held.get_enable_parallel_optimizer(), held.get_grad_accumulation_shard(), handle.get_zero3(),
            held.get_parallel_optimizer_threshold()]


built = {}
for path in sys.argv[1:]:
    config = MindFormerConfig(path)
    build_parallel_config(config)
    llama = LlamaConfig(parallel_config=config.parallel_config, **config.model.model_config)
    parallel = llama.parallel_config
    built[path] = {
        "hidden_size": llama.hidden_size, "compute": str(llama.compute_dtype), "eps": llama.rms_norm_eps,
        "degrees": [parallel.data_parallel, parallel.model_parallel, parallel.pipeline_stage],
        "micro": parallel.micro_batch_num,
        "full_batch": config.parallel.full_batch, "transform": config.auto_trans_ckpt,
        "learning_rate": config.lr_schedule.learning_rate, "flash": llama.use_flash_attention,
        "lora": config.model.model_config.pet_config.lora_rank, "shard": config.parallel.enable_parallel_optimizer,
        "recompute": config.recompute_config.recompute, "level": level(config), "mode": config.parallel.parallel_mode,
    }
import os
from mindformers.utils.file_utils import is_publicly_accessible_path
os.environ |= {"RANK_SIZE": "32", "DEVICE_NUM_PER_NODE": "16"}
shared = [is_publicly_accessible_path("/jobs/bcdfg-x")]
os.environ["SHARED_PATHS"] = "/mnt/all,/jobs/bcdfg-x"
shared.append(is_publicly_accessible_path("/jobs/bcdfg-x"))
os.environ |= {"RANK_SIZE": "16", "SHARED_PATHS": ""}
shared.append(is_publicly_accessible_path("/jobs/bcdfg-x"))
print("BUILT" + json.dumps([built, shared]))
"""


def sharded_yaml(folder: Path, level: str) -> Path:
    """A rank's YAML with ``level`` of optimizer_shard."""
    spec = changed(load_spec("llama_7b_lora"), "parallel", **{**SHARDED, "optimizer_shard": level})
    made = plan(spec, "Ascend", 8)
    path = folder / f"{level}.yaml"
    path.write_text(next(file.text for file in made.files if file.path == "ranks/rank_1.yaml"))
    return path


@pytest.mark.mindspore
def test_mindformers_reads_the_golden_files_as_they_are_meant(tmp_path: Path) -> None:
    files = {name: str(GOLDEN / name / "ranks" / "rank_1.yaml") for name in GOLDEN_PLANS if "qwen3" not in name}
    levels = {name: str(sharded_yaml(tmp_path, name)) for name in ("states", "gradients", "weights")}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *files.values(), *levels.values()],
        cwd=tmp_path,  # MindFormers writes its logs below the working folder
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("BUILT"))
    built, shared = json.loads(line.removeprefix("BUILT"))
    found = {name: built[path] for name, path in files.items()}

    assert {name: built[path]["level"] for name, path in levels.items()} == {
        "states": [True, False, False, 64], "gradients": [True, True, False, 64], "weights": [True, False, True, 64]
    }  # fmt: skip
    assert found["semi_auto_dp2_mp4"]["level"] == [False, False, False, -1]
    assert {name: values["degrees"] for name, values in found.items()} == {
        "cpu_x2": [2, 1, 1],
        "ascend_x8": [8, 1, 1],
        "semi_auto_dp2_mp4": [2, 4, 1],
        "pipeline_dp1_mp4_pp2": [1, 4, 2],
        "optimizer_shard_dp4_mp2": [4, 2, 1],
        "hosts_2x8": [16, 1, 1],
        "resilience_a3_x2": [2, 1, 1],
    }
    split, copied = "semi_auto_parallel", "data_parallel"
    assert [values["mode"] for values in found.values()] == [copied, copied, split, split, split, copied, copied]
    assert [values["full_batch"] for values in found.values()] == [False, False, True, True, True, False, False]
    assert [values["transform"] for values in found.values()] == [False, False, False, True, False, False, False]
    assert shared == [False, True, True]  # two hosts, two hosts that say so, one host of 16 cards
    assert [values["shard"] for values in found.values()] == [False, False, False, False, True, False, False]
    assert [values["recompute"] for values in found.values()] == [False, True, True, True, True, True, True]
    assert found["pipeline_dp1_mp4_pp2"]["micro"] == 4
    for name, values in found.items():
        on_cpu = name == "cpu_x2"
        assert values["hidden_size"] == (96 if on_cpu else 4096)
        on_a3 = name == "resilience_a3_x2"  # a kind that is known to have bfloat16
        assert values["compute"] == ("Float32" if on_cpu else "BFloat16" if on_a3 else "Float16")
        assert (values["eps"], values["learning_rate"]) == ((1e-5, 5e-3) if on_cpu else (1e-6, 1e-5))
        assert values["flash"] is not on_cpu
        assert values["lora"] == 16


LOAD_MCORE = """
import json, sys
from launcher.upstream.light_imports import light_imports
with light_imports():
    import mindformers
from mindformers import MindFormerConfig
from mindformers.core.parallel_config import build_parallel_config
from mindformers.models.qwen3 import Qwen3Config
from mindformers.models.qwen3.config_converter_qwen3 import Qwen3ConfigConverter
from mindformers.parallel_core.config_converter import ConfigLogHandler

built = {}
for path in sys.argv[1:]:
    config = MindFormerConfig(path)
    build_parallel_config(config)
    given = dict(config.model.model_config)
    made = Qwen3Config(parallel_config=config.parallel_config, **given).convert_to_transformer_config()
    keys = ("data_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_num",
            "sequence_parallel", "hidden_size", "num_layers", "num_attention_heads", "num_query_groups", "kv_channels",
            "ffn_hidden_size", "layernorm_epsilon", "rotary_base", "seq_length", "ignore_token_id", "hidden_dropout",
            "add_bias_linear", "use_flash_attention", "recompute", "parallel_optimizer_comm_recompute")
    dtypes = ("params_dtype", "compute_dtype", "softmax_compute_dtype", "layernorm_compute_dtype", "rotary_dtype")
    unread = set(given) - set(Qwen3ConfigConverter._get_final_mapping(ConfigLogHandler()))
    built[path] = {**{key: getattr(made, key) for key in keys}, **{key: str(getattr(made, key)) for key in dtypes},
                   "lora": made.pet_config, "unread": sorted(unread)}
print("BUILT" + json.dumps(built))
"""


@pytest.mark.mindspore
def test_mindformers_reads_every_key_of_an_mcore_network(tmp_path: Path) -> None:
    names = [name for name in GOLDEN_PLANS if "qwen3" in name]
    files = {name: str(GOLDEN / name / "ranks" / "rank_1.yaml") for name in names}
    result = subprocess.run(
        [sys.executable, "-c", LOAD_MCORE, *files.values()],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("BUILT"))
    found = {name: json.loads(line.removeprefix("BUILT"))[path] for name, path in files.items()}

    degrees = ("data_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_num")
    assert {name: [values[key] for key in degrees] for name, values in found.items()} == {
        "qwen3_cpu_x2": [2, 1, 1, 1],
        "qwen3_dp8": [8, 1, 1, 1],
        "qwen3_dp1_mp4_pp4": [1, 4, 4, 4],
        "qwen3_optimizer_shard": [4, 2, 1, 1],
    }
    for name, values in found.items():
        on_cpu, large = name == "qwen3_cpu_x2", name not in ("qwen3_cpu_x2", "qwen3_dp8")
        assert values["unread"] == ["architectures", "model_type"]  # what the class is found by
        sizes = [values[key] for key in ("hidden_size", "num_layers", "num_attention_heads", "ffn_hidden_size")]
        assert sizes == ([5120, 64, 64, 25600] if large else [1024, 28, 16, 3072])
        assert (values["num_query_groups"], values["kv_channels"], values["seq_length"]) == (8, 128, 4096)
        assert (values["layernorm_epsilon"], values["rotary_base"], values["ignore_token_id"]) == (1e-6, 1e6, -100)
        assert (values["hidden_dropout"], values["add_bias_linear"]) == (0.0, False)
        assert values["sequence_parallel"] is large
        assert values["use_flash_attention"] is values["recompute"] is not on_cpu
        assert values["parallel_optimizer_comm_recompute"] is not on_cpu
        assert values["params_dtype"] == values["compute_dtype"] == ("Float32" if on_cpu else "BFloat16")
        exact = ("softmax_compute_dtype", "layernorm_compute_dtype", "rotary_dtype")
        assert {values[key] for key in exact} == {"Float32"}
        assert (values["lora"]["freeze_include"], values["lora"]["freeze_exclude"]) == (["*"], ["*lora*"])


def test_mcore_networks_are_data_parallel_in_semi_auto_on_cards_and_in_data_mode_on_cpu_and_one_card() -> None:
    spec = qwen3_spec(**QWEN3_SMALL)
    found = {
        (target, cards): resolve_defaults(spec, cluster(target, cards, kind=kind)).spec.parallel
        for target, cards, kind in (("Ascend", 8, "A2"), ("Ascend", 1, "A2"), ("CPU", 2, None))
    }

    assert {key: (parallel.mode, parallel.data_parallel) for key, parallel in found.items()} == {
        ("Ascend", 8): ("semi_auto", 8), ("Ascend", 1): ("data", 1), ("CPU", 2): ("data", 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "changes", "reason"),
    [
        ("parallel", {"mode": "data"}, "MindFormers trains qwen3 in semi_auto alone"),
        ("parallel", {"vocab_split": False}, "always splits that of qwen3"),
        ("parallel", {"mode": "semi_auto", "model_parallel": 4, "pipeline_stage": 1}, "vocab_size 151938 does not"),
        ("runtime", {"flash_attention": False}, "on Ascend with flash attention alone"),
        ("data", {"input_columns": ("input_ids",)}, "is trained on input_ids and labels"),
        ("precision", {"rotary": "float16"}, "rotary float16: MindFormers refuses it"),
    ],
)
def test_what_mcore_networks_do_not_do_is_refused(section: str, changes: dict[str, Any], reason: str) -> None:
    spec = changed(qwen3_spec(**QWEN3_SMALL, vocab_size=151938), section, **changes)
    with pytest.raises(SpecError, match=reason):
        resolve_defaults(spec, cluster("Ascend", 8, kind="A2"))


@pytest.mark.parametrize(
    ("spec", "hardware", "argument", "compressed"),
    [
        ("tiny_cpu", {}, "attention_mask", None),
        (qwen3_spec(**QWEN3_SMALL), {}, "attention_mask", None),
        ("llama_7b_lora", {"target": "Ascend", "cards": 8}, "actual_seq_len", True),
        (qwen3_spec(), {"target": "Ascend", "cards": 8, "kind": "A2"}, "actual_seq_len", True),
    ],
)
def test_packed_rows_reach_the_network_as_its_backend_takes_them(
    spec: str | RunSpec, hardware: dict[str, Any], argument: str, compressed: bool | None
) -> None:
    wanted = changed(load_spec(spec) if isinstance(spec, str) else spec, "data", packing=True)
    made = plan(wanted, rows=1000, **hardware)
    assert any("has not yet run there" in note for note in made.notes) == bool(compressed)
    config = rank_yaml(made)
    assert config["train_dataset"]["input_columns"] == ["input_ids", "labels", "actual_seq_len"]
    assert config["train_dataset"]["construct_args_key"] == ["input_ids", "labels", argument]
    assert config["model"]["model_config"].get("use_eod_attn_mask_compression") == compressed


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("runtime", {"flash_attention": False}, "runtime.flash_attention false: on Ascend nothing else keeps"),
        ("model", {"seq_length": 1024}, "model.seq_length 1024: on Ascend packed rows have 2048 or more"),
        ("data", {"batch_size": 17}, "batch_size 17: of 128 samples a row, flash attention takes 2048"),
    ],
)
def test_packed_rows_that_flash_attention_cannot_take_are_refused(
    section: str, changes: dict[str, Any], expected: str
) -> None:
    spec = changed(changed(load_spec("llama_7b_lora"), "data", packing=True), section, **changes)
    with pytest.raises(SpecError, match=expected) as caught:
        plan(spec, target="Ascend", cards=8, rows=1000)
    assert caught.value.hint


def test_degrees_that_do_not_divide_the_cards_are_blamed_and_nothing_else() -> None:
    spec = changed(load_spec("llama_7b_lora"), "parallel", mode="semi_auto", model_parallel=3, pipeline_stage=1)
    with pytest.raises(SpecError, match="model_parallel 3 x pipeline_stage 1 = 3 does not divide --cards 8"):
        resolve_defaults(spec, cluster("Ascend", 8))


def test_a_whole_base_is_laid_out_as_mindformers_looks_for_it() -> None:
    cut = golden_plan("semi_auto_dp2_mp4")
    whole = golden_plan("pipeline_dp1_mp4_pp2")

    assert [(link.path, link.target) for link in cut.links] == [("base/base.ckpt", LLAMA_7B)]
    assert [(link.path, link.target) for link in whole.links] == [("base/base.safetensors", WHOLE)]
    assert {rank_yaml(made)["load_checkpoint"] for made in (cut, whole)} == {"/jobs/bcdfg-x/base"}
    assert [rank_yaml(made)["auto_trans_ckpt"] for made in (cut, whole)] == [False, True]
    assert len(golden_plan("hosts_2x8").links) == 16


def test_the_strategy_of_a_split_run_names_frozen_weights_too() -> None:
    """MindSpore's default leaves out what is not trained, and with LoRA nothing could be merged."""
    for name in ("semi_auto_dp2_mp4", "pipeline_dp1_mp4_pp2"):
        assert rank_yaml(golden_plan(name))["parallel"]["strategy_ckpt_config"]["only_trainable_params"] is False


def test_a_base_in_semi_auto_needs_data_sinking() -> None:
    """mindformers 1.9.0, checkpoint/utils.py: "'sink_mode' must be set to True"; not for a whole .ckpt."""
    options = GOLDEN_PLANS["semi_auto_dp2_mp4"][2]
    made = changed(golden_spec("semi_auto_dp2_mp4"), "runtime", sink_mode=False)

    plan(changed(made, "model", checkpoint=LLAMA_7B), **options)
    plan(changed(made, "model", checkpoint=None), **{**options, "checkpoint": None})
    with pytest.raises(SpecError, match=r"runtime\.sink_mode false: in semi_auto mode"):
        plan(changed(made, "model", checkpoint=WHOLE), **{**options, "checkpoint": WHOLE})


@pytest.mark.parametrize(
    ("name", "rows", "batch", "steps"),
    [
        ("ascend_x8", 1000, 16, 62),  # 125 rows a rank, 62 whole batches of 2
        ("semi_auto_dp2_mp4", 1000, 4, 250),
        ("pipeline_dp1_mp4_pp2", 1000, 8, 125),
        ("optimizer_shard_dp4_mp2", 1000, 8, 125),
    ],
)
def test_batch_and_steps_follow_the_split(name: str, rows: int, batch: int, steps: int) -> None:
    made = golden_plan(name, rows=rows)

    assert (made.global_batch, made.steps) == (batch, steps)


def test_the_plan_touches_nothing(tmp_path: Path) -> None:
    plan(load_spec("tiny_cpu"), root=str(tmp_path / "job"))

    assert list(tmp_path.iterdir()) == []


def test_the_plan_file_is_json_and_names_every_file() -> None:
    made = plan(load_spec("tiny_cpu"))
    read_back = json.loads(json.dumps(made.to_dict()))

    assert read_back["files"] == ["rank_table.json", "ranks/rank_0.yaml", "ranks/rank_1.yaml", "spec.json"]
    assert [rank["rank_id"] for rank in read_back["ranks"]] == [0, 1]
    assert read_back["steps"] == made.steps == 6  # 100 rows, 2 ranks, batch 16: 3 whole batches, 2 epochs


def test_whole_safetensors_base_is_linked_once_a_rank() -> None:
    made = plan(load_spec("tiny_cpu"), checkpoint="/m/model.safetensors")

    assert [(link.path, link.target) for link in made.links] == [
        ("base/rank_0/base.safetensors", "/m/model.safetensors"),
        ("base/rank_1/base.safetensors", "/m/model.safetensors"),
    ]
    assert rank_yaml(made)["load_checkpoint"] == "/jobs/bcdfg-x/base"


@pytest.mark.parametrize(("cards", "checkpoint"), [(1, "/m/rank_0/model.safetensors"), (2, "/m/rank_0/model.ckpt")])
def test_a_whole_file_lies_alone_in_a_folder_of_the_job(cards: int, checkpoint: str) -> None:
    """By its own path MindFormers would take it for a shard, and read what lies beside it."""
    made = plan(load_spec("tiny_cpu"), cards=cards, checkpoint=checkpoint)
    file_format = checkpoint.rpartition(".")[2]

    assert [(link.path, link.target) for link in made.links] == [(f"base/base.{file_format}", checkpoint)]
    assert rank_yaml(made)["load_checkpoint"] == "/jobs/bcdfg-x/base"
    assert rank_yaml(made)["load_ckpt_format"] == file_format
    assert rank_yaml(made)["auto_trans_ckpt"] is False


def test_lora_left_out_means_no_pet_config() -> None:
    spec = load_spec("tiny_cpu")

    assert rank_yaml(plan(spec))["model"]["model_config"]["pet_config"]["lora_alpha"] == 16
    assert "pet_config" not in rank_yaml(plan(spec.model_copy(update={"lora": None})))["model"]["model_config"]


def test_what_cpu_cannot_do_is_off_there_and_on_on_ascend() -> None:
    on_cpu = rank_yaml(plan(load_spec("tiny_cpu")))["model"]["model_config"]
    on_ascend = rank_yaml(plan(load_spec("tiny_cpu"), "Ascend", 2))["model"]["model_config"]

    assert (on_cpu["use_flash_attention"], on_cpu["fused_rms_norm"], on_cpu["use_rope_slice"]) == (False, False, True)
    assert (on_ascend["use_flash_attention"], on_ascend["fused_rms_norm"]) == (True, True)


@pytest.mark.parametrize(
    "name", ["no", "1e-5", "0x10", "it's", 'say "hi"', "a: b", "# x", "{{ x }}", "名前 🙂", "a\nb"]
)
def test_strings_survive_the_yaml_of_a_rank(name: str) -> None:
    spec = load_spec("tiny_cpu").model_copy(update={"name": name})

    assert rank_yaml(plan(spec, root=f"/jobs/{name}"))["trainer"]["model_name"] == name
    assert rank_yaml(plan(spec, root=f"/jobs/{name}"))["output_dir"] == f"/jobs/{name}"


@pytest.mark.parametrize("value", [1e-5, 1e-8, 0.0, 3.0, 0.05, 1e22, 123456.789, 5e-324])
def test_numbers_are_numbers_to_yaml_1_1(value: float) -> None:
    assert yaml.safe_load(to_number(value)) == value
    assert isinstance(yaml.safe_load(to_number(value)), float)


def test_degrees_left_out_take_what_the_cards_leave() -> None:
    spec = changed(load_spec("llama_7b_lora"), "parallel", mode="semi_auto", model_parallel=4)

    assert resolve_defaults(spec, cluster("Ascend", 8)).degrees.data_parallel == 2


@pytest.mark.parametrize(
    ("parallel", "cards", "expected"),
    [
        ({"data_parallel": 3}, 2, "= 3, but --cards is 2"),
        ({"mode": "semi_auto", "model_parallel": 4}, 6, "= 4 does not divide --cards 6"),
        ({"mode": "semi_auto", "model_parallel": 3, "pipeline_stage": 1}, 6, "num_heads 32 is not a multiple of"),
        ({"mode": "data", "model_parallel": 2}, 4, "parallel.mode data does not split the model"),
        ({"mode": "semi_auto", "model_parallel": 1, "pipeline_stage": 3}, 3, "num_layers 32 is not a multiple of"),
        ({"mode": "data", "optimizer_shard": "states"}, 2, "optimizer_shard needs parallel.mode semi_auto"),
        ({"mode": "semi_auto", "model_parallel": 1, "pipeline_stage": 1, "sequence_parallel": True}, 2, "no effect"),
        ({"model_parallel": 1, "pipeline_stage": 4, "micro_batches": 2}, 4, "micro_batches 2 is below pipeline_stage"),
        ({"mode": "data", "micro_batches": 2}, 2, "micro_batches has no effect without a pipeline"),
    ],
)
def test_degrees_that_cannot_be_are_refused(parallel: dict[str, Any], cards: int, expected: str) -> None:
    spec = changed(load_spec("llama_7b_lora"), "parallel", mode=None)
    with pytest.raises(SpecError) as caught:
        resolve_defaults(changed(spec, "parallel", **parallel), cluster("Ascend", cards))

    assert expected in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"parallel": ParallelSpec(model_parallel=2)}, "the CPU backend trains data-parallel only"),
        ({"parallel": ParallelSpec(pipeline_stage=2)}, "the CPU backend trains data-parallel only"),
        ({"parallel": ParallelSpec(mode="semi_auto")}, "the CPU backend trains data-parallel only"),
        ({"precision": PrecisionSpec(params="float16")}, "the CPU backend trains in float32, not params float16"),
    ],
)
def test_what_cpu_cannot_train_is_refused_with_the_reason(change: dict[str, Any], expected: str) -> None:
    spec = load_spec("tiny_cpu").model_copy(update=change)
    check_target(spec, cluster("Ascend", 2))
    with pytest.raises(SpecError) as caught:
        check_target(spec, cluster("CPU", 2))

    assert expected in str(caught.value)
    assert caught.value.hint


def test_float16_scales_its_loss() -> None:
    spec = load_spec("llama_7b_lora")

    assert rank_yaml(plan(spec, "Ascend"))["runner_wrapper"]["scale_sense"]["type"] == "DynamicLossScaleUpdateCell"
    assert rank_yaml(plan(load_spec("tiny_cpu")))["runner_wrapper"]["scale_sense"] == 1.0


@pytest.mark.parametrize(
    ("rows", "ranks", "drop", "steps", "expected"),
    [
        (100, 2, True, None, 6),
        (100, 2, False, None, 8),
        (100, 2, True, 5, 5),
        (33, 2, True, None, 2),
        (None, 2, True, 9, None),
    ],
)
def test_steps_are_counted_as_mindspore_deals_rows(
    rows: int | None, ranks: int, drop: bool, steps: int | None, expected: int | None
) -> None:
    spec = load_spec("tiny_cpu")
    spec = spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"drop_remainder": drop}),
            "training": spec.training.model_copy(update={"steps": steps}),
        }
    )

    spec = with_degrees(spec, Degrees(data_parallel=ranks, model_parallel=1, pipeline_stage=1))

    assert count_steps(spec, rows) == expected


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(SpecError, match="not one batch") as caught:
        plan(load_spec("tiny_cpu"), rows=20)

    assert caught.value.hint == "set data.batch_size to at most 10, or add data"


def test_a_run_cut_short_still_ends_its_schedule() -> None:
    spec = load_spec("tiny_cpu")
    short = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": 5})})

    assert rank_yaml(plan(spec))["lr_schedule"]["total_steps"] == -1
    assert rank_yaml(plan(short))["lr_schedule"]["total_steps"] == 5


def test_hccl_variables_are_the_spec_s_then_the_shell_s_then_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "7000")
    spec = parse_spec(
        parse_text(
            "name: x\nmodel: {hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 8, vocab_size: 8, "
            "seq_length: 8}\ndata: {train: a}\nenv: {HCCL_BUFFSIZE: '50'}\nhccl: {exec_timeout_s: 3000}",
            name="run.yaml",
        )
    )

    paths = JobPaths(root=Path("/jobs/bcdfg-x"))
    here = {"HCCL_EXEC_TIMEOUT": "3000", "HCCL_BUFFSIZE": "50", "DEVICE_NUM_PER_NODE": "2"}
    assert run_environment(spec, cluster("Ascend", 2), paths) == here
    assert run_environment(load_spec("tiny_cpu"), cluster("CPU", 2), paths) == {}


def test_ranks_of_several_hosts_are_told_that_the_job_s_folder_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = JobPaths(root=Path("/jobs/bcdfg-x"))
    monkeypatch.setenv("SHARED_PATHS", "/mnt/all")
    found = run_environment(load_spec("llama_7b_lora"), cluster("Ascend", 8, hosts=2), paths)

    assert (found["SHARED_PATHS"], found["DEVICE_NUM_PER_NODE"]) == ("/mnt/all,/jobs/bcdfg-x", "8")


def test_a_command_prints_as_a_line_that_can_be_pasted() -> None:
    assert str(Command(argv=("a b", "c'd"), env={"X": "1 2"})) == "X='1 2' 'a b' 'c'\"'\"'d'"
