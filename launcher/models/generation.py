"""A run spec's ``generation`` section and transformers' generation_config.json, each from the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.models.hf_config import SPECIAL_IDS

# Sampling settings that transformers knows by the same names; its own default of top_k is 50.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
_ALWAYS = ("max_new_tokens", "repetition_penalty")


def generation_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Return generation_config.json: special ids and defaults; sampling settings only if the model samples.

    ``config``: the model's config.json. ``origin``: the generation_config.json that its base came with, which may name
    several ids that end an answer; all that a run spec does not say is kept.
    """
    said = {"do_sample", *_SAMPLING, *_ALWAYS}
    found = {key: config[key] for key in SPECIAL_IDS if key in config}
    found |= {key: value for key, value in origin.items() if key not in said}
    found |= {key: generation[key] for key in _ALWAYS if key in generation}
    if generation.get("temperature"):
        found |= {"do_sample": True, **{key: generation[key] for key in _SAMPLING if key in generation}}
    return found


def generation_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run spec's ``generation`` section for a generation_config.json."""
    found = {key: config[key] for key in _ALWAYS if config.get(key) is not None}
    if config.get("do_sample"):
        found |= {key: default if config.get(key) is None else config[key] for key, default in _SAMPLING.items()}
    return found
