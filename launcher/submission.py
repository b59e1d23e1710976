"""From what the user typed to a running job: spec, cluster, inputs, plan; then write and run."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import inputs, starting
from launcher.cluster import Cluster
from launcher.discover import local_cluster
from launcher.doctor import cheap_checks, needs_of_spec
from launcher.errors import HostError, SpecError
from launcher.jobs import JobStore
from launcher.network import scheduler_port
from launcher.plan import LaunchPlan, make_plan
from launcher.spec import RunSpec, load_spec
from launcher.starting import Options

DEFAULT_SPEC = {"Ascend": "llama_7b_lora", "CPU": "tiny_cpu"}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan, what is still to be made before it can run, and what the user should be told first."""

    plan: LaunchPlan
    pending: inputs.Pending | None
    notes: tuple[str, ...]


def draft(
    spec_name: str | None,
    *,
    cards: int | None,
    checkpoint: str | None,
    port: int | None,
    jobs_dir: Path,
    options: Options | None = None,
) -> Draft:
    """Decide everything for a run of ``spec_name`` on ``cards`` devices of this host. Nothing is written.

    Raises SpecError, DataError, CheckpointError or HostError for what does not fit.
    """
    cluster = local_cluster(cards)
    name = spec_name or DEFAULT_SPEC[cluster.target]
    spec = _with_checkpoint(load_spec(name), checkpoint)
    found, pending = inputs.resolve(spec)
    paths = JobStore(jobs_dir).new_paths(spec.name)
    launch = starting.make_launch(
        cluster, paths, env=dict(spec.env), port=scheduler_port(port, cluster.hosts[0].address), options=options
    )
    command = starting.main_command(launch, paths)
    plan = make_plan(spec=spec, spec_name=name, cluster=cluster, inputs=found, paths=paths, command=command)
    plan = replace(plan, launch=launch)
    return Draft(plan=plan, pending=pending, notes=tuple(_notes(spec_name, name, cluster, spec, pending)))


def _with_checkpoint(spec: RunSpec, checkpoint: str | None) -> RunSpec:
    if checkpoint is None:
        return spec
    if not checkpoint:
        raise SpecError("--checkpoint is empty", hint="give a path, or leave the option out")
    return spec.model_copy(update={"model": spec.model.model_copy(update={"checkpoint": checkpoint})})


def _notes(asked: str | None, name: str, cluster: Cluster, spec: RunSpec, pending: inputs.Pending | None) -> list[str]:
    notes = []
    if asked is None and cluster.target == "CPU":
        notes.append(f"No Ascend card found: running {name} on this machine's CPU.")
    elif asked is None:
        notes.append(f"No SPEC given: running {name}.")
    if pending:
        notes.append(f"Sample data: {pending.describe()}")
    if spec.lora and spec.model.checkpoint is None:
        notes.append("No base checkpoint: LoRA adapts random weights. It shows the path; answers will make no sense.")
    return notes


def preflight(plan: LaunchPlan, *, port: int | None) -> None:
    """Check in milliseconds that this host can run ``plan``. Warnings are left to ``launcher doctor``.

    Raises HostError with every failed check and what to type for it.
    """
    needs = needs_of_spec(plan.spec, cards=plan.cluster.num_devices, folder=plan.paths.root.parent, port=port)
    findings = cheap_checks(plan.cluster, needs)
    failed = [f"  {finding.what}\n    -> {finding.fix}" for finding in findings if finding.status == "fail"]
    if failed:
        raise HostError(
            "\n".join([f"this host cannot run the job: {len(failed)} check(s) failed", *failed]),
            hint="launcher doctor shows all checks; --no-preflight insists",
        )


def begin(plan_draft: Draft) -> subprocess.Popen[bytes]:
    """Make what is pending, then start the job. Returns its supervisor's guard; the job needs this process no more."""
    if plan_draft.pending:
        plan_draft.pending.make()
    plan = plan_draft.plan
    if plan.launch is None:
        raise ValueError("a plan without a launch can only be shown")
    return starting.begin(plan, plan.launch)
