"""Split a whole checkpoint into the shards of a plan, with their strategy files: the inverse of merging."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.entries import SAFETENSORS, Entry
from launcher.checkpoint.gather import single_file
from launcher.checkpoint.layout import Box, LayoutError, Shape, boxes, optimizer_cuts, slice_shape
from launcher.checkpoint.model_check import check_floats
from launcher.checkpoint.strategy import Layout, write_strategy
from launcher.checkpoint.stream import plan_file, write_file
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Output, Piece, Whole
from launcher.common.folders import check_target, only_new, sync_file, whole_folder
from launcher.errors import CheckpointError
from launcher.models import names, registry

# parallel_optimizer_threshold: MindSpore's default, and what rank YAMLs are rendered with.
THRESHOLD_KIB = 64


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Degrees of a split. Ranks are numbered stage by stage; within a stage data parallel is outer, tensor inner.

    optimizer_shards: among how many data-parallel copies axis 0 is cut again; 1 for none, -1 for all.
    optimizer_threshold_kib: parameters of fewer KiB are not cut for the optimizer (parallel_optimizer_threshold).
    cut_vocabulary: tensor parallel cuts the rows of the embedding and the head too.
    """

    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    optimizer_shards: int = 1
    optimizer_threshold_kib: int = THRESHOLD_KIB
    cut_vocabulary: bool = False

    @property
    def num_ranks(self) -> int:
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def per_stage(self) -> int:
        return self.data_parallel * self.model_parallel


def layout_of(name: str, shape: Shape, plan: SplitPlan, *, nbytes: int) -> Layout:
    """Return the layout of ``name`` on its stage. nbytes: of the whole parameter, or of the one it is state of.

    Raises CheckpointError when tensor parallel cannot cut it evenly.
    """
    axis = _cut_axis(name, shape, plan)
    matrix = (plan.data_parallel, plan.model_parallel)
    layout = Layout(
        device_matrix=matrix, tensor_map=tuple((0,) if number == axis else () for number in range(len(shape)))
    )
    try:
        rows = slice_shape(layout, shape, 0)
    except LayoutError as error:
        raise CheckpointError(
            f"{name}: {error} (model_parallel {plan.model_parallel})",
            hint="choose a model_parallel (--mp) that divides it",
        ) from error
    if not _optimizer_cuts_it(name, rows, axis, plan, nbytes):
        return layout
    step = plan.model_parallel if axis is not None else 1
    sharded = Layout(device_matrix=matrix, tensor_map=layout.tensor_map, opt_step=step, opt_size=plan.optimizer_shards)
    # As MindSpore does: what does not divide stays whole.
    return sharded if rows[0] % optimizer_cuts(sharded) == 0 else layout


def _optimizer_cuts_it(name: str, rows: Shape, axis: int | None, plan: SplitPlan, nbytes: int) -> bool:
    """Return whether optimizer parallel cuts it: if it is not below the threshold before any other cut.

    mindspore 2.9.0, opt_param_mgr.cc; MindFormers excludes norms, biases and the legacy embedding (parallel_optimizer
    False in llama_layer.py, layers.py).
    """
    copies = plan.data_parallel if axis is not None else plan.per_stage
    embedding = names.SCHEMES[names.LEGACY].embedding
    is_kept_out = len(rows) < 2 or name.endswith(embedding) or nbytes < plan.optimizer_threshold_kib << 10
    return plan.optimizer_shards != 1 and copies > 1 and not is_kept_out


def _cut_axis(name: str, shape: Shape, plan: SplitPlan) -> int | None:
    """Return the axis of ``name`` that tensor parallel cuts; adapters, biases and state are cut as their weight.

    The embedding and the head stay whole unless cut_vocabulary asks (MindFormers: vocab_emb_dp False).
    """
    match = names.LAYER.search(name)
    if plan.model_parallel == 1 or len(shape) < (1 if name.endswith(names.BIAS) else 2):
        return None
    if match is None:
        return 0 if plan.cut_vocabulary and name.endswith((*names.EMBEDDINGS, *names.HEADS)) else None
    axis = registry.cut_axis(names.module_of(match[2]))
    if name.endswith(names.LORA_A):  # (r, in): cut with the weight's inputs
        return 1 if axis == 1 else None
    if name.endswith((*names.LORA_B, names.BIAS)):  # (out, r) and (out,): cut with the weight's outputs
        return 0 if axis == 0 else None
    return axis


def stage_of(name: str, num_layers: int, plan: SplitPlan) -> range:
    """Return the pipeline stages that hold ``name``: layers in equal runs, the head last, counters everywhere."""
    match = names.LAYER.search(name)
    if match:
        stage = int(match[1]) * plan.pipeline_stage // max(1, num_layers)
        return range(stage, stage + 1)
    if any(part in name for part in names.EMBEDDINGS):
        return range(1)
    if any(part in name for part in (*names.NORMS, *names.HEADS)):
        return range(plan.pipeline_stage - 1, plan.pipeline_stage)
    return range(plan.pipeline_stage)


def split(source: TensorFile, target: Path, plan: SplitPlan, *, file_format: str = SAFETENSORS) -> int:
    """Split ``source`` into ``target``/rank_<R>/ and ``target``/strategy/; return the number of ranks.

    Raises CheckpointError when ``target`` exists, names are not MindFormers' or a tensor cannot be cut; HostError
    when the disk is full.
    """
    with only_new(target) as place:
        return _split(source, place, plan, file_format)


def _split(source: TensorFile, target: Path, plan: SplitPlan, file_format: str) -> int:
    _check_names(source)
    layers = names.num_layers(source.entries)
    if plan.pipeline_stage > max(1, layers):
        raise CheckpointError(f"{layers} layers for {plan.pipeline_stage} stages", hint="use fewer stages")
    layouts = {
        name: layout_of(name, entry.shape, plan, nbytes=source.entries.get(names.owner_of_state(name), entry).nbytes)
        for name, entry in source.entries.items()
    }
    ranks = [_rank_outputs(source, layouts, rank, layers, plan) for rank in range(plan.num_ranks)]
    check_target(target, sum(output.nbytes for outputs in ranks for output in outputs))
    with whole_folder(target, replace=False) as scratch:
        for rank, outputs in enumerate(ranks):
            _write_rank(scratch, rank, outputs, layouts, plan, file_format)
        record = {"source": str(source.path), "bytes": source.size, **vars(plan)}
        (scratch / "split.json").write_text(json.dumps(record, indent=2) + "\n")
    return plan.num_ranks


def _check_names(source: TensorFile) -> None:
    """Check tensor names: unknown ones would silently be replicated whole on every rank."""
    in_layers = [match[2] for name in source.entries if (match := names.LAYER.search(name))]
    if not names.embedding_in(source.entries) and not any(map(registry.cut_axis, map(names.module_of, in_layers))):
        raise CheckpointError(
            f"{source.path} has no weights by MindFormers' names", hint="launcher convert-ckpt makes such a file"
        )
    check_floats(single_file(source))


def _write_rank(
    scratch: Path,
    rank: int,
    outputs: list[Output],
    layouts: Mapping[str, Layout],
    plan: SplitPlan,
    file_format: str,
) -> None:
    path = scratch / f"rank_{rank}" / f"split_rank_{rank}.{file_format}"
    path.parent.mkdir()
    write_file(path, plan_file(outputs, file_format, {"format": "ms"}), lambda _: None)
    sync_file(path)
    strategy = scratch / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
    strategy.parent.mkdir(exist_ok=True)
    laid = {output.name: layouts[output.name] for output in outputs if output.shape}
    strategy.write_bytes(write_strategy(rank // plan.per_stage, laid))


def _rank_outputs(
    source: TensorFile, layouts: Mapping[str, Layout], rank: int, layers: int, plan: SplitPlan
) -> list[Output]:
    stage, device = divmod(rank, plan.per_stage)
    held = (entry for name, entry in source.entries.items() if stage in stage_of(name, layers, plan))
    return [_slice(source, entry, boxes(layouts[entry.name], device, entry.shape)[0]) for entry in held]


def _slice(source: TensorFile, entry: Entry, box: Box) -> Output:
    """Return ``box`` of a tensor of ``source`` as a tensor of its own."""
    start = tuple(0 for _ in box.size)
    placed = Box(start=start, size=box.size, row=box.start[0] if box.start else 0)
    piece = Piece(file=source, entry=entry, box=placed, skip=box.start[1:])
    whole = Whole(name=entry.name, dtype=entry.dtype, shape=box.size, pieces=(piece,))
    return Output(name=entry.name, dtype=entry.dtype, whole=whole)
