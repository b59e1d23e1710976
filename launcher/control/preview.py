"""Preview of a plan, for the cards of this host or for imagined ones, with inputs that may still be missing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.cluster.discover import local_cluster
from launcher.cluster.imagined import first_cards, hold_back, imagined_cluster
from launcher.cluster.model import KINDS, Cluster
from launcher.doctor.job import missing_inputs, needs_of_spec
from launcher.engines import ENGINES
from launcher.engines.base import Command
from launcher.errors import DataError, HostError, SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.record import read_record
from launcher.plan import inputs as input_files
from launcher.plan.degrees import Change, Degrees, smallest_changes
from launcher.plan.launch_plan import Inputs, LaunchPlan, make_plan
from launcher.plan.memory import Memory
from launcher.plan.placement import Placement, RunOptions
from launcher.runspec.checking import load_source, parse_spec
from launcher.runspec.layers import Override
from launcher.runspec.sections import RunSpec

# msrun's own default (mindspore 2.9.0, parallel/cluster); submit takes a free one.
PORT = 8118


@dataclass(frozen=True, kw_only=True)
class PlanPreview:
    """A plan, notes on it for the user, and the changes that make it fit when it does not.

    ``missing``: what ``submit`` would refuse for, because it is not there.
    """

    plan: LaunchPlan
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        plan = self.plan
        tokens = plan.global_batch * plan.spec.model.seq_length
        return {
            **plan.to_dict(),
            "notes": list(self.notes),
            "missing": list(self.missing),
            "sources": [dict(source) for source in plan.inputs.sources],
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


def preview(
    spec_name: str, cluster: Cluster, overrides: Sequence[Override], jobs_dir: Path, *, made_up: bool = False
) -> PlanPreview:
    """Return the plan of ``spec_name`` on ``cluster``. Raises SpecError for what can never run.

    ``made_up``: the notes must say that these cards do not exist here.
    """
    source = load_source(spec_name, overrides)
    spec = parse_spec(source)
    found, remarks, missing = find_inputs(spec)
    paths = JobPaths(root=Path(os.path.abspath(jobs_dir)) / f"ID-{spec.name}")  # noqa: PTH100 - links stay as they are
    plan = make_plan(
        spec=spec,
        spec_name=spec_name,
        placement=Placement(cluster=cluster),
        inputs=found,
        paths=paths,
        options=RunOptions(program=_msrun(), port=PORT),
    )
    return PlanPreview(
        plan=plan,
        notes=(*source.changes, *plan.notes, *remarks, *_save_notes(plan, jobs_dir), *(_MADE_UP if made_up else ())),
        missing=missing,
        changes=tuple(_changes(plan)),
    )


_MADE_UP = ("the hosts are made up, and so are their addresses in the files; --inventory plans for real ones",)


def _save_notes(plan: LaunchPlan, jobs_dir: Path) -> Iterator[str]:
    """Yield how often to save, by what a save took in the newest job of this spec on as many such devices."""
    earlier = [job for job in _jobs_of(plan, jobs_dir) if job[1].is_final]
    if not earlier:
        return
    from launcher.observe.goodput import goodput, interval_text
    from launcher.observe.history import FOLDER_DAMAGES, read_history
    from launcher.observe.words import words

    paths, record = max(earlier, key=lambda job: job[1].created)
    with contextlib.suppress(*FOLDER_DAMAGES):
        interval = goodput(read_history(paths, record)).interval
        if interval and interval.steps < (plan.steps or math.inf):
            every, proposal = plan.spec.checkpoint.every_steps, interval_text(interval, words("en"))
            yield f"checkpoint.every_steps is {every:,}. {proposal} Measured by {record.job_id}."


def _jobs_of(plan: LaunchPlan, jobs_dir: Path) -> Iterator[tuple[JobPaths, JobRecord]]:
    name, cluster = plan.spec.name, plan.cluster
    for file in Path(jobs_dir).glob(f"*-{name}/job.json"):
        paths = JobPaths(root=file.parent.absolute())
        record = read_record(paths)
        if record and (record.name, record.cards, record.target) == (name, cluster.num_devices, cluster.target):
            yield paths.of_attempt(record.attempt), record


def _changes(plan: LaunchPlan) -> list[Change]:
    if plan.memory is None:
        return []
    return smallest_changes(plan.spec, plan.degrees, plan.memory, plan.cluster)


def _msrun() -> str:
    """Return the path of msrun, or its name where it is not installed: a preview does not need it."""
    try:
        return ENGINES["msrun"].find_program()
    except HostError:
        return "msrun"


def find_inputs(spec: RunSpec) -> tuple[Inputs, tuple[str, ...], tuple[str, ...]]:
    """Return the input files of ``spec``, notes on them, and what is missing or wrong; it keeps the spec's names.

    Raises CheckpointError for a base that exists and does not match the model.
    """
    missing, notes, pending = missing_inputs(spec), [], None
    try:
        found, pending = input_files.rows_of(spec)
    except DataError as error:
        found = _assumed(spec)
        missing += () if _is_among(error, spec) else (_with_hint(error),)
        notes.append("the number of steps is not known before the rows are there")
    if pending:
        notes.append(pending.describe())
        found, wrong = _estimated(found, pending)
        missing += tuple(wrong)
    checkpoint = _absolute(spec.model.checkpoint)
    if checkpoint is not None and not Path(checkpoint).exists():
        return dataclasses.replace(found, checkpoint=checkpoint), tuple(notes), missing
    base = input_files.pending_base(spec.model)
    return input_files.with_base(found, spec.model), (*notes, *([base.describe()] if base else [])), missing


def _is_among(error: DataError, spec: RunSpec) -> bool:
    """Return whether ``error`` is about a file that is not there, which is named as missing already."""
    return any(str(file.path) in error.message and not file.path.exists() for file in needs_of_spec(spec).files)


def _with_hint(error: DataError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _estimated(found: Inputs, pending: input_files.Pending) -> tuple[Inputs, list[str]]:
    """Return ``found`` with about what each source of its rows gives, and what would stop their making."""
    try:
        return input_files.estimated(found, pending), []
    except DataError as error:
        return found, [f"no rows can be made: {_with_hint(error)}"]


def _assumed(spec: RunSpec) -> Inputs:
    return Inputs(
        dataset=str(Path(next((source.path for source in spec.data.sources), "sample.mindrecord")).absolute()),
        rows=None,
        tokenizer=_absolute(spec.model.tokenizer),
        checkpoint=None,
        evaluation=_absolute(spec.evaluation.data) if spec.evaluation else None,
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


# --------------------------------------------------------------------------------------------------- cards


def cluster_for(cards: int | None, kind: str | None, inventory: Path | None, spare_hosts: int | None = None) -> Cluster:
    """Return the cards to plan for: an inventory's, ``cards`` made-up ones of ``kind``, or this host's.

    ``spare_hosts``: number of the inventory's last hosts that are held back.
    """
    if inventory:
        from launcher.cluster.inventory import load_inventory

        cluster = load_inventory(inventory)
        return hold_back(cluster, spare_hosts, cards)[0] if spare_hosts else first_cards(cluster, cards)
    if spare_hosts:
        raise SpecError("--spare-hosts holds back the last hosts of an inventory", hint="add --inventory FILE")
    if kind is None:
        return _local(cards)
    return imagined_cluster(KINDS[kind].per_server if cards is None else cards, kind)


def _local(cards: int | None) -> Cluster:
    try:
        return local_cluster(cards)
    except HostError as error:
        raise HostError(error.message, hint=f"{error.hint}; --kind A2 plans for cards that are not here") from error


# --------------------------------------------------------------------------------------------------- groups, nodes


def groups(degrees: Degrees) -> dict[str, list[tuple[int, ...]]]:
    """Return the groups of ranks that work together, for each degree above 1.

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
    """Yield the command of each host: msrun with that host's number of ranks, its place, and its cards."""
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
