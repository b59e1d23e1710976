"""Conversations to rows of token ids and labels.

A row is seq_length + 1 tokens long: LlamaForCausalLM trains on tokens[:-1] and shifts the labels itself, so
that labels are aligned with input_ids. Labels are -100 (not learnt) but for the assistant's turns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher import __version__
from launcher.data import outputs
from launcher.data.convert import read_conversations
from launcher.data.info import DatasetInfo, read_info, stats_path
from launcher.data.mindrecord import COLUMNS, Row, write_mindrecord
from launcher.data.templates import ChatTemplate, Encoded, get_template
from launcher.data.tokenizer import Tokenizer, load_tokenizer
from launcher.errors import DataError
from launcher.render import write_atomic

NOT_LEARNT = -100
PAD_ID = 0


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """What is asked for. ``seq_length`` in tokens; rows are one longer."""

    source: Path
    tokenizer: Path
    target: Path
    seq_length: int
    template: str


def preprocess(options: PreprocessOptions, *, force: bool) -> tuple[DatasetInfo, bool]:
    """Write the rows, their index and their statistics; what is there now, and whether it was made now.

    Raises DataError for input, tokenizer or template that are missing or wrong, and OutputExistsError for an
    output that was made from something else.
    """
    tokenizer = load_tokenizer(options.tokenizer)
    template = get_template(options.template)
    fingerprint = _fingerprint(options, tokenizer, template)
    existing = read_info(options.target)
    if existing and existing.fingerprint == fingerprint:
        return existing, False
    if options.target.exists() and not force:
        raise outputs.OutputExistsError(options.target)
    counts = _write(options, tokenizer, template, fingerprint)
    made = read_info(options.target)
    if made is None or made.rows != counts["rows"]:
        raise DataError(f"{options.target} was not written")
    return made, True


def _write(options: PreprocessOptions, tokenizer: Tokenizer, template: ChatTemplate, fingerprint: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    with outputs.scratch(options.target) as folder:
        built = folder / options.target.name
        write_mindrecord(built, _rows(options, tokenizer, template, counts))
        if not counts["rows"]:
            raise DataError(
                f"{options.source} gives no row with anything to learn at --seq-length {options.seq_length}"
            )
        stats_path(options.target).unlink(missing_ok=True)
        for part in (Path(f"{built}.db"), built):
            part.chmod(0o644)
            outputs.flush(part)
            part.replace(options.target.parent / part.name)
        write_atomic(stats_path(options.target), _stats(options, tokenizer, counts, fingerprint))
    return counts


def _rows(
    options: PreprocessOptions, tokenizer: Tokenizer, template: ChatTemplate, counts: Counter[str]
) -> Iterator[Row]:
    for conversation in read_conversations(options.source):
        counts["conversations"] += 1
        encoded = template.encode(tokenizer, conversation.messages)
        yield from _fitted(encoded, options.seq_length + 1, counts)


def _fitted(encoded: Encoded, length: int, counts: Counter[str]) -> Iterator[Row]:
    ids, learnt = encoded.ids[:length], encoded.learnt[:length]
    # The first token is never a target: there is nothing before it to predict it from.
    if not any(learnt[1:]):
        counts["dropped"] += 1
        return
    counts["rows"] += 1
    counts["tokens"] += len(ids)
    counts["learnt_tokens"] += sum(learnt)
    counts["truncated"] += len(encoded.ids) > length
    yield row(ids, learnt, length)


def row(ids: list[int], learnt: list[bool], length: int) -> Row:
    """``ids`` padded to ``length`` with 0, and the labels: the same ids where ``learnt``, else -100."""
    tokens = np.full(length, PAD_ID, dtype=np.int32)
    labels = np.full(length, NOT_LEARNT, dtype=np.int32)
    tokens[: len(ids)] = ids
    labels[: len(ids)] = np.where(learnt, tokens[: len(ids)], NOT_LEARNT)
    return tokens, labels


def _stats(options: PreprocessOptions, tokenizer: Tokenizer, counts: Counter[str], fingerprint: str) -> str:
    stats: dict[str, Any] = {
        "format": 1,
        "launcher": __version__,
        "fingerprint": fingerprint,
        "rows": counts["rows"],
        "seq_length": options.seq_length,
        "columns": list(COLUMNS),
        "template": options.template,
        "tokenizer": dataclasses.asdict(tokenizer.info),
        "source": str(options.source.resolve()),
        "counts": {key: counts[key] for key in _COUNTED},
    }
    return json.dumps(stats, ensure_ascii=False, indent=2) + "\n"


_COUNTED = ("conversations", "rows", "tokens", "learnt_tokens", "truncated", "dropped")


def _fingerprint(options: PreprocessOptions, tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """What the rows follow from: bytes of the input, tokenizer, template and options."""
    parts = (_sha256(options.source), tokenizer.info.sha256, template.source, str(options.seq_length), "1")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
