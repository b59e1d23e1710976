"""Answers of whole processes: of a LLaMA and a Qwen3 of random weights, and of what the shared training left behind."""

from __future__ import annotations

import codecs
import contextlib
import importlib.util
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.inference_tools import CONTEXT, MODEL, child, make_model, prompts
from support.shop import Trained, Workshop

from launcher.checkpoint.convert import convert
from launcher.errors import CheckpointError
from launcher.inference.evaluation import validation_split
from launcher.inference.sources import Given, find_model

pytestmark = pytest.mark.mindspore

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is, and its exports."""
    root = tmp_path_factory.mktemp("inference")
    make_model(root / "model")
    make_model(root / "qwen3", family="qwen3", head_dim=12)
    return root


# ------------------------------------------------------------------------------------------------ the engine

_ENGINE = """
import json, os, sys, tempfile
from pathlib import Path
import launcher

# First, as the first use is what might print and make folders.
os.chdir(tempfile.mkdtemp(dir=sys.argv[4]))
os.environ.pop("GLOG_v")
with tempfile.TemporaryFile() as heard:
    kept = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(heard.fileno(), stream)
    (answer,) = launcher.load(sys.argv[1]).generate("I love", raw=True, max_new_tokens=2)
    sys.stdout.flush(), sys.stderr.flush()
    for stream, number in zip((1, 2), kept):
        os.dup2(number, stream)
    heard.seek(0)
    left = sorted(map(str, Path.cwd().iterdir()))
    quietly = [answer.new_tokens, heard.read().decode(), left, "mindspore" in sys.modules]
from launcher.data.messages import Message
from launcher.inference import cached
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Prepared, Question, Session
from launcher.inference.sources import find_model
from launcher.upstream.quiet import quiet

folder, new_tokens, prompts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
session = Session(find_model(folder, Path("jobs")), batch_size=8)
questions = [Question(id=str(at), text=text) for at, text in enumerate(prompts)]
prepared = session.prepare(questions)
found = {"ids": [list(item.ids) for item in prepared], "quietly": quietly}

def tokens(items, spec, size=8):
    rows = [session.row(item, spec) for item in items]
    for start in range(0, len(rows), size):
        session.run(rows[start : start + size])
    return [[row.new_tokens, row.finish, row.transcript.text] for row in rows]

with quiet() as stdout:
    greedy = GenerationSpec(max_new_tokens=new_tokens)
    found["greedy"] = tokens(prepared, greedy)
    found["alone"] = tokens(prepared[:12], greedy, 1)
    cached._PASS_TOKENS = 40  # prompts in several passes
    found["passes"] = tokens(prepared, greedy)
    cached._PASS_TOKENS = 2048
    for name, seed in (("drawn", 3), ("again", 3), ("other", 4)):
        spec = GenerationSpec(max_new_tokens=8, temperature=1.5, top_k=50, top_p=0.9, seed=seed)
        found[name] = tokens(prepared[:4], spec, 4 if name != "again" else 1)
    text = found["greedy"][0][2]
    stop = text[3:5]
    found["stopped"] = [stop, text, tokens(prepared[:1], GenerationSpec(max_new_tokens=new_tokens, stop=(stop,)))[0]]
    pieces = []
    (whole,) = session.batch(prepared[1:2], greedy, on_text=pieces.append)
    found["streamed"] = [pieces, whole.text]
    (cut,) = session.batch(prepared[1:2], greedy, cancelled=lambda: len(pieces) > 3, on_text=pieces.append)
    found["cancelled"] = [cut.finish, cut.new_tokens]
    # An unknown character at the end of a prompt is the id that rows are padded with.
    padded = [Prepared(question=questions[0], ids=ids) for ids in ((1, 9, 8, 0), (1, 9, 8, 0, 0, 0))]
    found["padding"] = [tokens(padded, greedy), tokens(padded, greedy, 1)]
    filling = [Prepared(question=questions[0], ids=(1, *[9] * (session.model.context - 4)))]
    found["filling"] = tokens(filling, GenerationSpec(max_new_tokens=50))[0]
    many = [prepared[at % len(prepared)] for at in range(1000)]
    found["thousand"] = len(dict(session.answers(many, GenerationSpec(max_new_tokens=1))))
    stdout.write(json.dumps(found) + "\\n")
"""


@pytest.fixture(scope="module", params=["model", "qwen3"])
def engine(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """What came of many questions."""
    model = folder / request.param
    found: dict[str, Any] = child(_ENGINE, model, NEW_TOKENS, json.dumps(prompts(50), ensure_ascii=False), folder)
    return {**found, "model": model}


def test_a_batch_answers_as_one_by_one_and_long_prompts_in_passes_as_at_once(engine: dict[str, Any]) -> None:
    assert len({len(ids) for ids in engine["ids"]}) > 5  # rows of unlike length
    assert len({tuple(tokens) for tokens, _, _ in engine["greedy"]}) > 20  # and of unlike answers
    assert engine["alone"] == engine["greedy"][:12]
    assert engine["passes"] == engine["greedy"]


def test_a_model_from_python_prints_and_leaves_nothing_and_needs_no_mindspore(
    engine: dict[str, Any],
) -> None:
    assert engine["quietly"] == [2, "", [], False]


def test_a_seed_gives_the_same_text_in_any_batch(engine: dict[str, Any]) -> None:
    assert engine["drawn"] == engine["again"] != engine["other"]


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(engine: dict[str, Any]) -> None:
    stop, text, (tokens, finish, stopped) = engine["stopped"]

    assert (finish, stopped) == ("stop", text[: text.index(stop)].strip())
    assert len(tokens) < NEW_TOKENS


def test_a_streamed_answer_comes_in_pieces_and_can_be_cancelled(engine: dict[str, Any]) -> None:
    pieces, text = engine["streamed"]
    finish, count = engine["cancelled"]

    assert "".join(pieces[: len(pieces)]).startswith(text)
    assert len(pieces) > 5
    assert (finish, count) == ("cancelled", 0)


def test_prompts_that_end_with_the_padding_or_fill_the_context(engine: dict[str, Any]) -> None:
    together, alone = engine["padding"]
    tokens, finish, _ = engine["filling"]

    assert together == alone
    assert together[0] != together[1]
    assert (len(tokens), finish) == (3, "length")


def test_a_thousand_prompts_are_answered(engine: dict[str, Any]) -> None:
    assert engine["thousand"] == 1000


# ------------------------------------------------------------------------------------------------ transformers

_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32).eval()
found = []
for ids in json.loads(sys.argv[2]):
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=int(sys.argv[3]), do_sample=False, pad_token_id=0)
    found.append(out[0][len(ids):].tolist())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def torch_python() -> str:
    """An interpreter with torch and transformers, or a skip."""
    given = os.environ.get("LAUNCHER_TORCH_PYTHON")
    if given:
        return given
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install '.[test]', or set LAUNCHER_TORCH_PYTHON")
    return sys.executable


def export(source: Path, target: Path) -> Path:
    from contextlib import ExitStack

    from launcher.checkpoint.convert import open_model

    with ExitStack() as stack:
        convert(open_model(source, None, stack), target)
    return target


def test_fifty_greedy_answers_are_those_of_transformers(
    folder: Path, engine: dict[str, Any], torch_python: str
) -> None:
    exported = export(engine["model"], folder / f"{engine['model'].name}-hf")
    theirs = child(_TRANSFORMERS, exported, json.dumps(engine["ids"]), NEW_TOKENS, python=torch_python)

    assert len(theirs) == 50
    for ours, other in zip(engine["greedy"], theirs, strict=True):
        tokens, finish, _ = ours
        assert tokens == (other[:-1] if finish == "stop" else other)


# ------------------------------------------------------------------------------------------------ sources

_SOURCES = """
import json, sys
from pathlib import Path
import numpy as np
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Session
from launcher.inference.sources import Given, find_model
from launcher.upstream.quiet import quiet

jobs, questions, sources = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
with quiet() as stdout:
    for name, (reference, options) in sources.items():
        paths = {key: Path(options.pop(key)) for key in ("config", "tokenizer") if key in options}
        given = Given(**paths, **options)
        session = Session(find_model(reference, jobs, given))
        answers = session.answer(questions, GenerationSpec(max_new_tokens=10))
        logits = session.all_logits(np.array([range(1, 20)], np.int32))[0, -1]
        found[name] = [[answer.text for answer in answers], list(session.model.notes), logits.tolist()]
    stdout.write(json.dumps(found) + "\\n")
"""


def test_every_source_of_one_model_gives_the_same_answers(trained: Trained, folder: Path, tmp_path: Path) -> None:
    shop, lora, base = trained.workshop, trained.lora, trained.base
    unmerged = tmp_path / "jobs" / "zzzzz-unmerged"
    shutil.copytree(lora.paths.root, unmerged, ignore=shutil.ignore_patterns("merged", "work"))
    record = lora.record.to_json().replace(lora.record.job_id, unmerged.name)
    (unmerged / "job.json").write_text(record, encoding="utf-8")
    shop.launcher("merge-ckpt", str(unmerged), "--format", "peft", "-o", str(tmp_path / "peft"))
    shop.launcher("merge-ckpt", str(unmerged), "--no-fold", "-o", str(tmp_path / "apart"))
    shop.launcher("merge-ckpt", str(unmerged), "--file-format", "ckpt", "-o", str(tmp_path / "ckpt"))
    exported = export(lora.paths.merged, tmp_path / "hf")
    own = {"tokenizer": str(lora.paths.merged / "tokenizer.model"), "template": "plain"}
    config = {"config": str(lora.paths.merged / "launcher_model.json")}
    sources = {
        "job": (lora.record.job_id[:5], {}),
        "merged folder": (str(lora.paths.merged), {}),
        "unmerged job": (str(unmerged), {}),
        ".safetensors": (str(lora.paths.merged / "model.safetensors"), {}),
        ".ckpt": (str(tmp_path / "ckpt" / "model.ckpt"), {**config, **own}),
        "transformers": (str(exported), {"template": "plain"}),
        "shards": (str(unmerged / "checkpoint"), {**config, **own}),
        "base and job": (str(base.paths.merged), {"adapter": str(unmerged)}),
        "base and peft": (str(base.paths.merged), {"adapter": str(tmp_path / "peft")}),
        "base and file": (str(base.paths.merged), {"adapter": str(tmp_path / "apart" / "adapter.safetensors")}),
        "base alone": (str(base.paths.merged), {}),
    }
    found = child(_SOURCES, shop.folder / "jobs", json.dumps(trained.questions), json.dumps(sources))

    # Of a model that has hardly learnt anything, the base may give the same words: its logits tell it apart.
    _, _, alone = found.pop("base alone")
    texts = {name: answers for name, (answers, _, _) in found.items()}
    off = {name: float(np.abs(np.subtract(logits, found["job"][2])).max()) for name, (_, _, logits) in found.items()}
    assert {json.dumps(answers) for answers in texts.values()} == {json.dumps(texts["job"])}, texts
    assert max(off.values()) < 1e-4, off
    assert np.abs(np.subtract(alone, found["job"][2])).max() > 1e-3
    assert found["unmerged job"][1] == ["zzzzz-unmerged is not merged: folded in memory from step 16"]


# ------------------------------------------------------------------------------------------------ commands


def test_infer_prints_in_order_continues_a_file_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    shop = Workshop(folder=tmp_path, cache=tmp_path / "cache")
    asked = [{"id": f"q{at}", "prompt": text} for at, text in enumerate(prompts(5))]
    (tmp_path / "q.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in asked), encoding="utf-8"
    )
    common = ("infer", str(folder / "model"), "--file", "q.jsonl", "--max-new-tokens", "6", "--batch-size", "2")
    lines = shop.launcher(*common, "--format", "jsonl").stdout.splitlines()
    answers = [json.loads(line) for line in lines]

    assert [answer["id"] for answer in answers] == ["q0", "q1", "q2", "q3", "q4"]
    assert answers[0].keys() == {"id", "prompt", "text", "prompt_tokens", "new_tokens", "finish", "seconds"}
    text = shop.launcher(*common)
    assert text.stdout == "".join(f"> {answer['prompt']}\n{answer['text']}\n" for answer in answers)
    assert "mindformers" not in text.stdout + text.stderr
    shop.launcher(*common, "--output", "out.jsonl")
    output = tmp_path / "out.jsonl"
    kept = output.read_text(encoding="utf-8").splitlines()
    output.write_text(f"{kept[3]}\n{kept[1]}\n{kept[0][:20]}", encoding="utf-8")
    resumed = shop.launcher(*common, "--output", "out.jsonl")
    assert "out.jsonl: 5 answers, 3 of them new" in resumed.stderr
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    same = {"seconds": 0, "made_with": 0}
    assert [answer | same for answer in written] == [answer | same for answer in answers]
    refused = shop.launcher(*common, "--output", "out.jsonl", "--temperature", "0.5", code=3)
    assert "was made in another way: temperature 0.0, now 0.5" in refused.stderr
    again = shop.launcher(*common, "--output", "out.jsonl")
    assert "5 answers, 0 of them new" in again.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl", "out.jsonl"}


def test_a_job_is_no_adapter_of_what_was_merged_from_it(trained: Trained) -> None:
    job, jobs_dir = trained.lora.record.job_id, trained.workshop.folder / "jobs"
    for reference in (job, str(trained.lora.paths.merged), str(trained.lora.paths.merged / "model.safetensors")):
        with pytest.raises(CheckpointError, match=f"have the adapter of {job} in them"):
            find_model(reference, jobs_dir, Given(adapter=job))
    assert find_model(str(trained.base.paths.merged), jobs_dir, Given(adapter=job)).name.endswith(job)


def test_eval_compares_base_adapter_and_merged(trained: Trained) -> None:
    shop = trained.workshop
    options = ("--tokenizer", "tokenizer.model", "--seq-length", "64", "--template", "plain", "--eval-fraction", "0.2")
    shop.launcher("data", "preprocess", "conversations.json", *options, "-o", "split.mindrecord")
    held_out = ("--data", "split.eval.mindrecord", "--limit", "24", "--questions", "4", "--max-new-tokens", "8")
    found = json.loads(shop.launcher("eval", trained.lora.record.job_id, *held_out, "--format", "json").stdout)
    base, adapted, merged = found["models"]

    assert [base["role"], adapted["role"], merged["role"]] == ["base", "base + adapter", "merged"]
    assert adapted["loss"] < base["loss"] < 7.0
    assert abs(adapted["loss"] - merged["loss"]) == pytest.approx(found["difference"]["loss"])
    assert found["difference"]["largest_of_a_token"] < 1e-4
    assert found["difference"]["same_answers"] == found["difference"]["answers"] == 4
    table = shop.launcher("eval", str(trained.base.paths.merged), *held_out).stdout
    assert re.search(rf"model +\S+merged +{base['loss']:.4f} ", table)
    refused = shop.launcher("eval", trained.base.record.job_id, code=3)
    assert "no validation split goes with these models" in refused.stderr
    shop.launcher("data", "preprocess", "conversations.json", *options[:-2], "-o", "train.eval.mindrecord")
    split = validation_split([trained.base.record.job_id], shop.folder / "jobs")
    assert split == shop.folder / "train.eval.mindrecord"


# ------------------------------------------------------------------------------------------------ chat


class Terminal:
    """A child on a pseudo-terminal, as a person would use it."""

    def __init__(self, argv: list[str], folder: Path, env: dict[str, str]) -> None:
        self.screen = ""
        self._at = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in pieces
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            argv, cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=env
        )
        os.close(slave)

    def expect(self, pattern: str, seconds: float = 120.0) -> str:
        """Read until ``pattern`` shows after what was expected last."""
        assert self._shows(pattern, seconds), f"no {pattern!r} in {self.screen[self._at :]!r}"
        match = re.search(pattern, self.screen[self._at :])
        assert match
        self._at += match.end()
        return match[0]

    def _read(self) -> str:
        try:
            return self._decoder.decode(os.read(self._master, 65536))
        except OSError:  # the child is gone
            raise AssertionError(f"it left: {self.screen[self._at :]!r}") from None

    def interrupt(self, pattern: str) -> None:
        """Ctrl-C until ``pattern`` shows: between its prompt and its wait for input, readline does not hear it."""
        for _ in range(60):
            self.process.send_signal(signal.SIGINT)
            if self._shows(pattern, 1.0):
                break
        self.expect(pattern)

    def _shows(self, pattern: str, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not re.search(pattern, self.screen[self._at :]):
            if select.select([self._master], [], [], 0.1)[0]:
                self.screen += self._read()
        return re.search(pattern, self.screen[self._at :]) is not None

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def enter(self, line: str) -> None:
        """Type ``line`` at the prompt: before it shows, the terminal itself would echo, and take Ctrl-D for its own."""
        self.expect("> ")
        self.type(f"{line}\n")

    def leave(self) -> None:
        """Ctrl-D until it leaves: on a dumb terminal, between its prompt and its wait for input, nobody hears it."""
        for _ in range(60):
            self.type("\x04")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                return

    def close(self) -> int:
        code = self.process.wait(60)
        os.close(self._master)
        return code


@pytest.fixture(scope="module")
def long(folder: Path) -> Path:
    """A model whose answers neither end nor fill the context before Ctrl-C comes."""
    made = make_model(folder / "long", seq_length=4000)
    weights = load_file(made / "model.safetensors")
    weights["lm_head.weight"][MODEL.eos_token_id] = 0  # some other token always has a logit above 0
    save_file(weights, made / "model.safetensors")
    return made


def terminal_of(folder: Path, *arguments: str, kind: str = "dumb") -> Terminal:
    argv = [sys.executable, "-m", "launcher", *arguments, "--max-new-tokens", "3000"]
    return Terminal(argv, folder, {**os.environ, "TERM": kind})


def test_one_answer_is_streamed_to_a_terminal_and_ctrl_c_ends_it(long: Path, tmp_path: Path) -> None:
    terminal = terminal_of(tmp_path, "infer", str(long), "--prompt", "苹果", kind="vt100")
    try:
        terminal.expect(r"loading \S*long \.\.\. \d+ s\x1b\[K")
        terminal.expect(r"computing the first token \.\.\. \d+ s\x1b\[K")
        terminal.expect(r"\r\x1b\[K.{20}")  # the line is gone before the answer begins
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect("error: stopped")
        assert terminal.close() == 130
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()


def test_chat_in_a_terminal(long: Path, tmp_path: Path) -> None:
    terminal = terminal_of(tmp_path, "chat", str(long))
    try:
        terminal.expect(r"4000 tokens of context, template \w+. /help lists commands.")
        terminal.enter("/help")
        terminal.expect("Ctrl-C stops an answer")
        terminal.enter("苹果")
        terminal.expect("苹果\r+\n.{5}")  # it answers, whoever of the editor and the terminal shows the line
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect(r"\(stopped\)\r\n")
        terminal.expect("> ")
        terminal.interrupt(r"\(Ctrl-D or /exit leaves\)")
        terminal.enter("/save talk.json")
        terminal.expect(r"\(2 turns in talk.json\)")
        terminal.enter("/save talk.json")
        terminal.expect("error: cannot write talk.json: File exists")
        terminal.enter("/system 短")
        terminal.expect("starts anew")
        terminal.enter("/system")
        terminal.expect("短")
        terminal.enter("/reset")
        terminal.expect("forgotten")
        terminal.enter("/nonsense")
        terminal.expect("error: no command /nonsense")
        terminal.expect("> ")
        terminal.leave()
        assert terminal.close() == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [turn["role"] for turn in saved] == ["user", "assistant"]
    assert saved[0]["content"] == "苹果"
    assert "Traceback" not in terminal.screen


_TRIMMING = """
import io, json, sys
from pathlib import Path
from launcher.data.messages import Message
from launcher.inference.chatting import Chat
from launcher.inference.conversation import Conversation
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Session
from launcher.inference.sources import find_model

session = Session(find_model(sys.argv[1], Path("jobs")))
chat = Chat(session=session, spec=GenerationSpec(max_new_tokens=16), read=lambda: None, out=io.StringIO())
chat.conversation = Conversation(system="短", turns=[
    Message(role, f"{turn} 苹果和梨") for turn in range(10) for role in ("user", "assistant")
])
prepared, left_out = chat.fitting("题目")
turns = [list(turn) for turn in chat.conversation.messages()]
lines = iter(["苹果" * 60, "/save", "/exit", "never"])
chat.read = lambda: next(lines)
chat.run()
print(json.dumps([len(prepared.ids), left_out, turns, chat.out.getvalue()]))
"""


def test_old_turns_are_left_out_in_pairs(folder: Path) -> None:
    length, left_out, turns, said = child(_TRIMMING, folder / "model")

    assert length <= CONTEXT - 16
    assert left_out > 0
    assert left_out % 2 == 0
    assert turns[0][:2] == ["system", "短"]
    assert turns[1][:2] == ["user", f"{left_out // 2} 苹果和梨"]
    assert len(turns) == 1 + 20 - left_out
    assert f"error: 1 prompt longer than the context of {CONTEXT} tokens allows" in said
    assert "error: /save needs a file name" in said
