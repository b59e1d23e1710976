"""The inputs and settings of an answer, so that a file of answers is only continued with the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from launcher.checkpoint.compare import identify
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Whole
from launcher.inference.model import Model
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Prepared, Session
from launcher.inference.weights import Tensors

# Without a draw these change nothing.
_OF_DRAWING = ("top_k", "top_p", "seed")
_SHOWN_DIGITS = 16
# Of one question alone; and a name, which may be another path to the same weights.
_PROMPT, _MODEL, _WEIGHTS = "prompt", "model", "weights"


def made_with(session: Session, spec: GenerationSpec, prepared: Sequence[Prepared]) -> dict[str, dict[str, Any]]:
    """Return by question id what decides its answer: weights, template, sampling, and a hash of the prompt's token ids,
    which include the system text and earlier turns. Reads samples of the weights."""
    sampling = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(spec).items()}
    if spec.temperature == 0:
        sampling = {name: value for name, value in sampling.items() if name not in _OF_DRAWING}
    common = {_MODEL: session.model.name, _WEIGHTS: weights_id(session.model)}
    rest = {"context": session.model.context, "ends": sorted(session.ends), **sampling}
    return {
        item.question.id: {**common, "template": _template(session, item), _PROMPT: _hash(repr(item.ids)), **rest}
        for item in prepared
    }


def _template(session: Session, item: Prepared) -> str | None:
    return None if item.question.text is not None else session.template.name


def weights_id(model: Model) -> str:
    """Return a hash of the weights and adapters that does not depend on their location."""
    with ExitStack() as stack:
        tensors = model.open(stack)
        files = {file.path: file for whole in _wholes(tensors) for file in _files(whole)}
        found = identify(files.values(), full=False)
        return _hash(repr([tensors.scale, sorted(file.sha256 or file.fingerprint for file in found)]))


def _wholes(tensors: Tensors) -> Iterator[Whole]:
    yield from tensors.adapters.values()
    for output in tensors.weights.values():
        yield output.whole
        if output.fold is not None:
            yield from (output.fold.lora_a, output.fold.lora_b)


def _files(whole: Whole) -> Iterator[TensorFile]:
    return (piece.file for piece in whole.pieces)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_SHOWN_DIGITS]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, same_question: bool) -> list[str]:
    """Return the settings in which an answer differs; the prompt only counts for the ``same_question``."""
    ignored = {_MODEL} if same_question else {_MODEL, _PROMPT}
    names = [name for name in dict.fromkeys([*now, *before]) if name not in ignored]
    return [_difference(name, before, now) for name in names if before.get(name) != now.get(name)]


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name == _WEIGHTS:
        return f"weights of {before.get(_MODEL)}, now other ones of {now.get(_MODEL)}"
    if name == _PROMPT:
        return "another prompt: the question, its system text or earlier turns, or what the template makes of them"
    return f"{name} {before.get(name)!r}, now {now.get(name)!r}"
