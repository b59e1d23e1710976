"""The names of the files in the folder of a whole model."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import CheckpointError
from launcher.runspec.folders import CHAT_TEMPLATE

WEIGHTS, CKPT_WEIGHTS = "model.safetensors", "model.ckpt"
MODEL_CONFIG = "launcher_model.json"
CONVERT_RECORD = "convert.json"
TOKENIZER, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
# Files of a tokenizer.json: its special tokens, its chat template, and what slow tokenizers read in its place.
TOKENIZER_CONFIGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    CHAT_TEMPLATE,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def tokenizer_files(path: Path) -> dict[str, bytes]:
    """Return a tokenizer under the standard name of its kind, with a tokenizer.json's files of special tokens.

    Raises CheckpointError when ``path`` cannot be read.
    """
    try:
        if path.suffix != ".json":
            return {TOKENIZER: path.read_bytes()}
        own = {} if path.name in TOKENIZER_CONFIGS else {TOKENIZER_JSON: path.read_bytes()}
        beside = (path.with_name(name) for name in TOKENIZER_CONFIGS)
        return own | {file.name: file.read_bytes() for file in beside if file.is_file()}
    except OSError as error:
        raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror}", hint="put it back") from error
