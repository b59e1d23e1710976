"""The schema of run specs for editors (JSON Schema) and for people (the reference), both from the sections."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from launcher.runspec import presets, sections
from launcher.runspec.keys import element_section_of, section_of
from launcher.runspec.sections import RunSpec, Section

BEGIN = "<!-- config reference: written by `launcher config reference`, do not edit -->"
END = "<!-- end of config reference -->"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of run specs. The architecture is required only without a preset, which supplies it."""
    schema = RunSpec.model_json_schema()
    for name, section in {**schema["$defs"], RunSpec.__name__: schema}.items():
        for key, meaning in _meanings().get(name, {}).items():
            described = {**section["properties"][key], "description": meaning}
            section["properties"][key] = dict(sorted(described.items()))  # as pydantic sorts them
    model = schema["$defs"]["ModelSpec"]
    model["anyOf"] = [{"required": ["preset"]}, {"required": model.pop("required")}]
    model["properties"]["preset"] |= {"enum": [*presets.names(), None]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "launcher run spec"} | schema


def schema_text() -> str:
    """Return the JSON Schema as the text of the file that configs name in their first line."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def reference() -> str:
    """Return one Markdown table per section: key, type, default, meaning."""
    parts = []
    for title, section, text in _sections((), RunSpec):
        rows = [
            f"| `{name}` | {_kind(field)} | {_default(field)} | {_meaning(section, name)} |"
            for name, field in _keys(section)
        ]
        parts += [f"**{title}** {text}", "", "| key | takes | default | |", "|---|---|---|---|", *rows, ""]
    return "\n".join([BEGIN, "", *parts, END])


def with_reference(text: str) -> str | None:
    """Return ``text`` with the reference between its markers updated; None when it has no markers."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: reference(), text, count=1) if pattern.search(text) else None


def _sections(loc: tuple[str, ...], section: type[Section]) -> Iterator[tuple[str, type[Section], str]]:
    yield f"`{'.'.join(loc)}`" if loc else "top level", section, _one_line(section.__doc__ or "")
    for name, field in section.model_fields.items():
        below, element = section_of(field.annotation), element_section_of(field.annotation)
        if below:
            yield from _sections((*loc, name), below)
        if element:
            yield from _sections((*loc, f"{name}[]"), element)


def _keys(section: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if section_of(field.annotation) is None:
            yield name, field


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _meaning(section: type[Section], key: str) -> str:
    return _one_line(_meanings()[section.__name__].get(key, "")).replace("|", "\\|")


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """Return the docstrings under the keys of each section.

    pydantic's use_attribute_docstrings would read them whenever a section is defined, and so in every command.
    """
    tree = ast.parse(inspect.getsource(sections))
    return {node.name: dict(_docstrings(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _docstrings(section: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for key, below in zip(section.body, section.body[1:], strict=False):
        if (
            isinstance(key, ast.AnnAssign)
            and isinstance(key.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield key.target.id, inspect.cleandoc(below.value.value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or value == {} else f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


_NAMES = {int: "whole number", float: "number", str: "text", bool: "true, false", dict: "mapping"}


def _kind(field: FieldInfo) -> str:
    names = _type_names(field.annotation)
    limits = {name: getattr(item, name, None) for item in field.metadata for name in ("ge", "gt", "le", "lt")}
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    shown = [f"{signs[name]} {value}" for name, value in limits.items() if value is not None and value != 2**31 - 1]
    return ", ".join([*dict.fromkeys(names), *shown])


def _type_names(annotation: Any) -> list[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_names(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [name for item in get_args(annotation) if item is not type(None) for name in _type_names(item)]
    if origin is Literal:
        return [str(value) for value in get_args(annotation)]
    if origin is tuple:
        return ["list"]
    return [_NAMES[origin or annotation]]
