"""Hosts on which another program starts the agents, by ``launcher node``; no command offers this scheduler."""

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
        """Raise SpecError: only a program makes such a job."""
        raise SpecError("--scheduler given: nobody says here which hosts those are", hint="--scheduler ssh")


SCHEDULER = Given()
