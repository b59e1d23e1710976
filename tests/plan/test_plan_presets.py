"""Every preset on every number of cards: planned with degrees that multiply, or refused with a reason."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.job_folders import Made, MadeJob, iso

from launcher.cluster.imagined import imagined_cluster
from launcher.cluster.model import KINDS, Cluster, Device, Host
from launcher.cluster.rank_table import check_text
from launcher.control.preview import cluster_for, find_inputs, groups, preview
from launcher.errors import SpecError
from launcher.models.registry import family_of
from launcher.plan.degrees import Degrees, Resolved, resolve_defaults, smallest_changes
from launcher.runspec.layers import parse_sets
from launcher.runspec.presets import all_presets
from launcher.runspec.sections import RunSpec

PRESETS = {preset.name: preset for preset in all_presets()}

CARDS = (1, 2, 4, 8, 16, 64)


def spec(preset: str, **sections: Any) -> RunSpec:
    model = {"preset": preset, **PRESETS[preset].model}
    lora = {"target_modules": family_of(model).lora_default}
    values = {"name": preset, "data": {"train": "t.mindrecord", "batch_size": 1}, "lora": lora, **sections}
    return RunSpec.model_validate({**values, "model": model})


def resolved_or_reason(asked: RunSpec, cluster: Cluster) -> Resolved | str:
    try:
        return resolve_defaults(asked, cluster)
    except SpecError as error:
        return str(error)


@pytest.mark.parametrize(("preset", "kind"), list(itertools.product(PRESETS, ("910", "A2", "A3"))))
def test_every_preset_on_every_number_of_cards_is_planned_or_refused(preset: str, kind: str) -> None:
    planned = {}
    for cards in CARDS:
        resolved = resolved_or_reason(spec(preset), imagined_cluster(cards, kind))
        if isinstance(resolved, str):
            assert "does not fit" in resolved
            continue
        degrees = resolved.degrees
        planned[cards] = degrees
        assert degrees.data_parallel * degrees.split == cards
        assert resolved.memory.verdict in ("fits", "tight")
        assert resolved.spec.precision.compute == ("bfloat16" if KINDS[kind].bfloat16 else "float16")
    # More cards never make it impossible.
    assert list(planned) == list(CARDS[len(CARDS) - len(planned) :])
    assert 64 in planned


@pytest.mark.parametrize(
    ("preset", "kind", "cards", "expected"),
    [
        ("llama_7b", "910", 8, (8, 1, 1)),
        ("llama_7b", "A2", 1, (1, 1, 1)),
        ("llama_65b", "A2", 8, (2, 4, 1)),
        ("llama2_70b", "910", 8, (1, 8, 1)),
    ],
)
def test_the_split_is_the_one_into_the_fewest_parts_that_fits(
    preset: str, kind: str, cards: int, expected: tuple[int, int, int]
) -> None:
    degrees = resolve_defaults(spec(preset), imagined_cluster(cards, kind)).degrees

    assert (degrees.data_parallel, degrees.model_parallel, degrees.pipeline_stage) == expected


@pytest.mark.parametrize(
    ("preset", "kind", "cards", "expected"),
    [
        # MindFormers' own run_llama_7b.yaml: data_parallel 8 with enable_parallel_optimizer.
        ("llama_7b", "A2", 8, (8, 1, 1, "states")),
        ("llama3_2_1b", "A2", 8, (8, 1, 1, "off")),
        ("llama_30b", "910", 256, (64, 4, 1, "states")),
    ],
)
def test_states_are_shared_out_where_all_weights_are_trained_and_do_not_fit(
    preset: str, kind: str, cards: int, expected: tuple[int, int, int, str]
) -> None:
    resolved = resolve_defaults(spec(preset, lora=None), imagined_cluster(cards, kind))
    degrees, level = resolved.degrees, resolved.spec.parallel.optimizer_shard

    assert (degrees.data_parallel, degrees.model_parallel, degrees.pipeline_stage, level) == expected
    assert (f"optimizer_shard {level}" in resolved.notes[0]) is (level != "off")
    assert resolved.spec.parallel.mode == ("data" if level == "off" else "semi_auto")


def test_ranks_that_share_a_layer_stay_on_one_host() -> None:
    hosts = tuple(
        Host(
            name=f"n{number}", address=f"10.0.0.{number}", devices=tuple(Device(device_id=index) for index in range(2))
        )
        for number in range(4)
    )
    degrees = resolve_defaults(spec("llama_65b"), Cluster(target="Ascend", kind="A2", hosts=hosts)).degrees

    assert degrees.model_parallel <= 2
    assert degrees.pipeline_stage > 1


def test_what_does_not_fit_names_changes_that_do_and_they_are_true() -> None:
    cluster = imagined_cluster(8, "910")
    forced = spec("llama_13b", parallel={"mode": "data"}, runtime={"recompute": False})
    resolved = resolve_defaults(forced, cluster)
    changes = smallest_changes(resolved.spec, resolved.degrees, resolved.memory, cluster)

    assert resolved.memory.verdict == "does not fit"
    assert "does not fit" in resolved.notes[0]
    assert changes
    for change in changes:
        assert change.memory.verdict == "fits"
        assert change.memory.pool < resolved.memory.pool


def test_when_no_split_fits_the_refusal_says_what_would() -> None:
    with pytest.raises(SpecError) as caught:
        resolve_defaults(spec("llama_7b", data={"train": "t", "batch_size": 64}), imagined_cluster(1, "A2"))

    assert "does not fit 1 card(s) of 58 GiB: data_parallel 1 x model_parallel 1 x pipeline_stage 1 needs" in str(
        caught.value
    )
    assert caught.value.hint.startswith("--set data.batch_size=16 makes it fit")


def test_no_cards_are_no_plan() -> None:
    with pytest.raises(SpecError, match="--cards 0 is no number of cards"):
        cluster_for(0, "A2", None)


def test_bfloat16_is_refused_where_the_card_has_none() -> None:
    with pytest.raises(SpecError, match="910 cards have no bfloat16"):
        resolve_defaults(spec("llama_7b", precision={"compute": "bfloat16"}), imagined_cluster(8, "910"))


def test_the_old_optimizer_keeps_its_name_and_the_difference_is_said() -> None:
    old = spec("llama_7b", training={"optimizer": {"type": "FP32StateAdamWeightDecay"}})
    resolved = resolve_defaults(old, imagined_cluster(8, "A2"))

    assert resolved.spec.training.optimizer.type == "FP32StateAdamWeightDecay"
    assert "no bias correction" in resolved.notes[0]


def test_groups_are_laid_out_as_mindspore_lays_its_device_matrix() -> None:
    found = groups(Degrees(data_parallel=2, model_parallel=2, pipeline_stage=2))

    assert found == {
        "model_parallel": [(0, 1), (2, 3), (4, 5), (6, 7)],
        "data_parallel": [(0, 2), (1, 3), (4, 6), (5, 7)],
        "pipeline_stage": [(0, 4), (1, 5), (2, 6), (3, 7)],
    }


def test_a_preview_needs_no_files_and_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = preview("llama_7b_lora", imagined_cluster(16, "A2"), parse_sets([]), Path("jobs"))
    read_back = made.to_dict()

    assert list(tmp_path.iterdir()) == []
    assert [node["argv"][2:4] for node in read_back["nodes"]] == [
        ["--local_worker_num=8", "--node_rank=0"],
        ["--local_worker_num=8", "--node_rank=1"],
    ]
    assert read_back["nodes"][1]["env"]["HCCL_CONNECT_TIMEOUT"] == "600"
    assert read_back["groups"] == {"data_parallel": [list(range(16))]}
    assert read_back["memory"]["verdict"] == "fits"
    assert any("the number of steps is not known" in note for note in made.notes)


def test_an_inventory_gives_the_cluster(tmp_path: Path) -> None:
    inventory = tmp_path / "two.yaml"
    host = '{name: "n[1-2]", address: "10.0.0.[1-2]", devices: "0-7", device_ips: "10.1.[1-2].[1-8]"}'
    inventory.write_text(f"kind: A2\nhosts:\n  - {host}\n")
    whole = cluster_for(None, None, inventory)

    assert [len(host.devices) for host in whole.hosts] == [8, 8]
    assert [len(host.devices) for host in cluster_for(12, None, inventory).hosts] == [8, 4]


NO_ADDRESSES = "kind: A2\nhosts:\n  - {name: 'n[1-2]', address: '10.0.0.[1-2]', devices: 0-7}\n"


@pytest.mark.parametrize(
    ("cards", "kind", "inventory", "reason"),
    [
        (3, "910", None, "E_910_GROUP"),
        (12, "910", None, "E_UNEVEN"),
        (20, "910", None, "E_UNEVEN"),
        (None, None, NO_ADDRESSES, "E_NO_IP"),
    ],
)
def test_a_rank_table_that_hccl_refuses_is_no_plan(
    tmp_path: Path, cards: int | None, kind: str | None, inventory: str | None, reason: str
) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(inventory or "")
    cluster = cluster_for(cards, kind, file if inventory else None)
    with pytest.raises(SpecError, match="HCCL would refuse this rank table on") as caught:
        preview("llama_7b_lora", cluster, parse_sets([]), tmp_path / "jobs")

    assert reason in caught.value.problems[0]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("kind", "cards"), [("910", 16), ("A2", 12), ("A3", 40), ("950", 20), ("310P", 4)])
def test_cards_that_are_not_here_are_planned_with_a_table_for_their_kind(kind: str, cards: int, tmp_path: Path) -> None:
    made = preview("llama_7b_lora", cluster_for(cards, kind, None), parse_sets([]), tmp_path, made_up=True)
    (table,) = (file.text for file in made.plan.files if file.path == "rank_table.json")

    assert check_text(table).for_kind(kind).of_level("E") == []
    assert made.notes[-1].startswith("the hosts are made up")


def split_refusal(cards: int, **parallel: int) -> str:
    with pytest.raises(SpecError, match=rf"no split of {cards} cards on 2 host\(s\) suits this model") as caught:
        resolve_defaults(spec("llama_7b", parallel=parallel), imagined_cluster(cards, "A2"))
    assert caught.value.hint
    return str(caught.value)


def test_no_split_names_what_is_in_its_way() -> None:
    reason = split_refusal(16, model_parallel=16)
    assert "model_parallel 16 ranks share a layer, and the smallest host has 8 card(s)" in reason

    reason = split_refusal(9, data_parallel=1)
    assert "num_heads 32 is not a multiple of model_parallel 9" in reason
    assert "num_layers 32 is not a multiple of pipeline_stage" in reason
    assert "the smallest host has 1 card(s)" in reason


def test_inputs_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, notes, missing = find_inputs(spec("llama_7b"))

    assert (found.dataset, found.rows) == (str(tmp_path / "t.mindrecord"), None)
    assert notes == ("the number of steps is not known before the rows are there",)
    assert missing[0] == "dataset t.mindrecord does not exist; launcher data preprocess makes one"


def test_the_plan_says_how_often_to_save_by_the_newest_job_of_its_spec(tmp_path: Path) -> None:
    for number, saved in enumerate(((2,), (2, 4))):
        attempts = (Made(began=100.0 * number, steps=4, saves=saved, ended=100.0 * number + 30),)
        named = {"name": "tiny_cpu", "created": iso(number)}
        job = MadeJob(job_id=f"bcdf{number}-tiny_cpu", steps=10_000_000, attempts=attempts, record=named)
        job.write(tmp_path)
    shown = preview("tiny_cpu", cluster_for(2, None, None), parse_sets(["training.epochs=1000000"]), tmp_path)
    (note,) = [note for note in shown.notes if "every_steps" in note]
    assert note.startswith("checkpoint.every_steps is ")
    assert "sqrt(2 x 0.25 s x 25,339 h)" in note
    assert note.endswith("Measured by bcdf1-tiny_cpu.")
