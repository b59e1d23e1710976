"""Perplexity of plain text, by windows that overlap: each token is scored once, by what stands before it in its window.

As in transformers' guide "Perplexity of fixed-length models": the first window scores all its tokens, each later one
its last ``stride``. A bos token stands before the text and is not scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.common.rendering import write_atomic
from launcher.data.encodings import encoding_of, fault_in, is_utf8
from launcher.errors import DataError, SpecError
from launcher.inference.decoding import Row
from launcher.inference.evaluation import Candidate, cross_entropy, phase_of, stop_if
from launcher.inference.logprobs import Floats
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import OnPhase, Question, Session, unheard
from launcher.inference.transcript import Transcript
from launcher.upstream.quiet import quiet

_KNOWN_BY = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text, and its name in what is said."""

    path: str
    text: str

    @property
    def size(self) -> int:
        """Return its bytes in UTF-8."""
        return len(self.text.encode())


def read_text(path: Path) -> Text:
    """Read a text, whatever its encoding. Raises DataError, naming line and column, where it is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="give a file of plain text") from error
    encoding = encoding_of(raw[:_KNOWN_BY], None, str(path))
    codec = "utf-8-sig" if is_utf8(encoding) else encoding
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fault = fault_in(raw[raw.rfind(b"\n", 0, error.start) + 1 : error.end]) if is_utf8(encoding) else error.reason
        raise DataError(f"{path}:{line}: {fault}", hint="save the text as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path} is empty", hint="give a file of plain text")
    return Text(path=str(path), text=text)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens ``start`` to ``end`` of the text; those from ``first`` on are scored."""

    start: int
    end: int
    first: int


def windows(count: int, length: int, stride: int) -> Iterator[Window]:
    """Yield the windows over ``count`` tokens, which overlap by ``length`` - ``stride``."""
    first = 1  # nothing stands before the first token
    for start in range(0, count, stride):
        end = min(start + length, count)
        yield Window(start=start, end=end, first=first)
        if end == count:
            return
        first = end


@dataclass(frozen=True, kw_only=True)
class Surprise:
    """What a text is to one model. ``losses``: nats of each token. ``window``, ``stride``: in tokens."""

    role: str
    name: str
    losses: Floats
    window: int
    stride: int

    def to_dict(self, text: Text) -> dict[str, Any]:
        nats, tokens = float(self.losses.sum()), len(self.losses)
        return {
            "role": self.role, "model": self.name, "tokens": tokens, "nats": nats, "nats_per_token": nats / tokens,
            "perplexity": math.exp(min(nats / tokens, 700.0)), "bits_per_byte": nats / math.log(2) / text.size,
            "window": self.window, "stride": self.stride,
        }  # fmt: skip


def surprise(
    candidate: Candidate,
    text: Text,
    *,
    window: int | None,
    stride: int | None,
    device_id: int | None = None,
    interrupted: Callable[[], bool] = bool,
    on_phase: OnPhase = unheard,
) -> Surprise:
    """Score ``text``. ``window``: the model's context if None; ``stride``: half of it.

    Raises SpecError for a window that the model cannot take, JobCancelled when ``interrupted`` returns True.
    """
    session = Session(candidate.model, batch_size=1, device_id=device_id, incremental=False)
    session.interrupted, session.on_phase = interrupted, phase_of(candidate, on_phase)
    length = _checked_window(window, candidate)
    step = length // 2 if stride is None else stride
    if not 0 < step < length:
        raise SpecError(f"--stride {step}: it must be less than the window of {length}", hint=f"--stride {length // 2}")
    ids = session.encode(Question(id="text", text=text.text))
    parts = []
    for part in windows(len(ids), length, step):
        stop_if(interrupted())
        parts.append(_losses(session, ids[part.start : part.end])[part.first - part.start - 1 :])
    return Surprise(
        role=candidate.role, name=candidate.model.name, losses=np.concatenate(parts), window=length, stride=step
    )


def _checked_window(window: int | None, candidate: Candidate) -> int:
    context = candidate.model.context
    if window is not None and not 2 <= window <= context:
        raise SpecError(
            f"--window {window}: {candidate.model.name} has a context of {context} tokens",
            hint="a window has 2 tokens at least; --context N makes the context longer where the model allows it",
        )
    return window or context


def _losses(session: Session, ids: Sequence[int]) -> Floats:
    """Return the nats of each of ``ids`` but the first."""
    if session.on_cpu:  # in parts, as the logits of a long window may not fit into memory
        row = Row(
            prompt=ids, spec=GenerationSpec(), limit=0, ends=frozenset(), transcript=Transcript(session.tokenizer)
        )  # fmt: skip
        return -np.asarray([score.logprob for score in session.score_prompt(row)[1:]], np.float64)
    padded = np.zeros((1, session.model.context), np.int32)
    padded[0, : len(ids)] = ids
    return cross_entropy(session.all_logits(padded)[0, : len(ids) - 1], np.asarray(ids[1:]))


@dataclass(frozen=True, kw_only=True)
class Surprises:
    """What one text is to several models."""

    text: Text
    found: tuple[Surprise, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text.path, "bytes": self.text.size, "models": [one.to_dict(self.text) for one in self.found]
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """Write all figures to ``path`` as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")


def surprises(
    candidates: Sequence[Candidate],
    text: Text,
    *,
    window: int | None,
    stride: int | None,
    device_id: int | None,
    interrupted: Callable[[], bool],
    on_phase: OnPhase,
) -> Surprises:
    """Score ``text`` with one model after the other; raises as ``surprise`` does."""
    with quiet():
        found = [
            surprise(
                one, text, window=window, stride=stride, device_id=device_id, interrupted=interrupted,
                on_phase=on_phase,
            )
            for one in candidates
        ]  # fmt: skip
    return Surprises(text=text, found=tuple(found))
