"""From what the user typed to a running job: spec, cluster, inputs, plan; then write and run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.cluster.discover import local_cluster
from launcher.cluster.model import Cluster
from launcher.common.ports import scheduler_port
from launcher.control import start
from launcher.control.start import Options
from launcher.doctor import cheap_checks, needs_of_spec
from launcher.errors import HostError, SpecError
from launcher.jobs import JobStore
from launcher.plan import inputs
from launcher.plan.launch_plan import LaunchPlan, make_plan, run_environment
from launcher.runspec.checking import load_source, parse_spec
from launcher.runspec.layers import Override, parse_sets
from launcher.runspec.sections import RunSpec
from launcher.schedulers import Where

DEFAULT_SPEC = {"Ascend": "llama_7b_lora", "CPU": "tiny_cpu"}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan, what is still to be made before it can run, and what the user should be told first."""

    plan: LaunchPlan
    pending: inputs.Pending | None
    notes: tuple[str, ...]

    def more_than(self, told: Sequence[str]) -> list[str]:
        """The notes that were not ``told`` before something was made."""
        return [note for note in self.notes if note not in told]


def draft(
    spec_name: str | None,
    *,
    cards: int | None,
    checkpoint: str | None,
    port: int | None,
    jobs_dir: Path,
    sets: Sequence[str] = (),
    options: Options | None = None,
    where: Where | None = None,
) -> Draft:
    """Decide everything for a run of ``spec_name`` on ``cards`` devices: of this host, or of ``where``.

    Nothing is written.

    Raises SpecError, DataError, CheckpointError or HostError for what does not fit.
    """
    cluster = where.cluster if where else local_cluster(cards)
    name = DEFAULT_SPEC[cluster.target] if spec_name is None else spec_name
    source = load_source(name, overrides(sets, checkpoint))
    spec = parse_spec(source)
    found, pending = inputs.resolve(spec)
    paths = JobStore(jobs_dir).new_paths(spec.name)
    launch = start.make_launch(
        cluster,
        paths,
        env=run_environment(spec, cluster, paths),
        port=(port or 0) if where else scheduler_port(port, cluster.hosts[0].address),
        options=options,
        where=where,
    )
    command = start.main_command(launch, paths)
    plan = make_plan(spec=spec, spec_name=name, cluster=cluster, inputs=found, paths=paths, command=command)
    notes = [*_notes(spec_name, name, cluster, spec), *map(_sentence, (*source.changes, *plan.notes))]
    return Draft(plan=replace(plan, launch=launch), pending=pending, notes=tuple(notes))


def overrides(sets: Sequence[str], checkpoint: str | None = None) -> list[Override]:
    """What the command line changes in a spec. Raises SpecError for what cannot be read."""
    changes = parse_sets(sets)
    if checkpoint == "":
        raise SpecError("--checkpoint is empty", hint="give a path, or leave the option out")
    if checkpoint is not None:
        changes.append(Override(keys=("model", "checkpoint"), value=checkpoint, origin="--checkpoint"))
    return changes


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _notes(asked: str | None, name: str, cluster: Cluster, spec: RunSpec) -> list[str]:
    notes = []
    if asked is None and cluster.target == "CPU" and len(cluster.hosts) == 1:
        notes.append(f"No Ascend card found: running {name} on this machine's CPU.")
    elif asked is None:
        notes.append(f"No SPEC given: running {name}.")
    if spec.lora and spec.model.checkpoint is None:
        notes.append("No base checkpoint: LoRA adapts random weights. It shows the path; answers will make no sense.")
    return notes


def preflight(plan: LaunchPlan, *, port: int | None) -> list[str]:
    """Check in milliseconds that this host can run ``plan``; returns what the user should know.

    Other hosts, where they are to run it, are asked instead, all at a time. Warnings are left to ``launcher doctor``.
    Raises HostError with every failed check and what to type for it.
    """
    if plan.launch and plan.launch.where.get("kind") == "hosts":
        from launcher.schedulers.hosts import check_hosts, clock_notes

        return clock_notes(check_hosts(plan.launch, plan.paths.job_id, plan.paths.root.parent))
    if plan.launch and plan.launch.nodes:
        return []
    needs = needs_of_spec(plan.spec, cards=plan.cluster.num_devices, folder=plan.paths.root.parent, port=port)
    findings = cheap_checks(plan.cluster, needs)
    failed = [f"  {finding.what}\n    -> {finding.fix}" for finding in findings if finding.status == "fail"]
    if failed:
        raise HostError(
            "\n".join([f"this host cannot run the job: {len(failed)} check(s) failed", *failed]),
            hint="launcher doctor shows all checks; --no-preflight insists",
        )
    return []


def begin(plan_draft: Draft) -> subprocess.Popen[bytes] | None:
    """Start the job; nothing may be pending. Returns its supervisor's guard; the job needs this process no more.

    None when a scheduler will start it.
    """
    plan = plan_draft.plan
    if plan.launch is None:
        raise ValueError("a plan without a launch can only be shown")
    return start.begin(plan, plan.launch)
