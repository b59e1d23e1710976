"""Hugging Face's LLaMA and MindFormers': the same tensors under other names, and the configs of both.

transformers 4.57, models/llama; peft 0.17; mindformers 1.9.0, models/llama. No weight is permuted or transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model section of a run spec for a Hugging Face config.json. Raises KeyError or ValueError when it is none."""
    if config.get("model_type") != "llama":
        raise ValueError(f"model_type is {config.get('model_type')!r}, not 'llama'")
    return {
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "n_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "seq_length": config.get("max_position_embeddings", 2048),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": config.get("rope_theta", 10000.0),
    }
