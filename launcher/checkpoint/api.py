"""The functions of ``launcher.checkpoint``, which documents their purpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Union

import numpy as np

from launcher.checkpoint import convert, merge, split, steps
from launcher.checkpoint.dtypes import Array, numpy_dtype
from launcher.checkpoint.entries import SAFETENSORS
from launcher.checkpoint.shards import Moment, find_shards
from launcher.checkpoint.split_layout import THRESHOLD_KIB
from launcher.checkpoint.stream import load_adapters
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Output

AnyPath = Union[str, "PathLike[str]"]


def list_steps(folder: AnyPath, *, complete: bool = True) -> list[steps.Step]:
    """Return the steps in ``folder``, oldest first. complete: only steps that all ranks saved, in undamaged files.

    Raises CheckpointError when there are no shards, or a rank's folder is missing.
    """
    shards = find_shards(Path(folder))
    found = steps.list_steps(shards)
    if not complete:
        return found
    return [step for step in found if not (shards.missing(step.moment) or steps.damaged_ranks(shards, step.moment))]


class OpenStep(Mapping[str, Array]):
    """The whole tensors of one step by MindFormers' names, assembled on access.

    number: the step. scale: that of all LoRA adapters, None when there are none or each has its own.
    """

    def __init__(self, plan: merge.MergePlan) -> None:
        self._outputs = {output.name: output for output in plan.outputs}
        self.number = plan.step
        self.scale = plan.scale

    def __getitem__(self, name: str) -> Array:
        """The tensor ``name`` in its shape and dtype. Raises KeyError, or CheckpointError for a damaged file."""
        return _array(self._outputs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of ``name``, without reading it."""
        return self._outputs[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of ``name`` ("float32", "bfloat16", ...), without reading it."""
        return self._outputs[name].dtype


def _array(output: Output) -> Array:
    array = output.whole.read()
    if output.fold is not None:
        lora_a, scaled_b = load_adapters(output.fold)
        array = array.astype(np.float32) + scaled_b @ lora_a
    with np.errstate(over="ignore"):
        return array.astype(numpy_dtype(output.dtype), copy=False)


@contextmanager
def open_step(
    source: AnyPath | merge.Source, *, step: int | Moment | None = None, fold: bool = True, optimizer: bool = False
) -> Iterator[OpenStep]:
    """Open the tensors of a step: the newest complete one, or ``step``: a number, or (epoch, step in the epoch).

    source: a folder, or what ``checkpoint.of_job.job_source`` makes of a job. fold: W + alpha / r * B A in place of W
    (out, in), lora_a (r, in) and lora_b (out, r); else the three stay separate. optimizer: with its state and counters.
    Raises CheckpointError when the step is not complete or the shards are not what their strategy says.
    """
    options = merge.Options(step=step, fold=fold, with_optimizer=optimizer)
    with ExitStack() as stack:
        yield OpenStep(merge.plan_merge(_source(source), options, stack))


def merge_shards(
    source: AnyPath | merge.Source,
    output: AnyPath,
    *,
    step: int | Moment | None = None,
    layout: str = merge.MINDSPORE,
    dtype: str | None = None,
    model: AnyPath | None = None,
    verify_full: bool = False,
    force: bool = False,
) -> merge.Merged:
    """Merge a step into the folder ``output``, which appears whole or not at all.

    layout: "mindspore", "hf" or "peft". dtype: "float32", "float16", "bfloat16", or None to keep each tensor's own.
    model: a config.json or launcher_model.json, which "hf" needs. The same merge made before writes nothing.
    Raises CheckpointError when shards are incomplete, disagree or are damaged, or another merge is in ``output`` and
    not ``force``; HostError when the disk is full.
    """
    from launcher.checkpoint.of_job import read_model

    known = _source(source, read_model(Path(model)) if model else None)
    options = merge.Options(step=step, layout=layout, dtype=dtype, verify_full=verify_full)
    with ExitStack() as stack:
        return merge.merge(merge.plan_merge(known, options, stack), Path(output), force=force)


def convert_model(
    model: AnyPath, output: AnyPath, *, dtype: str | None = None, file_format: str = SAFETENSORS
) -> convert.Converted:
    """Convert a Hugging Face folder to MindFormers' layout, or a model in MindFormers' layout to Hugging Face's.

    file_format: "safetensors" or "ckpt", for MindFormers. Tensors keep their bytes unless ``dtype`` asks for another.
    Raises CheckpointError when ``model`` is of no known family or ``output`` exists; HostError when the disk is full.
    """
    with ExitStack() as stack:
        opened = convert.open_model(Path(model), None, stack)
        return convert.convert(opened, Path(output), dtype=dtype, file_format=file_format)


def split_checkpoint(
    file: AnyPath,
    output: AnyPath,
    *,
    data_parallel: int = 1,
    model_parallel: int = 1,
    pipeline_stage: int = 1,
    optimizer_shards: int = 1,
    optimizer_threshold_kib: int = THRESHOLD_KIB,
    cut_vocabulary: bool = False,
    file_format: str = SAFETENSORS,
) -> int:
    """Split a whole checkpoint into rank folders with strategy files: the inverse of merging. Return the rank count.

    optimizer_shards: among how many data-parallel copies axis 0 is cut again; -1 for all of them.
    optimizer_threshold_kib: smaller parameters are not cut so, as the run's parallel_optimizer_threshold says.
    cut_vocabulary: the rows of embedding and head are cut by tensor parallel too.
    Raises CheckpointError when a tensor cannot be cut evenly or ``output`` exists; HostError when the disk is full.
    """
    plan = split.SplitPlan(
        data_parallel=data_parallel,
        model_parallel=model_parallel,
        pipeline_stage=pipeline_stage,
        optimizer_shards=optimizer_shards,
        optimizer_threshold_kib=optimizer_threshold_kib,
        cut_vocabulary=cut_vocabulary,
    )
    with TensorFile(Path(file)) as source:
        return split.split(source, Path(output), plan, file_format=file_format)


def read_file(path: AnyPath) -> dict[str, Array]:
    """Read all tensors of a .ckpt or .safetensors file into memory. Raises CheckpointError when it is damaged."""
    with TensorFile(Path(path)) as file:
        return {name: file.array(name) for name in file.entries}


def _source(source: AnyPath | merge.Source, model: Mapping[str, Any] | None = None) -> merge.Source:
    if isinstance(source, merge.Source):
        return source
    return merge.Source(name=str(source), folder=Path(source), model=model)
