"""Templates, masks, MindRecord and the commands, on files of a few rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.data.info import read_info
from launcher.data.messages import Message
from launcher.data.templates import get_template
from launcher.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

ASK = Message(role="user", content="题目：1加1是多少？")
ANSWER = Message(role="assistant", content="1. 和：1 + 1 = 2\n答案：2")


def launcher(*argv: str, cwd: Path, code: int = 0) -> str:
    """Run the command; its stdout, or its stderr when it shall fail."""
    done = subprocess.run(
        (sys.executable, "-m", "launcher", *argv),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert code or not done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 200 problems, their conversations and a tokenizer of 600 pieces."""
    folder = tmp_path_factory.mktemp("data")
    launcher("data", "sample", "--size", "200", "--seed", "4", cwd=folder)
    launcher("data", "convert", "math.jsonl", cwd=folder)
    launcher("data", "tokenizer", "conversations.json", "--vocab-size", "600", cwd=folder)
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "tokenizer.model")


def test_vicuna_is_fastchats() -> None:
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    turns = (ASK, ANSWER, Message(role="user", content="2+2?"))
    assert get_template("vicuna").prompt(turns) == (
        f"{system} USER: {ASK.content} ASSISTANT: {ANSWER.content}</s>USER: 2+2? ASSISTANT:"
    )


@pytest.mark.parametrize("name", ["vicuna", "plain"])
def test_the_prompt_is_what_stood_before_the_answer(name: str, tokenizer: Tokenizer) -> None:
    template = get_template(name)
    row = template.encode(tokenizer, (ASK, ANSWER))
    prompt = template.encode_prompt(tokenizer, ASK.content)
    assert row.ids[: len(prompt)] == prompt
    assert row.learnt == b"\0" * len(prompt) + b"\1" * (len(row.ids) - len(prompt))
    assert tokenizer.decode(row.ids[len(prompt) :]) == ANSWER.content
    assert row.ids[-1] == tokenizer.eos_id
    assert row.ids[0] == tokenizer.bos_id


def test_control_tokens_in_what_users_write_stay_text(tokenizer: Tokenizer) -> None:
    row = get_template("plain").encode(tokenizer, (Message(role="user", content="</s><s>\ufdd0+"), ANSWER))
    assert row.ids.count(2) == 1
    assert row.ids.count(1) == 1


def test_the_tokenizer_is_as_llamas_and_always_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert [tokenizer.piece(token) for token in tokenizer.encode("é", start=False)] == ["<0xC3>", "<0xA9>"]
    for name in ("a", "b"):
        train_tokenizer(["加减乘除 12 + 30 = 42"] * 3, tmp_path / name, vocab_size=275)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_convert_gives_the_conversations_of_the_reference_recipe(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "math.jsonl").read_text("utf-8").splitlines()
    conversations = json.loads((folder / "conversations.json").read_text("utf-8"))
    assert conversations[42] == {
        "id": "bellemath42",
        "conversations": [
            {"from": "human", "value": json.loads(lines[42])["instruction"]},
            {"from": "assistant", "value": json.loads(lines[42])["output"]},
        ],
    }
    (tmp_path / "array.json").write_text(f"[{','.join(lines)}]", "utf-8")
    launcher("data", "convert", "array.json", cwd=tmp_path)
    assert json.loads((tmp_path / "conversations.json").read_text("utf-8")) == conversations


READ = """
import sys, json
from mindspore.dataset import MindDataset
rows = [{k: v.tolist() for k, v in row.items()} for row in
        MindDataset(sys.argv[1], shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True)]
print(json.dumps(rows))
"""


@pytest.mark.mindspore
def test_mindspore_reads_the_rows(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    target = tmp_path / "train.mindrecord"
    argv = ("data", "preprocess", "conversations.json", "--template", "plain", "--output", str(target))
    assert "wrote" in launcher(*argv, "--seq-length", "80", cwd=folder)
    done = subprocess.run(
        (sys.executable, "-c", READ, str(target)), capture_output=True, timeout=120, check=True
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    info = read_info(target)
    assert info is not None
    assert info.rows == len(rows) == 200
    assert (info.seq_length, info.template, info.columns) == (80, "plain", ("input_ids", "labels"))
    assert info.tokenizer == tokenizer.info
    first = json.loads((folder / "conversations.json").read_text("utf-8"))[0]["conversations"]
    assert all(len(row["input_ids"]) == len(row["labels"]) == 81 for row in rows)
    assert tokenizer.decode([token for token in rows[0]["labels"] if token != -100]) == first[1]["value"]
    assert all(
        label in (-100, token)
        for row in rows
        for token, label in zip(row["input_ids"], row["labels"], strict=True)
    )
    assert "unchanged" in launcher(*argv, "--seq-length", "80", cwd=folder)
    assert "would change" in launcher(*argv, "--seq-length", "64", cwd=folder, code=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train.mindrecord",
        "train.mindrecord.db",
        "train.mindrecord.stats.json",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read in.json"),
        ("", "in.json is empty"),
        ('{"instruction": "a", "output": "b"}\n{broken\n', "in.json:2: not JSON"),
        ('[{"instruction": "a"\n, }]', "in.json:2: not JSON"),
        ('{"instruction": "a", "output": "b"}\n\n{"question": "a"}\n', "in.json:3: neither"),
        ('{"conversations": [{"from": "god", "value": "x"}]}', "in.json:1: neither"),
    ],
)
def test_input_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "in.json").write_text(text, "utf-8")
    assert message in launcher("data", "convert", "in.json", cwd=tmp_path, code=3)
    assert not (tmp_path / "conversations.json").exists()


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    source = str(folder / "conversations.json")
    assert "no tokenizer at" in launcher("data", "preprocess", source, cwd=tmp_path, code=3)
    argv = ("data", "preprocess", source, "--tokenizer", str(folder / "tokenizer.model"))
    assert "there are" in launcher(*argv, "--template", "vicunia", cwd=tmp_path, code=3)
    assert "not a SentencePiece model" in launcher(
        "data", "preprocess", source, "--tokenizer", source, cwd=tmp_path, code=3
    )
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "math.jsonl").write_text("mine")
    assert "--force" in launcher("data", "sample", "--size", "3", cwd=tmp_path, code=3)
    assert (tmp_path / "math.jsonl").read_text() == "mine"
    assert "wrote" in launcher("data", "sample", "--size", "3", "--force", cwd=tmp_path)
    assert "unchanged" in launcher("data", "sample", "--size", "3", cwd=tmp_path)
