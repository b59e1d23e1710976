"""Tokenizers behind one interface for training data and inference.

SentencePiece models (``tokenizer.model``) and those of Hugging Face (``tokenizer.json``).

Text is encoded in runs. A run at the start of a text, or after a control token, gets the model's prefix of a
text (LLaMA's "▁"); a run that continues another one does not. So the tokens of a prompt are the same whether
an answer follows or not, and those of an answer are known without counting pieces of a joined string.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from launcher.common.nearest import path_hint
from launcher.data.two_files import MERGES, VOCAB, joined
from launcher.errors import DataError, SpecError
from launcher.runspec.folders import chat_template_file
from launcher.runspec.sections import ModelSpec

# A model is a protobuf message, and bytes appended to one are merged into it: this is field 3,
# normalizer_spec, with its field 3, add_dummy_prefix, false (sentencepiece_model.proto of SentencePiece 0.2).
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"


# Files beside a tokenizer.json that say more of it.
_CONFIG, _MAP, _GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """The identity of a tokenizer: ``path`` absolute, ``sha256`` of the file, ``vocab_size`` in pieces.

    ``beside``: a hash of the files beside a tokenizer.json that change its ids; empty where there is none.
    """

    path: str
    sha256: str
    vocab_size: int
    beside: str = ""


class Tokenizer(Protocol):
    """The interface of tokenizers for templates and preprocessing."""

    @property
    def info(self) -> TokenizerInfo: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def unk_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int | None: ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Return the control tokens that end a text or an answer, including eos."""
        ...

    @property
    def starts_after_control(self) -> bool:
        """Return whether a text after a control token is encoded like one at the very start."""
        ...

    @property
    def control_tokens(self) -> Sequence[str]:
        """Return the names of all control tokens."""
        ...

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Return the ids of ``text``, none a control token. ``start``: it begins a text, or counts as doing so."""
        ...

    def encode_with_places(self, text: str, *, start: bool) -> tuple[list[int], list[int]]:
        """Return what ``encode`` returns, and for each id the character of ``text`` at which it begins."""
        ...

    def swallows(self, token_id: int) -> tuple[bool, bool]:
        """Return whether a control token takes in the white space before it, and after it."""
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of the control token ``token``, such as "<|im_end|>", or None when there is none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; control tokens are skipped."""
        ...

    def piece(self, token_id: int) -> str:
        """Return the vocabulary's name of ``token_id``."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return what ``token_id`` adds to a text in UTF-8, maybe a part of a character; b"" for a control token."""
        ...

    def is_control(self, token_id: int) -> bool:
        """Return whether ``token_id`` is a control token (including unk) and not text."""
        ...

    def is_byte(self, token_id: int) -> bool:
        """Return whether ``token_id`` is one byte of a character that the vocabulary does not know."""
        ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """The path of a tokenizer, and a note if another file was passed over; ``path`` None when there is none."""

    path: Path | None
    note: str = ""


def find_tokenizer(place: Path) -> Found:
    """Find the tokenizer of ``place``, a file or a folder; nothing is loaded.

    In a folder tokenizer.model precedes tokenizer.json, unless its bytes are not a SentencePiece model, or the folder
    has a chat template: its control tokens are often in tokenizer.json only.
    """
    if not place.is_dir():
        return Found(path=place)
    model, fast = place / "tokenizer.model", place / "tokenizer.json"
    wrong = _not_sentencepiece(model) if model.is_file() else ""
    if model.is_file() and not (fast.is_file() and (wrong or chat_template_file(place))):
        return Found(path=model)
    if not fast.is_file():
        pair = (place / VOCAB, place / MERGES)
        return Found(path=pair[0] if all(file.is_file() for file in pair) else None)
    return Found(path=fast, note=f"{model} is {wrong}: {fast} is taken" if wrong else "")


def _not_sentencepiece(path: Path) -> str:
    """Describe ``path`` if, by its first bytes, it is not a SentencePiece model; else return ""."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"GGUF"):
        return "a GGUF file"
    # A model is a protobuf message that begins with field 1, its pieces.
    if head.startswith(b"\n"):
        return ""
    return "tiktoken's list of tokens" if re.match(rb"[A-Za-z0-9+/=]+ \d+\n", head) else "no SentencePiece model"


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer in the file ``path``, or the one that ``find_tokenizer`` finds in a folder.

    Raises DataError when there is none, or when the file's content does not match its name.
    """
    file = find_tokenizer(path).path
    if file is None or not file.is_file():
        raise DataError(
            f"no tokenizer at {file or path / 'tokenizer.model'}",
            hint=path_hint(path, "train one: launcher data tokenizer FILE --output tokenizer.model"),
        )
    beside = (file.with_name(name) for name in (_CONFIG, _MAP, _GENERATION, MERGES))
    found = [path.stat() for path in (file, *beside) if path.is_file()]
    return _loaded(file, tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found))


# A chat template and the session or encoder that uses it load the same one, and a large one takes half a second.
@lru_cache(maxsize=4)
def _loaded(file: Path, _version: tuple[tuple[int, int, int], ...]) -> Tokenizer:
    return HuggingFaceTokenizer(file) if file.suffix == ".json" else SentencePieceTokenizer(file)


def differing_id(one: Tokenizer, other: Tokenizer) -> int | None:
    """Return the first id that names one piece in ``one`` and another in ``other``; None when there is none.

    Ids that only one of them has differ from nothing: a tokenizer may have been extended.
    """
    ids = range(min(one.info.vocab_size, other.info.vocab_size))
    return next((token for token in ids if one.piece(token) != other.piece(token)), None)


def special_conflicts(tokenizer: Tokenizer, *, bos: int, eos: int, pad: int) -> dict[str, int]:
    """Return the tokenizer's own ids, by name, of special tokens for which the model has a conflicting id.

    A pad that is text would hide that text from the model (mindformers 1.9.0 masks it, models/llama/llama.py); a bos
    or an eos must be the tokenizer's, or a control token where it names none.
    """
    found = {}
    stand_in = tokenizer.eos_id if tokenizer.eos_id is not None else 0
    begins = frozenset([] if tokenizer.bos_id is None else [tokenizer.bos_id])
    if _means_other(tokenizer, bos, begins):
        found["bos_token_id"] = next(iter(begins), stand_in)
    if _means_other(tokenizer, eos, tokenizer.end_ids):
        found["eos_token_id"] = stand_in
    if _is_text(tokenizer, pad):
        found["pad_token_id"] = stand_in_pad(tokenizer)
    return found


def stand_in_pad(tokenizer: Tokenizer) -> int:
    """Return the pad id; else unk; else the last control token that neither begins nor ends a text; else eos."""
    if tokenizer.pad_id is not None:
        return tokenizer.pad_id
    if tokenizer.unk_id is not None and not _is_text(tokenizer, tokenizer.unk_id):
        return tokenizer.unk_id
    used = {tokenizer.bos_id, *tokenizer.end_ids}
    rest = (token for token in range(tokenizer.info.vocab_size - 1, -1, -1) if token not in used)
    return next((token for token in rest if tokenizer.is_control(token)), tokenizer.eos_id or 0)


def _is_text(tokenizer: Tokenizer, token: int) -> bool:
    return token < tokenizer.info.vocab_size and not tokenizer.is_control(token)


def _means_other(tokenizer: Tokenizer, token: int, own: frozenset[int]) -> bool:
    return token not in own if own else _is_text(tokenizer, token)


_NO_PIECE = "\N{REPLACEMENT CHARACTER}"


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
        self.pad_id = _present(self._processor.pad_id())
        self.end_ids = frozenset([] if self.eos_id is None else [self.eos_id])
        self.starts_after_control = True

    @property
    def control_tokens(self) -> list[str]:
        pieces = range(self.info.vocab_size)
        return [self.piece(token) for token in pieces if self._processor.is_control(token)]

    def encode(self, text: str, *, start: bool) -> list[int]:
        processor, skipped = self._part(text, start)
        ids: list[int] = processor.encode(text[skipped:])
        return ids

    def encode_with_places(self, text: str, *, start: bool) -> tuple[list[int], list[int]]:
        processor, skipped = self._part(text, start)
        pieces = processor.encode(text[skipped:], out_type="immutable_proto").pieces
        return [piece.id for piece in pieces], [piece.begin + skipped for piece in pieces]

    def _part(self, text: str, start: bool) -> tuple[Any, int]:
        """Return the processor for ``text``, and how many characters of it the prefix stands for."""
        if start:
            return self._processor, 0
        return (self._processor, 1) if self._has_prefix and text.startswith(" ") else (self._continuing, 0)

    def swallows(self, token_id: int) -> tuple[bool, bool]:
        return False, False

    def token_id(self, token: str) -> int | None:
        found: int = self._processor.piece_to_id(token)
        # SentencePiece answers with the id of unk for what it does not know.
        return found if self._processor.id_to_piece(found) == token else None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; U+FFFD for each that has no piece, as a model's vocabulary may be larger."""
        known = list(map(int, ids))
        if known and min(known) >= 0 and max(known) < self.info.vocab_size:
            return str(self._processor.decode(known))
        runs = [(has, list(run)) for has, run in itertools.groupby(known, self._has)]
        return "".join(self._processor.decode(run) if has else _NO_PIECE * len(run) for has, run in runs)

    def _has(self, token_id: int) -> bool:
        return 0 <= token_id < self.info.vocab_size

    def piece(self, token_id: int) -> str:
        name: str = self._processor.id_to_piece(token_id) if self._has(token_id) else _NO_PIECE
        return name

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if self.is_control(token_id) else _bytes_of_piece(self.piece(token_id))

    def is_control(self, token_id: int) -> bool:
        return self._has(token_id) and bool(
            self._processor.is_control(token_id) or self._processor.is_unknown(token_id)
        )

    def is_byte(self, token_id: int) -> bool:
        return self._has(token_id) and bool(self._processor.is_byte(token_id))


# What tokenizers call their bos and eos where no tokenizer_config.json says so.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "[BOS]")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[EOS]")


class HuggingFaceTokenizer:
    """A ``tokenizer.json``, or a Qwen's vocab.json and merges.txt, with the special tokens of the files beside it."""

    def __init__(self, path: Path) -> None:
        raw = joined(path) if path.name == VOCAB else path.read_bytes()
        described = _as_transformers(_mapping(raw), _beside(path, _CONFIG))
        self._tokenizer = _from_json(json.dumps(described).encode() if described else raw, path)
        self._continuing = _from_json(json.dumps(_prefix_off(described)).encode() if described else raw, path)
        # Some normalizers drop a space at the beginning; the one before an answer comes back with the prefix.
        self._keeps_space = _ids(self._continuing, " a") != _ids(self._continuing, "a")
        self.starts_after_control = not _first_alone(described)
        self.info = TokenizerInfo(
            path=str(path.resolve()),
            sha256=hashlib.sha256(raw).hexdigest(),
            vocab_size=self._tokenizer.get_vocab_size(with_added_tokens=True),
            beside=_hash_beside(path),
        )
        self._bytewise = '"ByteLevel"' in json.dumps(described.get("decoder"))
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._control = frozenset(token_id for token_id, token in self._added.items() if token.special)
        config = {**_beside(path, _MAP), **_beside(path, _CONFIG)}
        self.bos_id = self._named(config, "bos_token", _BOS_NAMES)
        self.eos_id = self._named(config, "eos_token", _EOS_NAMES)
        self.unk_id = self._named(config, "unk_token", ("<unk>", "[UNK]"))
        self.pad_id = self._named(config, "pad_token", ("<pad>", "[PAD]"))
        known = [
            self.eos_id,
            *map(self.token_id, _EOS_NAMES),
            *_as_list(_beside(path, _GENERATION).get("eos_token_id")),
        ]
        self.end_ids = frozenset(token for token in known if isinstance(token, int))

    def _named(self, config: Mapping[str, Any], key: str, usual: Sequence[str]) -> int | None:
        """Return the id of the token under ``key`` in ``config``; without the key, of a usual name. Null means none."""
        configured = config.get(key)
        name = configured.get("content") if isinstance(configured, dict) else configured
        found = (self.token_id(name) for name in ([name] if key in config else usual) if isinstance(name, str))
        return next((token for token in found if token is not None), None)

    @property
    def control_tokens(self) -> list[str]:
        return [self.piece(token) for token in self._control]

    def encode(self, text: str, *, start: bool) -> list[int]:
        tokenizer, skipped = self._part(text, start)
        return _ids(tokenizer, text[skipped:])

    def encode_with_places(self, text: str, *, start: bool) -> tuple[list[int], list[int]]:
        tokenizer, skipped = self._part(text, start)
        found = tokenizer.encode(text[skipped:], add_special_tokens=False)
        return found.ids, [begin + skipped for begin, _ in found.offsets]

    def _part(self, text: str, start: bool) -> tuple[Any, int]:
        """Return the tokenizer for ``text``, and how many characters of it the prefix stands for."""
        if start:
            return self._tokenizer, 0
        return (self._tokenizer, 1) if not self._keeps_space and text.startswith(" ") else (self._continuing, 0)

    def swallows(self, token_id: int) -> tuple[bool, bool]:
        token = self._added.get(token_id)
        return (token.lstrip, token.rstrip) if token else (False, False)

    def token_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text

    def piece(self, token_id: int) -> str:
        return str(self._tokenizer.id_to_token(token_id))

    def token_bytes(self, token_id: int) -> bytes:
        if self.is_byte(token_id):
            return _bytes_of_piece(self.piece(token_id))
        if token_id in self._added or self._tokenizer.id_to_token(token_id) is None:
            return b"" if self.is_control(token_id) else self.decode([token_id]).encode()
        piece = self.piece(token_id)
        return bytes(map(_byte_of_character().__getitem__, piece)) if self._bytewise else _bytes_of_piece(piece)

    def is_control(self, token_id: int) -> bool:
        return token_id in self._control

    def is_byte(self, token_id: int) -> bool:
        return re.fullmatch("<0x[0-9A-F]{2}>", self.piece(token_id)) is not None


def _bytes_of_piece(piece: str) -> bytes:
    """Return the bytes of a piece that spells a space "\u2581" and a byte that is no character "<0xE8>"."""
    byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace("\u2581", " ").encode()


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level piece stands for: GPT-2's table (gpt-2, encoder.py)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


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


def _mapping(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_transformers(described: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json with the change that transformers makes to it by its tokenizer_config.json.

    transformers 4.57, tokenization_utils_fast.py: add_prefix_space, False by default, overrides the setting of the
    outermost pre-tokenizer.
    """
    outermost = described.get("pre_tokenizer")
    if config and isinstance(outermost, dict) and "add_prefix_space" in outermost:
        wanted = bool(config.get("add_prefix_space", False))
        return {**described, "pre_tokenizer": {**outermost, "add_prefix_space": wanted}}
    return described


def _first_alone(part: Any) -> bool:
    """Return whether a Metaspace puts "▁" before the first text only, not before texts after a control token."""
    if isinstance(part, list):
        return any(map(_first_alone, part))
    if not isinstance(part, dict):
        return False
    if part.get("type") == "Metaspace":
        return part.get("prepend_scheme") == "first"
    return _first_alone(part.get("pre_tokenizer") or part.get("pretokenizers"))


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


def _beside(path: Path, name: str) -> dict[str, Any]:
    try:
        return _mapping(path.with_name(name).read_bytes())
    except OSError:
        return {}


def _hash_beside(path: Path) -> str:
    files = [file for name in (_CONFIG, _MAP) if (file := path.with_name(name)).is_file()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _processor(model: bytes, path: Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        what = _not_sentencepiece(path) or "no SentencePiece model"
        raise DataError(f"{path} is {what}, not a SentencePiece model", hint=_other_than(path)) from error


def _other_than(path: Path) -> str:
    fast = path.with_name("tokenizer.json")
    return f"give {fast}" if fast.is_file() else "a LLaMA's is called tokenizer.model"


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def train_tokenizer(texts: Iterable[str], target: Path, *, vocab_size: int, special: Sequence[str] = ()) -> None:
    """Train a byte-pair model with LLaMA's settings and write it to ``target``, which must not be read meanwhile.

    Byte fallback, split digits, spaces kept, unk 0, bos 1, eos 2, no padding token. The same texts give the
    same bytes. ``vocab_size`` counts pieces; 259 of them are the control tokens and the bytes. ``special``:
    further control tokens, which no text is ever encoded to, with ids from 3 on. Raises DataError when the
    texts have too few pieces, or more characters than fit.
    """
    import sentencepiece

    stopped: list[BaseException] = []
    with target.open("wb") as out:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_noting(texts, stopped),
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
            if stopped:
                raise stopped[0] from error
            if (most := _MOST_PIECES.search(str(error))) is not None:
                raise TooManyPiecesError(vocab_size, int(most[1])) from error
            raise DataError(f"cannot train {vocab_size} pieces: {_reason(error)}", hint=_vocab_hint(error)) from error


# "Vocabulary size too high (2000). Please set it to a value <= 362."
_MOST_PIECES = re.compile(r"too high .*<= (\d+)")


class TooManyPiecesError(DataError):
    """The texts have no more than ``most`` pieces."""

    def __init__(self, wanted: int, most: int) -> None:
        super().__init__(
            f"cannot train {wanted:,} pieces: the texts have {most:,} at most",
            hint=f"--vocab-size {most}, or more text",
        )
        self.most = most


def _noting(texts: Iterable[str], stopped: list[BaseException]) -> Iterator[str]:
    """Yield ``texts`` and note an exception that ends them, because SentencePiece turns it into a RuntimeError."""
    try:
        yield from texts
    except BaseException as error:
        stopped.append(error)
        raise


def _reason(error: Exception) -> str:
    # "INTERNAL: src/trainer_interface.cc(678) [...] Vocabulary size too high (2000). Please set it to ..."
    return str(error).rsplit("] ", maxsplit=1)[-1].strip() or "SentencePiece gave no reason"


def _vocab_hint(error: Exception) -> str:
    return "pass a smaller --vocab-size, or more text" if "too high" in str(error) else "pass a larger --vocab-size"


def check_special_ids(model: ModelSpec, tokenizer: Tokenizer, *, hint: str | None = None) -> None:
    """Raise SpecError when an id in ``model`` means something else to ``tokenizer``."""
    ids = {"bos": model.bos_token_id, "eos": model.eos_token_id, "pad": model.pad_token_id}
    own = special_conflicts(tokenizer, **ids)
    if own:
        wrong = (f"model.{key} {_named(getattr(model, key), tokenizer)}" for key in own)
        raise SpecError(
            f"{', '.join(wrong)}; {tokenizer.info.path} has another token for it",
            hint=hint or "set " + ", ".join(f"model.{key}: {number}" for key, number in own.items()),
        )


def _named(number: int, tokenizer: Tokenizer) -> str:
    known = number < tokenizer.info.vocab_size
    return f"is {number} ({tokenizer.piece(number)!r})" if known else f"is {number} (no piece)"
