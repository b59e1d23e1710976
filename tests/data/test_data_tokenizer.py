"""Tokenizers: the same ids as transformers, special tokens from their own files, and files that are something else."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.data_tools import make_hugging_face, make_sentencepiece

from launcher.data.options import PreprocessOptions
from launcher.data.preprocess import fingerprint
from launcher.data.templates import get_template
from launcher.data.tokenizer import check_special_ids, find_tokenizer, load_tokenizer, special_conflicts, stand_in_pad
from launcher.errors import DataError, SpecError
from launcher.runspec.checking import load_spec

PARTS = (
    " ", "  ", "    ", "\n", "\n\n", "\t", "return", "def f(x):", "小明有", "5个苹果", "，", "a", "1 + 2", "▁", "é",
    "🙂", "<s>", "[INST]", "  x", "x  ", "\r\n", "{", "=", "\u00a0",
)  # fmt: skip
SCHEMES = ("first", "always", "never", "prepend", "bytes", "bytes with a space")


def strings(count: int) -> Iterator[str]:
    dice = random.Random(7)
    yield from PARTS
    for _ in range(count):
        yield "".join(dice.choices(PARTS, k=dice.randint(1, 12)))


def made(folder: Path, scheme: str) -> Path:
    kind = {"prepend": "prepend", "bytes": "bytes", "bytes with a space": "bytes"}.get(scheme, "metaspace")
    file = make_hugging_face(folder / "tokenizer.json", kind)
    described = json.loads(file.read_text("utf-8"))
    if kind == "metaspace":
        described["pre_tokenizer"] |= {"prepend_scheme": scheme, "split": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    if scheme == "bytes with a space":
        config["add_prefix_space"] = True
    file.write_text(json.dumps(described), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ids_are_those_of_transformers(tmp_path: Path, scheme: str) -> None:
    """At the start, after a control token, and after other text: hundreds of strings of spaces, code and Chinese."""
    from transformers import PreTrainedTokenizerFast

    ours = load_tokenizer(made(tmp_path, scheme))
    plain = PreTrainedTokenizerFast.from_pretrained(str(tmp_path), split_special_tokens=True)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    for text in strings(400):
        assert ours.encode(text, start=True) == plain(text, add_special_tokens=False).input_ids, repr(text)
        if "<s>" not in text:
            after = ours.encode(text, start=ours.starts_after_control)
            assert [ours.bos_id, *after] == theirs(f"<s>{text}", add_special_tokens=False).input_ids, repr(text)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_llama2_rows_are_those_of_transformers(tmp_path: Path, scheme: str) -> None:
    """A whole conversation as one text with its control tokens spelled out."""
    from transformers import PreTrainedTokenizerFast

    ours, template = load_tokenizer(made(tmp_path, scheme)), get_template("llama2")
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    from launcher.data.messages import Message

    for text in ("def f(x):\n    return x", "  two spaces", "小明有5个苹果"):
        turns = (Message("user", text), Message("assistant", text))
        whole = f"<s>[INST] {text} [/INST] {text} </s>"
        assert template.encode(ours, turns).ids == theirs(whole, add_special_tokens=False).input_ids


def test_special_tokens_come_from_the_files_beside(tmp_path: Path) -> None:
    file = make_hugging_face(tmp_path / "tokenizer.json", "bytes")
    control = {
        name: load_tokenizer(file).token_id(name) for name in ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "</s>")
    }
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|eot_id|>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}, "pad_token": null}')
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [control["<|eot_id|>"]]}))
    found = load_tokenizer(file)

    assert (found.bos_id, found.eos_id, found.pad_id) == (control["<|im_start|>"], control["<|im_end|>"], None)
    assert {control["<|im_end|>"], control["<|eot_id|>"]} <= found.end_ids
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "<|im_end|>"}')
    assert load_tokenizer(file).bos_id is None
    for beside in ("special_tokens_map.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / beside).write_text("[" * 5000)  # says nothing, as no file would
    assert load_tokenizer(file).encode("a", start=True) == found.encode("a", start=True)


def test_ids_that_are_text_to_the_tokenizer_are_refused_with_its_own(tmp_path: Path) -> None:
    """The defaults 1, 2 and 0 are characters in a vocabulary of bytes without unk, bos and eos at its beginning."""
    file = make_hugging_face(tmp_path / "tokenizer.json", "bytes")
    described = json.loads(file.read_text("utf-8"))
    vocab = described["model"]["vocab"]
    order = sorted(vocab, key=lambda piece: (piece.startswith("<"), vocab[piece]))
    described["model"]["vocab"] = {piece: number for number, piece in enumerate(order)}
    numbers = described["model"]["vocab"]
    described["added_tokens"] = [one | {"id": numbers[one["content"]]} for one in described["added_tokens"]]
    file.write_text(json.dumps(described), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    found = load_tokenizer(file)
    own = {"bos_token_id": numbers["<|im_start|>"], "eos_token_id": numbers["<|im_end|>"]}

    assert special_conflicts(found, bos=1, eos=2, pad=0) == own | {"pad_token_id": stand_in_pad(found)}
    assert found.is_control(stand_in_pad(found))
    assert special_conflicts(found, bos=own["bos_token_id"], eos=own["eos_token_id"], pad=5000) == {}
    with pytest.raises(SpecError, match=r"model\.bos_token_id is 1 .*has another token") as caught:
        check_special_ids(load_spec("tiny_cpu").model, found)
    assert f"model.eos_token_id: {own['eos_token_id']}" in str(caught.value.hint)


def test_the_ids_of_a_sentencepiece_model_are_its_own(tmp_path: Path) -> None:
    found = load_tokenizer(make_sentencepiece(tmp_path / "tokenizer.model"))

    assert special_conflicts(found, bos=1, eos=2, pad=0) == {}
    assert special_conflicts(found, bos=2, eos=1, pad=300) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"GGUF\x03\0\0\0", "a GGUF file"), (b"IQ== 0\nIg== 1\n", "tiktoken's"), (b"\x89PNG", "no SentencePiece model")],
)
def test_a_model_file_that_is_something_else_is_passed_over_and_said(tmp_path: Path, content: bytes, what: str) -> None:
    model = tmp_path / "tokenizer.model"
    model.write_bytes(content)
    with pytest.raises(DataError, match=what):
        load_tokenizer(tmp_path)
    file = make_hugging_face(tmp_path / "tokenizer.json", "metaspace")
    found = find_tokenizer(tmp_path)

    assert found.path == file
    assert what in found.note
    assert load_tokenizer(tmp_path).info.path == str(file)
    with pytest.raises(DataError, match=what) as caught:
        load_tokenizer(model)
    assert caught.value.hint == f"give {file}"


def test_another_eos_makes_other_rows(tmp_path: Path) -> None:
    """By what stands beside the tokenizer.json, not by its bytes alone."""
    made(tmp_path, "first")
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    options = PreprocessOptions(
        source=tmp_path / "a.jsonl",
        tokenizer=tmp_path / "tokenizer.json",
        target=tmp_path / "t.mindrecord",
        seq_length=64,
        template="plain",
    )
    before = fingerprint(options)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "<|im_end|>"}')
    assert fingerprint(options) != before


def test_ids_above_the_pieces_are_decoded_as_unknown(tmp_path: Path) -> None:
    """A model's vocabulary may be larger than its tokenizer, and a model that is hardly trained says any of its ids."""
    found = load_tokenizer(make_sentencepiece(tmp_path / "tokenizer.model"))
    size = found.info.vocab_size
    said = found.encode("加", start=True)

    assert found.decode([*said, size, size + 700, *said]) == f"{found.decode(said)}\ufffd\ufffd{found.decode(said)}"
    assert found.decode([]) == ""
    assert (found.piece(size), found.is_control(size), found.is_byte(size)) == ("\ufffd", False, False)
