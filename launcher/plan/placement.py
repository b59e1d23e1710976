"""Placement and run options: with the run spec and its inputs, everything that a plan is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.cluster.locks import card_lock
from launcher.cluster.model import Cluster, Host
from launcher.engines import DEFAULT, ENGINES
from launcher.errors import SpecError
from launcher.jobs import JobPaths
from launcher.plan.launch import LOCAL, Launch, Limits, NodePlace, RankPlace

# Time for ranks that have reported "done" to end. The driver frees a card however its process ends; on Ascend an
# orderly end is given time all the same.
LEAVE_S = {"CPU": 0.3, "Ascend": 15.0}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The hosts of a run, as given by a scheduler.

    ``cluster``: with made-up names where only the scheduler will know the hosts; ``named``: the names are real.
    ``settings`` go into launch.json and are all that leader and agents know about the scheduler. ``agents``: one agent
    on each host starts the ranks there; without agents the supervisor starts them itself, on one host. ``spares``:
    hosts that take the place of one that fails.
    """

    cluster: Cluster
    scheduler: str = LOCAL
    settings: Mapping[str, Any] = field(default_factory=dict)
    agents: bool = False
    named: bool = False
    spares: tuple[Host, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options for running a job that do not depend on what it trains.

    ``engine`` None: msrun, or direct where there are agents. ``program``: path of the engine's program, looked up if
    None. ``port``: of MindSpore's scheduler; with 0 the first host picks a free one. ``priority``: in the queue for
    cards, if the job waits for them.
    """

    engine: str | None = None
    program: str | None = None
    limits: Limits = field(default_factory=Limits)
    wait_for_cards: bool = False
    priority: int = 0
    port: int = 0


def make_launch(placement: Placement, paths: JobPaths, *, env: Mapping[str, str], options: RunOptions) -> Launch:
    """Return the launch document for the supervisor of the job at ``paths``.

    Raises HostError when the engine is missing, SpecError for one that cannot run there.
    """
    cluster, engine = placement.cluster, _engine(placement, options)
    on_cards = cluster.target == "Ascend" and not placement.agents
    first = cluster.hosts[0]
    return Launch(
        engine=engine,
        target=cluster.target,
        address=first.address,
        port=options.port,
        program=ENGINES[engine].find_program() if options.program is None else options.program,
        rank_table=str(paths.root / "rank_table.json"),
        ranks=_rank_places(cluster),
        visible=first.visible if on_cards else (),
        env=env,
        locks=_locks(placement, options),
        wait_for_locks=options.wait_for_cards,
        priority=options.priority,
        limits=replace(options.limits, leave_s=LEAVE_S[cluster.target]),
        nodes=_node_places(placement, placement.cluster.hosts) if placement.agents else (),
        spares=_node_places(placement, placement.spares, first=len(placement.cluster.hosts)),
        scheduler=placement.scheduler,
        settings=placement.settings,
    )


def _locks(placement: Placement, options: RunOptions) -> tuple[str, ...]:
    """Return the locks of a job on this host: its cards; of the jobs on the CPU those in the queue run one by one."""
    if placement.agents:
        return ()
    if placement.cluster.target == "Ascend":
        return tuple(card_lock(device.device_id) for device in placement.cluster.hosts[0].devices)
    return ("cpu",) if options.wait_for_cards else ()


def _engine(placement: Placement, options: RunOptions) -> str:
    if not placement.agents:
        return options.engine or DEFAULT
    if options.engine == "mpirun":
        raise SpecError(
            f"--engine mpirun does not go with --scheduler {placement.scheduler}: "
            "mpirun starts ranks on other hosts itself",
            hint="--engine direct or --engine msrun",
        )
    return options.engine or "direct"


def _rank_places(cluster: Cluster) -> tuple[RankPlace, ...]:
    return tuple(
        RankPlace(
            rank_id=rank.rank_id,
            local_rank=rank.local_rank,
            host=rank.host.name,
            device_id=rank.device.device_id,
            node_rank=rank.node_rank,
        )
        for rank in cluster.ranks()
    )


def _node_places(placement: Placement, hosts: Sequence[Host], *, first: int = 0) -> tuple[NodePlace, ...]:
    """Return ``hosts`` as places, numbered from ``first``.

    Addresses that only a scheduler will know are left out, and cards that no inventory names.
    """
    on_cards = placement.named and placement.cluster.target == "Ascend"

    def place(node_rank: int, host: Host) -> NodePlace:
        address = host.address if placement.named else ""
        return NodePlace(node_rank=node_rank, name=host.name, address=address, visible=host.visible if on_cards else ())

    return tuple(place(node_rank, host) for node_rank, host in enumerate(hosts, first))
