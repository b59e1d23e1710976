"""Resolve a reference on the command line to a model's weights, architecture, tokenizer and template.

A job, a folder that merge-ckpt wrote, a folder of transformers, a .ckpt or .safetensors file, a folder of shards; and
an adapter on top of any of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from launcher.checkpoint.convert import open_model
from launcher.checkpoint.huggingface import CONFIG, asked_model_of_config, template_of_chat
from launcher.checkpoint.merge import Options, Source, plan_merge
from launcher.checkpoint.model_files import CKPT_WEIGHTS, MODEL_CONFIG, WEIGHTS
from launcher.checkpoint.record import read_record
from launcher.checkpoint.shards import Moment, find_shards
from launcher.checkpoint.steps import choose_step
from launcher.checkpoint.tensors import Output
from launcher.cluster.discover import ascend_device_ids
from launcher.data.tokenizer import find_tokenizer, load_tokenizer, stand_in_pad
from launcher.errors import CheckpointError, DataError
from launcher.inference import adapters
from launcher.inference.model import Model, is_for_cpu
from launcher.inference.weights import OpenTensors, Tensors, in_parts
from launcher.jobs import JobPaths, JobRecord, find_job_or_path
from launcher.models import names
from launcher.models.generation import generation_section
from launcher.runspec.folders import OWN_TEMPLATE, OWN_TEMPLATES, chat_template_file, chat_template_of
from launcher.runspec.sections import GenerationSection, ModelSpec

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Given:
    """The user's options for a model beside its reference; None where not given."""

    adapter: str | None = None
    config: Path | None = None
    tokenizer: Path | None = None
    template: str | None = None
    context: int | None = None


def find_model(reference: str, jobs_dir: Path, given: Given | None = None) -> Model:
    """Find the model that ``reference`` names: a job (an id, a prefix, "last"), a folder or a file.

    Raises JobError when there is none, CheckpointError when it is not a model, DataError for a bad tokenizer or
    template.
    """
    given = given or Given()
    model = _found(reference, jobs_dir, given)
    if given.adapter:
        model = adapters.with_adapter(model, given.adapter, jobs_dir, job_step)
    model = _with_given(model, given)
    model.check()
    return model


def _found(reference: str, jobs_dir: Path, given: Given) -> Model:
    job = find_job_or_path(reference, jobs_dir)
    return _path(Path(reference), given) if job is None else _job(*job, given)


def _with_given(model: Model, given: Given) -> Model:
    """Return ``model`` with the user's options in place of what was found."""
    if given.tokenizer:
        model = replace(model, tokenizer=given.tokenizer)
    if given.template:
        own = chat_template_file(model.tokenizer.parent) if model.tokenizer else None
        passed_over = model.template_name in OWN_TEMPLATES and given.template not in OWN_TEMPLATES
        said = f"prompts are in template {given.template}, not in the chat template of {own}"
        model = replace(model, template_name=given.template, notes=(*model.notes, *([said] if passed_over else [])))
    if is_for_cpu(model) and ascend_device_ids():
        said = f"a {model.spec.architecture.title} is computed by this host's processor, not by its cards"
        model = replace(model, notes=(*model.notes, said))
    longest = model.longest
    if not given.context and longest > model.spec.seq_length:
        said = f"prompt and answer have {model.spec.seq_length} tokens together; --context gives up to {longest}"
        model = replace(model, notes=(*model.notes, said))
    if given.context:
        if given.context > longest:
            raise DataError(f"--context {given.context}: {model.name} is made for {longest} tokens", hint="give less")
        model = model.with_context(given.context, longest)
    return model


def _changed(spec: ModelSpec, **values: Any) -> ModelSpec:
    return ModelSpec.model_validate({**spec.model_dump(), **values})


# ------------------------------------------------------------------------------------------------ jobs


def _job(paths: JobPaths, record: JobRecord, given: Given) -> Model:
    """Return the job's merged model, or its newest complete step folded in memory.

    Of a job that has not ended it is always the step: what was merged of it is older.
    """
    if record.is_final and _beside(paths.merged, (WEIGHTS, CKPT_WEIGHTS)) and (paths.merged / MODEL_CONFIG).is_file():
        model = _path(paths.merged, given)
        return replace(model, name=record.job_id, notes=(*model.notes, *_newer_step(paths, record)))
    return job_step(paths, record, folded=True)


def _newer_step(paths: JobPaths, record: JobRecord) -> tuple[str, ...]:
    """Return a note when the job has newer steps than its merge. Unreadable shards are ignored: the merged model is
    complete without them."""
    try:
        merged = read_record(paths.merged)["step"]
        newest = choose_step(find_shards(paths.root, num_ranks=record.cards), None).number
    except CheckpointError:
        return ()
    if not isinstance(merged, int) or newest is None or newest <= merged:
        return ()
    again = f"launcher merge-ckpt {record.job_id} --force"
    return (f"{record.job_id} was merged at step {merged}, it has step {newest} now: {again}",)


def job_step(
    paths: JobPaths, record: JobRecord, *, folded: bool, adapters: bool = False, moment: Moment | None = None
) -> Model:
    """Return the newest complete step of a job. folded: LoRA in the weights. adapters: beside them. Neither: without.

    Of a job that has not ended, what is opened later is the step that is found now; ``moment``: one found before.
    Raises CheckpointError when no step is complete.
    """
    from launcher.checkpoint.of_job import job_source

    source = job_source(paths, record)
    with ExitStack() as stack:
        plan = plan_merge(source, Options(step=moment), stack)
    moment = plan.chosen.moment if source.state else None
    said = f"{record.job_id} is not merged: folded in memory from step {plan.step}"
    if source.state:
        said = f"{record.job_id} is {source.state}: this is step {plan.step}, the newest that is complete"

    def tensors(stack: ExitStack) -> Tensors:
        return _shard_tensors(source, stack, folded=folded, adapters=adapters, moment=moment)

    described = _description(dict(source.model or {}), paths.spec, None)
    return Model(
        name=record.job_id,
        where=paths.root,
        open=tensors,
        tokenizer=source.tokenizer,
        notes=(said,) if folded or source.state else (),
        folded=record.job_id if folded else None,
        moment=moment,
        **described,
    )


def _shard_tensors(
    source: Source, stack: ExitStack, *, folded: bool, adapters: bool, moment: Moment | None = None
) -> Tensors:
    plan = plan_merge(source, Options(fold=folded, step=moment), stack)
    weights = {output.name: output for output in plan.outputs if names.is_weight(output.name)}
    apart = {output.name: output.whole for output in plan.outputs if names.is_adapter(output.name)}
    found = Tensors(weights=weights, adapters=apart if adapters else {}, scale=plan.scale or 1.0)
    return in_parts(found, dict(source.model or {})["model"])


# ------------------------------------------------------------------------------------------------ folders and files


def _path(path: Path, given: Given) -> Model:
    folder = path if path.is_dir() else path.parent
    config = given.config or next((file for name in (MODEL_CONFIG, CONFIG) if (file := folder / name).is_file()), None)
    if config is None:
        raise _no_model(path, folder)
    read = _read_json(config)
    found = find_tokenizer(given.tokenizer or folder)
    described = _description(read, config, found.path)
    if "model" not in read and found.path is not None:
        described["spec"] = _with_ids_of(found.path, described["spec"], read)
    notes = (found.note,) if found.note else ()
    sharded = path.is_dir() and any(path.glob("rank_*"))
    tensors = _shards(path, described["spec"]) if sharded else _whole(path, config)
    return Model(name=str(path), where=path, open=tensors, tokenizer=found.path, notes=notes, **described)


def _no_model(path: Path, folder: Path) -> CheckpointError:
    """Return the error for a ``path`` of which nothing says how the model is built, with what to do with it instead."""
    names_here = {path.name} if path.is_file() else {entry.name for entry in folder.iterdir()}
    if any(name.endswith(".gguf") for name in names_here):
        hint = "a .gguf file is for llama.cpp and ollama: give the job or folder that it was made of"
    elif names_here.intersection(adapters.FILES):
        hint = f"it holds an adapter: launcher infer BASE --adapter {path}"
    else:
        hint = "give one that describes it: --config FILE"
    return CheckpointError(
        f"{folder} has no {MODEL_CONFIG} nor {CONFIG}: how the model is built is not known", hint=hint
    )


def _with_ids_of(tokenizer: Path, spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """Return ``spec`` with the special tokens that config.json leaves out taken from the tokenizer.

    Ids beyond the model's vocabulary are not taken: a foreign tokenizer is reported where the two are compared.
    """
    missing = [key for key in _SPECIAL_IDS if config.get(key) is None]
    if not missing or not tokenizer.is_file():
        return spec
    loaded = load_tokenizer(tokenizer)
    own = {"bos_token_id": loaded.bos_id, "eos_token_id": loaded.eos_id, "pad_token_id": stand_in_pad(loaded)}
    own["bos_token_id"] = loaded.eos_id if loaded.bos_id is None else loaded.bos_id
    known = {key: token for key in missing if (token := own[key]) is not None and token < spec.vocab_size}
    return _changed(spec, **known)


def exported_template_name(folder: Path) -> str | None:
    """Return the launcher's template that merge-ckpt wrote the chat template of ``folder`` from, if it did."""
    own = chat_template_file(folder)
    return template_of_chat(str(chat_template_of(_read_json(own)))) if own and own.suffix == ".json" else None


def _shards(folder: Path, spec: ModelSpec) -> OpenTensors:
    source = Source(name=str(folder), folder=folder, model={"model": spec.model_dump(mode="json")})
    return lambda stack: _shard_tensors(source, stack, folded=True, adapters=False)


def _whole(path: Path, config: Path) -> OpenTensors:
    def tensors(stack: ExitStack) -> Tensors:
        found = open_model(path, config, stack)
        weights = {name: whole for name, whole in found.tensors.items() if names.is_weight(name)}
        outputs = {name: Output(name=name, dtype=whole.dtype, whole=whole) for name, whole in weights.items()}
        return in_parts(Tensors(weights=outputs), found.model)

    return tensors


def _beside(folder: Path, wanted: tuple[str, ...]) -> Path | None:
    return next((file for name in wanted if (file := folder / name).is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", hint="give another: --config FILE") from error
    return found


def _description(found: Mapping[str, Any], path: Path, tokenizer: Path | None) -> dict[str, Any]:
    """Read launcher_model.json or a transformers config.json: spec, template, dtypes and ends.

    A model of transformers has the chat template beside its tokenizer, if there is one.

    Raises CheckpointError when it does not describe a model of a known family.
    """
    try:
        if "model" in found:
            precision = found.get("precision") or {}
            return {
                "spec": ModelSpec.model_validate(found["model"]),
                "template_name": found.get("template"),
                "params_dtype": precision.get("params") or "float32",
                "compute_dtype": precision.get("compute") or "float32",
                "generation": GenerationSection.model_validate(found.get("generation") or {}),
            }
        return _transformers(found, path.parent, tokenizer)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not describe a model that is known: {_first_line(error)}",
            hint="give the config.json or launcher_model.json that belongs to the weights: --config FILE",
        ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]


def _transformers(config: Mapping[str, Any], folder: Path, tokenizer: Path | None) -> dict[str, Any]:
    has_own = tokenizer is not None and chat_template_file(tokenizer.parent) is not None
    template = exported_template_name(folder) or (OWN_TEMPLATE if has_own else None)
    generation = folder / "generation_config.json"
    named = _read_json(generation) if generation.is_file() else {}
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "float32")
    return {
        "spec": ModelSpec.model_validate(asked_model_of_config(config)),
        "template_name": template,
        "params_dtype": dtype,
        "compute_dtype": dtype,
        "ends": _ids(named.get("eos_token_id")) or _ids(config.get("eos_token_id")),
        "generation": GenerationSection.model_validate(generation_section(named)),
    }


def _ids(value: Any) -> tuple[int, ...]:
    """Return the ids that transformers writes as null, a number or a list."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
