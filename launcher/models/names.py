"""The tensor names of MindFormers and MindSpore checkpoints: weights, adapters, and optimizer state.

mindformers 1.9.0, models/llama/llama.py and pet/tuners; the family defines a layer's tensors and their other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LORA_A, LORA_B = ".mindpet_delta_lora_a", ".mindpet_delta_lora_b"
BIAS = ".bias"
GLOBAL_STEP = "global_step"
_WEIGHT_PREFIXES = ("model.", "lm_head.")
_OPTIMIZER_PREFIXES = ("adam_m.", "adam_v.", "accu_grads.", "moments.", "moment1.", "moment2.")
# What MindSpore and MindFormers keep beside the model: counters and the loss scale.
_BOOKKEEPING = frozenset(
    (
        *("global_step", "epoch_num", "step_num", "global_batch_size", "learning_rate", "loss_scale", "scale_sense"),
        *("beta1_power", "beta2_power", "current_iterator_step", "last_overflow_iterator_step"),
    )
)

EMBEDDING, NORM, HEAD = "model.tok_embeddings.embedding_weight", "model.norm_out.weight", "lm_head.weight"
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def is_adapter(name: str) -> bool:
    """Return whether ``name`` is a LoRA adapter of the model (the optimizer's state of one is not)."""
    return name.startswith(_WEIGHT_PREFIXES) and name.endswith((LORA_A, LORA_B))


def is_weight(name: str) -> bool:
    """Return whether ``name`` is a weight of the model, adapters aside."""
    return name.startswith(_WEIGHT_PREFIXES) and not name.endswith((LORA_A, LORA_B))


def is_known_extra(name: str) -> bool:
    """Return whether ``name`` is optimizer state or bookkeeping, which a merged model leaves out."""
    return name.startswith(_OPTIMIZER_PREFIXES) or name in _BOOKKEEPING


def adapters_of(weight: str) -> tuple[str, str]:
    """Return the names of lora_a and lora_b of ``weight``."""
    stem = weight.removesuffix(".weight")
    return stem + LORA_A, stem + LORA_B


def weight_of(adapter: str) -> str:
    """Return the name of the weight that ``adapter`` belongs to."""
    return adapter.removesuffix(LORA_A).removesuffix(LORA_B) + ".weight"


def owner_of_state(name: str) -> str:
    """Return the weight or adapter that the optimizer state ``name`` belongs to; empty when there is none."""
    owner = next((name.removeprefix(prefix) for prefix in _OPTIMIZER_PREFIXES if name.startswith(prefix)), "")
    return owner if is_weight(owner) or is_adapter(owner) else ""


def num_layers(names: Iterable[str]) -> int:
    """Return the highest layer number in ``names`` plus one."""
    found = (LAYER.match(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
