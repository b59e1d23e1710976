"""Where values come from, and specs that somebody wrote to break things: never a traceback, always a place."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cluster.model import Cluster, Device, Host
from launcher.common.rendering import environment
from launcher.common.yaml_lines import parse_text
from launcher.errors import SpecError
from launcher.jobs import JobPaths
from launcher.models.llama import LLAMA
from launcher.plan.degrees import resolve_defaults
from launcher.plan.launch_plan import Inputs, rank_files
from launcher.runspec.checking import load_source, load_spec, parse_spec
from launcher.runspec.layers import Override, apply, environment_overrides, fill_preset, parse_sets
from launcher.runspec.presets import all_presets
from launcher.runspec.schema import json_schema
from launcher.runspec.sections import RunSpec
from launcher.runspec.showing import origin, show

PRESETS = {preset.name: preset for preset in all_presets()}

SPEC = """\
name: x
model: {preset: llama_7b, seq_length: 512}
data: {train: a.mindrecord}
training: {epochs: 3}
"""


def from_text(text: str, *overrides: Override) -> RunSpec:
    return parse_spec(fill_preset(apply(parse_text(text, name="run.yaml"), overrides)))


# --------------------------------------------------------------------------------------------------- layers


def test_the_stronger_layer_wins_and_each_value_knows_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(SPEC)
    monkeypatch.setenv("LAUNCHER_TRAINING__EPOCHS", "5")
    monkeypatch.setenv("LAUNCHER_LORA__R", "4")
    monkeypatch.setenv("LAUNCHER_JOBS", "elsewhere")
    source = load_source("run.yaml", parse_sets(["lora.r=8", "training.lr_schedule.learning_rate=1e-4"]))
    spec = parse_spec(source)

    assert spec.lora is not None
    assert (spec.training.epochs, spec.lora.r, spec.model.seq_length, spec.model.hidden_size) == (5, 8, 512, 4096)
    assert spec.training.lr_schedule.learning_rate == 1e-4
    assert origin(source, ("lora", "r")) == "--set lora.r=8"
    assert origin(source, ("training", "epochs")) == "$LAUNCHER_TRAINING__EPOCHS"
    assert origin(source, ("model", "seq_length")) == "run.yaml:2"
    assert origin(source, ("model", "hidden_size")) == "preset llama_7b"
    assert origin(source, ("training", "seed")) == "default"


def test_a_section_set_whole_forgets_what_was_set_in_it() -> None:
    spec = from_text(SPEC, *parse_sets(["training.seed=7", "training={epochs: 9}"]))

    assert (spec.training.epochs, spec.training.seed) == (9, 42)


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["training.epochs"], "--set 'training.epochs': it must look like training.epochs=2"),
        (["=3"], "--set '=3': it must look like"),
        (["a..b=3"], "--set 'a..b=3': it must look like"),
        (["training.epochs=[1"], "--set 'training.epochs=[1': "),
        (["training.epochs=two"], "--set training.epochs=two: training.epochs: input should be a valid integer"),
        (["traning.epochs=2"], "--set traning.epochs=2: unknown key traning; did you mean training?"),
        (["name.first=2"], "--set name.first=2: name is 'x', which has no keys"),
        (["model.preset=llama_7"], "--set model.preset=llama_7: model.preset: there is no preset 'llama_7'"),
        (['name="\\0"'], "a character that no file can hold"),
    ],
)
def test_an_override_that_cannot_be_is_refused_by_its_own_name(sets: list[str], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_text(SPEC, *parse_sets(sets))

    assert expected in str(caught.value)


def test_an_environment_variable_that_cannot_be_is_named() -> None:
    with pytest.raises(SpecError, match=r"\$LAUNCHER_TRANING__EPOCHS: unknown key traning"):
        from_text(SPEC, *environment_overrides({"LAUNCHER_TRANING__EPOCHS": "2"}))
    with pytest.raises(SpecError, match=r"\$LAUNCHER_LORA__R: "):
        environment_overrides({"LAUNCHER_LORA__R": "[1"})


def test_variables_of_the_ranks_keep_their_names() -> None:
    found = environment_overrides({"LAUNCHER_ENV__FOO": "1", "LAUNCHER_ENV__HCCL__Path": "x", "LAUNCHER_ENV": "no"})

    assert [override.keys for override in found] == [("env", "FOO"), ("env", "HCCL__Path")]


def test_values_of_text_keys_stay_texts() -> None:
    found = environment_overrides({"LAUNCHER_ENV__FOO": "1", "LAUNCHER_NAME__X": "1", "LAUNCHER_LORA__R": "4"})
    sets = parse_sets(["name=007", "env.BAR=true", "model.checkpoint=null", "model.tokenizer=1e3"])
    spec = from_text(SPEC, *(override for override in found if override.keys[0] != "name"), *sets)

    assert dict(spec.env) == {"FOO": "1", "BAR": "true"}
    assert (spec.name, spec.model.checkpoint, spec.model.tokenizer) == ("007", None, "1e3")
    assert spec.lora is not None
    assert spec.lora.r == 4


def test_a_wrong_key_of_a_section_is_blamed_and_not_its_neighbour() -> None:
    with pytest.raises(SpecError) as caught:
        from_text(SPEC, *parse_sets(["lora.r=8", "lora.target_modules=zz"]))

    assert caught.value.problems[0].startswith(
        "--set lora.target_modules=zz: lora.target_modules 'zz' matches no layer"
    )


def test_a_merge_key_is_one_problem() -> None:
    with pytest.raises(SpecError) as caught:
        from_text("base: &b {preset: llama_7b}\nname: x\nmodel:\n  <<: *b\ndata: {train: a}")

    assert "a merge key (<<), which YAML 1.2 has not; write its keys out (line 4, column 3)" in str(caught.value)
    assert not caught.value.problems


def test_a_preset_gives_way_to_what_is_written() -> None:
    spec = from_text(SPEC.replace("seq_length: 512", "num_layers: 2, vocab_size: 40000"))

    assert (spec.model.num_layers, spec.model.vocab_size, spec.model.seq_length) == (2, 40000, 2048)


def test_without_architecture_or_preset_the_presets_are_named() -> None:
    with pytest.raises(SpecError) as caught:
        from_text("name: x\nmodel: {seq_length: 8}\ndata: {train: a}")

    assert "llama2_7b" in caught.value.hint


@pytest.mark.parametrize("name", ["tiny_cpu", "llama_7b_lora"])
def test_what_show_prints_reads_back_as_the_same_spec(name: str) -> None:
    source = load_source(name)
    spec = parse_spec(source)

    for origins in (False, True):
        assert parse_spec(parse_text(show(spec, source, origins=origins), name="shown.yaml")) == spec


def test_a_resolved_spec_reads_back_from_its_file() -> None:
    spec = resolve_defaults(load_spec("llama_7b_lora"), cluster(8)).spec

    assert RunSpec.model_validate_json(json.dumps(spec.model_dump(mode="json"))) == spec


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("training: {gradient_accumulation: 2}\nparallel: {mode: data}", "MindFormers sets it back to 1 in silence"),
        ("training: {gradient_accumulation: 2}\nparallel: {pipeline_stage: 2}", "accumulates over parallel.micro_batc"),
        ("env: {RANK_ID: '0'}", "env.RANK_ID is set by the launcher"),
        ("env: {'A B': '0'}", "string should match pattern"),
        ("training: {lr_schedule: {warmup_ratio: 0.1, warmup_steps: 3}}", "give one of lr_schedule.warmup_ratio and"),
        ("training: {lr_schedule: {total_steps: 0}}", "total_steps 0 is no schedule"),
        ("training: {lr_schedule: {type: PolynomialWithWarmUpLR, learning_rate: 1e-5, lr_end: 1e-5}}", "must be below"),
        ("hccl: {connect_timeout_s: 600, exec_timeout_s: 300}", "exec_timeout_s 300 is below connect_timeout_s"),
        ("lora: {target_modules: .*}", "matches model, a cell that holds or follows the layers"),
        ("lora: {target_modules: [q_proj]}", "did you mean wq for q_proj?"),
        ("lora: {target_modules: []}", "target_modules is empty"),
        ("training: {optimizer: {betas: [0.9]}}", "training.optimizer.betas"),
        ("training: {optimizer: {eps: 1e999}}", "training.optimizer.eps"),
        ("precision: {loss_scale: lots}", "precision.loss_scale"),
    ],
)
def test_settings_that_fail_later_or_in_silence_are_refused_now(line: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_text(SPEC.replace("training: {epochs: 3}\n", "") + line)

    assert expected in str(caught.value)
    assert all(problem.startswith("run.yaml:") for problem in caught.value.problems)


def test_rules_between_sections_are_in_the_same_report_as_wrong_values() -> None:
    with pytest.raises(SpecError) as caught:
        from_text(
            "name: x\nmodel: {preset: llama_7b, vocab_size: no}\ndata: {}\n"
            "training: {gradient_accumulation: 2}\nparallel: {mode: data}\nenv: {RANK_ID: a}\nlora: {r: 0}"
        )

    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "run.yaml:2", "run.yaml:3", "run.yaml:7", "run.yaml:6", "run.yaml:4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "pattern", [".*" * 240, "(w+)+$", "(|)" * 40 + "x", "(.*){50}q", "(?:w|w|)" * 20 + "z", "w?" * 200]
)
def test_an_expression_that_would_be_matched_for_ever_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(SpecError, match="matching it may take for ever"):
        from_text(SPEC + f"lora: {{target_modules: {json.dumps(pattern)}}}")


@pytest.mark.parametrize(
    ("pattern", "targets"),
    [
        ("|".join(f".*{name}" for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")), 7),
        (".*(?:wq|wk|wv|wo|w1|w2|w3)$", 7),
        ("w[qkvo]", 4),
        (r"^w\d$", 3),
        ("[w|*]q", 1),
        ("w{1}q?[kv]", 2),
    ],
)
def test_expressions_that_people_write_are_good(pattern: str, targets: int) -> None:
    lora = from_text(SPEC + f"lora: {{target_modules: {json.dumps(pattern)}}}").lora

    assert lora is not None
    assert len(lora.targets_in(LLAMA)) == targets


def test_targets_may_be_a_list_and_mean_the_same_as_the_expression() -> None:
    listed = from_text(SPEC + "lora: {target_modules: [wq, w1]}").lora
    written = from_text(SPEC + "lora: {target_modules: wq|w1}").lora

    assert listed is not None
    assert written is not None
    assert listed.targets_in(LLAMA) == written.targets_in(LLAMA) == ("wq", "w1")
    assert listed.pattern == "(?:wq|w1)$"


QWEN3 = """
name: x
data: {sample: {size: 1}}
model: {family: qwen3, hidden_size: 64, num_layers: 1, num_heads: 4, n_kv_heads: 2, head_dim: 24,
        intermediate_size: 64, vocab_size: 64, seq_length: 64}
"""


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("{}", "linear_qkv|linear_proj"),
        ("{target_modules: linear_fc1|linear_fc2}", "linear_fc1|linear_fc2"),
        ("{target_modules: [o_proj, q_proj, v_proj, k_proj]}", ("linear_qkv", "linear_proj")),
        ("{target_modules: wq|wk|wv|wo}", "linear_qkv|linear_proj"),  # what a spec of a LLaMA has
        ("{target_modules: q_proj|k_proj|v_proj|gate_proj|up_proj}", "linear_qkv|linear_fc1"),
    ],
)
def test_a_family_with_fused_layers_has_targets_of_its_own(given: str, stored: str | tuple[str, ...]) -> None:
    spec = from_text(QWEN3 + f"lora: {given}")
    assert spec.lora is not None
    assert spec.lora.target_modules == stored
    assert (spec.model.head_size, spec.model.q_width, spec.model.kv_width) == (24, 96, 48)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            "[q_proj, v_proj]",
            "names q_proj, which is a part of linear_qkv: MindFormers keeps q_proj, k_proj, v_proj of a",
        ),
        ("up_proj|o_proj", "names up_proj, which is a part of linear_fc1"),
        ("[wx]", "names wx: no such layer; layers are linear_qkv, linear_proj, linear_fc1, linear_fc2"),
        ("wq|wk", "names wq, which is a part of linear_qkv"),
        ("w.", "matches no layer; layers are linear_qkv, linear_proj, linear_fc1, linear_fc2"),
        (".*", "matches model, a cell that holds or follows the layers"),
        ("[]", "is empty"),
        ("[1]", "should be a valid string"),
    ],
)
def test_targets_that_fused_layers_do_not_have_are_refused(given: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_text(QWEN3 + f"lora: {{target_modules: {given}}}")
    assert any(reason in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"head_dim: 24": "head_dim: 25"}, "head_dim is 25: rotary needs it even"),
        ({"family: qwen3": "family: qwen2"}, "head_dim 24 is not 16 (hidden_size / num_heads), and a Qwen2 has no"),
        ({"seq_length: 64}": "seq_length: 64, max_position_embedding: 9999, rope_scaling: {factor: 8.0}}"},
         "rope_scaling is not supported for a Qwen3"),
    ],
)  # fmt: skip
def test_heads_and_positions_are_those_of_the_family(changed: dict[str, str], reason: str) -> None:
    text = QWEN3
    for old, new in changed.items():
        text = text.replace(old, new)
    with pytest.raises(SpecError) as caught:
        from_text(text)
    assert any(reason in problem for problem in caught.value.problems), caught.value.problems


def test_the_schema_knows_every_key_and_every_preset() -> None:
    schema = json_schema()
    model = schema["$defs"]["ModelSpec"]

    assert set(schema["properties"]) == set(RunSpec.model_fields)
    assert model["additionalProperties"] is False
    assert set(PRESETS) <= set(model["properties"]["preset"]["enum"])
    assert all(item.get("description") or "$ref" in str(item) for item in model["properties"].values())


# --------------------------------------------------------------------------------------------------- hostile

TEMPLATES = environment()


def cluster(cards: int) -> Cluster:
    host = Host(name="n", address="127.0.0.1", devices=tuple(Device(device_id=number) for number in range(cards)))
    return Cluster(target="Ascend", kind="A2", hosts=(host,))


_HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2, 3, 7, 2**31, 10**40, -(10**40), 0.0, -0.5, 1e-300, 1e300, 1.0, "", " ", "no", "1e-5",
    "0x10", "../../etc/passwd", "/dev/null", "a" * 5000, "\n", "{{ x }}", "{% raw %}", "$(reboot)", "`id`", "日本 🙂",
    "'\"", "!!python/object:os.system", "(a+)+$", "a{99999}", "[", "*", [], [1, [2, [3]]], ["wq", "wq"], {}, {"a": {}},
    {"preset": "llama_7b"}, {"preset": ["llama_7b"]}, {"type": "AdamW"}, [None], [[], {}],
]  # fmt: skip


def _places(values: Any, loc: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return [loc]
    return [loc, *(place for key, value in values.items() for place in _places(value, (*loc, key)))]


def hostile(seed: int) -> str:
    """A good spec with one to four places turned into something else, as YAML text; some are cut or scrambled."""
    chance = random.Random(seed)
    values = load_spec(chance.choice(["tiny_cpu", "llama_7b_lora"])).model_dump(mode="json")
    for _ in range(chance.randint(1, 4)):
        place = chance.choice(_places(values)[1:])
        target: Any = values
        for key in place[:-1]:
            target = target.get(key) if isinstance(target, dict) else None
        if isinstance(target, dict):
            key = chance.choice([place[-1], place[-1][:-1] + "x", "__class__", "0"])
            target[key] = chance.choice(_HOSTILE)
    text = yaml.safe_dump(values, allow_unicode=True)
    if seed % 5 == 0:
        cut = chance.randrange(len(text))
        text = text[:cut] + chance.choice(["\t", "\x07", "&a", "*a", ": :", "- - -", "%", "\ufeff", ""]) + text[cut:]
    return text


def plan_or_refuse(text: str) -> str:
    """What becomes of ``text``: "planned", or the report of the refusal."""
    try:
        spec = parse_spec(fill_preset(parse_text(text, name="run.yaml")))
        resolved = resolve_defaults(spec, cluster(8))
        inputs = Inputs(dataset="/d.mindrecord", rows=None, tokenizer=None, checkpoint=None)
        list(rank_files(TEMPLATES, resolved.spec, cluster(8), inputs, JobPaths(root=Path("/jobs/x"))))
    except SpecError as error:
        return str(error) if error.problems or error.hint else f"no word of help: {error}"
    return "planned"


@pytest.mark.parametrize("block", range(10))
def test_200_hostile_specs_are_planned_or_refused_with_a_reason(block: int) -> None:
    outcomes = [plan_or_refuse(hostile(seed)) for seed in range(block * 20, block * 20 + 20)]

    assert sum(outcome != "planned" for outcome in outcomes) >= 8
    assert not [outcome for outcome in outcomes if outcome.startswith("no word of help")]


def test_aliases_that_stand_for_billions_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]

    assert "more than 10000 values" in plan_or_refuse("\n".join(lines))


def test_aliases_of_a_few_values_are_fine() -> None:
    assert plan_or_refuse(SPEC.replace("epochs: 3", "epochs: &n 3, seed: *n")) == "planned"


@pytest.mark.parametrize("text", ["a: &x {b: *x}", "? {a: b}\n: c", "1: 2", "<<: {a: b}", "a: !!binary x", "- - a"])
def test_yaml_that_is_no_mapping_of_words_is_refused(text: str) -> None:
    assert plan_or_refuse(text).startswith("run.yaml")


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(value=st.text(min_size=1, max_size=60).filter(lambda text: "\0" not in text))
def test_any_string_survives_the_yaml_of_a_rank(value: str) -> None:
    spec = resolve_defaults(load_spec("llama_7b_lora"), cluster(1)).spec
    inputs = Inputs(dataset=f"/{value}", rows=None, tokenizer=None, checkpoint=None)
    try:
        value.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is in no file name
    (file,) = rank_files(TEMPLATES, spec, cluster(1), inputs, JobPaths(root=Path(f"/jobs/{value}")))
    read_back = yaml.safe_load(file.text)

    assert read_back["train_dataset"]["data_loader"]["dataset_files"] == [f"/{value}"]
    assert read_back["output_dir"] == str(Path(f"/jobs/{value}"))
