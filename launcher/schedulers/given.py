"""Hosts on which somebody else starts the agents, by ``launcher node``; no command offers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.errors import SpecError
from launcher.plan.placement import Placement
from launcher.schedulers.base import Scheduler


class Given(Scheduler):
    name = "given"
    leads_here = True
    restarts_agents = False

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        """Refuse: such a job is made by a program."""
        raise SpecError("--scheduler given: nobody says here which hosts those are", hint="--scheduler ssh")


SCHEDULER = Given()
