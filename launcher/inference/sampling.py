"""Sampling: the choice of the next token from the logits of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GenerationSpec:
    """Sampling settings of answers.

    ``temperature`` 0 is greedy search. ``top_k`` 0 keeps all tokens. ``repetition_penalty`` 1 is none; above 1, tokens
    in the prompt or the answer become less likely (arXiv:1909.05858). ``seed`` only matters above temperature 0.
    ``stop``: texts that end an answer and are not part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Sampler:
    """Chooses the tokens of one row. Rows do not share a random state, so an answer depends on its prompt and the
    seed alone, whatever else is in the batch."""

    def __init__(self, spec: GenerationSpec) -> None:
        self._spec = spec
        self._random = np.random.default_rng(spec.seed)

    def pick(self, logits: Logits, seen: Sequence[int]) -> int:
        """Return the next token. ``logits`` (vocab,) float32, ``seen``: the row so far. In the order of transformers:
        penalty, temperature, top-k, top-p."""
        if self._spec.repetition_penalty != 1.0:
            logits = _penalized(logits, seen, self._spec.repetition_penalty)
        if self._spec.temperature == 0:
            return int(logits.argmax())
        scores = logits.astype(np.float64) / self._spec.temperature
        if not self._spec.top_k and self._spec.top_p == 1.0:
            return self._drawn(scores)
        kept, scores = self._candidates(scores)
        return int(kept[self._drawn(scores)])

    def _drawn(self, scores: Any) -> int:
        """Return a place in ``scores``, drawn as ``Generator.choice`` does, without its checks."""
        sums = np.exp(scores - scores.max()).cumsum()
        return int((sums / sums[-1]).searchsorted(self._random.random(), side="right"))

    def _candidates(self, scores: Any) -> tuple[Any, Any]:
        """Return the tokens that may be drawn and their scores, the likeliest first."""
        count = min(self._spec.top_k or len(scores), len(scores))
        kept = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        if self._spec.top_p < 1.0:
            weights = np.exp(scores[kept] - scores[kept[0]])
            before = np.cumsum(weights) / weights.sum() - weights / weights.sum()
            kept = kept[before < self._spec.top_p]
        return kept, scores[kept]


def _penalized(logits: Logits, seen: Sequence[int], penalty: float) -> Logits:
    logits = logits.copy()
    tokens = np.unique(np.asarray(seen, dtype=np.int64))
    scores = logits[tokens]
    logits[tokens] = np.where(scores < 0, scores * penalty, scores / penalty)
    return logits
