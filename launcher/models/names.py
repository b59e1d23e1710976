"""The tensor names of MindFormers and MindSpore checkpoints: weights, adapters, and optimizer state.

MindFormers trains on one of two routes, each with names of its own; the family says which, and defines a layer's
tensors and their other names. mindformers 1.9.0: legacy in models/llama/llama.py and pet/tuners; mcore in
parallel_core/training_graph (gpt_model.py, lora_layers.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The names of one route: the weights that are in no layer, what precedes a layer's number, LoRA's suffixes."""

    embedding: str
    norm: str
    head: str
    layers: str
    lora: tuple[str, str]

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """Return the first part of each weight's name, with its dot."""
        return tuple({name.partition(".")[0] + "." for name in (self.embedding, self.norm, self.head, self.layers)})


LEGACY, MCORE = "legacy", "mcore"
SCHEMES = {
    LEGACY: Scheme(
        embedding="model.tok_embeddings.embedding_weight",
        norm="model.norm_out.weight",
        head="lm_head.weight",
        layers="model.layers",
        lora=(".mindpet_delta_lora_a", ".mindpet_delta_lora_b"),
    ),
    MCORE: Scheme(
        embedding="embedding.word_embeddings.weight",
        norm="decoder.final_layernorm.weight",
        head="output_layer.weight",
        layers="decoder.layers",
        lora=(".lora_A.weight", ".lora_B.weight"),
    ),
}
# Of every route, for str.startswith and str.endswith.
EMBEDDINGS = tuple(scheme.embedding for scheme in SCHEMES.values())
NORMS = tuple(scheme.norm for scheme in SCHEMES.values())
HEADS = tuple(scheme.head for scheme in SCHEMES.values())
LORA_A, LORA_B = zip(*(scheme.lora for scheme in SCHEMES.values()), strict=True)
BIAS = ".bias"
GLOBAL_STEP = "global_step"
_OPTIMIZER_PREFIXES = ("adam_m.", "adam_v.", "accu_grads.", "moments.", "moment1.", "moment2.")
# What MindSpore and MindFormers keep beside the model: counters and the loss scale.
_BOOKKEEPING = frozenset(
    (
        *("global_step", "epoch_num", "step_num", "global_batch_size", "learning_rate", "loss_scale", "scale_sense"),
        *("beta1_power", "beta2_power", "current_iterator_step", "last_overflow_iterator_step"),
    )
)

LAYER = re.compile(r"(?:model|decoder)\.layers\.(\d+)\.(.+)")


def scheme_of(name: str) -> Scheme | None:
    """Return the scheme that ``name`` of a weight or an adapter is of; None when it is neither."""
    return next((scheme for scheme in SCHEMES.values() if name.startswith(scheme.prefixes)), None)


def embedding_in(found: Iterable[str]) -> str | None:
    """Return the name of the embedding among ``found``; None where there is none."""
    return next((name for name in found if name in EMBEDDINGS), None)


def has_head(found: Iterable[str]) -> bool:
    """Return whether ``found`` has a head of its own."""
    return any(name in HEADS for name in found)


def head_of(embedding: str) -> str:
    """Return the name of the head that goes with ``embedding``."""
    return HEADS[EMBEDDINGS.index(embedding)]


def is_adapter(name: str) -> bool:
    """Return whether ``name`` is a LoRA adapter of the model (the optimizer's state of one is not)."""
    scheme = scheme_of(name)
    return scheme is not None and name.endswith(scheme.lora)


def is_weight(name: str) -> bool:
    """Return whether ``name`` is a weight of the model, adapters aside."""
    scheme = scheme_of(name)
    return scheme is not None and not name.endswith(scheme.lora)


def is_known_extra(name: str) -> bool:
    """Return whether ``name`` is optimizer state or bookkeeping, which a merged model leaves out."""
    return name.startswith(_OPTIMIZER_PREFIXES) or name in _BOOKKEEPING


def adapters_of(weight: str) -> tuple[str, str]:
    """Return the names of lora_a and lora_b of ``weight``."""
    stem, scheme = weight.removesuffix(".weight"), scheme_of(weight) or SCHEMES[LEGACY]
    return stem + scheme.lora[0], stem + scheme.lora[1]


def weight_of(adapter: str) -> str:
    """Return the name of the weight that ``adapter`` belongs to."""
    return module_of(adapter) + ".weight"


def module_of(name: str) -> str:
    """Return ``name`` of a weight, bias or adapter without what follows its module."""
    ends = (*LORA_A, *LORA_B, ".weight", BIAS)
    return name.removesuffix(next((end for end in ends if name.endswith(end)), ""))


def owner_of_state(name: str) -> str:
    """Return the weight or adapter that the optimizer state ``name`` belongs to; empty when there is none."""
    owner = next((name.removeprefix(prefix) for prefix in _OPTIMIZER_PREFIXES if name.startswith(prefix)), "")
    return owner if is_weight(owner) or is_adapter(owner) else ""


def num_layers(names: Iterable[str]) -> int:
    """Return the highest layer number in ``names`` plus one."""
    found = (LAYER.match(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
