"""Lists of sources in a run spec: from the spec to rows, with notes on what was read, cut and held out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from support.data_tools import make_sentencepiece

from launcher.cli.app import main
from launcher.control.preview import find_inputs
from launcher.data.info import read_info
from launcher.doctor.job import missing_inputs
from launcher.errors import DataError, SpecError
from launcher.plan import inputs
from launcher.runspec.checking import load_spec
from launcher.runspec.layers import Override
from launcher.runspec.sections import RunSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    make_sentencepiece(folder / "tokenizer.model")
    rows = [{"ask": f"q{n}", "reply": f"a{n}", "by": "Eve"} for n in range(90)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    lines = [json.dumps({"question": f"r{n}", "answer": "b " * (60 if n < 5 else 3)}) for n in range(60)]
    (folder / "b.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(folder)


FIRST = {"path": "a.parquet", "weight": 5, "columns": {"question": "ask", "answer": "reply"}, "ignore": ["by"]}


def spec_of(train: Any, evaluation: dict[str, Any] | None = None, **data: Any) -> RunSpec:
    model = {"seq_length": 32, "vocab_size": 700, "tokenizer": "tokenizer.model"}
    values = {"data": {"train": train, "template": "plain", **data}, "evaluation": evaluation}
    changes = [Override(keys=("model", key), value=value, origin="test") for key, value in model.items()]
    changes += [Override(keys=(key,), value=value, origin="test") for key, value in values.items()]
    return load_spec("tiny_cpu", changes)


def test_a_list_of_sources_becomes_rows_with_their_parts(folder: Path) -> None:
    spec = spec_of([FIRST, {"path": "b.jsonl", "weight": 3}], {"fraction": 0.1, "every_steps": 5})
    found, notes, missing = find_inputs(spec)
    assert [source["estimated_from"] for source in found.sources] == [None, None]
    assert notes[0].startswith("tokenizing ")
    assert not missing
    resolved, pending = inputs.resolve(spec)
    assert pending is not None
    pending.make()
    made, pending = inputs.resolve(spec)
    assert pending is None
    assert made.dataset == resolved.dataset
    first, second = made.sources
    assert first["samples"] / second["samples"] == pytest.approx(5 / 3, rel=0.05)
    assert made.evaluation == resolved.evaluation
    assert made.evaluation is not None
    held_out = read_info(Path(made.evaluation))
    assert held_out is not None
    assert made.evaluation_rows == held_out.rows > 3
    assert any("are longer than seq_length 32 and cut" in note for note in made.notes)
    assert any("; seq_length " in note and " keeps 99 % whole" in note for note in made.notes)
    assert any("a.parquet: by is left out" in note for note in made.notes)
    # Another weight is another dataset.
    other, _ = inputs.resolve(spec_of([FIRST, {"path": "b.jsonl", "weight": 1}]))
    assert other.dataset != made.dataset


def test_a_plan_shows_each_source_before_anything_is_written(tmp_path: Path) -> None:
    values = spec_of(["b.jsonl", {**FIRST, "weight": None}]).model_dump(mode="json", exclude={"evaluation"})
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "run.yaml"), "--cards", "1"])
    assert told.exit_code == 0, told.output
    assert "b.jsonl: 60 samples, " in told.output
    assert "a.parquet: 90 samples, " in told.output
    assert "% of the tokens" in told.output
    assert not (tmp_path / "cache" / "datasets").exists()
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "run.yaml"), "--cards", "1", "--format", "json"])
    sources = json.loads(told.output)["sources"]
    assert [source["samples"] for source in sources] == [60, 90]
    assert sum(source["share"] for source in sources) == pytest.approx(1)


def test_what_stops_the_rows_is_said_by_the_plan_too() -> None:
    _, _, missing = find_inputs(spec_of([{**FIRST, "ignore": []}]))
    assert any("text that no part of a conversation is made of: by (in 90 of 90 records" in line for line in missing)


@pytest.mark.parametrize(
    ("train", "evaluation", "expected"),
    [
        ([{"path": "b.jsonl", "weigth": 3}], None, "unknown key data.train.0.weigth; did you mean weight?"),
        ([{"weight": 3}], None, "missing key data.train.0.path"),
        ([{"path": "b.jsonl", "weight": 0}], None, "data.train.0.weight: input should be greater than 0"),
        ([{"path": "b.jsonl", "columns": {"questoin": "x"}}], None, "questoin"),
        ({"path": "b.jsonl"}, None, "data.train: input should be a valid string"),
        ([], None, "data.train"),
        ("b.jsonl", {"fraction": 0.1, "data": "b.jsonl"}, "give one of evaluation.data and evaluation.fraction"),
        ("b.jsonl", {"fraction": 1.5}, "evaluation.fraction: input should be less than 1"),
        (
            "b.mindrecord",
            {"fraction": 0.5},
            "evaluation.fraction holds out raw records, and data.train is a .mindrecord",
        ),
    ],
)
def test_what_is_wrong_in_a_list_is_named(train: Any, evaluation: dict[str, Any] | None, expected: str) -> None:
    with pytest.raises(SpecError) as error:
        spec_of(train, evaluation)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("train", "error", "expected"),
    [
        (["none.csv"], DataError, "dataset none.csv does not exist"),
        (["x.mindrecord"], DataError, "dataset x.mindrecord does not exist"),
        (["*.xlsx"], DataError, "no file matches"),
        ([{"path": "b.jsonl", "columns": {"question": "ask"}}], DataError, "of that nothing can be learned"),
        ([{"path": "b.jsonl", "encoding": "klingon"}], DataError, "no such encoding"),
    ],
)
def test_sources_that_cannot_be_read_are_named(train: Any, error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as caught:
        inputs.resolve(spec_of(train))
    assert expected in str(caught.value)


def test_one_path_may_be_any_file_or_a_pattern(folder: Path) -> None:
    options: dict[str, Any] = {"type": "chat", "too_long": "drop", "train_on": "last", "dedup": True}
    found, pending = inputs.resolve(spec_of("b.*", **options))
    assert pending is not None
    pending.make()
    made, pending = inputs.resolve(spec_of("b.jsonl", **options))
    assert pending is None
    assert (made.dataset, made.rows) == (found.dataset, 55)
    assert any("5 conversations of data.train longer than seq_length 32 are left out" in note for note in made.notes)


def submit(*arguments: str) -> str:
    told = CliRunner().invoke(main, ["submit", "tiny_cpu", "--cards", "1", "--dry-run", *arguments])
    return f"{told.exit_code}: {told.output}"


def test_a_dry_run_refuses_what_submit_does_and_says_what_to_type(folder: Path) -> None:
    (folder / "qa.csv").write_text("question,answer,note\n" + "q,a,see below\n" * 9)
    model = (
        "--set",
        "model.tokenizer=tokenizer.model",
        "--set",
        "model.vocab_size=700",
        "--set",
        "data.template=plain",
    )
    refused = submit("--data", "qa.csv", *model)
    assert refused.startswith("3: ")
    assert "made of: note" in refused
    typed = shlex.split(refused.partition("hint: ")[2].partition(" leaves it out")[0])
    assert typed[0] == "--set"
    made = submit("--data", "qa.csv", *typed, *model)
    assert made.startswith("0: "), made
    assert "(about 9 rows, by estimate)" in made
    assert "base none: random weights" in made


def test_a_plan_estimates_rows_steps_and_what_is_held_out(tmp_path: Path) -> None:
    spec = spec_of("b.jsonl", {"fraction": 0.1, "every_steps": 40})
    values = spec.model_dump(mode="json")
    values["evaluation"] = {"fraction": 0.1, "every_steps": 40}
    values["training"]["steps"] = 30
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "run.yaml"), "--cards", "1"])
    assert told.exit_code == 0, told.output
    assert "(about 54 rows, by estimate; about 6 more held out)" in told.output
    assert "unknown" not in told.output
    assert "evaluation.every_steps is 40 and the run has 30 steps" in told.output


def test_held_out_records_that_are_trained_on_are_said(tmp_path: Path) -> None:
    (tmp_path / "twice.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    lines = (json.dumps({"question": "q", "answer": "a", "id": f"n{n}"}) + "\n" for n in range(60))
    (tmp_path / "twice.jsonl").write_text("".join(lines))
    spec = spec_of(str(tmp_path / "twice.jsonl"), {"fraction": 0.2})
    _, pending = inputs.resolve(spec)
    assert pending is not None
    pending.make()
    found, _ = inputs.resolve(spec)
    (note,) = [note for note in found.notes if "held-out records are in the training rows too" in note]
    info = read_info(Path(found.dataset))
    assert info is not None
    assert info.stats["warnings"] == [note]


@pytest.mark.parametrize("command", ["submit", "plan"])
def test_a_model_without_data_is_told_to_name_some(command: str, tmp_path: Path) -> None:
    settings = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "vocab_size": 700}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    (tmp_path / "M").mkdir()
    (tmp_path / "M" / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 64}))
    template = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (tmp_path / "M" / "tokenizer_config.json").write_text(json.dumps(template))
    told = CliRunner().invoke(main, [command, "--model", str(tmp_path / "M"), "--cards", "1"])
    assert told.exit_code == 2, told.output
    assert "hint: add --data FILE" in told.output


def test_an_index_is_missing_only_beside_its_dataset(tmp_path: Path) -> None:
    spec = spec_of(str(tmp_path / "x.mindrecord"))
    assert [line.split()[0] for line in missing_inputs(spec)] == ["dataset"]
    (tmp_path / "x.mindrecord").touch()
    assert [line.split()[:2] for line in missing_inputs(spec)] == [["dataset", "index"]]
