"""Perplexity of plain text: windows, what is scored, and the figures of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.data_tools import make_hugging_face
from support.model_servers import quick_model
from support.oracles import HF_CONFIG, Child

from launcher.cli.app import main
from launcher.errors import DataError, SpecError
from launcher.inference.evaluation import OTHER, Candidate
from launcher.inference.perplexity import read_text, surprise, windows
from launcher.inference.session import Question, Session
from launcher.inference.sources import find_model

TEXT = "小红有15元，每周存4元。I love Beijing.\n" * 6


def test_each_token_is_scored_once_by_what_stands_before_it() -> None:
    for count, length, stride in ((50, 16, 8), (50, 16, 15), (17, 16, 3), (16, 16, 4), (5, 16, 8), (33, 16, 1)):
        found = list(windows(count, length, stride))
        scored = [place for one in found for place in range(one.first, one.end)]
        assert scored == list(range(1, count))
        assert all(one.end - one.start <= length and one.first > one.start for one in found)
        assert all(one.first - one.start >= length - stride for one in found[1:-1])


def test_figures_are_those_of_transformers(torch: Child, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = {**HF_CONFIG, "model_type": "qwen3", "head_dim": 8, "vocab_size": 1000, "bos_token_id": 1}
    torch("make", folder=folder, config=config, dtype="float32")
    make_hugging_face(folder / "tokenizer.json", "bytes")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "text.txt").write_text(TEXT)
    text = read_text(tmp_path / "text.txt")
    model = find_model(str(folder), tmp_path / "jobs")

    found = surprise(Candidate(role=OTHER, model=model), text, window=48, stride=20)

    ids = Session(model).encode(Question(id="t", text=TEXT))
    expected = []
    for part in windows(len(ids), 48, 20):
        seen = ids[part.start : part.end]
        torch("logits", folder=folder, adapter=None, ids=seen, target=tmp_path / "logits.npy")
        logits = np.load(tmp_path / "logits.npy").astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected += [-logprobs[place - 1 - part.start, ids[place]] for place in range(part.first, part.end)]
    assert len(found.losses) == len(ids) - 1
    assert np.allclose(found.losses, expected, atol=1e-4)


def test_figures_of_two_models_and_the_longest_windows(tmp_path: Path) -> None:
    models = [
        str(quick_model(tmp_path / name, seq_length=64, rms_norm_eps=eps)) for name, eps in (("a", 1e-5), ("b", 1))
    ]
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")

    def run(*words: str) -> str:
        done = CliRunner().invoke(main, ["eval", *models, "--perplexity", str(file), *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    found = json.loads(run("--format", "json", "-o", str(tmp_path / "out.json")))
    assert json.loads((tmp_path / "out.json").read_text()) == found
    first, second = found["models"]
    assert (first["window"], first["stride"], first["tokens"]) == (64, 32, second["tokens"])
    assert first["perplexity"] == pytest.approx(math.exp(first["nats"] / first["tokens"]))
    assert first["bits_per_byte"] == pytest.approx(first["nats"] / math.log(2) / found["bytes"])
    assert first["nats"] != second["nats"]
    shown = run("--window", "32", "--stride", "8").splitlines()
    assert shown[0] == f"{file}: {len(TEXT.encode())} bytes"
    assert [line.split()[-1] for line in shown[2:]] == ["32/8", "32/8"]


def test_texts_of_other_encodings_and_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "gbk.txt").write_bytes(TEXT.encode("gb18030"))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read_text(tmp_path / "gbk.txt").text == read_text(tmp_path / "marked.txt").text == TEXT
    (tmp_path / "bad.txt").write_bytes(TEXT.encode() + "第二".encode() + b"\xff\n" + TEXT.encode())
    with pytest.raises(DataError, match=r"bad.txt:7: byte 0xff at column 3 is not UTF-8"):
        read_text(tmp_path / "bad.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="is empty"):
        read_text(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="cannot read"):
        read_text(tmp_path)


def test_windows_that_cannot_be(tmp_path: Path) -> None:
    model = find_model(str(quick_model(tmp_path / "model")), tmp_path / "jobs")
    (tmp_path / "text.txt").write_text(TEXT)
    text = read_text(tmp_path / "text.txt")
    for window, stride, said in ((97, None, "a context of 96 tokens"), (8, 8, "less than the window of 8")):
        with pytest.raises(SpecError, match=said):
            surprise(Candidate(role=OTHER, model=model), text, window=window, stride=stride)
