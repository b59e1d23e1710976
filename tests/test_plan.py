"""Plans: pure, complete, and refused when spec, cluster and inputs do not fit together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cluster import Cluster, Device, Host
from launcher.engines.base import Command
from launcher.errors import SpecError
from launcher.jobs import JobPaths
from launcher.plan import Inputs, LaunchPlan, check_target, choose_degrees, count_steps, make_plan
from launcher.render import to_number
from launcher.spec import ParallelSpec, PrecisionSpec, RunSpec, load_spec

GOLDEN = Path(__file__).parent / "golden"


def cluster(target: str, cards: int, first: int = 0) -> Cluster:
    devices = tuple(Device(device_id=first + number) for number in range(cards))
    return Cluster(target=target, hosts=(Host(name="node0", address="127.0.0.1", devices=devices),))


def plan(
    spec: RunSpec, target: str = "CPU", cards: int = 2, checkpoint: str | None = None, root: str = "/jobs/bcdfg-x"
) -> LaunchPlan:
    paths = JobPaths(root=Path(root))
    hardware = cluster(target, cards)
    command = Command(argv=("/opt/bin/msrun", str(paths.root)))
    inputs = Inputs(dataset="/data/t.mindrecord", rows=100, tokenizer="/data/tokenizer.model", checkpoint=checkpoint)
    return make_plan(spec=spec, spec_name="x", cluster=hardware, inputs=inputs, paths=paths, command=command)


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


@pytest.mark.parametrize(
    ("name", "spec", "target", "cards", "checkpoint"),
    [
        ("cpu_x2", "tiny_cpu", "CPU", 2, "/models/base/model.safetensors"),
        ("ascend_x8", "llama_7b_lora", "Ascend", 8, "/models/llama_7b.ckpt"),
    ],
)
def test_files_are_as_in_the_golden_folder(
    name: str, spec: str, target: str, cards: int, checkpoint: str | None
) -> None:
    assert_golden(GOLDEN / name, plan(load_spec(spec), target, cards, checkpoint))


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


@pytest.mark.parametrize(("cards", "checkpoint"), [(1, "/m/model.safetensors"), (2, "/m/model.ckpt")])
def test_other_bases_are_loaded_as_they_are(cards: int, checkpoint: str) -> None:
    made = plan(load_spec("tiny_cpu"), cards=cards, checkpoint=checkpoint)

    assert made.links == ()
    assert rank_yaml(made)["load_checkpoint"] == checkpoint
    assert rank_yaml(made)["load_ckpt_format"] == checkpoint.rpartition(".")[2]


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
    parallel = ParallelSpec(mode="semi_auto", model_parallel=4)

    assert choose_degrees(parallel, 8).data_parallel == 2


@pytest.mark.parametrize(
    ("parallel", "cards", "expected"),
    [
        (ParallelSpec(data_parallel=3), 2, "= 3, but --cards is 2"),
        (ParallelSpec(mode="semi_auto", model_parallel=4), 6, "= 4, but --cards is 6"),
    ],
)
def test_degrees_that_do_not_multiply_to_the_cards_are_refused(
    parallel: ParallelSpec, cards: int, expected: str
) -> None:
    with pytest.raises(SpecError) as caught:
        choose_degrees(parallel, cards)

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
    check_target(spec, "Ascend")
    with pytest.raises(SpecError) as caught:
        check_target(spec, "CPU")

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

    assert count_steps(spec, rows, ranks) == expected


def test_less_than_one_batch_is_refused() -> None:
    with pytest.raises(SpecError, match="not one batch") as caught:
        count_steps(load_spec("tiny_cpu"), 20, 2)

    assert caught.value.hint == "set data.batch_size to at most 10, or add data"


def test_a_run_cut_short_still_ends_its_schedule() -> None:
    spec = load_spec("tiny_cpu")
    short = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": 5})})

    assert rank_yaml(plan(spec))["lr_schedule"]["total_steps"] == -1
    assert rank_yaml(plan(short))["lr_schedule"]["total_steps"] == 5


def test_a_command_prints_as_a_line_that_can_be_pasted() -> None:
    assert str(Command(argv=("a b", "c'd"), env={"X": "1 2"})) == "X='1 2' 'a b' 'c'\"'\"'d'"
