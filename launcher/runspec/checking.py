"""Checking of values into a RunSpec, with every problem in one report: place, key, value, reason, "did you mean"."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from launcher.common.nearest import nearest
from launcher.common.resources import user_config_file
from launcher.common.yaml_lines import Loc, YamlDocument
from launcher.errors import SpecError
from launcher.models import registry
from launcher.models.base import Family
from launcher.runspec import folders, foreign, layers, presets
from launcher.runspec.keys import keys_at
from launcher.runspec.reading import find_spec, read_source, with_shipped_files
from launcher.runspec.sections import ModelSpec, RunSpec, UserConfig


def load_spec(name: str, overrides: Iterable[layers.Override] = ()) -> RunSpec:
    """Read, parse and check the spec ``name`` (see find_spec). Raises SpecError with every problem in it."""
    return parse_spec(load_source(name, overrides))


def load_source(name: str, overrides: Iterable[layers.Override] = ()) -> YamlDocument:
    """Return all values of the spec ``name``: the file's, the preset's, $LAUNCHER_* and ``overrides``.

    A MindFormers YAML is translated on the way; ``changes`` of the result lists how.
    """
    return filled(load_asked(name, overrides))


def filled(source: YamlDocument) -> YamlDocument:
    """Return ``source`` with the values of its model's folder or preset where it has none. Raises SpecError."""
    return layers.fill_preset(folders.fill_folder(source))


def load_asked(spec: str | YamlDocument, overrides: Iterable[layers.Override] = ()) -> YamlDocument:
    """Return the values that ``spec`` (a file, a name or a document), $LAUNCHER_* and ``overrides`` give, and no
    others."""
    source = read_source(find_spec(spec)) if isinstance(spec, str) else spec
    if foreign.is_foreign(source):
        source = foreign.translate(source)
    source = with_shipped_files(layers.apply(source, [*layers.environment_overrides(os.environ), *overrides]))
    given = {foreign.NO_DATASET: ("data", "train"), foreign.NO_WEIGHTS: ("model", "checkpoint")}
    answered = [text for text, loc in given.items() if source.value(loc) is not None]
    return replace(source, changes=tuple(text for text in source.changes if text not in answered))


def parse_spec(source: YamlDocument) -> RunSpec:
    """Return the RunSpec in ``source``. Raises SpecError with every problem: place, key, value and reason."""
    try:
        return _validate(source.values)
    except TypeError as error:
        raise SpecError(f"{source.name}: {error}", hint="use plain YAML values") from error
    except ValidationError as error:
        problems = list(dict.fromkeys([*_problems(source, error), *_problems_between_sections(source, error)]))
    raise SpecError(f"{source.name}: {len(problems)} problem(s)", problems=problems, hint=_hint(source))


def load_user_config() -> UserConfig:
    """Return the user's own settings, nothing set where there is no file. Raises SpecError with every problem in it."""
    path = user_config_file()
    if not path.is_file():
        return UserConfig()
    source = read_source(path)
    try:
        return UserConfig.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        problems = list(dict.fromkeys(_problems(source, error)))
    raise SpecError(
        f"{source.name}: {len(problems)} problem(s)", problems=problems, hint="its keys: docs/observability.md"
    )


def preset_model(preset: presets.Preset) -> ModelSpec:
    """Return the model in ``preset``. Raises SpecError with every problem of its file."""
    values = {**_GOOD, "model": {"preset": preset.name, **preset.model}}
    return parse_spec(replace(preset.document, values=values)).model


def _validate(values: dict[str, Any]) -> RunSpec:
    # By way of JSON: its strict mode takes a list for a tuple and nothing else for anything else.
    return RunSpec.model_validate_json(json.dumps(_by_family(values)), strict=True)


def _by_family(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` of a run spec with target_modules by the names of a family that fuses layers.

    What is left out becomes the family's own; q_proj, k_proj and v_proj together, or wq, wk and wv, become the layer
    that holds all three.
    """
    model, lora = (values.get(key) for key in ("model", "lora"))
    family = registry.FAMILIES.get(str(model.get("family"))) if isinstance(model, dict) else None
    if family is None or not family.fused or not isinstance(lora, dict):
        return values
    given = lora.get("target_modules", family.lora_default)
    if isinstance(given, str):
        renamed: Any = "|".join(_ours(family, given.split("|")))
    else:
        renamed = _ours(family, given) if isinstance(given, list) else given
    return {**values, "lora": {**lora, "target_modules": renamed}}


def _ours(family: Family, given: list[Any]) -> list[Any]:
    """Return ``given`` with transformers' and LLaMA's names replaced wherever they name a layer of ``family`` whole."""
    theirs = [registry.hf_linear(name) if isinstance(name, str) else name for name in given]
    found = list(zip(given, theirs, strict=True))
    for layer in family.linear_layers:
        parts = registry.linear_parts(family, layer)
        if all(part in theirs for part in parts):
            found = [pair for pair in found if pair[1] not in parts] + [(layer, layer)]
    return [name for name, _ in found]


# Stand-ins for required sections that are wrong, so that rules between the others can be checked all the same.
_GOOD_MODEL = {"hidden_size": 64, "num_layers": 1, "num_heads": 1, "intermediate_size": 64, "vocab_size": 64}
_GOOD: dict[str, Any] = {"name": "x", "model": {**_GOOD_MODEL, "seq_length": 64}, "data": {"sample": {"size": 1}}}


def _problems_between_sections(source: YamlDocument, error: ValidationError) -> Iterator[str]:
    """Yield problems that pydantic omits: it checks rules between sections only if each section is valid."""
    bad = {item["loc"][0] for item in error.errors() if item["loc"]}
    good = {key: value for key, value in source.values.items() if key not in bad}
    # Which layers LoRA may be put on depends on the family.
    family = source.value(("model", "family"))
    model = {**_GOOD["model"], **({"family": family} if family in list(registry.FAMILIES) else {})}
    try:
        _validate({**_GOOD, "model": model, **good})
    except ValidationError as again:
        yield from _problems(source, again)


def _hint(source: YamlDocument) -> str:
    if foreign.NO_DATASET in source.changes:
        return foreign.NO_DATASET
    model = source.values.get("model")
    if isinstance(model, dict) and "preset" not in model and "hidden_size" not in model:
        return f"model.preset fills in the architecture; presets are {', '.join(presets.names())}"
    return ""


def _problems(source: YamlDocument, error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        # pydantic adds the member of a union that it tried; nobody wrote that.
        *above, last = item["loc"] or ("",)
        loc = _written(source, item["loc"])
        if item["type"] == "missing":
            loc = (*_written(source, tuple(above)), last)
        # One reason a line: a section's own rules are checked together.
        for reason in item["msg"].removeprefix("Value error, ").splitlines():
            yield _problem(source, item["type"], loc, reason)


def _written(source: YamlDocument, loc: Loc) -> Loc:
    values: Any = source.values
    written: list[Any] = []
    for key in loc:
        section: Any = values if isinstance(values, dict | list) else {}
        try:
            values = section[key]
        except (KeyError, IndexError, TypeError):
            continue
        written.append(key)
    return tuple(written)


def _problem(source: YamlDocument, kind: str, loc: Loc, message: str) -> str:
    key = ".".join(map(str, loc))
    if kind == "missing":
        return f"{source.place(loc)}: missing key {key}"
    if kind == "extra_forbidden":
        near = nearest(str(loc[-1]), keys_at(loc[:-1]))
        return f"{source.place(loc)}: unknown key {key}" + (f"; did you mean {near}?" if near else "")
    reason = (
        message.removeprefix("Value error, ")
        .replace("a valid dictionary", "a section")
        .replace("an object", "a section")
    )
    if kind == "value_error":
        return f"{source.place(_named(source, loc, reason))}: {reason}"
    return f"{source.place(loc)}: {key}: {reason[:1].lower()}{reason[1:]}, got {_short(source.value(loc))}"


def _named(source: YamlDocument, section: Loc, reason: str) -> Loc:
    """Return the key at the beginning of a reason, by its full name or its name in ``section``; else ``section``."""
    key = tuple(reason.split()[0].rstrip(":").split("."))
    return next((loc for loc in (key, (*section, *key)) if source.value(loc) is not None), section)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
