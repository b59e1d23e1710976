"""Model sections from Hugging Face folders: ``model.folder`` supplies values that nothing else gives, like a preset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.common.yaml_lines import YamlDocument
from launcher.errors import SpecError
from launcher.models.hf_config import SPECIAL_IDS, first_id
from launcher.models.registry import known_text, model_of_config

# A transformers model may be made for 131072 tokens; rows are as long as people train them.
TRAINED_LENGTH = 4096
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")


def model_of_folder(folder: str) -> dict[str, Any]:
    """Return the keys of the model section from ``folder``: architecture, special tokens, weights, tokenizer.

    Raises SpecError when its config.json is missing or describes an unknown model.
    """
    place = Path(folder)
    config = _json(place / "config.json")
    if not config:
        raise SpecError(
            f"model folder {folder} has no config.json that can be read",
            hint="give a folder as transformers' save_pretrained writes it; --checkpoint takes weights alone",
        )
    try:
        found = model_of_config(config)
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise SpecError(
            f"{place / 'config.json'} does not describe a model that is known: {_said(error)}",
            hint=f"families are {known_text()}; docs/models.md says what is refused and why",
        ) from error
    found |= {"seq_length": min(found["seq_length"], TRAINED_LENGTH), **_special_ids(place, config)}
    found |= {"checkpoint": folder}
    return found | ({"tokenizer": folder} if any((place / name).is_file() for name in _TOKENIZERS) else {})


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _special_ids(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids that are not in config.json but in the files beside it."""
    generation, tokenizer = _json(folder / "generation_config.json"), _json(folder / "tokenizer_config.json")
    found = {}
    for key in (key for key in SPECIAL_IDS if config.get(key) is None):
        said = first_id(generation.get(key), -1)
        number = said if said >= 0 else _id_of(tokenizer, key.removesuffix("_id"))
        if number is not None:
            found[key] = number
    return found


def _id_of(tokenizer: Mapping[str, Any], token: str) -> int | None:
    """Return the id of the ``token`` of tokenizer_config.json: bos_token, eos_token or pad_token."""
    named = tokenizer.get(token)
    text = named.get("content") if isinstance(named, dict) else named
    added = tokenizer.get("added_tokens_decoder")
    for number, entry in added.items() if isinstance(added, dict) and text else ():
        if isinstance(entry, dict) and entry.get("content") == text and number.isdecimal():
            return int(number)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def fill_folder(source: YamlDocument) -> YamlDocument:
    """Return ``source`` with values of its model.folder where it has none. Raises SpecError for a bad folder."""
    folder = source.value(("model", "folder"))
    if not isinstance(folder, str):
        return source
    if source.value(("model", "preset")) is not None:
        raise SpecError(
            f"{source.place(('model', 'folder'))}: model.folder and model.preset both say what the model is",
            hint="leave one out, or set it to null",
        )
    missing = {key: value for key, value in model_of_folder(folder).items() if key not in source.values["model"]}
    values = {**source.values, "model": {**missing, **source.values["model"]}}
    return replace(source, values=values, origins={**source.origins, **{("model", key): folder for key in missing}})
