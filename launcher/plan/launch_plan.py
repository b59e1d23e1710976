"""The plan: every file, argv and environment variable of a run, decided without writing anything."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2

from launcher.checkpoint.split_layout import THRESHOLD_KIB
from launcher.cluster.model import Cluster, Rank
from launcher.cluster.rank_table import render_rank_table
from launcher.cluster.rank_table.make import checked_text
from launcher.cluster.rank_table.table import table_of
from launcher.common.rendering import RenderedFile, environment, render
from launcher.engines.base import Command
from launcher.errors import SpecError
from launcher.jobs import JobPaths, first_of_last_stage
from launcher.plan.degrees import Degrees as Degrees
from launcher.plan.degrees import resolve_defaults
from launcher.plan.launch import Launch
from launcher.plan.memory import Memory, split_plan
from launcher.plan.placement import Placement, RunOptions, make_launch
from launcher.plan.resilience import check_resilience, resilience_environment
from launcher.runspec.passthrough import with_passed_through
from launcher.runspec.sections import RunSpec
from launcher.upstream import held_out, packed_rows

if TYPE_CHECKING:
    from launcher.checkpoint.sharded import ShardedBase

CHECKPOINT_PREFIX = "launcher"
RANK_TABLE = "rank_table.json"

# mindformers 1.9.0, core/context: context.parallel_mode numbers.
_PARALLEL_MODE = {"data": 0, "semi_auto": 1}
# mindspore 2.9.0, context.py, parallel_optimizer_config. gradient_accumulation_shard may not stand beside it: even
# False is refused with level1 and level3.
_OPTIMIZER_LEVEL = {"states": "level1", "gradients": "level2", "weights": "level3"}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input files of a run, all checked: absolute paths, and the number of rows in ``dataset`` (None if unknown).

    ``checkpoint``: the base, a file; or a folder of shards, which ``shards`` then describes. ``base_dtypes``: those of
    its weights. ``notes``: remarks on the files for the user. ``sources``: of raw records that are tokenized, the part
    of each source, as ``launcher.data.preprocess`` counts it.
    """

    dataset: str
    rows: int | None
    tokenizer: str | None
    checkpoint: str | None
    evaluation: str | None = None
    evaluation_rows: int | None = None
    shards: ShardedBase | None = None
    base_dtypes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sources: tuple[Mapping[str, Any], ...] = ()
    # Estimates of rows that are not made yet.
    about_rows: int | None = None
    about_held_out: int | None = None


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symbolic link that the plan will make: ``path`` relative to the job's folder, ``target`` absolute."""

    path: str
    target: str


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """The decisions of one run. ``submit`` writes ``files`` and ``launch`` and runs them; ``--dry-run`` prints them.

    ``decisions``: those about the spec, in words; ``notes``: all remarks for the user.
    """

    paths: JobPaths
    spec: RunSpec
    spec_name: str
    cluster: Cluster
    degrees: Degrees
    inputs: Inputs
    launch: Launch
    steps: int | None = None
    files: tuple[RenderedFile, ...] = ()
    links: tuple[Link, ...] = ()
    decisions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    memory: Memory | None = None

    @property
    def command(self) -> Command:
        """Return the most informative command of the run: msrun's, mpirun's, or rank 0's."""
        launch = self.launch.for_node(0) if self.launch.nodes else self.launch
        # The scheduler's command says nothing about the run; it is the same for every job.
        return next(program.command for program in launch.programs(self.paths) if program.name != "scheduler")

    @property
    def global_batch(self) -> int:
        """Return the number of rows per optimizer step, over all ranks."""
        return global_batch(self.spec)

    @property
    def loss_rank(self) -> int:
        """Return the rank whose loss is the run's."""
        return first_of_last_stage(self.cluster.num_devices, self.degrees.pipeline_stage)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of plan.json."""
        return {
            "job_id": self.paths.job_id,
            "spec": self.spec_name,
            "target": self.cluster.target,
            "kind": self.cluster.kind,
            "ranks": [_rank_dict(rank) for rank in self.cluster.ranks()],
            "data_parallel": self.degrees.data_parallel,
            "model_parallel": self.degrees.model_parallel,
            "pipeline_stage": self.degrees.pipeline_stage,
            "global_batch": self.global_batch,
            "steps": self.steps,
            "dataset": self.inputs.dataset,
            "rows": self.inputs.rows,
            "evaluation": self.inputs.evaluation,
            "tokenizer": self.inputs.tokenizer,
            "checkpoint": self.inputs.checkpoint,
            "files": [file.path for file in self.files],
            "links": {link.path: link.target for link in self.links},
            "argv": list(self.command.argv),
            "env": dict(self.command.env),
        }


def _rank_dict(rank: Rank) -> dict[str, Any]:
    return {
        "rank_id": rank.rank_id,
        "node_rank": rank.node_rank,
        "local_rank": rank.local_rank,
        "host": rank.host.name,
        "device_id": rank.device.device_id,
    }


def count_steps(spec: RunSpec, rows: int | None) -> int | None:
    """Return the optimizer steps of a resolved ``spec``, None when the rows are not known.

    In data-parallel mode each rank reads ceil(rows / data_parallel) rows, as mindspore's sharding sampler deals them;
    in semi_auto mode every rank reads the whole global batch. Raises SpecError when there is not one whole batch.
    """
    if rows is None:
        return None
    semi_auto = spec.parallel.mode == "semi_auto"
    rows_per_rank = rows if semi_auto else math.ceil(rows / (spec.parallel.data_parallel or 1))
    rows_per_step = global_batch(spec) if semi_auto else spec.data.batch_size
    batches = rows_per_rank / rows_per_step
    # A pipeline and accumulation cut a batch into equal parts: a short one at the end is left out.
    whole = spec.data.drop_remainder or semi_auto
    per_epoch = math.floor(batches) if whole else math.ceil(batches)
    if per_epoch < 1:
        raise _too_few_rows(rows, rows_per_rank, rows_per_step, semi_auto=semi_auto)
    total = per_epoch * spec.training.epochs
    return min(total, spec.training.steps or total)


def about_steps(plan: LaunchPlan) -> str:
    """Return the steps in words: as counted, as training.steps fixes them, or from an estimate of the rows."""
    asked, about = plan.spec.training.steps, plan.inputs.about_rows
    if plan.steps is not None:
        return f"{plan.steps:,}"
    try:
        found = count_steps(plan.spec, about)
    except SpecError:
        found = None
    if found is None:
        return f"{asked:,} at most (training.steps)" if asked else "unknown"
    return f"{found:,} (training.steps)" if found == asked else f"about {found:,}"


def about_rows(inputs: Inputs) -> str:
    """Return the rows of training, and those held out, in words."""
    rows, held_out = inputs.rows, inputs.evaluation_rows
    if rows is None:
        found = "unknown rows" if inputs.about_rows is None else f"about {inputs.about_rows:,} rows, by estimate"
    else:
        found = f"{rows:,} rows"
    if held_out is None and inputs.about_held_out is not None:
        return f"{found}; about {inputs.about_held_out:,} more held out"
    return found if held_out is None else f"{found}; {held_out:,} held out"


def _too_few_rows(rows: int, rows_per_rank: int, rows_per_step: int, *, semi_auto: bool) -> SpecError:
    if semi_auto:
        return SpecError(
            f"{rows} rows are not one global batch of {rows_per_step}",
            hint="set a smaller data.batch_size or parallel.micro_batches, or add data",
        )
    return SpecError(
        f"{rows} rows are {rows_per_rank} a rank: not one batch of data.batch_size {rows_per_step}",
        hint=f"set data.batch_size to at most {rows_per_rank}, or add data",
    )


def global_batch(spec: RunSpec) -> int:
    """Return the number of rows per optimizer step of a resolved ``spec``, over all ranks.

    mindformers 1.9.0, trainer/base_trainer.py: batch_size x data_parallel x micro_batch_num in a pipeline, x
    gradient_accumulation_steps without one.
    """
    parallel = spec.parallel
    repeats = max(parallel.micro_batches or 1, spec.training.gradient_accumulation)
    return spec.data.batch_size * (parallel.data_parallel or 1) * repeats


def backend_values(cluster: Cluster, spec: RunSpec) -> dict[str, Any]:
    """Return the settings that depend on the device: on Ascend the fast ones, on CPU those that have kernels."""
    ascend = cluster.target == "Ascend"
    if ascend:
        train_cell = "MFTrainOneStepCell"
    else:
        from launcher.upstream.cpu import TRAIN_CELL as train_cell  # noqa: N811 - a value here, not a constant

    return {
        "device_target": cluster.target,
        "train_cell": train_cell,
        "fused_rms_norm": ascend,  # "Unsupported op [RmsNorm] on CPU"
        "rope_slice": not ascend,  # the default rotary path needs a broadcasting BatchMatMul, which CPU lacks
        "max_device_memory": f"{spec.runtime.max_device_memory_gib:g}GB" if ascend else None,
    }


def make_plan(
    *,
    spec: RunSpec,
    spec_name: str,
    placement: Placement,
    inputs: Inputs,
    paths: JobPaths,
    options: RunOptions | None = None,
) -> LaunchPlan:
    """Return the plan: decide everything, write nothing.

    Raises SpecError when spec, cluster and inputs do not fit together, HostError when the engine is missing.
    """
    resolved, cluster = resolve_defaults(spec, placement.cluster), placement.cluster
    check_resilience(resolved.spec, cluster, here=not placement.agents)
    env = run_environment(resolved.spec, cluster, paths)
    # Two steps: once data is made, steps and files are decided anew, but nothing that was shown before.
    undecided = LaunchPlan(
        paths=paths,
        spec=resolved.spec,
        spec_name=spec_name,
        cluster=cluster,
        degrees=resolved.degrees,
        inputs=inputs,
        decisions=resolved.notes,
        memory=resolved.memory,
        launch=make_launch(placement, paths, env=env, options=options or RunOptions()),
    )
    return with_inputs(undecided, inputs)


def with_inputs(plan: LaunchPlan, inputs: Inputs) -> LaunchPlan:
    """Return ``plan`` with everything that depends on its input files: steps, rank files, links, notes.

    Nothing else is decided anew. Raises SpecError when there are too few rows, CheckpointError when the base does not
    fit.
    """
    spec, cluster, paths = plan.spec, plan.cluster, plan.paths
    # First: with shards of another split the rank files would link ranks to wrong parts.
    check_shards(spec, inputs)
    env = environment()
    files = [rank_table_file(env, cluster)]
    files += rank_files(env, spec, cluster, inputs, paths)
    files.append(RenderedFile(path="spec.json", text=json.dumps(spec.model_dump(mode="json"), indent=2) + "\n"))
    steps = count_steps(spec, inputs.rows)
    return replace(
        plan,
        inputs=inputs,
        steps=steps,
        files=tuple(files),
        links=base_checkpoint(spec, cluster, inputs, paths).links,
        notes=(*plan.decisions, *inputs.notes, *_rounding_notes(spec, inputs), *_evaluation_notes(spec, inputs, steps)),
    )


def _rounding_notes(spec: RunSpec, inputs: Inputs) -> Iterator[str]:
    """Yield a note if MindSpore will round the base to precision.params, which it does silently.

    Only float32 holds the 16-bit dtypes exactly.
    """
    params = spec.precision.params or "float32"
    rounded = [dtype for dtype in inputs.base_dtypes if dtype != params and (params != "float32" or dtype == "float64")]
    if rounded:
        yield f"base: its {', '.join(rounded)} weights are rounded to {params} (precision.params)"


def rank_table_file(env: jinja2.Environment, cluster: Cluster) -> RenderedFile:
    """Return the rank table of ``cluster``. Raises SpecError with every reason for which HCCL would refuse it.

    On CPU only msrun reads it.
    """
    if cluster.target == "CPU":
        return render_rank_table(env, cluster)
    text, _ = checked_text(table_of(cluster), RANK_TABLE, kind=cluster.kind)
    return RenderedFile(path=RANK_TABLE, text=text)


def _evaluation_notes(spec: RunSpec, inputs: Inputs, steps: int | None) -> Iterator[str]:
    """Yield notes on held-out rows that are never evaluated, and on those that fill no batch and so are not read.

    Raises SpecError if they fill none at all.

    mindformers 1.9.0 divides batches by gradient_accumulation (trainer/base_trainer.py, create_eval_dataset).
    """
    if spec.evaluation is None:
        return
    most = spec.training.steps if steps is None else steps
    if most is not None and spec.evaluation.every_steps > most:
        yield (
            f"evaluation.every_steps is {spec.evaluation.every_steps} and the run has {most} steps: no held-out row is "
            f"evaluated; set evaluation.every_steps: {most} or less"
        )
    if inputs.evaluation_rows is None:
        return
    rows_of = "evaluation.data" if spec.evaluation.data else "the part of data.train that is held out"
    ranks = int(spec.parallel.data_parallel or 1)
    asked = spec.evaluation.batch_size or spec.data.batch_size
    batch = ranks * max(asked // spec.training.gradient_accumulation, 1)
    left = inputs.evaluation_rows % batch
    if left == inputs.evaluation_rows:
        raise SpecError(
            f"{rows_of} has {left} rows, and a batch of all ranks {batch}",
            hint="set a smaller evaluation.batch_size, or hold out more rows",
        )
    if left:
        rows = inputs.evaluation_rows
        yield f"{left} of {rows} rows of {rows_of} are left out: a batch of all ranks has {batch}"


def run_environment(spec: RunSpec, cluster: Cluster, paths: JobPaths) -> dict[str, str]:
    """Return the variables of the run, the same on every rank: the spec's ``env``, HCCL's, and those on its hosts.

    ``env`` wins over ``hccl``, and the user's shell over our defaults.
    """
    if cluster.target == "CPU":
        return dict(spec.env)
    return {**_places(cluster, paths), **_hccl(spec), **resilience_environment(spec.resilience), **spec.env}


def _places(cluster: Cluster, paths: JobPaths) -> dict[str, str]:
    """Return the variables that MindFormers requires before ranks of several hosts may share files.

    It assumes 8 cards per host, and takes only nfs, dpc and sshfs for shared folders (mindformers 1.9.0,
    utils/file_utils.py). With several hosts the job's folder is always shared: their agents communicate through it.
    """
    found = {"DEVICE_NUM_PER_NODE": str(max(len(host.devices) for host in cluster.hosts))}
    if len(cluster.hosts) > 1:
        found["SHARED_PATHS"] = ",".join(filter(None, (os.environ.get("SHARED_PATHS"), str(paths.root))))
    return found


def _hccl(spec: RunSpec) -> dict[str, str]:
    names = {
        "connect_timeout_s": "HCCL_CONNECT_TIMEOUT",
        "exec_timeout_s": "HCCL_EXEC_TIMEOUT",
        "buffer_mib": "HCCL_BUFFSIZE",
    }
    return {
        name: str(getattr(spec.hccl, key))
        for key, name in names.items()
        # A default of ours must not replace what an administrator has exported; a key in the spec must.
        if key in spec.hccl.model_fields_set or name not in os.environ
    }


# --------------------------------------------------------------------------------------------------- rank files


def rank_context(spec: RunSpec, cluster: Cluster, inputs: Inputs, paths: JobPaths) -> dict[str, Any]:
    """Return the variables of templates/rank.yaml.j2, except the rank itself."""
    base = base_checkpoint(spec, cluster, inputs, paths)
    return {
        "spec": spec,
        "world_size": cluster.num_devices,
        "output_dir": str(paths.root),
        "base": base,
        "save_format": "safetensors",
        "checkpoint_prefix": CHECKPOINT_PREFIX,
        "strategy_file": str(paths.strategies / "ckpt_strategy.ckpt"),
        "dataset": inputs.dataset,
        "network_arguments": packed_rows.arguments(spec.data.columns, cluster.target),
        "evaluation": inputs.evaluation,
        "held_out_metric": held_out.METRIC,
        "total_steps": _schedule_steps(spec, inputs.rows),
        "backend": backend_values(cluster, spec),
        "semi_auto": spec.parallel.mode == "semi_auto",
        "optimizer_level": _OPTIMIZER_LEVEL.get(spec.parallel.optimizer_shard or "off"),
        "optimizer_threshold": THRESHOLD_KIB,
        "mode_number": _PARALLEL_MODE[spec.parallel.mode or "data"],
    }


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base checkpoint for the ranks. ``transform``: MindFormers cuts a whole one into each rank's part.

    ``links``: the contents of the job's ``base`` folder, which ``argument`` names.
    """

    argument: str = ""
    file_format: str = "safetensors"
    transform: bool = False
    links: tuple[Link, ...] = ()


def base_checkpoint(spec: RunSpec, cluster: Cluster, inputs: Inputs, paths: JobPaths) -> Base:
    """Return the value of ``load_checkpoint`` for the rank YAMLs, and the folder of links that it names.

    It is always a folder with nothing else in it: mindformers 1.9.0 (utils/load_checkpoint_utils.py, trainer/utils.py)
    refuses a single file for several ranks, guesses from names like rank_0 in a path that a file is a shard, and reads
    every file beside it. The folder holds each rank's own file in rank_R, or one whole file. Data-parallel ranks load
    whole safetensors from rank folders only; semi-auto ranks have MindFormers cut it (auto_trans_ckpt), which reads no
    more than each needs. A whole .ckpt is loaded by every rank before its graph is compiled, and cut there.
    """
    if inputs.checkpoint is None:
        return Base()
    semi_auto, ranks = spec.parallel.mode == "semi_auto", range(cluster.num_devices)
    files = _files_by_rank(inputs, cluster)
    file_format = "ckpt" if files[0].endswith(".ckpt") else "safetensors"
    # Otherwise MindFormers cuts one whole file, or every rank loads it whole.
    in_rank_folders = inputs.shards is not None or (len(ranks) > 1 and not semi_auto and file_format == "safetensors")
    places = [f"base/rank_{rank}" for rank in ranks] if in_rank_folders else ["base"]
    return Base(
        argument=str(paths.root / "base"),
        file_format=file_format,
        transform=semi_auto and len(ranks) > 1 and file_format == "safetensors" and not in_rank_folders,
        links=tuple(
            Link(path=f"{place}/base.{file_format}", target=file) for place, file in zip(places, files, strict=False)
        ),
    )


def _files_by_rank(inputs: Inputs, cluster: Cluster) -> tuple[str, ...]:
    return inputs.shards.files if inputs.shards else (str(inputs.checkpoint),) * cluster.num_devices


def check_shards(spec: RunSpec, inputs: Inputs) -> None:
    """Raise CheckpointError when the base is in shards that do not match the ranks of a resolved ``spec``."""
    if inputs.shards is not None:
        from launcher.checkpoint.sharded import check_fits  # with numpy, which other bases do not need here

        check_fits(inputs.shards, split_plan(spec))


def _schedule_steps(spec: RunSpec, rows: int | None) -> int:
    """Return total_steps of the schedule. A run that ``steps`` cuts short must still reach the schedule's end."""
    if spec.training.lr_schedule.total_steps != -1 or spec.training.steps is None:
        return spec.training.lr_schedule.total_steps
    return count_steps(spec, rows) or spec.training.steps


_COMMENT = re.compile(r"^#.*\n", re.MULTILINE)


def rank_files(
    env: jinja2.Environment, spec: RunSpec, cluster: Cluster, inputs: Inputs, paths: JobPaths
) -> Iterator[RenderedFile]:
    """Yield one YAML per rank. Those that differ only in comments are checked once: there may be thousands."""
    context = rank_context(spec, cluster, inputs, paths)
    bodies: dict[str, str] = {}
    for rank in cluster.ranks():
        path = f"ranks/rank_{rank.rank_id}.yaml"
        text = _rank_text(env, rank, context)
        body = _COMMENT.sub("", text)
        if body not in bodies:
            checked = render(env, "rank.yaml.j2", path, rank=rank, **context).text
            bodies[body] = with_passed_through(checked, spec.mindformers)
        yield RenderedFile(path=path, text=text.partition("\n")[0] + "\n" + bodies[body] if spec.mindformers else text)


def _rank_text(env: jinja2.Environment, rank: Rank, context: dict[str, Any]) -> str:
    """Return the template's text; "" when it fails, and ``render`` then reports the error."""
    try:
        return env.get_template("rank.yaml.j2").render(rank=rank, **context)
    except (jinja2.TemplateError, ValueError):
        return ""
