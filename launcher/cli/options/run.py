"""Options that say how a job is run, whatever it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Seconds

if TYPE_CHECKING:
    from launcher.control.start import Options

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


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_options(
    *,
    engine: str | None,
    max_restarts: int,
    grace_s: float,
    hang_timeout_s: float | None,
    start_timeout_s: float,
    lost_s: float,
    wait_for_cards: bool,
) -> Options:
    """What ``run_options`` gave, as the rest of the program takes it."""
    from launcher.control.start import Options
    from launcher.plan.launch import Limits

    limits = Limits(
        grace_s=grace_s, hang_timeout_s=hang_timeout_s, start_timeout_s=start_timeout_s, max_restarts=max_restarts,
        lost_s=lost_s,
    )  # fmt: skip
    return Options(engine=engine, limits=limits, wait_for_cards=wait_for_cards)
