"""A sharded base checkpoint: one file per rank, loaded unchanged where the run cuts the model the same way."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.gather import OpenShards, gather, read_stages
from launcher.checkpoint.layout import LayoutError, Shape, boxes
from launcher.checkpoint.shards import FULL, find_shards
from launcher.checkpoint.split_layout import SplitPlan, layout_of, stage_of
from launcher.checkpoint.strategy import Layout, Stages
from launcher.checkpoint.tensors import Whole
from launcher.errors import CheckpointError
from launcher.models import names


@dataclass(frozen=True, kw_only=True)
class ShardedBase:
    """A base in shards. ``files``: one per rank. ``tensors``: whole, unread. ``stages``: their layouts by stage."""

    folder: Path
    files: tuple[str, ...]
    tensors: Mapping[str, Whole]
    stages: Stages


def holds_shards(path: Path) -> bool:
    """Return whether ``path`` is a folder of shards: rank_<R> folders, of its own or in its checkpoint/."""
    return path.is_dir() and any((place / "rank_0").is_dir() for place in (path, path / FULL))


def read_sharded(folder: Path) -> ShardedBase:
    """Read the headers and strategy files of the newest complete step in ``folder``.

    Raises CheckpointError when a rank or a slice is missing, or when there is no strategy for the tensors.
    """
    shards = find_shards(folder)
    if not shards.strategies:
        raise CheckpointError(
            f"{folder} has no strategy files: nothing says how its {shards.num_ranks} ranks share the weights",
            hint="copy the strategy folder of the run that wrote it, or launcher merge-ckpt makes one file of copies",
        )
    paths = shards.at(shards.complete()[-1])
    with OpenShards(paths) as opened:
        gathered = gather(opened, shards.strategies)
    return ShardedBase(
        folder=folder,
        files=tuple(str(path) for path in paths),
        tensors=gathered.tensors,
        stages=read_stages(shards.strategies, shards.num_ranks),
    )


def check_fits(base: ShardedBase, plan: SplitPlan) -> None:
    """Raise CheckpointError when ranks that split the model by ``plan`` need slices other than the stored ones."""
    why = _other_counts(base, plan) or _other_slices(base, plan)
    if why:
        raise CheckpointError(
            f"the shards of {base.folder} are not cut as this run cuts the model: {why}",
            hint=f"launcher merge-ckpt {base.folder} -o whole; then --checkpoint whole, "
            f"or launcher split-ckpt whole {_options(plan)} -o shards; then --checkpoint shards",
        )


def _other_counts(base: ShardedBase, plan: SplitPlan) -> str | None:
    if len(base.files) != plan.num_ranks:
        return f"it has shards of {len(base.files)} rank(s), the run has {plan.num_ranks}"
    if len(base.stages) != plan.pipeline_stage:
        return f"it is cut for {len(base.stages)} pipeline stage(s), the run has {plan.pipeline_stage}"
    return None


def _other_slices(base: ShardedBase, plan: SplitPlan) -> str | None:
    layers = names.num_layers(base.tensors)
    for stage, layouts in base.stages.items():
        for name, layout in layouts.items():
            tensor = base.tensors.get(name)
            if tensor is None:
                continue  # a layout of something that was not saved
            if stage not in stage_of(name, layers, plan):
                return f"{name} is in its stage {stage}, and not in that of the run"
            wanted = layout_of(name, tensor.shape, plan, nbytes=tensor.nbytes)
            if not _same_slices(layout, wanted, tensor.shape):
                return f"{name} is cut otherwise"
    return None


@functools.lru_cache(maxsize=1024)
def _same_slices(one: Layout, other: Layout, shape: Shape) -> bool:
    """Return whether every device holds the same part of a tensor of ``shape`` under both layouts."""
    try:
        return one.num_devices == other.num_devices and all(
            boxes(one, device, shape) == boxes(other, device, shape) for device in range(one.num_devices)
        )
    except LayoutError:
        return False


def _options(plan: SplitPlan) -> str:
    """Return the options of split-ckpt for ``plan``."""
    text = f"--dp {plan.data_parallel} --mp {plan.model_parallel} --pp {plan.pipeline_stage}"
    text += " --optimizer-parallel" if plan.optimizer_shards != 1 else ""
    return text + (" --cut-vocabulary" if plan.cut_vocabulary else "")
