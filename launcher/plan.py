"""The plan: every file, argv and environment variable of a run, decided without touching anything."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import jinja2

from launcher.cluster import Cluster, Rank
from launcher.engines.base import Command
from launcher.errors import SpecError
from launcher.jobs import JobPaths
from launcher.launch import Launch
from launcher.rank_table import render_rank_table
from launcher.render import RenderedFile, environment, render
from launcher.spec import ParallelSpec, RunSpec

CHECKPOINT_PREFIX = "launcher"

# mindformers 1.9.0, core/context: context.parallel_mode numbers.
_PARALLEL_MODE = {"data": 0, "semi_auto": 1}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files a run reads, all checked: absolute paths, and the number of rows in ``dataset`` (None if unknown)."""

    dataset: str
    rows: int | None
    tokenizer: str | None
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How many ways the job is split; the product is the number of ranks."""

    data_parallel: int
    model_parallel: int
    pipeline_stage: int


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symbolic link that the plan will make: ``path`` relative to the job's folder, ``target`` absolute."""

    path: str
    target: str


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """All decisions of one run. ``submit`` writes ``files`` and runs ``command``; ``--dry-run`` prints this."""

    paths: JobPaths
    spec: RunSpec
    spec_name: str
    cluster: Cluster
    degrees: Degrees
    inputs: Inputs
    steps: int | None
    files: tuple[RenderedFile, ...]
    links: tuple[Link, ...]
    command: Command
    launch: Launch | None = None

    @property
    def global_batch(self) -> int:
        """Rows that one optimizer step sees, over all ranks."""
        return self.spec.data.batch_size * self.degrees.data_parallel

    def to_dict(self) -> dict[str, Any]:
        """What plan.json holds."""
        return {
            "job_id": self.paths.job_id,
            "spec": self.spec_name,
            "target": self.cluster.target,
            "ranks": [_rank_dict(rank) for rank in self.cluster.ranks()],
            "data_parallel": self.degrees.data_parallel,
            "model_parallel": self.degrees.model_parallel,
            "pipeline_stage": self.degrees.pipeline_stage,
            "global_batch": self.global_batch,
            "steps": self.steps,
            "dataset": self.inputs.dataset,
            "rows": self.inputs.rows,
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


def choose_degrees(parallel: ParallelSpec, num_ranks: int) -> Degrees:
    """Degrees whose product is ``num_ranks``. Raises SpecError when there are none."""
    split = parallel.model_parallel * parallel.pipeline_stage
    data_parallel = parallel.data_parallel or max(1, num_ranks // split)
    product = data_parallel * split
    if product != num_ranks:
        raise SpecError(
            f"data_parallel {data_parallel} x model_parallel {parallel.model_parallel} x pipeline_stage "
            f"{parallel.pipeline_stage} = {product}, but --cards is {num_ranks}",
            hint=f"pass --cards {product}, or leave parallel.data_parallel out",
        )
    return Degrees(
        data_parallel=data_parallel, model_parallel=parallel.model_parallel, pipeline_stage=parallel.pipeline_stage
    )


def check_target(spec: RunSpec, target: str) -> None:
    """Raises SpecError when ``spec`` asks for what MindSpore's CPU backend cannot do."""
    parallel = spec.parallel
    split = parallel.model_parallel * parallel.pipeline_stage
    if target == "CPU" and (split > 1 or parallel.mode != "data"):
        raise SpecError(
            "the CPU backend trains data-parallel only: MindSpore has no CPU kernels for the collectives that "
            f"parallel.mode {parallel.mode}, model_parallel and pipeline_stage need",
            hint="set parallel.mode: data, model_parallel: 1, pipeline_stage: 1; or run on Ascend cards",
        )
    if target == "CPU" and {spec.precision.params, spec.precision.compute} != {"float32"}:
        raise SpecError(
            f"the CPU backend trains in float32, not params {spec.precision.params}, compute {spec.precision.compute}",
            hint="set precision: {params: float32, compute: float32}; or run on Ascend cards",
        )


def count_steps(spec: RunSpec, rows: int | None, data_parallel: int) -> int | None:
    """Optimizer steps of the run, None when the rows are not known. Raises SpecError when there is not one whole batch.

    Each data-parallel rank reads ceil(rows / data_parallel) rows, as mindspore's sharding sampler deals them.
    """
    if rows is None:
        return None
    rows_per_rank = math.ceil(rows / data_parallel)
    batches = rows_per_rank / spec.data.batch_size
    per_epoch = math.floor(batches) if spec.data.drop_remainder else math.ceil(batches)
    if per_epoch < 1:
        raise SpecError(
            f"{rows} rows are {rows_per_rank} a rank: not one batch of data.batch_size {spec.data.batch_size}",
            hint=f"set data.batch_size to at most {rows_per_rank}, or add data",
        )
    total = per_epoch * spec.training.epochs
    return min(total, spec.training.steps or total)


def backend_values(cluster: Cluster, spec: RunSpec) -> dict[str, Any]:
    """Settings that depend on what the ranks run on. Ascend: what is fast there. CPU: what has kernels there."""
    if cluster.target == "CPU":
        from launcher.cpu_backend import TRAIN_CELL

        return {
            "device_target": "CPU",
            "train_cell": TRAIN_CELL,
            "sink_mode": False,
            "flash_attention": False,  # an Ascend kernel
            "fused_rms_norm": False,  # "Unsupported op [RmsNorm] on CPU"
            "rope_slice": True,  # the default rotary path needs a broadcasting BatchMatMul, which CPU lacks
            "softmax_dtype": "float32",
            "rotary_dtype": "float32",
            "data_workers": 1,
            "recompute": False,
            "dynamic_loss_scale": False,
        }
    return {
        "device_target": "Ascend",
        "train_cell": "MFTrainOneStepCell",
        "sink_mode": True,
        "flash_attention": True,
        "fused_rms_norm": True,
        "rope_slice": False,
        "softmax_dtype": "float32",
        "rotary_dtype": "float32",
        "data_workers": 8,
        "recompute": True,
        # float16 gradients underflow without it; bfloat16 has the exponents of float32.
        "dynamic_loss_scale": spec.precision.compute == "float16",
        "max_device_memory": "58GB" if spec.precision.compute == "bfloat16" else "30GB",
    }


def make_plan(
    *, spec: RunSpec, spec_name: str, cluster: Cluster, inputs: Inputs, paths: JobPaths, command: Command
) -> LaunchPlan:
    """Decide everything, touch nothing. Raises SpecError when spec, cluster and inputs do not fit together."""
    check_target(spec, cluster.target)
    degrees = choose_degrees(spec.parallel, cluster.num_devices)
    steps = count_steps(spec, inputs.rows, degrees.data_parallel)
    env = environment()
    context = rank_context(spec, cluster, inputs, paths, degrees)
    files = [render_rank_table(env, cluster)]
    files += [_render_rank(env, rank, context) for rank in cluster.ranks()]
    files.append(RenderedFile(path="spec.json", text=json.dumps(spec.model_dump(mode="json"), indent=2) + "\n"))
    return LaunchPlan(
        paths=paths,
        spec=spec,
        spec_name=spec_name,
        cluster=cluster,
        degrees=degrees,
        inputs=inputs,
        steps=steps,
        files=tuple(files),
        links=base_links(cluster, inputs),
        command=command,
    )


def rank_context(spec: RunSpec, cluster: Cluster, inputs: Inputs, paths: JobPaths, degrees: Degrees) -> dict[str, Any]:
    """What templates/rank.yaml.j2 is given, but for the rank itself."""
    semi_auto = spec.parallel.mode == "semi_auto"
    return {
        "spec": spec,
        "num_ranks": cluster.num_devices,
        "output_dir": str(paths.root),
        "checkpoint": checkpoint_argument(cluster, inputs, paths),
        "load_format": "ckpt" if (inputs.checkpoint or "").endswith(".ckpt") else "safetensors",
        "save_format": "safetensors",
        "checkpoint_prefix": CHECKPOINT_PREFIX,
        "strategy_file": str(paths.strategies / "ckpt_strategy.ckpt"),
        "dataset": inputs.dataset,
        "total_steps": _schedule_steps(spec, inputs.rows, degrees.data_parallel),
        "backend": backend_values(cluster, spec),
        "parallel": {
            "mode_number": _PARALLEL_MODE[spec.parallel.mode],
            "gradients_mean": not semi_auto,
            "full_batch": semi_auto,
            "data_parallel": degrees.data_parallel,
            "model_parallel": degrees.model_parallel,
            "pipeline_stage": degrees.pipeline_stage,
        },
    }


def _links_needed(cluster: Cluster, inputs: Inputs) -> bool:
    return cluster.num_devices > 1 and (inputs.checkpoint or "").endswith(".safetensors")


def base_links(cluster: Cluster, inputs: Inputs) -> tuple[Link, ...]:
    """A ``base/rank_R`` folder a rank, all with the same whole base checkpoint.

    Several data-parallel ranks load safetensors from a folder of rank folders only: for a single file mindformers
    1.9.0 demands auto_trans_ckpt, which would cut and copy it (utils/load_checkpoint_utils.py).
    """
    if not _links_needed(cluster, inputs):
        return ()
    target = str(inputs.checkpoint)
    return tuple(
        Link(path=f"base/rank_{rank_id}/base.safetensors", target=target) for rank_id in range(cluster.num_devices)
    )


def checkpoint_argument(cluster: Cluster, inputs: Inputs, paths: JobPaths) -> str | None:
    """What ``load_checkpoint`` of a rank's YAML says."""
    return str(paths.root / "base") if _links_needed(cluster, inputs) else inputs.checkpoint


def _schedule_steps(spec: RunSpec, rows: int | None, data_parallel: int) -> int:
    """total_steps of the schedule. A run that ``steps`` cuts short must still reach the schedule's end."""
    if spec.training.lr_schedule.total_steps != -1 or spec.training.steps is None:
        return spec.training.lr_schedule.total_steps
    return count_steps(spec, rows, data_parallel) or spec.training.steps


def _render_rank(env: jinja2.Environment, rank: Rank, context: dict[str, Any]) -> RenderedFile:
    return render(env, "rank.yaml.j2", f"ranks/rank_{rank.rank_id}.yaml", rank=rank, **context)
