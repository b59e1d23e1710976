"""A Qwen's tokenizer of vocab.json and merges.txt: the same as transformers reads of these files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.checkpoint.model_files import tokenizer_files
from launcher.data.sample import sample_lines
from launcher.data.tokenizer import find_tokenizer, load_tokenizer
from launcher.errors import DataError

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = (
    "每盒彩笔3元，买6盒要多少元？", "I'LL don't  know\r\n\n  x", "e\u0301 café \u212b", "  12345 ", "<|im_start|>a",
    "\u200b\t\u3000", "👩\u200d🚀 def f(x):\n    return x**2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers

    folder = tmp_path_factory.mktemp("qwen")
    whole = tokenizers.ByteLevelBPETokenizer()
    whole.train_from_iterator([*sample_lines(200, 1), *TEXTS], vocab_size=700, min_frequency=1)
    whole.save_model(str(folder))
    decoder = {
        str(700 + number): {
            "content": name, "special": True,
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        }
        for number, name in enumerate(CONTROL)
    }  # fmt: skip
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(folder: Path, text: str) -> None:
    from transformers import Qwen2Tokenizer

    ours, theirs = load_tokenizer(folder), Qwen2Tokenizer.from_pretrained(str(folder))
    ids = ours.encode(text, start=True)

    assert ours.info.vocab_size == len(theirs)
    assert ids == theirs(text, split_special_tokens=True).input_ids
    assert ours.decode(ids) == theirs.decode(ids)


def test_control_tokens_are_single_ids(folder: Path) -> None:
    found = load_tokenizer(folder)

    assert [found.token_id(name) for name in CONTROL] == [700, 701, 702]
    assert (found.eos_id, found.pad_id) == (702, 700)
    assert found.is_control(701)


def test_its_files_travel_as_they_are(folder: Path) -> None:
    found = find_tokenizer(folder).path

    assert found == folder / "vocab.json"
    files = tokenizer_files(found)
    assert sorted(files) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert all(content == (folder / name).read_bytes() for name, content in files.items())


def test_another_model_with_such_files_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')

    with pytest.raises(DataError, match="GPT2Tokenizer") as caught:
        load_tokenizer(tmp_path)

    assert "save_pretrained" in str(caught.value.hint)


def test_broken_files_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xfe")
    with pytest.raises(DataError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(DataError, match="tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[1]")
    with pytest.raises(DataError, match=r"vocab\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("added", [{"x": {}}, {"5": {"content": "a"}}, {"5": 1}, [1]])
def test_broken_control_tokens_are_named(folder: Path, tmp_path: Path, added: object) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    with pytest.raises(DataError, match="added_tokens_decoder"):
        load_tokenizer(tmp_path)
