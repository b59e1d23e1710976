"""Options that say what gives the hosts: ``--scheduler``, and those that each scheduler declares for itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from launcher.cli.options.common import AnyCase
from launcher.errors import SpecError
from launcher.plan.launch import LOCAL
from launcher.schedulers import registry
from launcher.schedulers.base import Option


@dataclass(frozen=True, kw_only=True)
class SchedulerChoice:
    """The scheduler that was chosen, and the values of its own options that were given."""

    name: str
    values: Mapping[str, Any]


def scheduler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare all of them, and give them to ``command`` as its parameter ``scheduler``."""
    owners = _owners()

    @functools.wraps(command)
    def gathered(*, scheduler: str, **values: Any) -> Any:
        own = {option: values.pop(f"_{option.name}") for option in owners}
        given = {option: value for option, value in own.items() if value not in (None, False, ())}
        _refuse_strangers(scheduler, given, owners)
        choice = SchedulerChoice(name=scheduler, values={option.name: value for option, value in given.items()})
        return command(scheduler=choice, **values)

    for option, names in reversed(owners.items()):
        gathered = _declared(option, names)(gathered)
    return click.option(
        "--scheduler",
        type=click.Choice(registry.names()),
        default=LOCAL,
        show_default=True,
        help="Where hosts come from: this host only, an inventory (over ssh), or a batch system.",
    )(gathered)


def _owners() -> dict[Option, list[str]]:
    """Return each option with the schedulers that have it. The first that declares a flag has it for its own."""
    owners: dict[Option, list[str]] = {}
    flags: dict[str, Option] = {}
    for scheduler in registry.available():
        for option in scheduler.options:
            if flags.setdefault(option.flag, option) == option:
                owners.setdefault(option, []).append(scheduler.name)
    return owners


def _declared(option: Option, names: list[str]) -> Callable[..., Any]:
    kinds: dict[type, Any] = {int: click.IntRange(min=1), Path: click.Path(path_type=Path)}
    kind = AnyCase(option.choices) if option.choices else kinds.get(option.form, click.STRING)
    return click.option(
        *filter(None, (option.short, option.flag)),
        f"_{option.name}",  # no parameter of a command begins like this
        type=None if option.is_flag else kind,
        is_flag=option.is_flag,
        multiple=option.multiple,
        metavar=option.metavar,
        help=f"{', '.join(names)}: {option.help}",
    )


def _refuse_strangers(scheduler: str, given: Mapping[Option, Any], owners: Mapping[Option, list[str]]) -> None:
    """Raise SpecError for an option of another scheduler: it would be ignored without a word."""
    for option in given:
        if scheduler not in owners[option]:
            fits = " or ".join(f"--scheduler {name}" for name in owners[option])
            hint = registry.get(scheduler).instead.get(option.flag, f"did you mean {fits}?")
            raise SpecError(f"{option.flag} has no effect with --scheduler {scheduler}", hint=hint)
