"""Split a whole checkpoint into the shards of a plan, with their strategy files: the inverse of merging."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from launcher.checkpoint.entries import SAFETENSORS, Entry
from launcher.checkpoint.gather import single_file
from launcher.checkpoint.layout import Box, boxes
from launcher.checkpoint.model_check import check_floats
from launcher.checkpoint.split_layout import SplitPlan as SplitPlan
from launcher.checkpoint.split_layout import layout_of, stage_of
from launcher.checkpoint.strategy import Layout, write_strategy
from launcher.checkpoint.stream import plan_file, write_file
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Output, Piece, Whole
from launcher.common.folders import check_target, only_new, sync_file, whole_folder
from launcher.errors import CheckpointError
from launcher.models import names, registry


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
