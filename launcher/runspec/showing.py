"""Display of a spec with every value written out, each with its origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.common.rendering import to_json, to_number
from launcher.common.yaml_lines import Loc, YamlDocument
from launcher.runspec.sections import RunSpec

CHOSEN = "chosen when planned"


def origin(source: YamlDocument, loc: Loc) -> str:
    """Return the origin of the value at ``loc``: "file:line", an option, a variable, a preset, or "default"."""
    return source.place(loc) if source.value(loc) is not None or loc in source.lines else "default"


def show(spec: RunSpec, source: YamlDocument, *, origins: bool) -> str:
    """Return ``spec`` as YAML that reads back as the same spec; with ``origins``, each line ends with its origin."""
    lines = list(_lines(spec.model_dump(mode="json"), ()))
    if not origins:
        return "\n".join(text for text, _ in lines)
    width = min(60, max(len(text) for text, loc in lines if loc))
    return "\n".join(f"{text:<{width}}  # {_name(source, text, loc)}" if loc else text for text, loc in lines)


def _name(source: YamlDocument, text: str, loc: Loc) -> str:
    found = origin(source, loc)
    return CHOSEN if found == "default" and text.endswith(": null") and _is_choice(loc) else found


def _is_choice(loc: Loc) -> bool:
    """Return True if None at ``loc`` is decided by the plan; elsewhere it means "none"."""
    return loc[0] in ("parallel", "precision", "runtime") or loc in (
        ("data", "workers"),
        ("training", "lr_schedule", "warmup_ratio"),
    )


def _lines(values: dict[str, Any], loc: Loc) -> Iterator[tuple[str, Loc]]:
    """Yield (text, place) of each line; headings of sections have no place."""
    for key, value in values.items():
        here = (*loc, key)
        indent = "  " * len(loc)
        name = key if key.isidentifier() else to_json(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:", ()
            yield from _lines(value, here)
        else:
            yield f"{indent}{name}: {_scalar(value)}", here


def _scalar(value: Any) -> str:
    return to_number(value) if isinstance(value, float) else to_json(value)
