"""Tokenizers, one interface for training data and for inference.

SentencePiece models (``tokenizer.model``) and those of Hugging Face (``tokenizer.json``).

Text is encoded in runs. A run at the start of a text, or after a control token, gets what the model puts
before a text (LLaMA's "▁"); a run that continues another one does not. So the tokens of a prompt are the same
whether an answer follows or not, and those of an answer are known without counting pieces of a joined string.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.errors import DataError

# A model is a protobuf message, and bytes appended to one are merged into it: this is field 3,
# normalizer_spec, with its field 3, add_dummy_prefix, false (sentencepiece_model.proto of SentencePiece 0.2).
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """Which tokenizer it was: ``path`` absolute, ``sha256`` of the file, ``vocab_size`` in pieces."""

    path: str
    sha256: str
    vocab_size: int


class Tokenizer(Protocol):
    """What templates and preprocessing ask of a tokenizer."""

    @property
    def info(self) -> TokenizerInfo: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def unk_id(self) -> int | None: ...

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Ids of ``text``, none a control token. ``start``: nothing or a control token stands before it."""
        ...

    def token_id(self, token: str) -> int | None:
        """Id of the control token ``token``, such as "<|im_end|>", or None when there is none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; control tokens give nothing."""
        ...

    def piece(self, token_id: int) -> str:
        """What the vocabulary calls ``token_id``."""
        ...

    def is_control(self, token_id: int) -> bool:
        """Whether ``token_id`` is a control token, unk included, and no text."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Whether ``token_id`` is one byte of a character that the vocabulary does not know."""
        ...


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file ``path``; in a folder, ``tokenizer.model`` or else ``tokenizer.json``.

    Raises DataError when there is none, or when the file is not what its name says.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in ("tokenizer.model", "tokenizer.json") if (path / name).is_file()]
        file = found[0] if found else path / "tokenizer.model"
    if not file.is_file():
        raise DataError(
            f"no tokenizer at {file}", hint="train one: launcher data tokenizer FILE --output tokenizer.model"
        )
    return HuggingFaceTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)


class SentencePieceTokenizer:
    """A SentencePiece model: one processor with the model's dummy prefix, one without."""

    def __init__(self, path: Path) -> None:
        model = path.read_bytes()
        self._processor = _processor(model, path)
        self._continuing = _processor(model + _WITHOUT_PREFIX, path)
        # Models that have the prefix see " 12" after a run as "▁12", which is "12" with the prefix.
        self._has_prefix = self._processor.encode("a") != self._continuing.encode("a")
        self.info = TokenizerInfo(
            path=str(path.resolve()),
            sha256=hashlib.sha256(model).hexdigest(),
            vocab_size=self._processor.get_piece_size(),
        )
        self.bos_id = _present(self._processor.bos_id())
        self.eos_id = _present(self._processor.eos_id())
        self.unk_id = _present(self._processor.unk_id())

    def encode(self, text: str, *, start: bool) -> list[int]:
        if start:
            ids: list[int] = self._processor.encode(text)
        elif self._has_prefix and text.startswith(" "):
            ids = self._processor.encode(text[1:])
        else:
            ids = self._continuing.encode(text)
        return ids

    def token_id(self, token: str) -> int | None:
        found: int = self._processor.piece_to_id(token)
        # SentencePiece answers with the id of unk for what it does not know.
        return found if self._processor.id_to_piece(found) == token else None

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode([int(token) for token in ids])
        return text

    def piece(self, token_id: int) -> str:
        name: str = self._processor.id_to_piece(token_id)
        return name

    def is_control(self, token_id: int) -> bool:
        return bool(self._processor.is_control(token_id) or self._processor.is_unknown(token_id))

    def is_byte(self, token_id: int) -> bool:
        return bool(self._processor.is_byte(token_id))


# What tokenizers call their bos and eos where no tokenizer_config.json says so.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "[BOS]")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[EOS]")


class HuggingFaceTokenizer:
    """A ``tokenizer.json``; bos and eos are those of the ``tokenizer_config.json`` beside it, if any."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        self._tokenizer = _from_json(raw, path)
        self._continuing = _from_json(_without_prefix(raw), path)
        self._has_prefix = _ids(self._tokenizer, "a") != _ids(self._continuing, "a")
        self.info = TokenizerInfo(
            path=str(path.resolve()),
            sha256=hashlib.sha256(raw).hexdigest(),
            vocab_size=self._tokenizer.get_vocab_size(with_added_tokens=True),
        )
        config = _config_beside(path)
        self.bos_id = self._named(config.get("bos_token"), _BOS_NAMES)
        self.eos_id = self._named(config.get("eos_token"), _EOS_NAMES)
        self.unk_id = self._named(config.get("unk_token"), ("<unk>", "[UNK]"))
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = frozenset(token_id for token_id, token in added.items() if token.special)

    def _named(self, configured: Any, names: Sequence[str]) -> int | None:
        name = configured.get("content") if isinstance(configured, dict) else configured
        found = (self.token_id(name) for name in ([name] if isinstance(name, str) else names))
        return next((token for token in found if token is not None), None)

    def encode(self, text: str, *, start: bool) -> list[int]:
        if start:
            return _ids(self._tokenizer, text)
        if self._has_prefix and text.startswith(" "):
            return _ids(self._tokenizer, text[1:])
        return _ids(self._continuing, text)

    def token_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text

    def piece(self, token_id: int) -> str:
        return str(self._tokenizer.id_to_token(token_id))

    def is_control(self, token_id: int) -> bool:
        return token_id in self._control

    def is_byte(self, token_id: int) -> bool:
        return re.fullmatch("<0x[0-9A-F]{2}>", self.piece(token_id)) is not None


def _from_json(raw: bytes, path: Path) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises Exception itself, whatever is wrong
        raise DataError(f"{path} is not a tokenizer.json: {error}") from error
    # What users write stays text, even where it spells a control token.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _without_prefix(raw: bytes) -> bytes:
    """The same tokenizer without the "▁" or space that it puts before a text."""
    try:
        return json.dumps(_prefix_off(json.loads(raw))).encode()
    except ValueError:
        return raw


def _prefix_off(part: Any) -> Any:
    if isinstance(part, list):
        return [_prefix_off(item) for item in part if not (isinstance(item, dict) and item.get("type") == "Prepend")]
    if not isinstance(part, dict):
        return part
    off: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    changed = {key: value if key == "vocab" else _prefix_off(value) for key, value in part.items()}
    if isinstance(changed.get("normalizer"), dict) and changed["normalizer"].get("type") == "Prepend":
        changed["normalizer"] = None
    return {**changed, **off.get(str(part.get("type")), {})}


def _config_beside(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.with_name("tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _processor(model: bytes, path: Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path} is not a SentencePiece model", hint="a LLaMA's is called tokenizer.model") from error


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def train_tokenizer(texts: Iterable[str], target: Path, *, vocab_size: int, special: Sequence[str] = ()) -> None:
    """Train a byte-pair model as LLaMA's was and write it to ``target``, which must not be read meanwhile.

    Byte fallback, digits apart, spaces kept, unk 0, bos 1, eos 2, no padding token. The same texts give the
    same bytes. ``vocab_size`` counts pieces; 259 of them are the control tokens and the bytes. ``special``
    are more control tokens, which no text is ever encoded to; they get the ids from 3 on. Raises DataError
    when the texts do not hold that many pieces, or more characters than fit.
    """
    import sentencepiece

    with target.open("wb") as out:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=out,
                vocab_size=vocab_size,
                model_type="bpe",
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                remove_extra_whitespaces=False,
                normalization_rule_name="identity",
                character_coverage=0.9999,
                max_sentence_length=1 << 16,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                control_symbols=list(special),
                num_threads=1,
                minloglevel=3,
            )
        except (RuntimeError, OSError) as error:
            raise DataError(f"cannot train {vocab_size} pieces: {_reason(error)}", hint=_vocab_hint(error)) from error


def _reason(error: Exception) -> str:
    # "INTERNAL: src/trainer_interface.cc(678) [...] Vocabulary size too high (2000). Please set it to ..."
    return str(error).rsplit("] ", maxsplit=1)[-1].strip() or "SentencePiece gave no reason"


def _vocab_hint(error: Exception) -> str:
    return "pass a smaller --vocab-size, or more text" if "too high" in str(error) else "pass a larger --vocab-size"
