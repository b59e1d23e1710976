"""Tokenizers: SentencePiece models (``tokenizer.model``), one interface for training data and for inference.

Text is encoded in runs. A run at the start of a text, or after a control token, gets what the model puts
before a text (LLaMA's "▁"); a run that continues another one does not. So the tokens of a prompt are the same
whether an answer follows or not, and those of an answer are known without counting pieces of a joined string.
"""

from __future__ import annotations

import hashlib
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


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in the file ``path``, or in the folder ``path`` as ``tokenizer.model``.

    Raises DataError when there is none, or when it is not a SentencePiece model.
    """
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"no tokenizer at {file}", hint="train one: launcher data tokenizer FILE --output tokenizer.model"
        )
    return SentencePieceTokenizer(file)


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


def _processor(model: bytes, path: Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{path} is not a SentencePiece model", hint="a LLaMA's is called tokenizer.model"
        ) from error


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def train_tokenizer(
    texts: Iterable[str], target: Path, *, vocab_size: int, special: Sequence[str] = ()
) -> None:
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
            raise DataError(
                f"cannot train {vocab_size} pieces: {_reason(error)}", hint=_vocab_hint(error)
            ) from error


def _reason(error: Exception) -> str:
    # "INTERNAL: src/trainer_interface.cc(678) [...] Vocabulary size too high (2000). Please set it to ..."
    return str(error).rsplit("] ", maxsplit=1)[-1].strip() or "SentencePiece gave no reason"


def _vocab_hint(error: Exception) -> str:
    return (
        "pass a smaller --vocab-size, or more text"
        if "too high" in str(error)
        else "pass a larger --vocab-size"
    )
