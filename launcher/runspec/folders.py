"""Model sections from Hugging Face folders: ``model.folder`` supplies values that nothing else gives, like a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.common.json_files import fault_of, json_or_empty
from launcher.common.nearest import path_hint
from launcher.common.yaml_lines import YamlDocument
from launcher.errors import SpecError
from launcher.models.generation import generation_section
from launcher.models.hf_config import SPECIAL_IDS, first_id
from launcher.models.registry import family_of, known_text, model_of_config

# A transformers model may be made for 131072 tokens; rows are as long as people train them.
TRAINED_LENGTH = 4096
_TOKENIZERS = ("tokenizer.model", "tokenizer.json", "vocab.json")
_TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# The names, in data.template, of the chat template in a model's folder; the second switches Qwen3's thinking off.
OWN_TEMPLATE, OWN_WITHOUT_THINKING = OWN_TEMPLATES = "own", "own-no-thinking"


def model_of_folder(folder: str) -> dict[str, Any]:
    """Return the keys of the model section from ``folder``: architecture, special tokens, weights, tokenizer.

    Raises SpecError when its config.json is missing or describes an unknown model.
    """
    place = Path(folder)
    config = json_or_empty(place / "config.json")
    if not config:
        fault = fault_of(place / "config.json") if place.exists() else "there is none"
        hint = "give a folder as transformers' save_pretrained writes it; --checkpoint takes weights alone"
        raise SpecError(f"model folder {folder}: {fault}", hint=path_hint(place, hint))
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


def settings_of_folder(folder: str) -> dict[str, dict[str, Any]]:
    """Return all settings of a run spec, by section, that ``folder`` gives: model, chat template, ways to sample.

    Raises SpecError as ``model_of_folder`` does.
    """
    place = Path(folder)
    model = model_of_folder(folder)
    own = chat_template_file(place) is not None and "tokenizer" in model
    template = OWN_TEMPLATE if own else family_of(model).template
    generation = generation_section(json_or_empty(place / "generation_config.json"))
    return {"model": model, "data": {"template": template}, "generation": generation}


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _special_ids(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids that are not in config.json but in the files beside it."""
    generation, tokenizer = json_or_empty(folder / "generation_config.json"), json_or_empty(folder / _TOKENIZER_CONFIG)
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


def chat_template_file(folder: Path) -> Path | None:
    """Return the file of ``folder`` that holds a chat template, where transformers looks for it; None without one."""
    file, config = folder / CHAT_TEMPLATE, folder / _TOKENIZER_CONFIG
    if file.is_file():
        return file
    return config if chat_template_of(json_or_empty(config)) else None


def chat_template_of(config: Mapping[str, Any]) -> str | None:
    """Return the chat template in a tokenizer_config.json: a text, or the default of a list of named ones."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


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
    missing = {
        (section, key): value
        for section, found in settings_of_folder(folder).items()
        for key, value in found.items()
        if isinstance(given := source.values.get(section, {}), dict) and key not in given
    }
    values = dict(source.values)
    for (section, key), value in missing.items():
        values[section] = {**values.get(section, {}), key: value}
    return replace(source, values=values, origins={**source.origins, **dict.fromkeys(missing, folder)})
