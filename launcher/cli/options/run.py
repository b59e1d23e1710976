"""Options that say how a job is run, whatever it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from launcher.cli.options.common import Seconds, set_option
from launcher.cli.options.completion import tags
from launcher.cli.options.group import declared, option

if TYPE_CHECKING:
    from launcher.jobs import JobPaths
    from launcher.plan.placement import RunOptions
    from launcher.runspec.layers import Override


@dataclass(frozen=True, kw_only=True)
class SpecChanges:
    """What takes the place of values of the spec."""

    checkpoint: str | None = option(
        "--checkpoint", metavar="PATH", help="Base weights, instead of the spec's model.checkpoint."
    )
    model: str | None = option(
        "--model",
        metavar="FOLDER",
        help="A Hugging Face folder: architecture, weights and tokenizer, instead of the spec's.",
    )
    data: str | None = option(
        "--data", metavar="FILE", help="Training rows or raw conversations, instead of the spec's data."
    )
    sets: tuple[str, ...] = declared(set_option)

    def overrides(self) -> list[Override]:
        """Return the same as specs are changed by."""
        from launcher.control.prepare import overrides

        return overrides(self.sets, self.checkpoint, model=self.model, data=self.data)


@dataclass(frozen=True, kw_only=True)
class JobLabels:
    """What jobs are found by later."""

    tags: tuple[str, ...] = option(
        "--tag",
        multiple=True,
        metavar="TAG",
        shell_complete=tags,
        help="Tag of the job, repeatable; launcher jobs has it.",
    )
    note: str = option("--note", metavar="TEXT", default="", help="What to remember of the job.")


# Of time-outs: with none at all every job would fail.
_TIMEOUT = Seconds(min=0.0, min_open=True)


@dataclass(frozen=True, kw_only=True)
class RunChoice:
    """The engine, and how long to wait for what."""

    engine: str | None = option(
        "--engine",
        type=click.Choice(["msrun", "direct", "mpirun"]),
        help="What starts the ranks: MindSpore's msrun (on one host, if left out), the launcher itself (direct; on "
        "several hosts, if left out), or Open MPI.",
    )
    max_restarts: int = option(
        "--max-restarts",
        type=click.IntRange(min=0),
        default=0,
        help="Restart at most this often, from the newest checkpoint, after machine or communication faults.",
    )
    restart_budget_s: float | None = option(
        "--restart-budget",
        type=_TIMEOUT,
        help="Seconds in which restarts must get further than the attempt that failed; no limit if left out.",
    )
    standby: bool = option(
        "--standby/--no-standby",
        default=True,
        show_default=True,
        help="With --max-restarts: keep processes that have imported MindSpore, 750 MiB a rank, for a faster restart.",
    )
    grace_s: float = option(
        "--grace", type=Seconds(min=0.0), default=30.0, show_default=True, help="Seconds from TERM to KILL."
    )
    hang_timeout_s: float | None = option(
        "--hang-timeout",
        type=_TIMEOUT,
        help="Seconds without a step after which the job has failed; 20 steps' time and at least 600 if left out.",
    )
    start_timeout_s: float = option(
        "--start-timeout",
        type=_TIMEOUT,
        default=600.0,
        show_default=True,
        help="Seconds within which all ranks must be ready.",
    )
    lost_s: float = option(
        "--lost-after",
        type=Seconds(min=1.0),
        default=8.0,
        show_default=True,
        help="On several hosts: seconds without a sign of life after which a host is lost.",
    )
    wait_for_cards: bool = option(
        "--queue",
        "--wait",
        is_flag=True,
        help="Queue for cards that other jobs have or wait for; on the CPU queued jobs run one by one.",
    )
    priority: int = option(
        "--priority",
        type=click.IntRange(0, 99),
        default=0,
        metavar="N",
        help="Place in the queue: jobs of higher priority first, then by arrival.",
    )

    def options(self, earlier: JobPaths | None = None, scheduler: str = "") -> RunOptions:
        """Return the same as the rest of the program takes it.

        What was not given on the command line is that of the job ``earlier``, its engine if ``scheduler`` is its own.
        """
        from launcher.control.prepare import launch_of
        from launcher.errors import SpecError
        from launcher.plan.launch import Limits
        from launcher.plan.placement import RunOptions

        chosen = {name: getattr(self, name) for name in _LIMITS}
        engine = self.engine
        launch = launch_of(earlier) if earlier else None
        if launch:
            chosen |= {name: getattr(launch.limits, name) for name in _LIMITS if not _is_given(name)}
            engine = engine or (launch.engine if launch.scheduler == scheduler else None)
        if self.priority and not self.wait_for_cards:
            raise SpecError("--priority is a place in the queue", hint="add --queue")
        return RunOptions(
            engine=engine, limits=Limits(**chosen), wait_for_cards=self.wait_for_cards, priority=self.priority
        )


_LIMITS = ("grace_s", "hang_timeout_s", "start_timeout_s", "max_restarts", "restart_budget_s", "standby", "lost_s")


def _is_given(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
