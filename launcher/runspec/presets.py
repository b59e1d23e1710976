"""Model presets: the architecture of published models, one file each in ``configs/presets/``.

A file in ``configs/presets/`` of the working folder is a preset too, and wins over a shipped one of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launcher.common import resources
from launcher.common.nearest import nearest
from launcher.common.ranges import natural
from launcher.common.yaml_lines import YamlDocument, parse_text
from launcher.errors import SpecError

FOLDER = "configs/presets"
_KEYS = ("source", "model")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset. ``model``: keys of the run spec's ``model``; ``source``: the paper or file that gives them."""

    name: str
    source: str
    model: Mapping[str, Any]
    document: YamlDocument


def names() -> list[str]:
    """Return the names of all presets, sizes of a family in order."""
    return sorted(resources.names(FOLDER, ".yaml"), key=natural)


def get(name: str) -> Preset:
    """Return the preset ``name``. Raises SpecError, with the nearest name, when it is missing or its file is wrong."""
    file = resources.find(FOLDER, f"{name}.yaml")
    if file is None:
        raise SpecError(f"there is no preset {name!r}", hint=hint_for(name))
    return _read(name, file, file.stat().st_mtime_ns)


def all_presets() -> list[Preset]:
    """Return every preset. Raises SpecError when a file is wrong."""
    return [get(name) for name in names()]


def hint_for(name: str) -> str:
    """Return the hint for ``name``, which is not a preset."""
    near = nearest(name, names())
    return f"did you mean {near}?" if near else f"presets are {', '.join(names())}"


@cache
def _read(name: str, file: Path, _mtime_ns: int) -> Preset:
    try:
        document = parse_text(file.read_text(encoding="utf-8"), name=str(file), what="a preset")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the preset {file}: {error}", hint="give a readable UTF-8 YAML file") from error
    problems = [f"{document.place((key,))}: unknown key {key}" for key in document.values if key not in _KEYS]
    problems += [f"{file}: missing key {key}" for key in _KEYS if key not in document.values]
    source, model = document.value(("source",)), document.value(("model",))
    if not problems and not (isinstance(source, str) and isinstance(model, dict)):
        problems.append(f"{document.place(('model',))}: source is text and model a section")
    if problems:
        raise SpecError(f"{file}: {len(problems)} problem(s)", problems=problems, hint="a preset has source and model")
    return Preset(name=name, source=source, model=model, document=document)
