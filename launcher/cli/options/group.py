"""Groups of options as dataclasses: a field declares a click option, and a command takes the group as one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

import click

from launcher.cli.options.common import Decorated

_DECLARES = "click"


def option(*flags: str, **attributes: Any) -> Any:
    """Return a dataclass field that declares a click option. The option's parameter has the field's name."""
    return _declared(lambda name: click.option(*flags, name, **attributes))


def declared(decorator: Callable[[Any], Any]) -> Any:
    """Return a dataclass field for an option that exists already; its parameter must have the field's name."""
    return _declared(lambda _name: decorator)


def _declared(declare: Callable[[str], Callable[[Any], Any]]) -> Any:
    return field(metadata={_DECLARES: declare})


def takes(group: type[Any], parameter: str) -> Callable[[Decorated], Decorated]:
    """Return a decorator that declares the options of ``group`` and passes them as ``parameter``, an instance of it."""

    def decorate(command: Decorated) -> Decorated:
        gathered: Any = _gathering(command, group, parameter)
        # click lists the decorator that was applied last first.
        for item in reversed(fields(group)):
            gathered = item.metadata[_DECLARES](item.name)(gathered)
        done: Decorated = gathered
        return done

    return decorate


def _gathering(command: Callable[..., Any], group: type[Any], parameter: str) -> Callable[..., Any]:
    names = [item.name for item in fields(group)]

    @functools.wraps(command)
    def gathered(**values: Any) -> Any:
        chosen = group(**{name: values.pop(name) for name in names})
        return command(**{parameter: chosen}, **values)

    return gathered
