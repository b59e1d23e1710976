"""Floating-point operations of a training step by formula, and what part of the cards' peak they are.

Counted are the multiplications of matrices that the model needs, once forward and twice backward; what is computed
again to save memory (recompute) is not. With N weights in matrices (the embedding is a look-up and has none) and
T tokens, padding included:

    all weights trained   6 N T      2 forward, 2 for the gradient of the input, 2 for that of the weight
    LoRA                  4 N T      frozen weights need no gradient of their own
                        + 6 A T      A weights in the adapters
    attention            12 L W S T  per token: Q K^T and its product with V, over S positions in L layers of width W

It is that of PaLM (Chowdhery et al., arXiv:2204.02311, appendix B), which does not halve attention for the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one device of a kind can do in 16-bit floats with dense matrices. ``source``: who says so."""

    tera: float
    source: str


# Of A2, 910B3 and 910B4 have fewer or slower cores than 910B2, whose figure this is: their share comes out too low.
# For 310P, which is no training card, and 950, whose 16-bit figure is not published, there is none.
PEAKS = {
    "910": Peak(tera=256.0, source="Liao et al., DaVinci, Hot Chips 31 (2019)"),
    "A2": Peak(tera=354.0, source="910B2 (24 cores, 1.8 GHz); verl, utils/flops_counter.py"),
    "A3": Peak(tera=376.0, source="a die of 910C: Zuo et al., CloudMatrix384, arXiv:2506.12708"),
}


def flops_per_step(spec: Mapping[str, Any], rows: int) -> float | None:
    """Return the operations of a step of ``rows`` rows; None for a spec of another version."""
    from pydantic import ValidationError

    from launcher.models import base
    from launcher.plan.memory import lora_count
    from launcher.runspec.sections import LoraSpec, ModelSpec

    try:
        model = ModelSpec.model_validate(spec["model"])
        lora = LoraSpec.model_validate(spec["lora"]) if spec.get("lora") else None
    except (ValidationError, KeyError, TypeError):
        return None
    layer = sum(math.prod(shape) for shape in base.linear_shapes(model.architecture, model.sizes).values())
    weights = model.num_layers * layer + model.vocab_size * model.hidden_size
    per_token = 12 * model.num_layers * model.q_width * model.seq_length
    per_token += 4 * weights + 6 * lora_count(model, lora) if lora else 6 * weights
    return float(per_token) * rows * model.seq_length
