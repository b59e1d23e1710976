"""The sources of a value, from the strongest to the weakest:

1. ``--set a.b=c`` (and the options that stand for one key, such as ``--checkpoint``)
2. ``$LAUNCHER_A__B=c`` in the environment
3. the spec's file
4. the preset that ``model.preset`` names
5. the default; a key without one is chosen when the run is planned
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.common.yaml_lines import YamlDocument, parse_value
from launcher.errors import SpecError
from launcher.runspec import presets
from launcher.runspec.keys import is_text

_PREFIX = "LAUNCHER_"


@dataclass(frozen=True, kw_only=True)
class Override:
    """A value that replaces the file's. ``keys``: its path; ``origin``: the name of its source."""

    keys: tuple[str, ...]
    value: Any
    origin: str


def parse_sets(texts: Iterable[str]) -> list[Override]:
    """Return the overrides of ``--set`` options. Raises SpecError with every one that is not ``a.b=value``."""
    overrides, problems = [], []
    for text in texts:
        key, equals, value = text.partition("=")
        keys = tuple(part.strip() for part in key.split("."))
        try:
            if not equals or not all(keys):
                raise ValueError("it must look like training.epochs=2")
            overrides.append(Override(keys=keys, value=_parse(value, keys), origin=f"--set {text}"))
        except ValueError as error:
            problems.append(f"--set {text!r}: {error}")
    if problems:
        raise SpecError("--set cannot be read", problems=problems, hint="--set training.epochs=2 --set lora.r=8")
    return overrides


def environment_overrides(environ: Mapping[str, str]) -> list[Override]:
    """Return the overrides in variables: LAUNCHER_TRAINING__EPOCHS=2 is training.epochs.

    Two underscores are a dot; variables without them are not overrides.
    """
    found = []
    for name, value in sorted(environ.items()):
        keys = _keys_of_variable(name.removeprefix(_PREFIX))
        if not name.startswith(_PREFIX) or len(keys) < 2:
            continue
        try:
            found.append(Override(keys=keys, value=_parse(value, keys), origin=f"${name}"))
        except ValueError as error:
            raise SpecError(f"${name}: {error}", hint=f"unset {name}, or give it a value") from error
    return found


def _keys_of_variable(name: str) -> tuple[str, ...]:
    """Return the path of TRAINING__EPOCHS; below env are names of variables, which are kept unchanged."""
    section, _, variable = name.partition("__")
    if section.lower() == "env" and variable:
        return "env", variable
    return tuple(part.lower() for part in name.split("__"))


def _parse(text: str, keys: tuple[str, ...]) -> Any:
    value = parse_value(text)
    # YAML makes a number of the 1 in LAUNCHER_ENV__FOO=1, where a shell has texts alone; "null" stays no value.
    if isinstance(value, bool | int | float) and is_text(keys):
        value = text
    if isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("a character that no file can hold")
    return value


def apply(source: YamlDocument, overrides: Iterable[Override]) -> YamlDocument:
    """Return ``source`` with ``overrides`` applied in order. Raises SpecError when a path leads through a value."""
    values, origins = source.values, dict(source.origins)
    for override in overrides:
        try:
            values = _put(values, (), override.keys, override.value)
        except TypeError as error:
            raise SpecError(f"{override.origin}: {error}", hint="launcher config show SPEC prints all keys") from error
        origins = {loc: text for loc, text in origins.items() if loc[: len(override.keys)] != override.keys}
        origins[override.keys] = override.origin
    return replace(source, values=values, origins=origins)


def _put(values: Any, above: tuple[str, ...], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a copy of ``values`` with ``value`` at ``keys``; missing sections on the way are made."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise TypeError(f"{'.'.join(above)} is {values!r}, which has no keys")
    first, *rest = keys
    below = _put(values.get(first), (*above, first), tuple(rest), value) if rest else value
    return {**values, first: below}


def fill_preset(source: YamlDocument) -> YamlDocument:
    """Return ``source`` with values of its preset where it has none. Raises SpecError for an unknown preset."""
    name = source.value(("model", "preset"))
    if not isinstance(name, str):
        return source
    if name not in presets.names():
        raise SpecError(
            f"{source.place(('model', 'preset'))}: model.preset: there is no preset {name!r}",
            hint=presets.hint_for(name),
        )
    missing = {key: value for key, value in presets.get(name).model.items() if key not in source.values["model"]}
    values = {**source.values, "model": {**missing, **source.values["model"]}}
    origins = dict(source.origins)
    origins.update({("model", key): f"preset {name}" for key in missing})
    return replace(source, values=values, origins=origins)
