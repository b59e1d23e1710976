"""Inputs of a run: missing, unreadable or unfitting files are named before anything is spawned."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.data_tools import launcher

from launcher.cluster.model import Cluster, Device, Host
from launcher.common.ports import free_port, scheduler_port
from launcher.control.preview import find_inputs
from launcher.data.info import read_info
from launcher.data.sample_set import SampleSet
from launcher.errors import CheckpointError, DataError, LauncherError, SpecError
from launcher.jobs import JobPaths
from launcher.models.registry import shapes_of
from launcher.plan import inputs
from launcher.plan.launch_plan import make_plan
from launcher.plan.placement import Placement, RunOptions
from launcher.runspec.checking import load_spec
from launcher.runspec.sections import DataSpec, EvaluationSpec, ModelSpec, RunSpec


def spec_with(model: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> RunSpec:
    spec = load_spec("tiny_cpu")
    return spec.model_copy(
        update={
            "model": ModelSpec(**{**spec.model.model_dump(), **(model or {})}),
            "data": DataSpec(**(data or {"sample": {"size": 64}, "template": "plain"})),
        }
    )


@pytest.mark.parametrize(
    ("model", "data", "error", "expected"),
    [
        ({}, {"train": "none.mindrecord"}, DataError, "dataset none.mindrecord does not exist"),
        ({}, {"train": "raw.txt"}, SpecError, "raw.txt is raw, and model.tokenizer is not given"),
        ({}, {"train": "raw.json"}, SpecError, "is raw, and model.tokenizer is not given"),
        ({"tokenizer": "none.model"}, {"train": "raw.json"}, DataError, "tokenizer none.model does not exist"),
        ({}, {"train": "alone.mindrecord"}, DataError, "lacks its index"),
        ({}, {"train": "junk.mindrecord"}, DataError, "is not a MindRecord file"),
        ({"checkpoint": "none.ckpt"}, None, CheckpointError, "checkpoint none.ckpt does not exist"),
        ({"checkpoint": "raw.json"}, None, CheckpointError, "is neither .safetensors nor .ckpt"),
        ({"checkpoint": "folder"}, None, CheckpointError, "has no model.safetensors"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    data: dict[str, Any] | None,
    error: type[LauncherError],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("raw.json", "raw.txt", "alone.mindrecord", "junk.mindrecord", "junk.mindrecord.db"):
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / "folder").mkdir()
    with pytest.raises(error) as caught:
        inputs.resolve(spec_with(model, data))

    assert expected in str(caught.value)
    assert caught.value.hint


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"checkpoint": "none.ckpt", "tokenizer": "none.model"}
    with pytest.raises(DataError) as caught:
        inputs.resolve(spec_with(model, {"train": "none.mindrecord"}))
    for what in ("dataset none.mindrecord", "tokenizer none.model", "checkpoint none.ckpt"):
        assert f"  - {what} does not exist" in caught.value.message
    for way in (
        "launcher data preprocess",
        "launcher convert-ckpt",
        "copy the tokenizer.model that the base came with",
    ):
        assert way in caught.value.message
    assert "trains one" not in caught.value.message


def test_sample_data_is_pending_until_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    found, pending = inputs.resolve(spec_with())

    assert pending is not None
    assert found.rows == 64
    assert Path(found.dataset).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_different_samples_lie_in_different_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    datasets = {
        inputs.resolve(spec_with(model, {"sample": sample, "template": "plain"}))[0].dataset
        for model in ({}, {"seq_length": 64}, {"vocab_size": 512})
        for sample in ({"size": 64}, {"size": 65}, {"size": 64, "seed": 1})
    }

    assert len(datasets) == 9


def test_a_named_port_in_use_is_refused_and_a_free_one_is_picked() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LauncherError, match=f"--port {port} is in use") as caught:
            scheduler_port(port)
        assert scheduler_port(None) != port

    assert caught.value.exit_code == 5
    assert scheduler_port(free_port()) > 0


def test_spec_error_lists_its_problems() -> None:
    assert str(SpecError("x", problems=("a", "b"))) == "x\n  - a\n  - b"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset as preprocess writes it: 600 pieces, seq_length 64, template plain."""
    sample = SampleSet(size=200, seed=5, template="plain", vocab_size=600, seq_length=64)
    patch = pytest.MonkeyPatch()
    patch.setenv("LAUNCHER_CACHE", str(tmp_path_factory.mktemp("cache")))
    sample.make()
    folder = sample.folder
    patch.undo()
    return folder


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ({"seq_length": 128}, {}, "model.seq_length is 128, but the rows of"),
        ({"seq_length": 64, "vocab_size": 599}, {}, "model.vocab_size is 599, but"),
        ({"seq_length": 64}, {"template": "vicuna"}, "data.template is vicuna, but"),
        ({"seq_length": 64}, {"input_columns": ["input_ids", "label"]}, "data.input_columns names label, but"),
    ],
)
def test_a_dataset_that_does_not_fit_the_model_is_refused(
    rows: Path, model: dict[str, Any], data: dict[str, Any], expected: str
) -> None:
    dataset = {"train": str(rows / "train.mindrecord"), "template": "plain", **data}
    with pytest.raises(SpecError) as caught:
        inputs.resolve(spec_with(model, dataset))

    assert expected in str(caught.value)
    assert caught.value.hint.startswith("set ")


def test_packed_rows_go_with_packing_and_others_without(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    argv = ("--tokenizer", str(rows / "tokenizer.model"), "--template", "plain", "--seq-length", "256", "--packing")
    launcher("data", "preprocess", str(rows / "math.jsonl"), *argv, "-o", "p.mindrecord", cwd=tmp_path)
    packed = {"train": str(tmp_path / "p.mindrecord"), "template": "plain"}
    model = {"seq_length": 256, "vocab_size": 600, "tokenizer": str(rows / "tokenizer.model")}
    found, _ = inputs.resolve(spec_with(model, {**packed, "packing": True}))
    info = read_info(tmp_path / "p.mindrecord")
    assert info is not None
    assert found.rows == info.rows < 60
    assert any("packing: a row holds" in note for note in found.notes)
    with pytest.raises(SpecError, match=r"are packed: without data\.packing their samples would see each other"):
        inputs.resolve(spec_with(model, packed))
    unpacked = {"train": str(rows / "train.mindrecord"), "template": "plain", "packing": True}
    with pytest.raises(SpecError, match=r"data\.packing is true, but the rows of .* are not packed"):
        inputs.resolve(spec_with({**model, "seq_length": 64}, unpacked))
    raw, pending = inputs.resolve(spec_with(model, {**packed, "train": str(rows / "math.jsonl"), "packing": True}))
    assert pending is not None
    pending.make()
    made = read_info(Path(raw.dataset))
    assert made is not None
    assert made.rows == info.rows
    with pytest.raises(ValueError, match=r"leave data\.input_columns out"):
        DataSpec(**packed, packing=True, input_columns=("input_ids", "labels", "mask"))


def test_packed_sample_data_is_counted_once_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    spec = spec_with(
        {"seq_length": 256, "vocab_size": 600}, {"sample": {"size": 64}, "template": "plain", "packing": True}
    )
    found, pending = inputs.resolve(spec)
    assert pending is not None
    assert found.rows is None
    pending.make()
    again, nothing = inputs.resolve(spec)
    info = read_info(Path(again.dataset))
    assert nothing is None
    assert info is not None
    assert again.rows == info.rows < 30


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(rows: Path) -> None:
    """Also where the dataset does not say what it was made with: the tokenizer is asked itself."""
    for name in ("train.mindrecord", "train.mindrecord.db"):
        (rows / f"bare-{name}").write_bytes((rows / name).read_bytes())
    model = {"seq_length": 64, "vocab_size": 599, "tokenizer": str(rows / "tokenizer.model")}
    with pytest.raises(SpecError, match="has 600 pieces"):
        inputs.resolve(spec_with(model, {"train": str(rows / "bare-train.mindrecord"), "template": "plain"}))


def test_a_dataset_that_fits_is_taken_with_its_own_tokenizer(rows: Path) -> None:
    dataset = {"train": str(rows / "train.mindrecord"), "template": "plain"}
    found, pending = inputs.resolve(spec_with({"seq_length": 64, "vocab_size": 600}, dataset))

    assert pending is None
    assert found.rows == 200
    assert found.tokenizer == str(rows / "tokenizer.model")


def test_raw_json_is_pending_until_it_is_tokenized(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    model = {"seq_length": 64, "vocab_size": 600, "tokenizer": str(rows / "tokenizer.model")}
    spec = spec_with(model, {"train": str(rows / "math.jsonl"), "template": "plain"})
    before, pending = inputs.resolve(spec)
    assert pending is not None
    assert before.rows is None
    assert list(tmp_path.iterdir()) == []
    pending.make()
    after, pending = inputs.resolve(spec)

    assert pending is None
    assert (after.rows, after.dataset) == (200, before.dataset)


def test_held_out_rows_are_as_long_as_those_of_training(rows: Path) -> None:
    """Rows one token shorter, which earlier versions wanted, are refused; what to type never names their file."""
    file = str(rows / "train.mindrecord")
    evaluation = {"evaluation": EvaluationSpec(data=file)}
    training = spec_with({"seq_length": 64, "vocab_size": 600}, {"train": file, "template": "plain"})
    found, pending = inputs.resolve(training.model_copy(update=evaluation))
    with pytest.raises(SpecError) as caught:
        inputs.resolve(spec_with({"seq_length": 65, "vocab_size": 600}).model_copy(update=evaluation))

    assert (found.evaluation, found.evaluation_rows, pending) == (file, 200, None)
    assert f"the rows of evaluation.data {file} were made for 64" in str(caught.value)
    assert str(caught.value.hint).endswith("--seq-length 65 --template plain -o train-65.mindrecord")


def test_raw_held_out_records_are_tokenized_as_those_of_training(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    raw = str(rows / "math.jsonl")
    model = {"seq_length": 64, "vocab_size": 600, "tokenizer": str(rows / "tokenizer.model")}
    spec = spec_with(model, {"train": raw, "template": "plain"}).model_copy(
        update={"evaluation": EvaluationSpec(data=raw)}
    )
    before, pending = inputs.resolve(spec)
    assert pending is not None
    assert pending.describe().count("tokenizing") == 2
    pending.make()
    after, pending = inputs.resolve(spec)

    assert pending is None
    assert (after.evaluation, after.evaluation_rows) == (before.evaluation, 200)
    made = [read_info(Path(str(path))) for path in (after.dataset, after.evaluation)]
    assert len({info.fingerprint for info in made if info}) == 1
    with pytest.raises(SpecError, match=r"data\.sample makes its own tokenizer"):
        inputs.resolve(spec_with(model).model_copy(update={"evaluation": spec.evaluation}))


def test_what_is_cut_is_said_before_and_after_the_rows_are_made(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    model = {"seq_length": 24, "vocab_size": 600, "tokenizer": str(rows / "tokenizer.model")}
    spec = spec_with(model, {"train": str(rows / "math.jsonl"), "template": "plain"})
    _, pending = inputs.resolve(spec)
    assert pending is not None
    pending.make()
    found, _ = inputs.resolve(spec)
    whole = read_info(rows / "train.mindrecord")
    cut = read_info(Path(found.dataset))

    assert whole
    assert cut
    total = whole.counts["loss_tokens"] + whole.counts["lost_tokens"]
    lost = total - cut.counts["loss_tokens"]
    assert cut.counts["lost_tokens"] == lost > whole.counts["lost_tokens"]
    (note,) = found.notes
    assert f"{cut.counts['truncated']} of 200 conversations of data.train are longer than seq_length 24 and cut" in note
    assert f"{lost:,} of {total:,} tokens in the loss are lost" in note


def test_the_tokenizer_of_the_base_is_taken_and_held_against_the_rows(rows: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.model").write_bytes((rows / "tokenizer.model").read_bytes())
    spec = spec_with(
        {"seq_length": 64, "vocab_size": 600, "checkpoint": str(base)},
        {"train": str(rows / "math.jsonl"), "template": "plain"},
    )
    found, _ = inputs.rows_of_training(spec)
    ready = spec.model_copy(update={"data": DataSpec(train=str(rows / "train.mindrecord"), template="plain")})

    assert found.tokenizer == str(base / "tokenizer.model")
    assert f"model.tokenizer is not given: the base's {base / 'tokenizer.model'} is taken" in found.notes
    # The same pieces in other bytes: a field that nothing reads.
    (base / "tokenizer.model").write_bytes((rows / "tokenizer.model").read_bytes() + b"\xfa\x06\x01x")
    inputs.rows_of_training(ready)
    launcher("data", "tokenizer", str(rows / "math.jsonl"), "--vocab-size", "590", "-o", "other", cwd=tmp_path)
    (base / "tokenizer.model").write_bytes((tmp_path / "other").read_bytes())
    with pytest.raises(
        SpecError, match=r"which is not the base's .*: token \d+ is '.+' in the rows and '.+' to"
    ) as raised:
        inputs.rows_of_training(ready)
    assert f"launcher data preprocess --tokenizer {base / 'tokenizer.model'}" in str(raised.value.hint)


def test_a_plan_takes_the_tokenizer_of_the_base_as_submit_does(rows: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.model").write_bytes((rows / "tokenizer.model").read_bytes())
    spec = spec_with(
        {"seq_length": 64, "vocab_size": 600, "checkpoint": str(base)},
        {"train": str(rows / "math.jsonl"), "template": "plain"},
    )
    shapes = shapes_of(spec.model.model_dump())
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, base / "model.safetensors")
    found, _, missing = find_inputs(spec)

    assert not missing
    assert dataclasses.replace(found, sources=(), about_rows=None) == inputs.resolve(spec)[0]
    assert [source["samples"] for source in found.sources] == [200]
    assert found.tokenizer == str(base / "tokenizer.model")


def test_special_tokens_of_another_tokenizer_are_refused_before_anything_starts(rows: Path, tmp_path: Path) -> None:
    model = {"seq_length": 64, "vocab_size": 600, "tokenizer": str(rows / "tokenizer.model"), "eos_token_id": 1}
    with pytest.raises(SpecError, match=r"model\.eos_token_id is 1 \('<s>'\)") as caught:
        inputs.resolve(spec_with(model, {"train": str(rows / "math.jsonl"), "template": "plain"}))
    assert caught.value.hint == "set model.eos_token_id: 2"
    said = launcher(
        "config", "check", "tiny_cpu", *("--set", f"model.tokenizer={rows / 'tokenizer.model'}"),
        *("--set", "model.pad_token_id=300"), cwd=tmp_path, code=2,
    )  # fmt: skip
    assert "model.pad_token_id is 300" in said


@pytest.mark.parametrize(
    ("rows_of", "note"),
    [(200, []), (203, ["3 of 203 rows of evaluation.data are left out: a batch of all ranks has 4"]), (3, None)],
)
def test_held_out_rows_that_fill_no_batch_are_said(
    rows: Path, tmp_path: Path, rows_of: int, note: list[str] | None
) -> None:
    file = str(rows / "train.mindrecord")
    spec = spec_with({"seq_length": 64, "vocab_size": 600}, {"train": file, "template": "plain", "batch_size": 4})
    spec = spec.model_copy(update={"evaluation": EvaluationSpec(data=file)})
    found = dataclasses.replace(inputs.resolve(spec)[0], evaluation_rows=rows_of)
    make = partial(
        make_plan,
        spec=spec,
        spec_name="x",
        placement=Placement(
            cluster=Cluster(target="CPU", hosts=(Host(name="h", address="127.0.0.1", devices=(Device(device_id=0),)),))
        ),
        inputs=found,
        paths=JobPaths(root=tmp_path / "id-x"),
        options=RunOptions(program="x"),
    )
    if note is None:
        with pytest.raises(SpecError, match="has 3 rows, and a batch of all ranks 4"):
            make()
        return
    assert [text for text in make().notes if "left out" in text] == note
