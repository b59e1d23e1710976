"""Preparation of a run: spec, hosts, inputs, plan; and the data that must be made first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.cluster.model import Cluster
from launcher.common.ports import scheduler_port
from launcher.common.rendering import RenderedFile
from launcher.control.asked import Asked, asked_again, asked_for, asked_in
from launcher.errors import SpecError
from launcher.jobs import JobPaths, JobRecord, JobStore, Labels
from launcher.plan import inputs
from launcher.plan.launch import LOCAL, Launch, read_launch
from launcher.plan.launch_plan import LaunchPlan, make_plan, with_inputs
from launcher.plan.placement import RunOptions
from launcher.runspec.checking import load_user_config, parse_spec
from launcher.runspec.folders import OWN_TEMPLATES, chat_template_file, settings_of_folder
from launcher.runspec.layers import Override, parse_sets
from launcher.runspec.reading import find_spec
from launcher.runspec.sections import RunSpec
from launcher.schedulers import registry

DEFAULT_SPEC = {"Ascend": "llama_7b_lora", "CPU": "tiny_math"}
# Of these a run of a Hugging Face folder takes the settings of training.
_SPEC_OF_FOLDER = {"Ascend": "llama_7b_lora", "CPU": "tiny_cpu"}


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A plan, and the data that must be made before it can run. ``remarks``: notes besides those of the plan.

    ``own``: files of the plan that do not follow from it: what was asked for, and labels.
    """

    plan: LaunchPlan
    pending: inputs.Pending | None = None
    remarks: tuple[str, ...] = ()
    own: tuple[RenderedFile, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return all notes for the user, as sentences."""
        return (*self.remarks, *map(_sentence, self.plan.notes))


def prepare(
    spec: str | Mapping[str, Any] | None,
    *,
    cards: int | None,
    checkpoint: str | None,
    port: int | None,
    jobs_dir: Path,
    sets: Sequence[str] = (),
    changes: Sequence[Override] = (),
    model: str | None = None,
    data: str | None = None,
    track: Sequence[str] = (),
    options: RunOptions | None = None,
    scheduler: str = LOCAL,
    values: Mapping[str, Any] | None = None,
    verify_base: bool = False,
    tags: Sequence[str] = (),
    note: str = "",
    earlier: tuple[JobPaths, JobRecord] | None = None,
) -> PreparedRun:
    """Decide everything for a run of ``spec`` on ``cards`` devices from ``scheduler``; write nothing.

    ``spec``: a file, a name, or the values themselves. ``sets`` and ``changes`` take the place of its values.
    ``values``: those of the scheduler's own options. ``verify_base``: compare a converted base with its folder.
    ``earlier``: a job whose run this is again, on as many cards if ``cards`` is None, in place of ``spec``.
    Raises SpecError, DataError, CheckpointError or HostError for anything that does not fit.
    """
    labels = Labels().changed(add=tags, note=note)
    if isinstance(spec, str):
        find_spec(spec)  # before the hosts: a misspelt name is not to be blamed on their cards
    if earlier is not None and spec is not None:
        raise SpecError(f"--from and SPEC {_name_of(spec)} both say what is run", hint="leave one out")
    if earlier is not None and cards is None:
        cards = earlier[1].cards
    options = options or RunOptions()
    placement = registry.get(scheduler).place(values or {}, cards=cards, grace_s=options.limits.grace_s)
    if placement.spares and not options.limits.max_restarts:
        raise SpecError("--spare-hosts: a spare takes its place at a restart", hint="add --max-restarts 5")
    cluster = placement.cluster
    changed = [*overrides(sets, checkpoint, model=model, data=data, track=track), *changes]
    asked = _asked(spec, earlier, cluster, changed, model)
    source = asked.filled
    run_spec = parse_spec(source)
    found, pending = inputs.resolve(run_spec)
    port = (port or 0) if placement.agents else scheduler_port(port, cluster.hosts[0].address)
    plan = make_plan(
        spec=run_spec,
        spec_name=asked.spec_name,
        placement=placement,
        inputs=found,
        paths=JobStore(jobs_dir).new_paths(run_spec.name),
        options=replace(options, port=port),
    )
    verified = [inputs.verify_base(run_spec.model)] if verify_base else []
    _check_trackers(run_spec.observe.trackers)
    untold = _not_told(run_spec) if registry.get(scheduler).leads_here else []
    said = (*asked.notes, *source.changes, *verified, *untold)
    remarks = (*_remarks(asked, cluster, run_spec, default=spec is None), *map(_sentence, said))
    own = _own_files(plan.paths, asked, labels)
    return PreparedRun(plan=_with_files(plan, own), pending=pending, remarks=remarks, own=own)


def _check_trackers(names: Sequence[str]) -> None:
    """Raise SpecError for a tracker that is not there."""
    if names:
        from launcher.observe import trackers

        for name in names:
            trackers.check(name)


def _name_of(spec: str | Mapping[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name", ""))


def _asked(
    spec: str | Mapping[str, Any] | None,
    earlier: tuple[JobPaths, JobRecord] | None,
    cluster: Cluster,
    changes: Sequence[Override],
    model: str | None,
) -> Asked:
    if earlier is not None:
        return asked_again(*earlier, cluster, changes)
    if isinstance(spec, Mapping):
        return asked_in(spec, changes)
    return asked_for(*chosen(spec, cluster, changes, model))


def launch_of(paths: JobPaths) -> Launch | None:
    """Return the launch document of a job; None where there is none that can be read."""
    try:
        return read_launch(paths)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _not_told(spec: RunSpec) -> list[str]:
    """Return why targets of notices would be told nothing. Raises SpecError when the user's settings are wrong."""
    told = [*spec.notify, *load_user_config().notify]
    if not told:
        return []
    from launcher.observe.notify import missing_secrets

    return [f"notify: {one.to} will not be told: {why}" for one in told if (why := missing_secrets(one))]


def chosen(
    spec_name: str | None, cluster: Cluster, changes: Sequence[Override], model: str | None
) -> tuple[str, list[Override]]:
    """Return the spec to run and ``changes`` to it: without a name, a default one for ``cluster``. Raises SpecError.

    ``model``: the Hugging Face folder of which ``changes`` are, if any.
    """
    if spec_name is not None:
        return spec_name, list(changes)
    if model is None:
        return DEFAULT_SPEC[cluster.target], list(changes)
    return _SPEC_OF_FOLDER[cluster.target], [_named_after(model), *_with_data_of_its_own(changes)]


def complete(run: PreparedRun) -> PreparedRun:
    """Make the missing data of ``run``, and return ``run`` with the steps, files and notes that depend on the rows.

    Job id, hosts, argv and environment stay as they were shown. Raises DataError, CheckpointError or SpecError.
    """
    if run.pending is None:
        return run
    run.pending.make()
    found, _ = inputs.resolve(run.plan.spec)
    return replace(run, plan=_with_files(with_inputs(run.plan, found), run.own), pending=None)


def estimated(run: PreparedRun) -> PreparedRun:
    """Return ``run`` with estimates of the rows that are still to be made.

    Raises DataError for what would stop their making, as far as the first records of each source tell.
    """
    if run.pending is None:
        return run
    return replace(run, plan=replace(run.plan, inputs=inputs.estimated(run.plan.inputs, run.pending)))


def _own_files(paths: JobPaths, asked: Asked, labels: Labels) -> tuple[RenderedFile, ...]:
    said = [RenderedFile(path=paths.labels.name, text=labels.to_json())] if labels else []
    return asked.file(paths), *said


def _with_files(plan: LaunchPlan, own: Sequence[RenderedFile]) -> LaunchPlan:
    """Add ``own`` and the files for the scheduler: a batch script, a manifest."""
    return replace(plan, files=(*plan.files, *own, *registry.get(plan.launch.scheduler).files(plan)))


def overrides(
    sets: Sequence[str], checkpoint: str | None = None, *, model: str | None = None, data: str | None = None,
    track: Sequence[str] = (),
) -> list[Override]:  # fmt: skip
    """Return the command line's changes to a spec; ``model``: a Hugging Face folder. Raises SpecError."""
    changes = [*_of_folder(model, new_data=data is not None), *_of_data(data), *parse_sets(sets)]
    if checkpoint == "":
        raise SpecError("--checkpoint is empty", hint="give a path, or leave the option out")
    if checkpoint is not None:
        changes.append(Override(keys=("model", "checkpoint"), value=checkpoint, origin="--checkpoint"))
    if track:
        changes.append(Override(keys=("observe", "trackers"), value=list(track), origin="--track"))
    return changes


def _of_folder(model: str | None, *, new_data: bool) -> Iterator[Override]:
    """Yield overrides for all settings of ``model``, in place of a preset; the spec's seq_length is kept.

    The template of a family is a default: rows that the spec names were made with the spec's.
    """
    if model is None:
        return
    found = settings_of_folder(model)
    found["model"] = {"preset": None, "folder": model, **found["model"]}
    del found["model"]["seq_length"]
    if not new_data and found["data"]["template"] not in OWN_TEMPLATES:
        del found["data"]
    for section, values in found.items():
        for key, value in values.items():
            yield Override(keys=(section, key), value=value, origin=f"--model {model}")


def _named_after(model: str) -> Override:
    """Return the name of a run that has no spec of its own: that of the model's folder."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(os.path.abspath(model)).name)  # noqa: PTH100 - links keep their names
    return Override(keys=("name",), value=name.strip("-._")[:64] or "model", origin=f"--model {model}")


def _with_data_of_its_own(changes: Sequence[Override]) -> Sequence[Override]:
    """Return ``changes``, which name the data: those of a default spec are of another model. Raises SpecError."""
    # A template is among the changes that come with a model.
    if not any(change.keys[0] == "data" and change.keys[1:2] != ("template",) for change in changes):
        raise SpecError(
            "--model says what is trained, and nothing says on what", hint="add --data FILE, or name a SPEC"
        )
    return changes


def _of_data(data: str | None) -> Iterator[Override]:
    if data is not None:
        for key, value in (("sample", None), ("train", data)):
            yield Override(keys=("data", key), value=value, origin=f"--data {data}")


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _remarks(asked: Asked, cluster: Cluster, spec: RunSpec, *, default: bool) -> list[str]:
    name, notes = asked.spec_name, []
    if asked.earlier:
        notes.append(f"The run of {asked.earlier} again.")
    elif default and not spec.model.folder and cluster.target == "CPU" and len(cluster.hosts) == 1:
        notes.append(f"No Ascend card found: running {name} on this machine's CPU.")
    elif default and spec.model.folder:
        notes.append(f"No SPEC given: all settings but the model and its data are those of {name}.")
    elif default:
        notes.append(f"No SPEC given: running {name}.")
    folder = Path(spec.model.folder) if spec.model.folder else None
    own = chat_template_file(folder) if folder else None
    if folder and own and spec.data.template not in OWN_TEMPLATES and not _is_exported(spec.data.template, folder):
        notes.append(f"Prompts are in template {spec.data.template}, not in the chat template of {own}.")
    if spec.lora and spec.model.checkpoint is None:
        notes.append("No base checkpoint: LoRA adapts random weights. It shows the path; answers will make no sense.")
    return notes


def _is_exported(template: str, folder: Path) -> bool:
    """Return whether merge-ckpt wrote the chat template of ``folder`` from the launcher's ``template``."""
    from launcher.inference.sources import exported_template_name

    return exported_template_name(folder) == template


def preflight(plan: LaunchPlan, *, port: int | None) -> Sequence[str]:
    """Check that the hosts of ``plan`` can run it, as far as they are known; return notes for the user.

    Raises HostError with every failed check and the command to type for it.
    """
    return registry.get(plan.launch.scheduler).preflight(plan, port=port)
