"""LoRA adapters on top of a base model: from a job, a folder of peft, or a file of MindFormers' names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from launcher.checkpoint.gather import single_file
from launcher.checkpoint.huggingface import peft_names
from launcher.checkpoint.lora import read_single_scale
from launcher.checkpoint.record import read_record
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Whole
from launcher.errors import CheckpointError
from launcher.inference.model import Model
from launcher.inference.weights import Tensors, in_parts
from launcher.jobs import JobPaths, JobRecord, JobStore, find_job_or_path, is_job_folder
from launcher.models import names

FILES = ("adapter_model.safetensors", "adapter.safetensors", "adapter.ckpt")
_SUFFIXES = (".safetensors", ".ckpt")


class OfJob(Protocol):
    """Builds a model from a job's newest step, with its adapters beside the weights."""

    def __call__(self, paths: JobPaths, record: JobRecord, *, folded: bool, adapters: bool) -> Model: ...


def with_adapter(model: Model, reference: str, jobs_dir: Path, of_job: OfJob) -> Model:
    """Return ``model`` with the adapter that ``reference`` names, kept apart from the weights.

    A job, a folder (peft's adapter_model.safetensors, or what ``merge-ckpt --no-fold`` wrote), or a file beside its
    adapter_config.json. Raises CheckpointError when there is no adapter, or it is in the weights of ``model`` already;
    JobError when there is no such job.
    """
    path = Path(reference)
    if path.is_file() or (path.is_dir() and not is_job_folder(path)):
        _check_not_folded(model, _record(path).get("source"))
        return _of_file(model, path)
    return _of_job(model, reference, jobs_dir, of_job)


def _check_not_folded(model: Model, source: str | None) -> None:
    """Raise CheckpointError when ``model`` is, or was merged from, the job that trained the adapter."""
    record = _record(model.where)
    merged = record.get("source") if record.get("folded") else None
    if source is None or source not in (merged, model.folded):
        return
    raise CheckpointError(
        f"the weights of {model.name} have the adapter of {source} in them: it would be applied twice",
        hint="leave --adapter out, or name the base that the job was trained on",
    )


def _record(path: Path) -> dict[str, Any]:
    """Return the record of the merge that made the weights or adapters at ``path``; empty where there is none."""
    try:
        return read_record(path if path.is_dir() else path.parent)
    except CheckpointError:
        return {}


def _of_job(model: Model, reference: str, jobs_dir: Path, of_job: OfJob) -> Model:
    paths, record = find_job_or_path(reference, jobs_dir) or JobStore(jobs_dir).get(reference)
    _check_not_folded(model, record.job_id)
    adapted = of_job(paths, record, folded=False, adapters=True)

    def tensors(stack: ExitStack) -> Tensors:
        found = adapted.open(stack)
        if not found.adapters:
            raise CheckpointError(f"job {record.job_id} trained no LoRA", hint="ask it without --adapter")
        return replace(model.open(stack), adapters=found.adapters, scale=found.scale)

    # Prompt and answer are as long as the adapter has seen them, whatever its base was made with.
    model = model.with_context(adapted.context, max(model.longest, adapted.longest))
    return replace(
        model,
        name=f"{model.name} + {record.job_id}",
        open=tensors,
        tokenizer=adapted.tokenizer or model.tokenizer,
        template_name=adapted.template_name or model.template_name,
        notes=(*model.notes, *adapted.notes),
    )


def _of_file(model: Model, path: Path) -> Model:
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None or file.suffix not in _SUFFIXES:
        raise CheckpointError(f"{path} holds no adapter", hint=f"give a job, or a folder with {FILES[0]}")
    scale = _scale(file.parent)

    def tensors(stack: ExitStack) -> Tensors:
        found = _adapters(single_file(stack.enter_context(TensorFile(file))), model)
        if not found:
            raise CheckpointError(f"{file} holds no LoRA adapter of this model", hint="give the adapter's file")
        return replace(model.open(stack), adapters=found, scale=scale)

    return replace(model, name=f"{model.name} + {path}", open=tensors)


def _adapters(found: Mapping[str, Whole], model: Model) -> dict[str, Whole]:
    """Return the adapters in ``found`` by the names of the network's layers."""
    ours = {name: whole for name, whole in found.items() if names.is_adapter(name)}
    if ours:
        return dict(in_parts(Tensors(weights={}, adapters=ours), model.spec.model_dump()).adapters)
    family, numbers = model.spec.architecture, range(model.spec.num_layers)
    layers = names.SCHEMES[family.route].layers
    paths = [f"{layers}.{number}.{family.path_of(layer)}" for number in numbers for layer in family.linear_layers]
    sides = [side for path in paths for side in names.adapters_of(f"{path}.weight")]
    # What peft adapts is a part of a layer where the family fuses layers, and keeps its name.
    wanted = {name: name if family.fused else side for side in sides for name in peft_names(side)}
    return {wanted[name]: replace(whole, name=wanted[name]) for name, whole in found.items() if name in wanted}


def _scale(folder: Path) -> float:
    """Return alpha / r, from adapter_config.json or the adapter.json of ``merge-ckpt --no-fold``."""
    own = folder / "adapter.json"
    if own.is_file():
        try:
            return float(json.loads(own.read_text(encoding="utf-8"))["scale"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{own} does not say the scale: {error}", hint="merge again") from error
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{folder} has no adapter_config.json to say lora_alpha and r", hint="put it beside the adapter"
        )
    return read_single_scale(config)
