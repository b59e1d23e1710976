"""Log probabilities of tokens by the model's own logits: before temperature, penalties, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A token with its natural log probability, None where nothing stands before it, and the likeliest alternatives."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def log_sums(logits: Any) -> Floats:
    """Return log(sum(exp(logits))) (N,) float64 of logits (N, vocab)."""
    logits = logits.astype(np.float64)
    highest = logits.max(axis=-1, keepdims=True)
    found: Floats = np.log(np.exp(logits - highest).sum(axis=-1)) + highest[:, 0]
    return found


def scores_of(logits: Any, tokens: Any, top: int) -> list[TokenScore]:
    """Return the scores of ``tokens`` (N,) int by logits (N, vocab) float32, each with the ``top`` likeliest tokens."""
    sums = log_sums(logits)
    return [_score(*item, top) for item in zip(logits, map(int, tokens), map(float, sums), strict=True)]


def _score(logits: Any, token: int, log_sum: float, top: int) -> TokenScore:
    likeliest = np.argpartition(-logits, top - 1)[:top] if top else np.zeros(0, np.int64)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    pairs = tuple((int(other), float(logits[other]) - log_sum) for other in likeliest)
    return TokenScore(token=token, logprob=float(logits[token]) - log_sum, top=pairs)
