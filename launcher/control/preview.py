"""A plan to look at: of the cards that are here, or of cards that are not, with inputs that may be missing still."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.cluster.discover import local_cluster
from launcher.cluster.model import KINDS, Cluster, Device, Host, NetAddress, NetLevel
from launcher.control import start
from launcher.control.start import Options
from launcher.engines import ENGINES
from launcher.engines.base import Command
from launcher.errors import DataError, HostError, SpecError
from launcher.jobs import JobPaths
from launcher.plan import inputs as input_files
from launcher.plan.degrees import Change, Degrees, smallest_changes
from launcher.plan.launch_plan import Inputs, LaunchPlan, make_plan, run_environment
from launcher.plan.memory import Memory
from launcher.runspec.checking import load_source, parse_spec
from launcher.runspec.layers import Override
from launcher.runspec.sections import RunSpec

# msrun's own default (mindspore 2.9.0, parallel/cluster); submit takes a free one.
PORT = 8118


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A plan, what the user should know about it, and the changes that make it fit when it does not."""

    plan: LaunchPlan
    notes: tuple[str, ...]
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        plan = self.plan
        tokens = plan.global_batch * plan.spec.model.seq_length
        return {
            **plan.to_dict(),
            "notes": list(self.notes),
            "mode": plan.spec.parallel.mode,
            "tokens_per_step": tokens,
            "tokens": None if plan.steps is None else plan.steps * tokens,
            "groups": {name: [list(group) for group in found] for name, found in groups(plan.degrees).items()},
            "nodes": [{"argv": list(node.argv), "env": dict(node.env)} for node in node_commands(plan)],
            "memory": _memory_dict(plan.memory) if plan.memory else None,
            "changes_that_fit": [_change_dict(change) for change in self.changes],
        }


def _memory_dict(need: Memory) -> dict[str, Any]:
    return {
        "terms": [dataclasses.asdict(term) for term in need.terms],
        "pool_bytes": need.pool,
        "pool_gib_band": list(need.band),
        "total_bytes": need.total,
        "pool_limit_gib": need.pool_gib,
        "verdict": need.verdict,
    }


def _change_dict(change: Change) -> dict[str, Any]:
    return {"set": change.keys.split(), "pool_bytes": change.memory.pool}


def sketch(
    spec_name: str, cluster: Cluster, overrides: Sequence[Override], jobs_dir: Path, *, made_up: bool = False
) -> Sketch:
    """The plan of ``spec_name`` on ``cluster``. Raises SpecError for what can never run.

    ``made_up``: that these cards are not there must be said.
    """
    source = load_source(spec_name, overrides)
    spec = parse_spec(source)
    found, missing = find_inputs(spec)
    paths = JobPaths(root=Path(os.path.abspath(jobs_dir)) / f"ID-{spec.name}")  # noqa: PTH100 - links stay as they are
    launch = start.make_launch(
        cluster, paths, env=run_environment(spec, cluster, paths), port=PORT, options=Options(program=_msrun())
    )
    command = start.main_command(launch, paths)
    plan = make_plan(spec=spec, spec_name=spec_name, cluster=cluster, inputs=found, paths=paths, command=command)
    return Sketch(
        plan=plan,
        notes=(*source.changes, *plan.notes, *missing, *(_MADE_UP if made_up else ())),
        changes=tuple(_changes(plan)),
    )


_MADE_UP = ("the hosts are made up, and so are their addresses in the files; --inventory plans for real ones",)


def _changes(plan: LaunchPlan) -> list[Change]:
    if plan.memory is None:
        return []
    return smallest_changes(plan.spec, plan.degrees, plan.memory, plan.cluster)


def _msrun() -> str:
    """Where msrun is; a plan can be looked at where it is not installed."""
    try:
        return ENGINES["msrun"].find_program()
    except HostError:
        return "msrun"


def find_inputs(spec: RunSpec) -> tuple[Inputs, tuple[str, ...]]:
    """The files of ``spec``; those that are not there yet are taken for what the spec calls them, and named.

    Raises CheckpointError for a base that is there and is not the model's.
    """
    missing = []
    try:
        found, pending = input_files.rows_of(spec)
    except DataError as error:
        missing.append(f"{error.message}: the number of steps is not known")
        found, pending = _assumed(spec), None
    if pending:
        missing.append(pending.describe())
    checkpoint = _absolute(spec.model.checkpoint)
    if checkpoint is None or Path(checkpoint).exists():
        return input_files.with_base(found, spec.model), tuple(missing)
    missing.insert(0, f"checkpoint {spec.model.checkpoint} does not exist (looked for {checkpoint})")
    return dataclasses.replace(found, checkpoint=checkpoint), tuple(missing)


def _assumed(spec: RunSpec) -> Inputs:
    return Inputs(
        dataset=str(Path(spec.data.train or "sample.mindrecord").absolute()),
        rows=None,
        tokenizer=_absolute(spec.model.tokenizer),
        checkpoint=None,
        evaluation=_absolute(spec.evaluation.data) if spec.evaluation else None,
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


# --------------------------------------------------------------------------------------------------- cards


def cluster_for(cards: int | None, kind: str | None, inventory: Path | None) -> Cluster:
    """The cards to plan for: an inventory's, ``cards`` made-up ones of ``kind`` on full servers, or this host's."""
    if inventory:
        from launcher.cluster.inventory import load_inventory

        return first_cards(load_inventory(inventory), cards)
    if kind is None:
        return _local(cards)
    return imagined_cluster(KINDS[kind].per_server if cards is None else cards, kind)


def _local(cards: int | None) -> Cluster:
    try:
        return local_cluster(cards)
    except HostError as error:
        raise HostError(error.message, hint=f"{error.hint}; --kind A2 plans for cards that are not here") from error


def first_cards(cluster: Cluster, cards: int | None) -> Cluster:
    """``cluster`` cut down to its first ``cards`` devices. Raises HostError when it has fewer."""
    if cards is None or cards == cluster.num_devices:
        return cluster
    if not 1 <= cards < cluster.num_devices:
        raise HostError(f"--cards {cards}: the inventory has {cluster.num_devices}", hint="leave --cards out")
    hosts, left = [], cards
    for host in cluster.hosts:
        if left > 0:
            hosts.append(dataclasses.replace(host, devices=host.devices[:left]))
            left -= len(host.devices)
    return dataclasses.replace(cluster, hosts=tuple(hosts))


def imagined_cluster(cards: int, kind: str) -> Cluster:
    """``cards`` cards of ``kind`` on servers that are full but for the last. Raises SpecError for none at all."""
    if cards < 1:
        raise SpecError(f"--cards {cards} is no number of cards", hint="pass --cards 8")
    per_server = KINDS[kind].per_server
    counts = [min(per_server, cards - first) for first in range(0, cards, per_server)]
    hosts = tuple(_host(number, count, kind) for number, count in enumerate(counts))
    return Cluster(target="Ascend", kind=kind, hosts=hosts)


def imagined_hosts(nodes: int, cards: int | None, kind: str) -> Cluster:
    """``nodes`` hosts with ``cards`` devices in all (full hosts if None), of ``kind`` or "CPU".

    Raises SpecError when the cards do not divide evenly: HCCL wants as many on each host.
    """
    per_host, rest = (KINDS[kind].per_server if kind in KINDS else 1, 0) if cards is None else divmod(cards, nodes)
    most = KINDS[kind].per_server if kind in KINDS else 64
    if rest or not 1 <= per_host <= most:
        raise SpecError(
            f"{cards} cards on {nodes} host(s): each must have the same number, 1 to {most}",
            hint=f"--nodes {nodes} --cards {nodes * min(max(per_host, 1), most)}",
        )
    hosts = tuple(_host(number, per_host, kind) for number in range(nodes))
    return Cluster(target="Ascend" if kind in KINDS else "CPU", kind=kind if kind in KINDS else None, hosts=hosts)


def _host(number: int, count: int, kind: str) -> Host:
    high, low = divmod(number, 250)
    devices = (
        Device(
            device_id=index, device_ip=f"10.{100 + high}.{low + 1}.{index + 1}", logic_id=index,
            levels=_levels(number, index) if kind == "950" else (),
        )
        for index in range(count)
    )  # fmt: skip
    return Host(name=f"node{number}", address=f"10.0.{high}.{low + 1}", devices=tuple(devices))


def _levels(host: int, device: int) -> tuple[NetLevel, ...]:
    """Made-up addresses of a 950 device: in its box, and between boxes."""
    eid = f"{host:016x}{device:016x}"
    inside = NetAddress(kind="EID", address=f"0{eid[1:]}", ports=("0/1",))
    between = NetAddress(kind="EID", address=f"1{eid[1:]}", ports=("1/1",))
    return (
        NetLevel(net_layer=0, net_instance_id=f"node{host}", net_type="TOPO_FILE_DESC", addresses=(inside,)),
        NetLevel(net_layer=1, net_instance_id="pod0", net_type="CLOS", addresses=(between,)),
    )


# --------------------------------------------------------------------------------------------------- groups, nodes


def groups(degrees: Degrees) -> dict[str, list[tuple[int, ...]]]:
    """Ranks that work together, for each degree above 1.

    MindSpore cuts the ranks into pipeline stages first; in a stage, ranks that share a layer are neighbours
    (mindspore 2.9.0, device matrix [data, model]).
    """
    data, parts, stages = degrees.data_parallel, degrees.model_parallel, degrees.pipeline_stage
    stage = data * parts

    def rank(position: int, which: int, part: int) -> int:
        return position * stage + which * parts + part

    found = {
        "model_parallel": [
            tuple(rank(s, d, p) for p in range(parts)) for s in range(stages) for d in range(data)
        ],
        "data_parallel": [tuple(rank(s, d, p) for d in range(data)) for s in range(stages) for p in range(parts)],
        "pipeline_stage": [tuple(rank(s, d, p) for s in range(stages)) for d in range(data) for p in range(parts)],
    }  # fmt: skip
    return {name: members for name, members in found.items() if len(members[0]) > 1}


def node_commands(plan: LaunchPlan) -> Iterator[Command]:
    """What runs on each host: msrun with that host's number of ranks, its place, and its cards."""
    for node_rank, host in enumerate(plan.cluster.hosts):
        own = {"--local_worker_num": len(host.devices), "--node_rank": node_rank}
        argv = tuple(_with_value(argument, own) for argument in plan.command.argv)
        cards = (
            {"ASCEND_RT_VISIBLE_DEVICES": ",".join(map(str, host.visible))} if plan.cluster.target == "Ascend" else {}
        )
        yield Command(argv=argv, env={**plan.command.env, **cards})


def _with_value(argument: str, values: dict[str, int]) -> str:
    name, equals, _ = argument.partition("=")
    return f"{name}={values[name]}" if equals and name in values else argument
