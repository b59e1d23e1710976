"""What the tensors of a MindFormers LLaMA are called, which of them are the model, and what they are called elsewhere.

mindformers 1.9.0, models/llama/llama.py and pet/adapters; transformers 4.57, models/llama/modeling_llama.py. Checked
by logits that agree. All weights are (out, in) in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LORA_A, LORA_B = ".mindpet_delta_lora_a", ".mindpet_delta_lora_b"
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
# MindFormers' name within a layer -> Hugging Face's.
LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTER_NAMES = {EMBEDDING: "model.embed_tokens.weight", NORM: "model.norm.weight", HEAD: "lm_head.weight"}


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
    """The names of lora_a and lora_b of ``weight``."""
    stem = weight.removesuffix(".weight")
    return stem + LORA_A, stem + LORA_B


def weight_of(adapter: str) -> str:
    """The name of the weight that ``adapter`` is of."""
    return adapter.removesuffix(LORA_A).removesuffix(LORA_B) + ".weight"


def owner_of_state(name: str) -> str:
    """The weight or adapter that the optimizer's state ``name`` is of; empty when it is of none."""
    owner = next((name.removeprefix(prefix) for prefix in _OPTIMIZER_PREFIXES if name.startswith(prefix)), "")
    return owner if is_weight(owner) or is_adapter(owner) else ""


def expected_shapes(
    *, hidden: int, layers: int, kv_size: int, intermediate: int, vocab: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a LLaMA, by MindFormers' names. ``kv_size``: rows of wk and wv."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocab, hidden), NORM: (hidden,), HEAD: (vocab, hidden)}
    one = {
        "attention.wq": (hidden, hidden),
        "attention.wk": (kv_size, hidden),
        "attention.wv": (kv_size, hidden),
        "attention.wo": (hidden, hidden),
        "feed_forward.w1": (intermediate, hidden),
        "feed_forward.w2": (hidden, intermediate),
        "feed_forward.w3": (intermediate, hidden),
        "attention_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in one.items()}
    return shapes


_COUNTS = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "seq_length")
# The largest LLaMA has 126 layers and a vocabulary of 128256: what is far above is no model.
_MAX_COUNT, _MAX_LAYERS = 1 << 30, 10_000


def check_model(model: Any) -> dict[str, Any]:
    """``model`` itself when it is the model section of a run spec, as far as names and shapes need it.

    Raises ValueError, KeyError or TypeError when it is not.
    """
    if not isinstance(model, dict):
        raise TypeError("it is no mapping")
    for key in _COUNTS:
        _check_count(key, model[key])
    _check_count("n_kv_heads", model.get("n_kv_heads") or model["num_heads"])
    if model["num_layers"] > _MAX_LAYERS:
        raise ValueError(f"{model['num_layers']} layers")
    if model["hidden_size"] % model["num_heads"]:
        raise ValueError(f"hidden_size {model['hidden_size']} is no multiple of num_heads {model['num_heads']}")
    for key in ("rms_norm_eps", "rope_theta"):
        if not isinstance(model[key], (int, float)):
            raise TypeError(f"{key} is {model[key]!r}")
    return model


def _check_count(key: str, value: Any) -> None:
    if type(value) is not int or not 0 < value < _MAX_COUNT:
        raise ValueError(f"{key} is {value!r}")


def shapes_of(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """expected_shapes of a model section of a run spec; MindFormers has no head for a tied one."""
    heads = model["num_heads"]
    shapes = expected_shapes(
        hidden=model["hidden_size"],
        layers=model["num_layers"],
        kv_size=model["hidden_size"] // heads * (model.get("n_kv_heads") or heads),
        intermediate=model["intermediate_size"],
        vocab=model["vocab_size"],
    )
    if model.get("tie_word_embeddings"):
        del shapes[HEAD]
    return shapes


def inferred_shapes(found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """expected_shapes of the LLaMA that the weights ``found`` (with at least the embedding) seem to be of.

    Without a head it is taken for one that is tied to the embedding.
    """
    vocab, hidden = (*found[EMBEDDING], 0)[:2]
    first = "model.layers.0."
    shapes = expected_shapes(
        hidden=hidden,
        layers=num_layers(found),
        kv_size=found.get(first + "attention.wk.weight", (0,))[0],
        intermediate=found.get(first + "feed_forward.w1.weight", (0,))[0],
        vocab=vocab,
    )
    if HEAD not in found:
        del shapes[HEAD]
    return shapes


def num_layers(names: Iterable[str]) -> int:
    """One more than the highest layer in ``names``."""
    found = (LAYER.match(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
