"""The scheduler for this host alone: the supervisor starts the ranks itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from launcher.errors import HostError
from launcher.jobs import JobPaths
from launcher.plan.launch import LOCAL, Launch
from launcher.plan.placement import Placement
from launcher.schedulers.base import AgentStart, Scheduler, agents_here

if TYPE_CHECKING:
    from launcher.plan.launch_plan import LaunchPlan


class Local(Scheduler):
    name = LOCAL
    leads_here = True
    instead = MappingProxyType({"--spare-hosts": "there is this host alone; --scheduler ssh -i FILE takes several"})

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        from launcher.cluster.discover import local_cluster
        from launcher.cluster.queue import least_wanted

        cluster = local_cluster(cards, choose=least_wanted)
        return Placement(cluster=cluster, scheduler=self.name, named=True)

    def preflight(self, plan: LaunchPlan, *, port: int | None) -> Sequence[str]:
        """Run the cheap checks of this host, in milliseconds; ``launcher doctor`` shows warnings too."""
        from launcher.doctor.checks import cheap_checks
        from launcher.doctor.job import needs_of_spec

        needs = needs_of_spec(plan.spec, cards=plan.cluster.num_devices, folder=plan.paths.root.parent, port=port)
        findings = cheap_checks(plan.cluster, needs)
        failed = [f"  {finding.what}\n    -> {finding.fix}" for finding in findings if finding.status == "fail"]
        if failed:
            raise HostError(
                "\n".join([f"this host cannot run the job: {len(failed)} check(s) failed", *failed]),
                hint="launcher doctor shows all checks; --no-preflight starts all the same",
            )
        return ()

    def agents(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        return agents_here(launch, paths)


SCHEDULER = Local()
