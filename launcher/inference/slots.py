"""How many rows are answered at a time, and what their keys and values take."""

from __future__ import annotations

from launcher.inference.model import Model

# More do not make the answers of one processor come faster.
MOST_SLOTS = 32
# On Ascend, whose memory is not known before MindSpore has it.
ASCEND_SLOTS = 8
# The part of the host's memory that keys and values may fill: they are copied to grow, and weights and the first passes
# want theirs.
_SHARE = 4


def cache_bytes(model: Model, *, on_cpu: bool) -> int:
    """Return the bytes of the keys and values of a row that fills the context: float32 on CPU, half of it on Ascend."""
    spec = model.spec
    return 2 * spec.num_layers * spec.kv_heads * spec.head_size * model.context * (4 if on_cpu else 2)


def default_slots(model: Model, *, on_cpu: bool, available: int | None, models: int) -> int:
    """Return how many rows fit into a quarter of the ``available`` bytes that so many models share, 32 at most."""
    if not on_cpu:
        return ASCEND_SLOTS
    if available is None:
        return MOST_SLOTS
    return max(1, min(MOST_SLOTS, available // _SHARE // models // cache_bytes(model, on_cpu=True)))
