"""Run specs: good ones load, bad ones are refused with every problem, its line and a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.common import resources
from launcher.common.yaml_lines import parse_text
from launcher.errors import SpecError
from launcher.models.llama import LLAMA
from launcher.runspec.checking import load_spec, parse_spec
from launcher.runspec.reading import find_spec
from launcher.runspec.sections import RunSpec

MODEL = """
model: {hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 16, vocab_size: 32, seq_length: 16}
"""
GOOD = "name: x\ndata: {train: a.mindrecord}" + MODEL


def parse(text: str) -> RunSpec:
    return parse_spec(parse_text(text, name="run.yaml"))


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse(text)
    return caught.value.problems


@pytest.mark.parametrize("name", resources.names("configs", ".yaml"))
def test_every_shipped_config_loads(name: str) -> None:
    assert load_spec(name).name == name


def test_the_7b_config_has_the_values_of_the_reference_recipe() -> None:
    spec = load_spec("llama_7b_lora")

    assert (spec.model.seq_length, spec.data.batch_size, spec.data.drop_remainder) == (2048, 2, True)
    assert spec.data.input_columns == ("input_ids", "labels")
    assert spec.training.optimizer.model_dump() == {
        "type": "AdamW",
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    schedule = spec.training.lr_schedule
    assert schedule.type == "CosineWithWarmUpLR"
    assert (schedule.learning_rate, schedule.warmup_ratio, schedule.total_steps) == (1e-5, 0.03, -1)
    assert spec.lora is not None
    assert (spec.lora.r, spec.lora.alpha, spec.lora.dropout, spec.lora.targets_in(LLAMA)) == (
        16,
        16,
        0.05,
        ("wq", "wk", "wv", "wo"),
    )


def test_all_problems_come_in_one_report_with_line_and_suggestion() -> None:
    found = problems("name: x\nlora:\n  alpa: 8\n  r: 0\ndata: {train: a, batch_size: two}\ntraning: {}" + MODEL)

    assert found == (
        "run.yaml:5: data.batch_size: input should be a valid integer, got 'two'",
        "run.yaml:4: lora.r: input should be greater than or equal to 1, got 0",
        "run.yaml:3: unknown key lora.alpa; did you mean alpha?",
        "run.yaml:6: unknown key traning; did you mean training?",
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "lora: {target_modules: zz}",
            "target_modules 'zz' matches no layer; layers are wq, wk, wv, wo, w1, w2, w3",
        ),
        ("lora: {target_modules: '('}", "target_modules '(' is not a regular expression"),
        ("lora: {dropout: 1.0}", "lora.dropout: input should be less than 1, got 1.0"),
        ("lora: {r: true}", "lora.r: input should be a valid integer, got True"),
        ("lora: {r: '8'}", "lora.r: input should be a valid integer, got '8'"),
        (
            "precision: {params: float8}",
            "precision.params: input should be 'float32', 'float16' or 'bfloat16'",
        ),
        ("parallel: {mode: magic}", "parallel.mode: input should be 'data' or 'semi_auto'"),
        ("training: {steps: 0}", "training.steps: input should be greater than or equal to 1, got 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_reason(line: str, expected: str) -> None:
    (found,) = problems(f"{GOOD}{line}\n")

    assert expected in found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_heads: 2": "num_heads: 3"}, "hidden_size 8 is not a multiple of num_heads 3"),
        ({"num_heads: 2": "num_heads: 8"}, "hidden_size / num_heads is 1: rotary needs it even"),
        ({"num_heads: 2": "num_heads: 2, n_kv_heads: 3"}, "num_heads 2 is not a multiple of n_kv_heads 3"),
    ],
)
def test_heads_must_divide(change: dict[str, str], expected: str) -> None:
    text = GOOD
    for old, new in change.items():
        text = text.replace(old, new)

    assert problems(text) == (f"run.yaml:3: {expected}",)


def test_data_has_exactly_one_source() -> None:
    both = GOOD.replace("train: a.mindrecord", "train: a.mindrecord, sample: {size: 4}")

    for text in (both, GOOD.replace("train: a.mindrecord", "")):
        assert problems(text) == ("run.yaml:2: give one of data.train and data.sample, and null for the other",)


def test_scalars_are_read_as_yaml_1_2() -> None:
    spec = parse(f"{GOOD}env: {{A: no, B: on}}\ntraining: {{lr_schedule: {{learning_rate: 1e-5}}}}\n")

    assert spec.env == {"A": "no", "B": "on"}
    assert spec.training.lr_schedule.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a run spec is a mapping of keys, this is empty"),
        ("- a", "a run spec is a mapping of keys, this is a list"),
        ("a: [1", "is not YAML"),
        ("a: 1\na: 2", "key 'a' stands twice"),
        ("a: !!python/object/apply:os.system [echo]", "is not YAML"),
        ("a: &x [*x]", "is not YAML"),
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
            "more than 10000 values",
        ),
        ("\x00", "is not YAML"),
        ("? [a, b]\n: 1", "is not YAML"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_what_is_no_spec_is_refused(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text)

    assert expected in str(caught.value)


def test_a_missing_spec_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        find_spec("tiny_cpuu")

    assert caught.value.hint == "did you mean tiny_cpu?"


def test_a_config_in_the_working_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny_cpu.yaml").write_text(GOOD.replace("name: x", "name: mine"))
    monkeypatch.chdir(tmp_path)

    assert load_spec("tiny_cpu").name == "mine"


def test_an_unreadable_spec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(SpecError, match="cannot read the run spec"):
        load_spec(str(path))


def test_a_name_cannot_leave_the_configs_folder() -> None:
    with pytest.raises(SpecError, match="no run spec"):
        find_spec("../pyproject")
