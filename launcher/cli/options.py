"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]

jobs_dir_option: Decorator[Any] = click.option(
    "--jobs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="LAUNCHER_JOBS",
    default=Path("jobs"),
    show_default="jobs, or $LAUNCHER_JOBS",
    help="Folder that holds one folder a job.",
)

job_argument: Decorator[Any] = click.argument("job", default="last")

set_option: Decorator[Any] = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one key of SPEC: --set training.epochs=2."
)
