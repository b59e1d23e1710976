"""Run specs by name: finding the file of a name and reading it with the place of each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.common import resources
from launcher.common.nearest import nearest
from launcher.common.yaml_lines import MOST_BYTES, YamlDocument, parse_text
from launcher.errors import SpecError
from launcher.runspec import presets


def find_spec(name: str) -> Path:
    """Return the file of ``name``: a path, or a name in ``configs/`` (".yaml" may be left out).

    Raises SpecError when there is none, with the nearest names.
    """
    if "\0" in name:
        raise SpecError(f"no run spec {name!r}", hint="give a .yaml file, or a name in configs/")
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    stem = name.removesuffix(".yaml")
    found = resources.find("configs", f"{stem}.yaml") if stem else None
    if found:
        return found
    raise _no_spec(name, stem)


def _no_spec(name: str, stem: str) -> SpecError:
    """Return the error for a ``name`` that is not a run spec, with a hint for what it is instead."""
    beside = next((path for ending in (".yaml", ".yml") if (path := Path(name + ending)).is_file()), None)
    if beside:
        return SpecError(f"no run spec {name!r} in configs/", hint=f"did you mean the file {beside}?")
    if name in presets.names():
        return SpecError(
            f"{name} is a preset, which is a model: a run spec says what it is trained on, too",
            hint=f"launcher config new NAME --preset {name}; then give NAME",
        )
    if Path(name).is_file():
        return SpecError(f"{name} is no .yaml file", hint="give a run spec; data is named in one: data.train")
    known = resources.names("configs", ".yaml")
    near = nearest(stem, known)
    hint = f"did you mean {near}?" if near else f"give a .yaml file, or one of: {', '.join(known)}"
    return SpecError(f"no run spec {name!r}: no such file, and no such name in configs/", hint=hint)


def read_source(path: Path) -> YamlDocument:
    """Return the YAML document at ``path``. Raises SpecError when it cannot be read or is not a mapping of keys."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SpecError(f"{path} has {size} bytes: that is no run spec", hint="see configs/")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the run spec {path}: {error}", hint="give a readable UTF-8 YAML file") from error
    return parse_text(text, name=str(path), what="a run spec")


# What a spec names of inputs, section by section.
_INPUTS = {"model": ("checkpoint", "tokenizer"), "data": ("train",)}


def with_shipped_files(source: YamlDocument) -> YamlDocument:
    """Return ``source`` with the paths of shipped inputs: configs/... where the working folder has no such file."""
    return replace(source, values={name: _with_shipped(name, section) for name, section in source.values.items()})


def _with_shipped(name: str, section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {key: _shipped(value) if key in _INPUTS.get(name, ()) else value for key, value in section.items()}


def _shipped(path: Any) -> Any:
    if not isinstance(path, str) or not path.startswith("configs/"):
        return path
    return str(resources.find("configs", path.removeprefix("configs/")) or path)
