"""Choosing tokens, texts that grow, questions, answers on their way out, and what a reference means. No MindSpore."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.checkpoint_sets import launcher, write_job
from support.data_tools import make_hugging_face
from support.inference_tools import CONTEXT, MODEL, VOCAB, make_model
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from launcher.checkpoint.convert import convert, open_model
from launcher.checkpoint.dtypes import Array
from launcher.cli.options.model import SamplingOptions
from launcher.data.messages import Message
from launcher.data.tokenizer import load_tokenizer, train_tokenizer
from launcher.errors import CheckpointError, DataError, HostError, JobCancelled, JobError, LauncherError, SpecError
from launcher.inference.adapters import with_adapter
from launcher.inference.asking import Asking
from launcher.inference.chatting import Chat, line_reader
from launcher.inference.decoding import LENGTH, STOP, Row
from launcher.inference.evaluation import Problem, cross_entropy, folded
from launcher.inference.interrupts import let_through
from launcher.inference.judging import final_number
from launcher.inference.model import Model
from launcher.inference.network import network_config, sixteen_bits
from launcher.inference.prompts import collect, parse_messages
from launcher.inference.provenance import made_with
from launcher.inference.sampling import GenerationSpec, Sampler
from launcher.inference.session import Answer, Question, Session
from launcher.inference.sources import Given, find_model
from launcher.inference.transcript import Transcript
from launcher.inference.weights import read, with_folds
from launcher.inference.writing import InOrder, OutputFile, locked, to_json
from launcher.jobs import JobPaths, JobRecord
from launcher.models.generation import generation_config, generation_section


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("infer") / "model")


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


# ------------------------------------------------------------------------------------------------ network


def test_on_ascend_the_network_is_built_for_its_kernels_and_on_cpu_for_what_is_there(model_folder: Path) -> None:
    model = find_model(str(model_folder), model_folder)
    ascend, cpu = (network_config(model, device, 4) for device in ("Ascend", "CPU"))

    for key in ("use_past", "use_flash_attention", "fused_rms_norm"):
        assert (ascend[key], cpu[key]) == (True, False)
    assert (ascend["batch_size"], cpu["compute_dtype"]) == (4, "float32")
    assert ascend["num_blocks"] * ascend["block_size"] >= CONTEXT * ascend["batch_size"]


def test_cards_without_bfloat16_compute_in_float16() -> None:
    assert [sixteen_bits(name, bfloat16=True) for name in ("float16", "bfloat16", "float32")] == [
        "float16", "bfloat16", "bfloat16",
    ]  # fmt: skip
    assert sixteen_bits("bfloat16", bfloat16=False) == "float16"


# ------------------------------------------------------------------------------------------------ sampling

LOGITS = np.array([0.0, 3.0, 2.0, -1.0, 2.5], np.float32)


def picks(count: int = 300, **spec: float) -> set[int]:
    sampler = Sampler(GenerationSpec(**spec))  # type: ignore[arg-type]
    return {sampler.pick(LOGITS, []) for _ in range(count)}


def test_temperature_zero_is_greedy_and_above_all_tokens_are_drawn() -> None:
    assert picks() == {1}
    assert picks(temperature=5.0) == {0, 1, 2, 3, 4}


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    assert picks(temperature=1.0, top_k=2) == {1, 4}
    # softmax: 1 has 0.46, 4 has 0.28, 2 has 0.17
    assert picks(temperature=1.0, top_p=0.4) == {1}
    assert picks(temperature=1.0, top_p=0.7) == {1, 4}
    assert picks(temperature=1.0, top_p=0.8) == {1, 2, 4}


def test_a_repetition_penalty_makes_what_was_said_less_likely() -> None:
    sampler = Sampler(GenerationSpec(repetition_penalty=2.0))

    assert sampler.pick(LOGITS, [1]) == 4
    assert sampler.pick(LOGITS, [1, 4, 4]) == 2
    assert sampler.pick(np.array([-1.0, -1.5], np.float32), [0]) == 1  # below zero it is multiplied


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_seed_gives_one_text(seed: int) -> None:
    first, second = (Sampler(GenerationSpec(temperature=1.0, seed=seed)) for _ in range(2))

    assert [first.pick(LOGITS, []) for _ in range(20)] == [second.pick(LOGITS, []) for _ in range(20)]


# ------------------------------------------------------------------------------------------------ texts


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30), cut=st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_pieces_of_a_streamed_answer_make_its_text(model_folder: Path, text: str, cut: int) -> None:
    tokenizer = load_tokenizer(model_folder / "tokenizer.model")
    stop = text[cut : cut + 2]
    transcript = Transcript(tokenizer, (stop,) if stop.strip() else ())
    pieces = []
    for token in tokenizer.encode(text, start=True):
        transcript.add(token)
        if transcript.stopped:
            break
        pieces.append(transcript.news())
    pieces.append(transcript.news(final=True))

    assert "".join(pieces) == transcript.text
    if not (stop.strip() and stop in tokenizer.decode(transcript.tokens)):
        assert transcript.text == tokenizer.decode(tokenizer.encode(text, start=True)).strip()
    else:
        assert stop not in transcript.text


def test_what_may_become_a_stop_text_is_held_back(model_folder: Path) -> None:
    tokenizer = load_tokenizer(model_folder / "tokenizer.model")
    transcript = Transcript(tokenizer, ("##",))
    shown = []
    for token in tokenizer.encode("a#b##c", start=True):
        transcript.add(token)
        shown.append(transcript.news())
        if transcript.stopped:
            break

    assert "".join(shown) == "a#b" == transcript.text


def test_a_row_ends_by_its_limit_by_an_end_token_and_when_it_is_cancelled(model_folder: Path) -> None:
    def row(limit: int, ends: frozenset[int]) -> Row:
        transcript = Transcript(load_tokenizer(model_folder / "tokenizer.model"))
        return Row(prompt=[1, 5], spec=GenerationSpec(), limit=limit, ends=ends, transcript=transcript)

    likely = np.eye(VOCAB, dtype=np.float32)[300]
    limited, ended = row(2, frozenset({2})), row(9, frozenset({300}))
    assert [limited.advance(likely), limited.finish, limited.advance(likely), limited.finish] == [
        300,
        None,
        300,
        LENGTH,
    ]
    assert (ended.advance(likely), ended.finish, ended.new_tokens) == (300, STOP, [])


# ------------------------------------------------------------------------------------------------ questions


def test_questions_come_from_options_text_and_json_lines(tmp_path: Path) -> None:
    text, lines = tmp_path / "q.txt", tmp_path / "q.jsonl"
    text.write_bytes("\ufeffone\r\n\n  two  \n".encode())
    lines.write_text(
        '{"id": "a", "prompt": "one"}\n\n{"messages": [{"role": "system", "content": "s"}, '
        '{"role": "user", "content": [{"type": "text", "text": "two"}]}]}\n'
        '{"id": 7, "conversations": [{"from": "human", "value": "three"}, {"from": "gpt", "value": "answer"}]}\n'
    )

    assert [(q.id, q.shown) for q in collect(["zero"], str(text))] == [("1", "zero"), ("2", "one"), ("3", "two")]
    found = collect([], str(lines))
    assert [(q.id, q.shown) for q in found] == [("a", "one"), ("2", "two"), ("7", "three")]
    assert found[1].messages[0] == Message("system", "s")
    assert collect([], str(lines), system="t")[1].messages == (Message("system", "t"), Message("user", "two"))
    assert collect(["x"], None, raw=True)[0].text == "x"


def test_stdin_is_read_as_text_or_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for raw, shown in ((b"one\ntwo\n", ["one", "two"]), (b'{"prompt": "one"}\n', ["one"])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert [question.shown for question in collect([], "-")] == shown


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "  "}', "line 1: the prompt is empty"),
        ('{"prompt": 3}', 'it has neither "prompt" nor "messages"'),
        ("[]", "it is no object"),
        ("{", "line 1: Expecting"),
        ('{"messages": []}', "the last message must be the user's"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "a message needs a role"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "only text can be understood"),
        ('{"messages": [3]}', "a message must be an object"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', "a message needs a role"),
        ('{"messages": [{"role": "user", "content": "x\\ud800"}]}', "not valid Unicode at character 2"),
        ('{"prompt": "\\udfff"}', "line 1: the text is not valid Unicode"),
        ('{"prompt": "a", "id": "\\ud800"}', "not valid Unicode"),
        ('{"messages": 3}', "messages must be a list"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "two questions have the id 'x'"),
        ("\n".join(["nonsense"] * 9), "and 4 more"),
    ],
)
def test_a_file_that_cannot_be_asked_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(content)

    with pytest.raises(DataError) as caught:
        collect([], str(file))
    assert expected in caught.value.message


def test_a_system_turn_comes_first() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}]

    with pytest.raises(ValueError, match="only the first message"):
        parse_messages(turns)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes(b"\xff\xfe")

    with pytest.raises(DataError, match="cannot read"):
        collect([], str(tmp_path / "q.txt"))
    with pytest.raises(SpecError, match="nothing to ask"):
        collect([], None)


@pytest.mark.parametrize("option", ["--prompt", "--system", "--stop"])
def test_options_that_are_no_text_are_refused(option: str) -> None:
    done = launcher("infer", "none", "--prompt", "x", option, os.fsdecode(b"a\xff"))
    assert done.returncode == 2
    assert f"'{option}': not valid UTF-8 at character 2" in done.stderr


def test_lines_of_a_chat_that_are_no_text_cost_no_others(model_folder: Path) -> None:
    """As a pipe brings them: the first and the last are read, the one between them is not."""
    session = Session(find_model(str(model_folder), model_folder))
    lines = io.TextIOWrapper(io.BytesIO(b"/system a\n/system b\xff\n/system\n"), encoding="utf-8")
    out = io.StringIO()
    Chat(session=session, spec=GenerationSpec(), read=line_reader(lines), out=out).run()

    said = out.getvalue().splitlines()
    assert said[1].startswith("error: this line is not valid Unicode")
    assert (said[0], said[-1]) == ("(set; the conversation starts anew)", "a")


# ------------------------------------------------------------------------------------------------ answers


def answer(name: str, prompt: str = "p") -> Answer:
    return Answer(id=name, prompt=prompt, text=f"t{name}", prompt_tokens=1, new_tokens=2, finish="stop", seconds=0.1)


def questions(*names: str) -> list[Question]:
    return [Question(id=name, messages=(Message("user", "p"),)) for name in names]


@given(st.permutations(range(6)))
def test_answers_are_given_on_in_order(order: list[int]) -> None:
    found: list[str] = []
    ordered = InOrder(lambda given: found.append(given.id))
    for place in order:
        ordered.put(place, answer(str(place)))

    assert found == [str(place) for place in range(6)]


MADE = {"model": "m", "weights": "w", "template": "plain", "prompt": "p", "temperature": 0.0}


def made(*names: str, **changes: Any) -> dict[str, dict[str, Any]]:
    return {name: {**MADE, **changes} for name in names}


def opened(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> AbstractContextManager[OutputFile]:
    return locked(path, on_wait=on_wait, interrupted=bool)


def test_a_json_file_is_asked_record_by_record(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(
        json.dumps([{"id": "x", "prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}], indent=1)
    )
    asked = collect([], str(file))
    assert [(question.id, question.shown) for question in asked] == [("x", "a"), ("2", "b")]
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert [question.shown for question in collect([], str(file))] == ["a", "b"]
    file.write_text('[{"prompt": "a"}, {"question": "b"}]')
    with pytest.raises(DataError, match=r"record 2: it has neither"):
        collect([], str(file))
    file.write_text('[{"prompt": "a"},\n')
    with pytest.raises(DataError, match="line 1"):
        collect([], str(file))


def test_an_output_file_is_continued_and_sorted(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with opened(path) as file:
        file.add([answer("c"), answer("x")], made("c", "x"))
    link = tmp_path / "link"
    link.symlink_to(path)
    with path.open("a") as half:
        half.write('{"id": "b", "prom')  # a killed run
    with opened(link) as file:
        assert [*file.lines] == ["c", "x"]
        file.check(made("a", "b", "c"))
        file.add([answer("b"), answer("a")], made("a", "b"))
        file.sort(["a", "b", "c"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["x", "a", "b", "c"]
    assert all(line["made_with"] == MADE for line in lines)
    assert link.is_symlink()
    path.write_bytes(path.read_bytes()[:-1])  # an editor that leaves the last line without an end
    with opened(path) as file:
        file.add([answer("d")], made("d"))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["x", "a", "b", "c", "d"]
    stamp = path.stat().st_mtime_ns
    with opened(path) as file:
        file.sort(["c", "d"])
    assert path.stat().st_mtime_ns == stamp


def test_an_output_file_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file/out.jsonl", "a" * 300):
        with pytest.raises(HostError, match="cannot write"), opened(tmp_path / name):
            pass
    with opened(tmp_path / "new.jsonl"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with opened(tmp_path / "file"):  # is empty, but the user's
        pass
    assert (tmp_path / "file").exists()


def test_an_output_that_cannot_be_written_costs_no_answers(model_folder: Path, tmp_path: Path) -> None:
    """It is refused before the model is loaded: that would compute answers and lose them."""
    (tmp_path / "file").touch()
    session = Session(find_model(str(model_folder), tmp_path))
    asking = Asking(session=session, spec=GenerationSpec())
    with pytest.raises(HostError, match="cannot write"):
        asking.into_file(questions("a"), tmp_path / "file" / "out.jsonl")
    assert "_decoder" not in vars(session)


def test_many_writers_of_one_file_wait_for_each_other_and_lose_nothing(tmp_path: Path) -> None:
    """Each sorts, which puts a new file in the place of the one that the others wait for."""
    path, waited = tmp_path / "out.jsonl", []

    def write(number: int) -> None:
        names = [f"{number}-{part}" for part in "zyx"]
        with opened(path, on_wait=lambda: waited.append(number)) as file:
            for name in names:
                file.add([answer(name)], made(name))
                time.sleep(0.02)
            file.sort(sorted(names))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert sorted(found) == sorted(f"{number}-{part}" for number in range(6) for part in "zyx")
    assert waited
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_ctrl_c_ends_the_wait_for_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path), pytest.raises(JobCancelled), locked(path, on_wait=lambda: None, interrupted=lambda: True):
        pass


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": "v", "model": "n"}, "weights of m, now other ones of n"),
        ({"temperature": 0.7, "seed": 1}, r"temperature 0\.0, now 0\.7; seed None, now 1"),
        ({"template": "vicuna"}, "template 'plain', now 'vicuna'"),
        ({"prompt": "q"}, "another prompt: the question, its system text or earlier turns"),
    ],
)
def test_answers_that_were_made_in_another_way_are_not_continued(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as file:
        file.add([answer("a")], made("a"))
    with pytest.raises(DataError, match=f"id 'a' that was made in another way: {expected}"), opened(path) as file:
        file.check(made("a", "b", **changes))
    with opened(path) as file:
        file.check(made("a", "b", model="another/path/to/m"))
        file.check(made("b", prompt="q"))


def test_how_an_answer_is_made_is_told_from_all_that_it_follows_from(copy: Path, tmp_path: Path) -> None:
    asked = questions("a")[0]
    session = Session(find_model(str(copy), tmp_path))

    def of(question: Question = asked, session: Session = session, **sampling: Any) -> dict[str, Any]:
        return made_with(session, GenerationSpec(**sampling), session.prepare([question]))["a"]

    first = of()
    assert first == of(seed=3)  # nothing is drawn
    assert of(temperature=0.5) != of(temperature=0.5, seed=3)
    assert {first["prompt"]}.isdisjoint(
        of(Question(id="a", messages=turns))["prompt"]
        for turns in (
            (Message("system", "s"), *asked.messages),
            (Message("user", "x"), Message("assistant", "y"), *asked.messages),
        )
    )
    assert of(Question(id="a", text="p"))["template"] is None
    moved = Path(shutil.copytree(copy, tmp_path / "moved"))
    assert of(session=Session(find_model(str(moved), tmp_path)))["weights"] == first["weights"]
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.1.attention.wq.weight"][3, 3] += 1
    save_file(weights, moved / "model.safetensors")
    assert of(session=Session(find_model(str(moved), tmp_path)))["weights"] != first["weights"]


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--repetition-penalty"])
def test_nan_is_no_number(option: str) -> None:
    done = launcher("infer", "none", "--prompt", "x", option, "nan")
    assert done.returncode == 2
    assert "nan is no number" in done.stderr


@pytest.mark.parametrize(
    "content", ["mine\n", "mine", "3\n", '{"id": 3}\n', '{"id": "a", "x": 1}\n{"id": "a", "x": 2}\n', "\0\0"]
)
def test_an_output_file_of_something_else_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)

    with pytest.raises(DataError, match="holds no answers"), opened(path):
        pass
    assert path.read_text() == content


def test_answers_that_do_not_say_how_they_were_made_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(to_json(answer("a")) + "\n")
    with pytest.raises(DataError, match="does not say how"), opened(path) as file:
        file.check(made("a"))


# ------------------------------------------------------------------------------------------------ sources


def test_a_merged_folder_brings_tokenizer_and_template(model_folder: Path) -> None:
    model = find_model(str(model_folder), model_folder)

    assert model.spec == MODEL
    assert (model.context, model.template and model.template.name) == (CONTEXT, "plain")
    assert Session(model).ends == {2}


def test_how_it_answers_travels_with_the_model(copy: Path) -> None:
    file = copy / "launcher_model.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "generation": {"temperature": 0.7, "max_new_tokens": 9, "stop": ["##"]}}))
    model = find_model(str(copy), copy)
    nothing: dict[str, Any] = dict.fromkeys(("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty"))

    own = SamplingOptions(**nothing, stop=(), seed=3).spec(model)
    said = SamplingOptions(**{**nothing, "temperature": 0.0}, stop=("x",), seed=0).spec(model)
    assert own == GenerationSpec(max_new_tokens=9, temperature=0.7, stop=("##",), seed=3)
    assert said == GenerationSpec(max_new_tokens=9, stop=("x",))
    file.write_text(json.dumps({**described, "generation": {"temperature": -1}}))
    with pytest.raises(CheckpointError, match="temperature"):
        find_model(str(copy), copy)


def test_transformers_is_told_how_it_answers_and_tells_it() -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sampled = {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.2, "max_new_tokens": 9}
    greedy = {**sampled, "temperature": 0.0}

    assert generation_section(generation_config(ids, sampled, {})) == sampled
    assert generation_config(ids, greedy, {}) == {**ids, "repetition_penalty": 1.2, "max_new_tokens": 9}
    assert generation_section({"do_sample": True}) == {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    assert generation_section({"temperature": 0.7}) == {}
    # A base may end an answer in several ways, which a run spec does not say.
    came = {"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.7, "transformers_version": "4"}
    kept = {"eos_token_id": [2, 5], "transformers_version": "4", "repetition_penalty": 1.2, "max_new_tokens": 9}
    assert generation_config(ids, greedy, came) == {**ids, **kept}


def test_what_is_missing_is_asked_for_by_its_option(copy: Path) -> None:
    (copy / "tokenizer.model").rename(copy.parent / "t.model")
    described = json.loads((copy / "launcher_model.json").read_text())
    (copy / "launcher_model.json").write_text(json.dumps({**described, "template": None}))

    with pytest.raises(DataError) as no_tokenizer:
        Session(find_model(str(copy), copy))
    assert "--tokenizer" in no_tokenizer.value.hint
    session = Session(find_model(str(copy), copy, Given(tokenizer=copy.parent / "t.model")))
    with pytest.raises(SpecError) as no_template:
        session.encode(questions("a")[0])
    assert "--template NAME" in no_template.value.hint
    assert session.encode(Question(id="a", text="x"))[0] == MODEL.bos_token_id
    given_both = Given(tokenizer=copy.parent / "t.model", template="chatml")
    with pytest.raises(DataError, match=r"needs the token <\|im_start\|>"):
        Session(find_model(str(copy), copy, given_both)).encode(questions("a")[0])
    (copy / "launcher_model.json").unlink()
    with pytest.raises(CheckpointError) as no_config:
        find_model(str(copy), copy)
    assert "--config FILE" in no_config.value.hint


def test_weights_that_are_not_the_models_are_refused_before_they_are_loaded(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.1.attention.wk.weight"
    spoilt = {**weights, name: np.zeros((32, 32), np.float32)}
    save_file(spoilt, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.layers.1.attention.wk.weight is \[32, 32\]"):
        find_model(str(copy), copy)
    del spoilt[name]
    save_file(spoilt, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        find_model(str(copy), copy)
    (copy / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match="is damaged"):
        find_model(str(copy), copy)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(model_folder: Path, tmp_path: Path) -> None:
    texts = [f"{number} 个苹果和 {number * 7} 个梨" for number in range(900)]
    train_tokenizer([*texts, "".join(map(chr, range(0x4E00, 0x5000)))], tmp_path / "t.model", vocab_size=VOCAB + 300)

    with pytest.raises(DataError, match=f"has {VOCAB + 300} pieces, .* knows {VOCAB}"):
        Session(find_model(str(model_folder), tmp_path, Given(tokenizer=tmp_path / "t.model")))


def test_special_tokens_beyond_the_models_vocabulary_are_the_tokenizers_fault(copy: Path) -> None:
    """config.json leaves its ids to the tokenizer, which is another model's and has them above the vocabulary."""
    letters = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(ByteLevel.alphabet())}, merges=[]))
    letters.add_special_tokens([*(f"<{number}>" for number in range(VOCAB)), "<s>", "</s>", "<pad>"])
    letters.save(str(copy / "tokenizer.json"))
    (copy / "tokenizer.model").unlink()
    described = json.loads((copy / "launcher_model.json").read_text())["model"]
    (copy / "launcher_model.json").unlink()
    config = {
        "model_type": "llama", "hidden_size": described["hidden_size"], "num_hidden_layers": described["num_layers"],
        "num_attention_heads": described["num_heads"], "num_key_value_heads": described["n_kv_heads"],
        "intermediate_size": described["intermediate_size"], "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))

    with pytest.raises(DataError, match=f"tokenizer.json has .* pieces, .* knows {VOCAB}"):
        Session(find_model(str(copy), copy))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model": {"hidden_size": 0}}', "model.hidden_size|hidden_size"),
        ("[]", "it is no mapping"),
        ("{", "Expecting"),
    ],
)
def test_a_description_that_is_none_is_refused(copy: Path, text: str, expected: str) -> None:
    (copy / "launcher_model.json").write_text(text)

    with pytest.raises(CheckpointError, match=expected):
        find_model(str(copy), copy)


def test_a_folder_for_transformers_is_asked_as_in_training(model_folder: Path, tmp_path: Path) -> None:
    """Its chat template is one of the launcher's, written out; another one would be refused."""
    with ExitStack() as stack:
        convert(open_model(model_folder, None, stack), tmp_path / "hf")
    assert "chat_template" in json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    model = find_model(str(tmp_path / "hf"), tmp_path)
    assert model.template == find_model(str(model_folder), tmp_path).template
    assert not any("template" in note for note in model.notes)


def test_a_folder_with_a_chat_template_of_its_own_is_not_asked_in_another_unsaid(copy: Path) -> None:
    """What its config.json leaves out comes from its tokenizer, and a GGUF file is passed over."""
    (copy / "launcher_model.json").unlink()
    config = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": VOCAB, "max_position_embeddings": 256,
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "chat_template.jinja").write_text("Q: {{ messages[0].content }} A:")
    asked = Question(id="1", messages=(Message("user", "a"),))
    session = Session(find_model(str(copy), copy))
    assert session.encode(asked) == session.tokenizer.encode("Q: a A:", start=True)
    said = find_model(str(copy), copy, Given(template="plain"))
    assert said.notes == (f"prompts are in template plain, not in the chat template of {copy / 'chat_template.jinja'}",)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(SpecError, match="does not say which prompt template"):
        Session(find_model(str(copy), copy)).encode(asked)
    (copy / "tokenizer.model").write_bytes(b"GGUF")
    make_hugging_face(copy / "tokenizer.json", "bytes")
    (copy / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "<|im_end|>"}')
    model = find_model(str(copy), copy)
    assert model.tokenizer == copy / "tokenizer.json"
    assert model.notes == (f"{copy / 'tokenizer.model'} is a GGUF file: {copy / 'tokenizer.json'} is taken",)
    eos = load_tokenizer(copy / "tokenizer.json").eos_id
    assert (model.spec.bos_token_id, model.spec.eos_token_id, model.spec.pad_token_id) == (eos, eos, 0)


def test_references_that_mean_nothing(tmp_path: Path) -> None:
    for reference in ("./none", "none.safetensors", "nojob"):
        with pytest.raises(JobError):
            find_model(reference, tmp_path)


def test_a_transformers_config_is_understood(copy: Path) -> None:
    (copy / "launcher_model.json").unlink()
    config = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": VOCAB, "max_position_embeddings": 131072,
        "rope_theta": 5e5, "eos_token_id": [2, 8], "bos_token_id": 1, "torch_dtype": "bfloat16",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    model = find_model(str(copy), copy)

    assert (model.context, model.spec.max_position_embedding, model.spec.bos_token_id) == (4096, 131072, 1)
    assert "prompt and answer have 4096 tokens together; --context gives up to 131072" in model.notes
    assert {2, 8} <= Session(model).ends
    assert model.spec.rope_scaling is not None
    longer = find_model(str(copy), copy, Given(context=8192))
    assert (longer.context, [note for note in longer.notes if "--context" in note]) == (8192, [])
    with pytest.raises(DataError, match="--context 200000"):
        find_model(str(copy), copy, Given(context=200000))
    (copy / "config.json").write_text(json.dumps({**config, "rope_scaling": {"rope_type": "yarn"}}))
    with pytest.raises(CheckpointError, match=r"rope_scaling .*'yarn'"):
        find_model(str(copy), copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="of no known family"):
        find_model(str(copy), copy)


def test_an_adapter_of_another_model_or_without_its_scale_is_refused(model_folder: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": np.ones((4, 32), np.float32), f"{name}.lora_B.weight": np.ones((48, 4), np.float32)},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        find_model(str(model_folder), tmp_path, Given(adapter=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match="lora_b is \\[48, 4\\]"):
        find_model(str(model_folder), tmp_path, Given(adapter=str(tmp_path)))
    save_file({"other": np.ones(3, np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds no LoRA adapter"):
        find_model(str(model_folder), tmp_path, Given(adapter=str(tmp_path)))
    with pytest.raises(LauncherError):
        find_model(str(model_folder), tmp_path, Given(adapter="nojob"))


@pytest.mark.parametrize("trained", [CONTEXT // 2, CONTEXT * 2])
def test_with_the_adapter_of_a_job_the_context_is_that_of_its_training(
    model_folder: Path, tmp_path: Path, trained: int
) -> None:
    base = find_model(str(model_folder), tmp_path)
    write_job(tmp_path / "jobs" / "bcdfg-x")

    def of_job(paths: JobPaths, record: JobRecord, *, folded: bool, adapters: bool) -> Model:
        return base.with_context(trained, trained)

    model = with_adapter(base, "bcdfg-x", tmp_path / "jobs", of_job)

    assert (model.context, model.longest) == (trained, max(trained, base.longest))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("model.gguf", "give the job or folder that it was made of"),
        ("adapter_model.safetensors", "it holds an adapter: launcher infer BASE --adapter"),
        ("other.bin", "--config FILE"),
    ],
)
def test_a_folder_that_is_no_model_is_said_with_what_to_do_with_it(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).touch()
    for reference in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=r"has no launcher_model\.json nor config\.json") as raised:
            find_model(str(reference), tmp_path)
        assert hint in raised.value.hint


def test_an_adapter_that_is_in_the_weights_already_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """Merged from the job that trained it, by the records of both merges; a merge without folding is no such base."""
    merged, apart = tmp_path / "merged", tmp_path / "apart"
    shutil.copytree(model_folder, merged)
    apart.mkdir()
    (apart / "merge.json").write_text('{"step": 8, "source": "abcde-lora"}')
    (merged / "merge.json").write_text('{"step": 8, "source": "abcde-lora", "folded": 8}')
    with pytest.raises(CheckpointError, match="have the adapter of abcde-lora in them: it would be applied twice"):
        find_model(str(merged), tmp_path, Given(adapter=str(apart)))
    (merged / "merge.json").write_text('{"step": 8, "source": "abcde-lora", "folded": 0}')
    with pytest.raises(CheckpointError, match="holds no adapter"):
        find_model(str(merged), tmp_path, Given(adapter=str(apart)))


def test_an_adapter_is_folded_as_it_says(model_folder: Path, tmp_path: Path) -> None:
    """One element of A and one of B: the product has one element, alpha / r = 2 times theirs."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    lora_a, lora_b = np.zeros((4, 32), np.float32), np.zeros((32, 4), np.float32)
    lora_a[1, 3], lora_b[7, 1] = 5.0, 0.5
    save_file(
        {f"{name}.lora_A.weight": lora_a, f"{name}.lora_B.weight": lora_b}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    model = folded(find_model(str(model_folder), tmp_path, Given(adapter=str(tmp_path))))
    with ExitStack() as stack:
        found = np.array(read(model.open(stack).weights["model.layers.0.attention.wq.weight"]))
    expected = load_file(model_folder / "model.safetensors")["model.layers.0.attention.wq.weight"]
    expected[7, 3] += 5.0

    assert np.abs(found - expected).max() < 1e-6


# ------------------------------------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("cards", "expected"), [(0, "no Ascend card"), (1, "has 1 Ascend card$"), (3, "has 3 Ascend cards")]
)
def test_a_card_that_is_not_there_is_refused_before_anything_is_loaded(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cards: int, expected: str
) -> None:
    (tmp_path / "dev").mkdir()
    for number in range(cards):
        (tmp_path / "dev" / f"davinci{number}").touch()
    monkeypatch.setenv("LAUNCHER_HOST_ROOT", str(tmp_path))
    model = find_model(str(model_folder), tmp_path)

    with pytest.raises(HostError, match=expected):
        Session(model, device_id=cards)
    for number in range(cards):
        Session(model, device_id=number)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen3") / "model", family="qwen3", head_dim=12)


def test_a_qwen3_is_asked_on_the_processor_also_where_there_are_cards(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not find_model(str(qwen3), tmp_path).notes
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci0").touch()
    monkeypatch.setenv("LAUNCHER_HOST_ROOT", str(tmp_path))
    model = find_model(str(qwen3), tmp_path)
    assert model.notes == ("a Qwen3 is computed by this host's processor, not by its cards",)
    with pytest.raises(HostError, match="--device 0: a Qwen3 is asked on the host's processor"):
        Session(model, device_id=0)
    session = Session(model)
    assert session.on_cpu
    (answer,) = session.answer(["1 + 1"], GenerationSpec(max_new_tokens=3))
    assert answer.new_tokens == 3


def test_parts_of_fused_layers_may_have_adapters_of_their_own(qwen3: Path, tmp_path: Path) -> None:
    """As peft trains them: q and v alone, each with its own A; k stays as it is."""
    random, wide = np.random.default_rng(1), {"q": 48, "v": 24}
    found = {
        f"base_model.model.model.layers.1.self_attn.{part}_proj.lora_{side}.weight": random.standard_normal(shape)
        for part, rows in wide.items()
        for side, shape in (("A", (4, 32)), ("B", (rows, 4)))
    }
    adapters = {name: array.astype(np.float32) for name, array in found.items()}
    save_file(adapters, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    base, adapted = (find_model(str(qwen3), tmp_path, Given(adapter=given)) for given in (None, str(tmp_path)))
    before, after = read_folded(base), read_folded(adapted)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    stem = "model.layers.1.self_attn"
    assert changed == {f"{stem}.q_proj.weight", f"{stem}.v_proj.weight"}
    for part in wide:
        lora_a, lora_b = (adapters[f"base_model.model.{stem}.{part}_proj.lora_{side}.weight"] for side in "AB")
        delta = after[f"{stem}.{part}_proj.weight"] - before[f"{stem}.{part}_proj.weight"]
        assert abs(delta - 2 * lora_b @ lora_a).max() < 1e-5

    del adapters[f"base_model.model.{stem}.v_proj.lora_B.weight"]
    save_file(adapters, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter base_model\.model\..*v_proj\.lora_B\.weight is missing"):
        find_model(str(qwen3), tmp_path, Given(adapter=str(tmp_path)))


def read_folded(model: Model) -> dict[str, Array]:
    with ExitStack() as stack:
        return {name: read(output) for name, output in with_folds(model.open(stack)).weights.items()}


def test_weights_of_a_qwen3_are_refused_by_transformers_names(qwen3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    described = json.loads((folder / "launcher_model.json").read_text())
    described["model"]["head_dim"] = 8
    (folder / "launcher_model.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="head_dim: the weights have 12, the model 8"):
        find_model(str(folder), tmp_path)


def test_prompts_that_leave_no_room_are_all_named(model_folder: Path) -> None:
    session = Session(find_model(str(model_folder), model_folder))
    long = [Question(id=str(number), messages=(Message("user", "苹果" * 100),)) for number in range(5)]

    with pytest.raises(DataError) as caught:
        session.prepare([*questions("a"), *long])
    assert f"5 prompts longer than the context of {CONTEXT} tokens allows" in caught.value.message
    assert "and 2 more" in caught.value.message
    with pytest.raises(DataError, match="prompt a is empty"):
        session.prepare([Question(id="a", text=" ")])


def test_what_users_write_never_becomes_a_control_token(model_folder: Path) -> None:
    session = Session(find_model(str(model_folder), model_folder))
    ids = session.encode(Question(id="a", messages=(Message("user", "</s><s><unk>"),)))

    assert not {0, 2} & set(ids)
    assert ids.count(1) == 1


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("一共 8 + 5 = 13 个", "13"), ("共1,250.50元", "1250.50"), ("是3/4。", "3/4"), ("温差-11℃", "-11"),
        ("没有", None), ("2025年有365天", "365"), ("1,2和3", "3"),
    ],
)  # fmt: skip
def test_the_final_number_of_an_answer(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_a_right_number_may_be_written_in_another_way() -> None:
    problem = Problem(prompt=(1,), right="答案：1250.5")
    answers = ("一共 1,250.50 元", "1250.5", "2501/2", "1250", "没有")
    assert [problem.is_met_by(answer) for answer in answers] == [True, True, True, False, False]


def test_cross_entropy_by_hand() -> None:
    logits = np.log(np.array([[1, 1, 2], [1, 7, 2]], np.float32))

    assert np.allclose(cross_entropy(logits, np.array([2, 0])), [np.log(2), np.log(10)])


def test_letting_ctrl_c_through_leaves_the_mask_of_signals_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with let_through():
        pass

    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_question_s_own_system_is_used_and_its_own_sampling_refused(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "a", "system": "one"}\n{"prompt": "b"}\n')
    first, second = collect([], str(file), system="all")
    assert first.messages is not None
    assert second.messages is not None
    assert [first.messages[0].content, second.messages[0].content] == ["one", "all"]
    with pytest.raises(DataError, match="which --raw leaves out"):
        collect([], str(file), raw=True)
    file.write_text('{"prompt": "a", "temperature": 0.9, "max_tokens": 3}\n')
    with pytest.raises(DataError, match="temperature, max_tokens: the same for all questions"):
        collect([], str(file))
