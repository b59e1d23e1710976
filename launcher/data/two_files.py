"""vocab.json and merges.txt, a Qwen's tokenizer in a folder without a tokenizer.json.

transformers 4.57, convert_slow_tokenizer.py, Qwen2Converter: byte-level BPE on Unicode NFC. Qwen 1's qwen.tiktoken,
with its own model class, is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.common.json_files import json_or_empty
from launcher.errors import DataError

VOCAB, MERGES = "vocab.json", "merges.txt"
_CONFIG, _CLASSES = "tokenizer_config.json", ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ADDED = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def joined(vocab: Path) -> bytes:
    """Return the tokenizer.json that ``vocab`` and the files beside it amount to. Raises DataError."""
    config = json_or_empty(vocab.with_name(_CONFIG))
    if config.get("tokenizer_class") not in _CLASSES:
        raise DataError(
            f"{vocab} is not known to be a Qwen's: tokenizer_class in its {_CONFIG} is "
            f"{config.get('tokenizer_class')!r}, not {_CLASSES[0]!r}",
            hint=f'write a tokenizer.json: python -c "import transformers as t; '
            f"t.AutoTokenizer.from_pretrained('{vocab.parent}').save_pretrained('{vocab.parent}')\"",
        )
    pieces = json_or_empty(vocab)
    if not pieces:
        raise DataError(f"{vocab} is no vocabulary in JSON", hint="fetch the model again")
    merges = _merges(vocab.with_name(MERGES))
    try:
        described = _described(pieces, merges, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{vocab.with_name(_CONFIG)}: added_tokens_decoder is not as transformers writes it ({error!r})",
            hint="fetch the model again",
        ) from error
    return json.dumps(described, ensure_ascii=False).encode()


def _merges(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="fetch the model again") from error
    # As transformers reads it: a first line with the version, no empty lines.
    kept = [line.strip() for number, line in enumerate(lines) if number or not line.startswith("#version:")]
    return [line.split() for line in kept if line]


def _described(pieces: Mapping[str, Any], merges: list[list[str]], config: Mapping[str, Any]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": bool(config.get("add_prefix_space")), "trim_offsets": False}
    added = config.get("added_tokens_decoder") or {}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": int(number), **{key: token[key] for key in _ADDED}}
            for number, token in sorted(added.items(), key=lambda item: int(item[0]))
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                {**byte_level, "use_regex": False},
            ],
        },
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": dict(pieces), "merges": merges},
    }
