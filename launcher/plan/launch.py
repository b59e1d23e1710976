"""The launch document, launch.json: engine, hardware and limits for the supervisor. It is read without pydantic."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from launcher.common.atomic import write_atomic
from launcher.common.ports import free_port, is_free
from launcher.engines import ENGINES
from launcher.engines.base import WORKER, EngineJob, Program
from launcher.jobs import JobPaths, known_keys

MIN_HANG_TIMEOUT_S = 600.0
HANG_FACTOR = 20

# The scheduler of a job that runs where it is submitted.
LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time-outs in seconds, and the number of restarts.

    ``grace_s``: from TERM to KILL. ``start_timeout_s``: until all ranks are ready. ``hang_timeout_s``: without a step;
    None means HANG_FACTOR times the step time seen, at least MIN_HANG_TIMEOUT_S. ``leave_s``: until a rank that has
    reported "done" ends. ``stopped_s``: for a rank suspended (SIGSTOP) while another runs. ``max_restarts``: after
    faults of the machine or of communication; ``restart_budget_s``: time in which one of them must get further than the
    attempt that failed, None for no limit. ``standby``: processes that have imported MindSpore wait for a restart.
    With several hosts, ``lost_s``: a host without a sign of life for this time is lost; ``register_s``: until all
    hosts have reported.
    """

    grace_s: float = 30.0
    start_timeout_s: float = 600.0
    hang_timeout_s: float | None = None
    leave_s: float = 1.0
    stopped_s: float = 10.0
    max_restarts: int = 0
    restart_budget_s: float | None = None
    standby: bool = True
    lost_s: float = 8.0
    register_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """The place of a rank as planned."""

    rank_id: int
    local_rank: int
    host: str
    device_id: int
    node_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class NodePlace:
    """One host of a job on several. ``env``: variables that differ from host to host.

    ``address`` is "" and ``visible`` empty where only the host itself knows them.
    """

    node_rank: int
    name: str
    address: str
    visible: tuple[int, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    locks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The launch document: everything that one start of a job's processes needs.

    ``locks``: names of cards that no other job may have meanwhile. ``nodes``: the hosts, if each has an agent; empty
    where the supervisor starts the ranks itself. ``scheduler``: the one that gives the hosts and starts agents on them
    (``launcher.schedulers``); ``settings`` are its own. ``spares``: hosts that wait for one of ``nodes`` to fail, and
    are numbered after those; ``left_out``: names of hosts whose places spares have taken. The share of one agent has
    only the ``ranks`` of its host, its ``node_rank``, and the ``world_size`` of the whole job.
    """

    engine: str
    target: str
    address: str
    port: int
    program: str
    rank_table: str
    ranks: tuple[RankPlace, ...]
    visible: tuple[int, ...] = ()
    worker: tuple[str, ...] = WORKER
    env: Mapping[str, str] = field(default_factory=dict)
    locks: tuple[str, ...] = ()
    wait_for_locks: bool = False
    priority: int = 0
    limits: Limits = Limits()
    nodes: tuple[NodePlace, ...] = ()
    spares: tuple[NodePlace, ...] = ()
    left_out: tuple[str, ...] = ()
    scheduler: str = LOCAL
    settings: Mapping[str, Any] = field(default_factory=dict)
    node_rank: int = 0
    world_size: int | None = None

    def for_node(self, node_rank: int) -> Launch:
        """Return the share of one host's agent."""
        return self._share(self.nodes[node_rank], ranks_by_node(self.ranks)[node_rank])

    def for_nodes(self) -> Iterator[Launch]:
        """Yield the share of each agent, host by host; there may be ten thousand."""
        ranks = ranks_by_node(self.ranks)
        return (self._share(node, ranks[node.node_rank]) for node in self.nodes)

    def _share(self, node: NodePlace, ranks: Sequence[RankPlace]) -> Launch:
        return replace(
            self, nodes=(), spares=(), world_size=len(self.ranks), node_rank=node.node_rank, visible=node.visible,
            locks=node.locks, ranks=tuple(ranks), env={**node.env, **self.env},
        )  # fmt: skip

    def with_spares_in_use(self) -> Launch:
        """Return this launch with its spares as more hosts, each with as many ranks as any host has, for checks."""
        most = max(ranks_by_node(self.ranks).values(), key=len)
        extra = [_moved(rank, spare, node_rank=spare.node_rank) for spare in self.spares for rank in most]
        return replace(self, nodes=(*self.nodes, *self.spares), ranks=(*self.ranks, *extra), spares=())

    def with_spare(self, spare: NodePlace, left_out: str) -> Launch:
        """Return this launch with ``spare`` in the place of the host named ``left_out``, which has no part any more."""
        place = next(node for node in self.nodes if node.name == left_out)
        node_rank = place.node_rank
        count = len(ranks_by_node(self.ranks)[node_rank])
        taken = replace(spare, node_rank=node_rank, visible=spare.visible[:count])
        return replace(
            self,
            nodes=tuple(taken if node == place else node for node in self.nodes),
            ranks=tuple(
                _moved(rank, taken, node_rank=node_rank) if rank.node_rank == node_rank else rank for rank in self.ranks
            ),
            spares=tuple(other for other in self.spares if other != spare),
            left_out=(*self.left_out, left_out),
            address=taken.address if node_rank == 0 else self.address,
        )

    def programs(self, paths: JobPaths) -> tuple[Program, ...]:
        """Return the engine's programs for the attempt of ``paths``."""
        job = EngineJob(
            paths=paths,
            world_size=len(self.ranks) if self.world_size is None else self.world_size,
            node_rank=self.node_rank,
            first_rank=self.ranks[0].rank_id,
            local_ranks=len(self.ranks),
            target=self.target,
            address=self.address,
            port=self.port,
            rank_table=self.rank_table,
            visible=self.visible,
            program=self.program,
            worker=self.worker,
            env=self.env,
        )
        return ENGINES[self.engine].programs(job)

    @property
    def nests_ranks(self) -> bool:
        return ENGINES[self.engine].nests_ranks

    def with_free_port(self) -> Launch:
        """Return this launch with a port that is free now; where there are agents, the first host picks it itself."""
        if self.nodes:
            return self
        return self if is_free(self.port, self.address) else replace(self, port=free_port(self.address))

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """Read a launch, ignoring keys of other versions. Raises ValueError, TypeError or KeyError for other text."""
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        raw = known_keys(cls, _in_todays_words(found))
        if not isinstance(raw.get("scheduler", LOCAL), str) or not isinstance(raw.get("settings", {}), dict):
            raise ValueError(f"scheduler {raw.get('scheduler')!r}, settings {raw.get('settings')!r}")
        raw["ranks"] = tuple(RankPlace(**known_keys(RankPlace, rank)) for rank in raw["ranks"])
        raw["limits"] = Limits(**known_keys(Limits, raw["limits"]))
        for key in ("nodes", "spares"):
            raw[key] = tuple(_node_place(node) for node in raw.get(key, ()))
        for key in ("visible", "worker", "locks", "left_out"):
            raw[key] = tuple(raw.get(key, ()))
        return cls(**raw)


def ranks_by_node(ranks: Iterable[RankPlace]) -> dict[int, list[RankPlace]]:
    """Return the ranks of each host, in order."""
    found: dict[int, list[RankPlace]] = {}
    for rank in ranks:
        found.setdefault(rank.node_rank, []).append(rank)
    return found


def _moved(rank: RankPlace, node: NodePlace, *, node_rank: int) -> RankPlace:
    """Return ``rank`` on another host, on the card of the same place there; on CPU, where none is named, on none."""
    device_id = node.visible[rank.local_rank] if node.visible else rank.device_id
    return replace(rank, host=node.name, node_rank=node_rank, device_id=device_id)


def _in_todays_words(raw: dict[str, Any]) -> dict[str, Any]:
    """Take the scheduler from ``where``, in which earlier versions wrote its name as ``kind``, beside its settings."""
    where = dict(raw.get("where") or {})
    return {"scheduler": where.pop("kind", LOCAL), "settings": where, **raw} if "where" in raw else raw


def _node_place(raw: Mapping[str, Any]) -> NodePlace:
    return NodePlace(**{**known_keys(NodePlace, raw), "visible": tuple(raw["visible"]), "locks": tuple(raw["locks"])})


def write_launch(paths: JobPaths, launch: Launch) -> None:
    write_atomic(paths.launch, launch.to_json())


def read_launch(paths: JobPaths) -> Launch:
    """Read launch.json. Raises OSError, ValueError, TypeError or KeyError when it cannot be read."""
    return Launch.from_json(paths.launch.read_text(encoding="utf-8"))
