"""YAML read with the line of each value, for error messages and for the origin of a value.

A document is read as YAML 1.2 core: ``1e-5`` is a number and ``no`` a word, contrary to PyYAML's own YAML 1.1 rules.
PyYAML composes the nodes; walking them gives the lines, and limits the expansion of aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from launcher.errors import SpecError

Loc = tuple[int | str, ...]


# A spec has a few hundred values. Aliases of aliases can stand for billions: they are counted before they are built.
MOST_VALUES = 10_000
MOST_BYTES = 4 << 20


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 core, and no dates."""


_CoreLoader.yaml_implicit_resolvers = {}
for _tag, _regex, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_regex), list(_first))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # decimal only: YAML 1.1 would read 010 as eight


_CoreLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True, kw_only=True)
class YamlDocument:
    """A YAML document with the place of every key.

    ``origins``: the source of each value that is not written in the file: an option, a variable, a preset.
    ``changes``: the translations made while reading.
    """

    name: str
    values: dict[str, Any]
    lines: dict[Loc, int]
    origins: dict[Loc, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    def place(self, loc: Loc) -> str:
        """Return "file:line" or the origin of ``loc``; else that of the nearest enclosing key that has one."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.origins:
                return self.origins[loc[:end]]
            if loc[:end] in self.lines:
                return f"{self.name}:{self.lines[loc[:end]]}"
            if end == len(loc) > 0 and (below := self._origin_below(loc)):
                return below
        return self.name

    def _origin_below(self, loc: Loc) -> str | None:
        """Return the origin of any key below ``loc``, or None."""
        return next((text for place, text in self.origins.items() if place[: len(loc)] == loc), None)

    def value(self, loc: Loc) -> Any:
        """Return the value at ``loc``, or None."""
        found: Any = self.values
        for key in loc:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return None
        return found


def parse_text(text: str, *, name: str, what: str = "a run spec") -> YamlDocument:
    """Return ``text`` as a YamlDocument. Raises SpecError, with ``name`` and ``what`` in its message."""
    try:
        values, lines = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{name} is not YAML: {_yaml_reason(error)}", hint="check it with an editor") from error
    if not isinstance(values, dict):
        raise SpecError(f"{name}: {what} is a mapping of keys, this is {_kind(values)}", hint="see configs/")
    return YamlDocument(name=name, values=values, lines=lines)


def parse_value(text: str) -> Any:
    """Return one value read as in a spec: "1e-5" is a number, "[1, 2]" a list. Raises ValueError if it is not YAML."""
    try:
        return _load(text)[0]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(_yaml_reason(error)) from error


def _load(text: str) -> tuple[Any, dict[Loc, int]]:
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        if _count(node, {}) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values, counting what aliases stand for")
        lines = dict(_lines(node, ()))
        return loader.construct_document(node), lines
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values below ``node`` with every alias expanded. Raises YAMLError when a value contains
    itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise yaml.MarkedYAMLError(problem="a value holds itself", problem_mark=node.start_mark)
    if id(node) not in known:
        known[id(node)] = 0
        children = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    return known[id(node)]


def _lines(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, int]]:
    if isinstance(node, yaml.MappingNode):
        yield from _lines_of_mapping(node, loc)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*loc, index), value.start_mark.line + 1
            yield from _lines(value, (*loc, index))
    else:
        _check_text(node)


def _lines_of_mapping(node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[Loc, int]]:
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
            raise yaml.MarkedYAMLError(problem="a key is not a word", problem_mark=key.start_mark)
        _check_text(key)
        if key.value == "<<":
            problem = "a merge key (<<), which YAML 1.2 has not; write its keys out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
        seen.add(key.value)
        yield (*loc, key.value), key.start_mark.line + 1
        yield from _lines(value, (*loc, key.value))


def _check_text(node: yaml.Node) -> None:
    """Raise YAMLError for NUL, which no file name may hold, and lone surrogates, which UTF-8 has not ("\\ud800")."""
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in node.value):
        raise yaml.MarkedYAMLError(problem="a character that no file can hold", problem_mark=node.start_mark)


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem or error.context} (line {mark.line + 1}, column {mark.column + 1})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _kind(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
