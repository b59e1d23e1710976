"""Options that say how a job is run, whatever it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Seconds

if TYPE_CHECKING:
    from launcher.plan.placement import RunOptions

# Of time-outs: with none at all every job would fail.
_TIMEOUT = Seconds(min=0.0, min_open=True)

_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["msrun", "direct", "mpirun"]),
        help="What starts the ranks: MindSpore's msrun (on one host, if left out), the launcher itself (direct; on "
        "several hosts, if left out), or Open MPI.",
    ),
    click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        default=0,
        help="Start again this often, from the newest checkpoint, after faults of the machine or of communication.",
    ),
    click.option(
        "--grace", "grace_s", type=Seconds(min=0.0), default=30.0, show_default=True, help="Seconds from TERM to KILL."
    ),
    click.option(
        "--hang-timeout",
        "hang_timeout_s",
        type=_TIMEOUT,
        help="Seconds without a step after which the job has failed; 20 steps' time and at least 600 if left out.",
    ),
    click.option(
        "--start-timeout",
        "start_timeout_s",
        type=_TIMEOUT,
        default=600.0,
        show_default=True,
        help="Seconds within which all ranks must be ready.",
    ),
    click.option(
        "--lost-after",
        "lost_s",
        type=Seconds(min=1.0),
        default=8.0,
        show_default=True,
        help="On several hosts: seconds without a sign of life after which a host is lost.",
    ),
    click.option("--wait", "wait_for_cards", is_flag=True, help="Wait for cards that another job has."),
)


_NAMES = ("engine", "max_restarts", "grace_s", "hang_timeout_s", "start_timeout_s", "lost_s", "wait_for_cards")


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare all of them, in this order, and give them to ``command`` as its parameter ``run``."""

    @functools.wraps(command)
    def gathered(**values: Any) -> Any:
        return command(run=_options(**{name: values.pop(name) for name in _NAMES}), **values)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def _options(*, engine: str | None, wait_for_cards: bool, **limits: Any) -> RunOptions:
    from launcher.plan.launch import Limits
    from launcher.plan.placement import RunOptions

    return RunOptions(engine=engine, limits=Limits(**limits), wait_for_cards=wait_for_cards)
