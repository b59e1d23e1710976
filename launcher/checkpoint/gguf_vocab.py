"""A tokenizer as GGUF has it: tokens, their kinds and scores, and the name of the pre-tokenizer that llama.cpp knows.

llama.cpp, convert_hf_to_gguf.py (_create_vocab_sentencepiece, get_vocab_base): what llama.cpp reads is what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoint.model_files import TOKENIZER, TOKENIZER_JSON
from launcher.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_UNUSED_SCORE, _ADDED_SCORE = -10000.0, -1000.0
_SPACE = "\u2581"  # what SentencePiece has for a space
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The expression that a byte-level tokenizer.json cuts words by, and llama.cpp's name for it.
_BY_REGEX = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """kind: "llama" (SentencePiece, with scores) or "gpt2" (byte-level BPE). pre: the pre-tokenizer."""

    kind: str
    pre: str
    tokens: tuple[bytes, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of transformers in ``folder``, filled up to ``size`` tokens.

    Raises CheckpointError when there is none, it has more tokens than the model, or llama.cpp does not know its kind.
    """
    if (folder / TOKENIZER).is_file():
        return _sentencepiece(folder, size)
    if (folder / TOKENIZER_JSON).is_file():
        return _byte_level(json.loads((folder / TOKENIZER_JSON).read_text(encoding="utf-8")), size)
    raise CheckpointError("no tokenizer is known", hint="give it: --tokenizer FILE")


class _Table:
    """Tokens by id, all unused at first."""

    def __init__(self, size: int) -> None:
        self.tokens = [f"[PAD{number}]".encode() for number in range(size)]
        self.types = [UNUSED] * size
        self.scores = [_UNUSED_SCORE] * size

    def put(self, token_id: int, text: str, kind: int, score: float) -> None:
        if not 0 <= token_id < len(self.tokens):
            raise CheckpointError(
                f"the tokenizer has a token {token_id} ({text!r}), the model {len(self.tokens)} tokens",
                hint="give the tokenizer of this model: --tokenizer FILE",
            )
        self.tokens[token_id], self.types[token_id], self.scores[token_id] = text.encode(), kind, score

    def put_added(self, token_id: int, text: str, *, special: bool) -> None:
        control = special or _looks_special(text)
        shown = text if control else text.replace(_SPACE, " ")
        self.put(token_id, shown, CONTROL if control else USER_DEFINED, _ADDED_SCORE)


def _looks_special(text: str) -> bool:
    """Return whether ``text`` is taken for a control token though the tokenizer calls it none, as llama.cpp does."""
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(begin) and text.endswith(end) for begin, end in pairs
    )


def _sentencepiece(folder: Path, size: int) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_file=str(folder / TOKENIZER))
    except (OSError, RuntimeError) as error:
        raise CheckpointError("the tokenizer is no SentencePiece model", hint="give another --tokenizer") from error
    table = _Table(size)
    for number in range(pieces.vocab_size()):
        table.put(number, pieces.IdToPiece(number), _kind_of(pieces, number), pieces.GetScore(number))
    for text, number in _json(folder / "added_tokens.json").items():
        table.put(int(number), text, USER_DEFINED, _ADDED_SCORE)
    for number, item in _json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items():
        table.put_added(int(number), item["content"], special=bool(item.get("special")))
    return Vocabulary(
        kind="llama", pre="default", tokens=tuple(table.tokens), types=tuple(table.types), scores=tuple(table.scores)
    )


def _kind_of(pieces: Any, number: int) -> int:
    kinds = (
        (UNKNOWN, pieces.IsUnknown),
        (CONTROL, pieces.IsControl),
        (UNUSED, pieces.IsUnused),
        (BYTE, pieces.IsByte),
    )
    return next((kind for kind, is_it in kinds if is_it(number)), NORMAL)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _byte_level(described: Mapping[str, Any], size: int) -> Vocabulary:
    model = described.get("model") or {}
    pre = _pre_tokenizer(described.get("pre_tokenizer") or {})
    if model.get("type", "BPE") != "BPE" or pre is None:
        raise CheckpointError(
            "llama.cpp has no name for this tokenizer.json: it is not byte-level like that of Llama 3, Qwen or SmolLM",
            hint="give the model's SentencePiece file, where it has one: --tokenizer tokenizer.model",
        )
    table = _Table(size)
    for text, number in (model.get("vocab") or {}).items():
        table.put(number, text, NORMAL, 0.0)
    for item in described.get("added_tokens") or ():
        table.put_added(item["id"], item["content"], special=bool(item.get("special")))
    return Vocabulary(kind="gpt2", pre=pre, tokens=tuple(table.tokens), types=tuple(table.types))


def _pre_tokenizer(described: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name of what a tokenizer.json does before BPE; None where it has none.

    The converter of llama.cpp tells tokenizers by a hash of what they make of one text; what they do is in the file.
    """
    steps = described.get("pretokenizers") or [described]
    kinds = [step.get("type") for step in steps]
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return _BY_REGEX.get((steps[0].get("pattern") or {}).get("Regex", ""))
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) else None
