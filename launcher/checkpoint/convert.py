"""Convert whole models between Hugging Face's layout and MindFormers': renamed and streamed, never loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.checkpoint import huggingface
from launcher.checkpoint.base import listed, problems_of
from launcher.checkpoint.compare import identify
from launcher.checkpoint.dtypes import FLOATS
from launcher.checkpoint.entries import CKPT, SAFETENSORS
from launcher.checkpoint.gather import single_file
from launcher.checkpoint.merge import HF, MINDSPORE, OnProgress
from launcher.checkpoint.model_files import (
    CKPT_WEIGHTS,
    CONVERT_RECORD,
    MODEL_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIGS,
    TOKENIZER_JSON,
    WEIGHTS,
)
from launcher.checkpoint.stream import PlannedFile, planned, write_file
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Output, Whole, woven
from launcher.checkpoint.verify import Verified, verify_files
from launcher.common.folders import check_target, is_taken, only_new, only_writer, sync_file, whole_folder
from launcher.errors import CheckpointError
from launcher.models import names
from launcher.models.registry import (
    check_model,
    family_of,
    hf_names,
    known_text,
    mindspore_name,
    model_of_config,
    part_shapes,
    runs_of,
    shapes_of,
)

# How many tokens a row trains on in the run spec that is suggested, where the model could take more.
TRAINED_LENGTH = 4096
# Buffers that old transformers versions saved: computed from the config, no weights.
_BUFFERS = ("rotary_emb.inv_freq", "attn.masked_bias")
# Files of a Hugging Face model that go along, so that the way back is complete.
_ALONG = (huggingface.CONFIG, "generation_config.json", TOKENIZER, TOKENIZER_JSON, *TOKENIZER_CONFIGS)


@dataclass(frozen=True, kw_only=True)
class Model:
    """An open model. ``tensors`` by MindFormers' names, without a head where that is the embedding; model: the model
    section of a run spec; config: the transformers config.json it has or came from."""

    folder: Path
    layout: str
    tensors: Mapping[str, Whole]
    model: Mapping[str, Any]
    config: Mapping[str, Any]
    template: str | None
    files: Sequence[TensorFile]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of a conversion. ``notes``: for the user."""

    folder: Path
    layout: str
    num_weights: int
    size: int
    verified: Verified
    model: Mapping[str, Any]
    notes: tuple[str, ...]


def open_model(source: Path, config: Path | None, stack: ExitStack) -> Model:
    """Open a transformers folder, a folder that the launcher wrote, or a single weights file with ``config``.

    Raises CheckpointError when it is none of these, or of no known family.
    """
    folder = source if source.is_dir() else source.parent
    paths = _weight_paths(source)
    opened = [stack.enter_context(TensorFile(path)) for path in paths]
    found = {name: whole for file in opened for name, whole in single_file(file).items()}
    layout = HF if names.embedding_in(found) is None else MINDSPORE
    model, original, template = _description(folder, config)
    tensors = found if layout == MINDSPORE else _by_our_names(found, model)
    if model.get("tie_word_embeddings"):  # transformers ties whatever a file has for the head
        tensors = {name: whole for name, whole in tensors.items() if name not in names.HEADS}
    _check(tensors, model, source)
    return Model(
        folder=folder,
        layout=layout,
        tensors=tensors,
        model=model,
        config=original,
        template=template,
        files=opened,
    )


def _check(tensors: Mapping[str, Whole], model: Mapping[str, Any], source: Path) -> None:
    """Raise CheckpointError with all differences between ``tensors`` and ``model``."""
    problems = list(problems_of({name: (whole.shape, whole.dtype) for name, whole in tensors.items()}, model))
    if problems:
        raise CheckpointError(
            listed(f"the weights of {source} are not those of the model that its description says", problems),
            hint="give the config.json or launcher_model.json that belongs to them: --config FILE; "
            "merge the ranks' shards first: launcher merge-ckpt",
        )


def _weight_paths(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CheckpointError(f"no file or folder {source}", hint="give a folder with config.json and safetensors")
    index = source / huggingface.INDEX
    if index.is_file():
        return _indexed(source, huggingface.read_json(index))
    found = [path for name in (WEIGHTS, CKPT_WEIGHTS) if (path := source / name).is_file()]
    if found:
        return found[:1]
    if (source / "job.json").is_file():
        raise CheckpointError(
            f"{source} is a job's folder", hint=f"launcher merge-ckpt {source.name} makes a model of it"
        )
    apart = next(source.glob("base.*"), None)
    if apart is not None:
        raise CheckpointError(
            f"{source} holds base and adapters in separate files",
            hint=f"give the base, {apart}; infer takes --adapter {source}",
        )
    pickled = any(source.glob("*.bin")) or any(source.glob("*.pth"))
    save = f"save_pretrained('{source}-safetensors')"
    raise CheckpointError(
        f"{source} has no {WEIGHTS}" + (", only pickled weights, which are not opened" if pickled else ""),
        hint='save it as safetensors: python -c "import transformers as t; '
        f"t.AutoModelForCausalLM.from_pretrained('{source}', torch_dtype='auto').{save}; "
        f"t.AutoTokenizer.from_pretrained('{source}').{save}\"",
    )


def _indexed(source: Path, index: Mapping[str, Any]) -> list[Path]:
    weight_map = index.get("weight_map")
    files = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{source / huggingface.INDEX} names a file {name!r}", hint="fetch the model again")
        if not (source / name).is_file():
            raise CheckpointError(f"{source} lacks {name}", hint="fetch the model again")
    if not files:
        raise CheckpointError(f"{source / huggingface.INDEX} lists no files", hint="fetch the model again")
    return [source / name for name in files]


def _by_our_names(found: Mapping[str, Whole], model: Mapping[str, Any]) -> dict[str, Whole]:
    """Return the tensors of transformers by MindFormers' names, those that it fuses woven into one.

    Raises CheckpointError for tensors that the family does not have, and for parts of a fused one that do not fit.
    """
    family, parts = family_of(model), dict[str, dict[str, Whole]]()
    for name, whole in found.items():
        if name.endswith(_BUFFERS):
            continue
        try:
            parts.setdefault(mindspore_name(family, name), {})[name] = whole
        except KeyError as error:
            raise CheckpointError(
                f"{name} is no weight of a {family.title}",
                hint="give the config.json that belongs to it: --config FILE",
            ) from error
    shapes = shapes_of(model)
    problems = [item for ours, some in parts.items() for item in _misfits(ours, some, shapes.get(ours), model)]
    if problems:
        raise CheckpointError(
            listed("the weights are not those of the model that its description says", problems),
            hint="give the config.json that belongs to them: --config FILE; fetch the model again if it lacks a weight",
        )
    return {ours: _joined(ours, some, model) for ours, some in parts.items()}


def _joined(ours: str, parts: Mapping[str, Whole], model: Mapping[str, Any]) -> Whole:
    theirs = hf_names(ours)
    if len(theirs) == 1:
        return replace(parts[theirs[0]], name=ours)
    return woven(ours, [replace(parts[name], name=ours) for name in theirs], runs_of(ours, model))


def _misfits(
    ours: str, parts: Mapping[str, Whole], shape: tuple[int, ...] | None, model: Mapping[str, Any]
) -> Iterator[str]:
    """Yield why ``parts`` of transformers cannot be woven into the weight ``ours`` of ``shape``."""
    theirs = hf_names(ours)
    yield from (f"{name} is missing" for name in theirs if name not in parts)
    if len(theirs) == 1 or shape is None:  # a layer too many is reported with the other sizes
        return
    wanted = part_shapes(ours, shape, model)
    for name, whole in parts.items():
        if whole.shape != wanted[name]:
            yield f"{name} is {list(whole.shape)}, not {list(wanted[name])}"
    if len({whole.dtype for whole in parts.values()}) > 1:
        yield f"{', '.join(parts)} are of several dtypes, and one layer in MindFormers"


def _description(folder: Path, config: Path | None) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Return the model section, the transformers config if there is one, and the chat template of training."""
    original = folder / huggingface.CONFIG
    own = folder / MODEL_CONFIG
    given = config or next((path for path in (own, original) if path.is_file()), None)
    if given is None:
        raise CheckpointError(f"{folder} has no config.json", hint="give it as --config")
    read = huggingface.read_json(given)
    origin = huggingface.read_json(original) if original.is_file() else (read if "model_type" in read else {})
    try:
        if "model" in read:
            return check_model(read["model"]), origin, read.get("template")
        return _fit_for_a_run_spec(model_of_config(read)), origin, None
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"{given} does not describe a model that is known: {error}", hint=f"families are {known_text()}"
        ) from error


def _fit_for_a_run_spec(model: dict[str, Any]) -> dict[str, Any]:
    """Return ``model`` when it is valid in a run spec, for training and inference. Raises ValueError otherwise."""
    from pydantic import ValidationError

    from launcher.runspec.sections import ModelSpec

    try:
        ModelSpec.model_validate(model)
    except ValidationError as error:
        found = (
            (".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")) for item in error.errors()
        )
        raise ValueError("; ".join(": ".join(filter(None, item)) for item in found)) from error
    return model


# ------------------------------------------------------------------------------------------------ writing


def convert(
    model: Model,
    target: Path,
    *,
    file_format: str = SAFETENSORS,
    dtype: str | None = None,
    max_shard_bytes: int = huggingface.SHARD_BYTES,
    verify_full: bool = False,
    on_progress: OnProgress | None = None,
) -> Converted:
    """Write ``model`` in the other layout into the folder ``target``, which appears whole or not at all.

    Raises CheckpointError when ``target`` exists, HostError when the disk is full.
    """
    with only_new(target) as place:
        made = _convert(model, place, file_format, dtype, max_shard_bytes, verify_full, on_progress)
    return replace(made, folder=target)


def convert_once(model: Model, target: Path) -> None:
    """Write ``model`` in the other layout into ``target`` unless it exists; of several processes exactly one writes.

    Raises HostError when the disk is full.
    """
    with only_writer(target):
        if not is_taken(target):
            _convert(model, target, SAFETENSORS, None, 0, False, None)


def verify_converted(model: Model, target: Path) -> None:
    """Compare every value of what ``convert_once`` made of ``model`` with it. Raises CheckpointError."""
    outputs = [_output(name, whole, None) for name, whole in model.tensors.items()]
    verify_files({target / WEIGHTS: huggingface.in_order(outputs)}, full=True)


def _convert(
    model: Model,
    target: Path,
    file_format: str,
    dtype: str | None,
    max_shard_bytes: int,
    verify_full: bool,
    on_progress: OnProgress | None,
) -> Converted:
    to_hf = model.layout == MINDSPORE
    outputs = [_output(name, whole, dtype) for name, whole in model.tensors.items()]
    if to_hf:
        files = huggingface.weight_files(outputs, max_shard_bytes, model.model)
        texts = _hf_texts(model, files)
    else:
        name = CKPT_WEIGHTS if file_format == CKPT else WEIGHTS
        files = [planned(name, huggingface.in_order(outputs), file_format, "mindformers")]
        texts = _mindspore_texts(model)
    check_target(target, sum(file.bytes.size for file in files))
    verified = _write(model, target, files, texts, verify_full=verify_full, on_progress=on_progress)
    return Converted(
        folder=target,
        layout=HF if to_hf else MINDSPORE,
        num_weights=len(outputs),
        size=sum(file.bytes.size for file in files),
        verified=verified,
        model=model.model,
        notes=tuple(_notes(model)),
    )


def _output(name: str, whole: Whole, dtype: str | None) -> Output:
    return Output(name=name, dtype=dtype if dtype and whole.dtype in FLOATS else whole.dtype, whole=whole)


def _hf_texts(model: Model, files: Sequence[PlannedFile]) -> dict[str, bytes]:
    description = {"model": model.model, "template": model.template}
    tokenizer = model.folder / TOKENIZER
    texts = huggingface.model_texts(description, model.folder / "_", tokenizer if tokenizer.is_file() else None, files)
    # What a model from Hugging Face came with stays, but for its config.json.
    return texts | {name: text for name, text in _along(model.folder).items() if name != huggingface.CONFIG}


def _mindspore_texts(model: Model) -> dict[str, bytes]:
    return _along(model.folder)


def _along(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name in _ALONG if (path := folder / name).is_file()}


def _write(
    model: Model,
    target: Path,
    files: Sequence[PlannedFile],
    texts: Mapping[str, bytes],
    *,
    verify_full: bool,
    on_progress: OnProgress | None,
) -> Verified:
    total = sum(output.nbytes for file in files for output in file.outputs)

    def on_bytes(count: int) -> None:
        if on_progress is not None:
            on_progress(count, total)

    record = {"inputs": [item.record() for item in identify(model.files, full=verify_full)], "model": dict(model.model)}
    with whole_folder(target, replace=False) as scratch:
        for file in files:
            write_file(scratch / file.name, file.bytes, on_bytes)
        verified = verify_files({scratch / file.name: file.outputs for file in files}, full=verify_full)
        (scratch / CONVERT_RECORD).write_text(json.dumps(record, indent=2) + "\n")
        for name, content in texts.items():
            (scratch / name).write_bytes(content)
        for path in scratch.iterdir():
            sync_file(path)
    return verified


def _notes(model: Model) -> list[str]:
    notes = []
    ends = model.config.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        notes.append(f"eos_token_id is {ends}; a run spec has one: {model.model['eos_token_id']}")
    if model.layout == HF and model.model["seq_length"] > TRAINED_LENGTH:
        notes.append(f"the model takes {model.model['seq_length']} tokens; seq_length is how many a row trains on")
    return notes


def run_section(model: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the model section for a run spec that trains ``checkpoint``."""
    length = min(model["seq_length"], TRAINED_LENGTH)
    return {key: value for key, value in model.items() if value is not None} | {
        "seq_length": length,
        "checkpoint": str(checkpoint),
    }
