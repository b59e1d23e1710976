"""Rendering of templates to files: strict templates, checked results, writes that are whole or absent."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.common import resources
from launcher.common.atomic import write_atomic as write_atomic
from launcher.errors import LauncherError

if TYPE_CHECKING:
    import jinja2

# Control characters, line separators, the byte order mark, and two that are no characters.
_NOT_YAML = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True, kw_only=True)
class RenderedFile:
    """A file that a plan will write: its ``path`` relative to the job's folder, and its whole text."""

    path: str
    text: str


def to_json(value: Any) -> str:
    """Return ``value`` as JSON on one line, which is YAML too. Non-ASCII is not escaped: PyYAML misreads surrogates.

    Some characters are escaped that JSON allows in a string but YAML reads as a line's end or rejects.
    """
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def to_number(value: float) -> str:
    """Return ``value`` as a number for YAML 1.1 readers (PyYAML, so MindFormers) too: 1.0e-05, never 1e-05."""
    text = repr(float(value))
    mantissa, exponent_sign, exponent = text.partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{exponent_sign}{exponent}"


def environment() -> jinja2.Environment:
    """Return the Jinja2 environment of all templates: a missing name is an error, never an empty string."""
    import jinja2  # what only writes files needs none

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(folder) for folder in resources.search_path("templates")]),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - JSON, YAML and host files; every string goes through the json filter
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["json"] = to_json
    env.filters["number"] = to_number
    env.filters["shell"] = shlex.quote
    return env


def render(env: jinja2.Environment, template: str, path: str, **context: Any) -> RenderedFile:
    """Return ``template`` rendered to a file at ``path``, its text parsed again as a check.

    Raises LauncherError when the template is missing or wrong, or gives text that is not the YAML or JSON of its name:
    a template in the user's working folder may hold anything.
    """
    import jinja2
    import yaml

    try:
        text = env.get_template(template).render(**context)
        _read_back(path, text)
    except (jinja2.TemplateError, yaml.YAMLError, ValueError) as error:
        where = getattr(error, "lineno", None)
        place = f"{template}:{where}" if where else template
        raise LauncherError(
            f"template {place} does not give a valid {Path(path).name}: {error}",
            hint=f"templates are looked for in {', '.join(map(str, resources.search_path('templates')))}",
        ) from error
    return RenderedFile(path=path, text=text)


def _read_back(path: str, text: str) -> None:
    if path.endswith(".json"):
        json.loads(text)
    elif path.endswith((".yaml", ".yml")):
        import yaml

        yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
