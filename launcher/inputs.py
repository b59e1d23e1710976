"""The files a run reads: found and checked before anything is spawned, sample data made when the spec asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.data import sample_set
from launcher.data.info import DatasetInfo, read_info
from launcher.errors import CheckpointError, DataError, LauncherError, SpecError
from launcher.plan import Inputs
from launcher.spec import ModelSpec, RunSpec

WEIGHTS_SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Pending:
    """Sample data that is not there yet."""

    sample: sample_set.SampleSet

    def describe(self) -> str:
        return f"making {self.sample.size} rows in {self.sample.folder}"

    def make(self) -> None:
        self.sample.make()


def resolve(spec: RunSpec) -> tuple[Inputs, Pending | None]:
    """Absolute paths of everything ``spec`` reads, checked, and the sample data that must be made first, if any.

    Raises DataError, CheckpointError or SpecError; nothing is written.
    """
    checkpoint = find_checkpoint(spec.model.checkpoint) if spec.model.checkpoint else None
    evaluation = _find_evaluation(spec)
    if spec.data.sample:
        sample = sample_set.SampleSet(
            size=spec.data.sample.size,
            seed=spec.data.sample.seed,
            template=spec.data.template,
            vocab_size=spec.model.vocab_size,
            seq_length=spec.model.seq_length,
        )
        found = Inputs(
            dataset=str(sample.dataset),
            rows=sample.rows,
            tokenizer=str(sample.tokenizer),
            checkpoint=checkpoint,
            evaluation=evaluation,
        )
        return found, None if sample.exists() else Pending(sample=sample)
    return replace(_given(spec, checkpoint), evaluation=evaluation), None


def _find_evaluation(spec: RunSpec) -> str | None:
    """The held-out rows, held to the same rules as those of training."""
    return _existing_rows(spec, spec.evaluation.data)[0] if spec.evaluation else None


def _given(spec: RunSpec, checkpoint: str | None) -> Inputs:
    dataset, info = _existing_rows(spec, str(spec.data.train))
    tokenizer = _find_tokenizer(spec, info)
    if tokenizer:
        _check_vocabulary(spec.model, tokenizer)
    return Inputs(dataset=dataset, rows=info.rows, tokenizer=tokenizer, checkpoint=checkpoint)


def _existing_rows(spec: RunSpec, path: str) -> tuple[str, DatasetInfo]:
    dataset = _existing(path, "dataset", "launcher data preprocess makes one", DataError)
    if Path(dataset).suffix != ".mindrecord":
        raise DataError(f"dataset {dataset} is not a .mindrecord file", hint="launcher data preprocess makes one")
    if not Path(f"{dataset}.db").is_file():
        raise DataError(f"dataset {dataset} lacks its index {dataset}.db", hint="copy both files, they belong together")
    info = read_info(Path(dataset))
    if info is None:
        raise DataError(f"dataset {dataset} is not a MindRecord file", hint="launcher data preprocess makes one")
    _check_columns(spec, info, dataset)
    _check_fit(spec, info, dataset)
    return dataset, info


def _existing(path: str, what: str, hint: str, error: type[LauncherError]) -> str:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links and lose the user's name
    if not absolute.exists():
        raise error(f"{what} {path} does not exist (looked for {absolute})", hint=hint)
    if not os.access(absolute, os.R_OK):
        raise error(f"{what} {absolute} is not readable", hint=f"chmod u+r {absolute}")
    return str(absolute)


def _find_tokenizer(spec: RunSpec, info: DatasetInfo) -> str | None:
    """The spec's tokenizer, else the one that the dataset says it was made with, if it is still there."""
    if spec.model.tokenizer:
        return _existing(spec.model.tokenizer, "tokenizer", "launcher data tokenizer trains one", DataError)
    if info.tokenizer and Path(info.tokenizer.path).is_file():
        return info.tokenizer.path
    return None


def _check_columns(spec: RunSpec, info: DatasetInfo, dataset: str) -> None:
    missing = [column for column in spec.data.input_columns if column not in info.columns]
    if missing:
        raise SpecError(
            f"data.input_columns names {', '.join(missing)}, but {dataset} has {', '.join(info.columns)}",
            hint=f"set data.input_columns: [{', '.join(info.columns)}]",
        )


def _check_fit(spec: RunSpec, info: DatasetInfo, dataset: str) -> None:
    if info.seq_length not in (None, spec.model.seq_length):
        raise SpecError(
            f"model.seq_length is {spec.model.seq_length}, but the rows of {dataset} were made for {info.seq_length}",
            hint=f"set model.seq_length: {info.seq_length}, or preprocess with --seq-length {spec.model.seq_length}",
        )
    if info.tokenizer and info.tokenizer.vocab_size > spec.model.vocab_size:
        pieces = info.tokenizer.vocab_size
        raise SpecError(
            f"model.vocab_size is {spec.model.vocab_size}, but {dataset} was made with {pieces} pieces",
            hint=f"set model.vocab_size: {pieces}",
        )
    if info.template not in (None, spec.data.template):
        raise SpecError(
            f"data.template is {spec.data.template}, but {dataset} was made with {info.template}",
            hint=f"set data.template: {info.template}; answers are asked for with the template of training",
        )


def _check_vocabulary(model: ModelSpec, tokenizer: str) -> None:
    from launcher.data.tokenizer import load_tokenizer

    pieces = load_tokenizer(Path(tokenizer)).info.vocab_size
    if pieces > model.vocab_size:
        raise SpecError(
            f"model.vocab_size is {model.vocab_size}, but {tokenizer} has {pieces} pieces",
            hint=f"set model.vocab_size: {pieces}, or use the tokenizer of the base model",
        )


def find_checkpoint(path: str) -> str:
    """The weights file that ``path`` means: a file, or a folder that merge-ckpt wrote. Raises CheckpointError."""
    absolute = Path(_existing(path, "checkpoint", "launcher merge-ckpt JOB makes one", CheckpointError))
    if absolute.is_dir():
        merged = absolute / "model.safetensors"
        if not merged.is_file():
            raise CheckpointError(
                f"checkpoint folder {absolute} has no model.safetensors", hint="name the weights file"
            )
        return str(merged)
    if absolute.suffix not in WEIGHTS_SUFFIXES:
        raise CheckpointError(
            f"checkpoint {absolute} is neither .safetensors nor .ckpt",
            hint="launcher convert-ckpt converts others",
        )
    return str(absolute)
