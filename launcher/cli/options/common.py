"""Options and arguments that several commands share."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from launcher.cli.options.completion import job_ids
from launcher.common.sizes import parse_size

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]


class NumberRange(click.FloatRange):
    """A FloatRange without "nan", which is in every range."""

    name = "float range"
    meaning = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no {self.meaning}.", param, ctx)
        return number


class AnyCase(click.Choice[str]):
    """A choice of names that people also write in small letters; help shows them as they are."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = {name.lower(): name for name in self.choices}
        return super().convert(known.get(str(value).lower(), value), param, ctx)


class Text(click.types.StringParamType):
    """Text that a tokenizer takes: the shell also passes on bytes that are no UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(f"not valid UTF-8 at character {error.start + 1}.", param, ctx)
        return text


class Size(click.types.StringParamType):
    """The size of a file, such as 5GB, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(NumberRange):
    """A number of seconds in a range."""

    meaning = "number of seconds"


_JOBS_DIR = "launcher.jobs_dir"
# Commands that name a job by its id or as "last".
_OF_JOB = re.compile(r"\blauncher (?:jobs(?: (?:rm|prune|tag))?\b|[a-z-]+(?= last\b| [bcdfghjkmnpqrstvwxz]{5}-))")


def _note_jobs_dir(context: click.Context, parameter: click.Parameter, folder: Path) -> Path:
    if context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
        context.meta[_JOBS_DIR] = folder
    # What a group was given holds for its commands: launcher jobs --jobs-dir DIR rm JOB.
    named: Path = context.meta.get(_JOBS_DIR, folder)
    return named


def jobs_dir_words() -> str:
    """Return " --jobs-dir DIR" if it was given on the command line, else "": what the environment says stays true."""
    context = click.get_current_context(silent=True)
    folder = context.meta.get(_JOBS_DIR) if context else None
    return "" if folder is None else f" --jobs-dir {shlex.quote(str(folder))}"


def in_jobs_dir(text: str) -> str:
    """Return ``text`` with --jobs-dir in the commands on jobs that it says to type, if the user gave it."""
    words = jobs_dir_words()
    return _OF_JOB.sub(lambda command: command[0] + words, text) if words else text


jobs_dir_option: Decorator[Any] = click.option(
    "--jobs-dir",
    callback=_note_jobs_dir,
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LAUNCHER_JOBS",
    default=Path("jobs"),
    show_default="jobs, or $LAUNCHER_JOBS",
    help="Folder that holds one folder per job.",
)

format_option: Decorator[Any] = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, JSON for programs.",
)

model_argument: Decorator[Any] = click.argument("reference", metavar="MODEL", default="last", shell_complete=job_ids)

job_argument: Decorator[Any] = click.argument("job", default="last", shell_complete=job_ids)

set_option: Decorator[Any] = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set one key of SPEC: --set training.epochs=2."
)


def _speak(_context: click.Context, _parameter: click.Parameter, lang: str | None) -> None:
    if lang is not None:
        os.environ["LAUNCHER_LANG"] = lang


lang_option: Decorator[Any] = click.option(
    "--lang",
    type=click.Choice(["en", "zh"]),
    expose_value=False,
    callback=_speak,
    help="Language of the report when the job fails; $LAUNCHER_LANG, else the locale's, if left out.",
)
