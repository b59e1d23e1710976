"""The plan of a split: the layout of each tensor, and the stages that hold it. No tensor is touched."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.checkpoint.layout import LayoutError, Shape, optimizer_cuts, slice_shape
from launcher.checkpoint.strategy import Layout
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
