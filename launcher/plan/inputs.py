"""The input files of a run: found and checked before anything is spawned, sample data made when the spec wants it."""

from __future__ import annotations

import glob
import json
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launcher.checkpoint.model_files import CKPT_WEIGHTS, WEIGHTS
from launcher.common import resources
from launcher.common.nearest import path_hint
from launcher.data import sample_set
from launcher.data.encodings import checked_encoding
from launcher.data.info import DatasetInfo, read_info, shared_warning, whole_info
from launcher.data.options import Mix, PreprocessOptions, eval_path, overflow_of
from launcher.data.outputs import file_sha256
from launcher.data.reading import DataSource, Reading, checked_columns
from launcher.data.seen import LostTextError
from launcher.data.tokenizer import TokenizerInfo, check_special_ids, find_tokenizer
from launcher.errors import CheckpointError, DataError, JobError, LauncherError, Note, SpecError
from launcher.jobs import JobPaths, is_job_folder
from launcher.plan.hints import for_large_tokenizer, for_missing_base, for_missing_tokenizer
from launcher.plan.launch_plan import Inputs
from launcher.runspec.sections import ModelSpec, RunSpec, SourceSpec
from launcher.upstream.packed_rows import SEAMS

# What reads weights comes with numpy, and a run on random weights has no base.
if TYPE_CHECKING:
    from launcher.checkpoint.base import Base
    from launcher.checkpoint.hf_folder import FolderBase
    from launcher.checkpoint.sharded import ShardedBase

ROWS_SUFFIX = ".mindrecord"
WEIGHTS_SUFFIXES = (".safetensors", ".ckpt")


class Pending(Protocol):
    """Data that does not exist yet and can be made."""

    def describe(self) -> str:
        """Return a description of the data and of its place."""

    def make(self) -> None:
        """Make the data, whole or not at all."""


@dataclass(frozen=True, kw_only=True)
class PendingRows:
    """Rows of a raw dataset that is not tokenized yet."""

    options: PreprocessOptions

    def describe(self) -> str:
        return f"tokenizing {self.options.found.shown} to {self.options.target}"

    def make(self) -> None:
        from launcher.data.preprocess import preprocess

        try:
            preprocess(self.options, force=True)
        except LostTextError as error:
            raise DataError(error.message, hint=_ignoring(error, self.options)) from error
        except DataError as error:
            sources = " ".join(shlex.quote(source.path) for source in self.options.sources)
            by_hand = f"launcher data preprocess {sources} --tokenizer {self.options.tokenizer}"
            own = f"{error.hint}; or " if error.hint else "mend it, or "
            raise DataError(error.message, hint=f"{own}make the rows by hand: {by_hand} --help") from error


@dataclass(frozen=True, kw_only=True)
class PendingAll:
    """Several pieces of data that do not exist yet."""

    parts: tuple[Pending, ...]

    def describe(self) -> str:
        return "; ".join(part.describe() for part in self.parts)

    def make(self) -> None:
        for part in self.parts:
            part.make()


def _ignoring(error: LostTextError, options: PreprocessOptions) -> str:
    """Return what to type so that a run leaves out the texts that no part of a conversation is made of."""
    if any(source.reading.key or source.weight is not None for source in options.sources):
        return f"add to that source in data.train: ignore: {json.dumps(error.names, ensure_ascii=False)}"
    sources = [{"path": _below_here(source.path), "ignore": list(error.names)} for source in options.sources]
    return (
        f"--set {shlex.quote('data.train=' + json.dumps(sources, ensure_ascii=False))} leaves it out; columns in place "
        "of ignore say what it is (docs/data.md)"
    )


def _below_here(path: str) -> str:
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def estimated(found: Inputs, pending: Pending) -> Inputs:
    """Return ``found`` with about what each source of its rows gives, when these are made of raw records.

    Raises DataError for what would stop their making, as far as the first records of each source tell.
    """
    options = rows_to_make(found, pending)
    if options is None:
        return found
    from launcher.data.estimate import about_rows, estimate

    try:
        sources = tuple(estimate(options))
    except LostTextError as error:
        raise DataError(error.message, hint=_ignoring(error, options)) from error
    rows, held_out = about_rows(options, sources)
    return replace(found, sources=sources, about_rows=rows, about_held_out=held_out)


def rows_to_make(found: Inputs, pending: Pending) -> PreprocessOptions | None:
    """Return how the training rows of ``found`` are made, if ``pending`` makes them of raw records."""
    parts = pending.parts if isinstance(pending, PendingAll) else (pending,)
    rows = (part.options for part in parts if isinstance(part, PendingRows))
    return next((options for options in rows if str(options.target) == found.dataset), None)


def resolve(spec: RunSpec) -> tuple[Inputs, Pending | None]:
    """Return the absolute paths of all inputs of ``spec``, checked, and the data that must be made first, if any.

    Raises DataError, CheckpointError or SpecError, with everything that is wrong; nothing is written.
    """
    try:
        found, pending = rows_of(spec)
    except LauncherError as error:
        raise _with_other_faults(error, spec) from error
    return with_base(found, spec.model), _together(pending, pending_base(spec.model))


def _with_other_faults(error: LauncherError, spec: RunSpec) -> LauncherError:
    """Return ``error`` with what is wrong with tokenizer and base too: nobody mends one fault to be told of another."""
    faults = [error]
    for check in (_tokenizer_of_spec, _check_base):
        try:
            check(spec)
        except LauncherError as other:
            faults += [other] if other.message != error.message else []
    if len(faults) == 1:
        return error
    from launcher.checkpoint.base import listed

    told = (f"{fault.message}: {fault.hint}" if fault.hint else fault.message for fault in faults)
    return type(error)(listed("the inputs of this run", told), hint="each line says what to do")


def _check_base(spec: RunSpec) -> None:
    if spec.model.checkpoint is not None:
        find_base(spec.model.model_dump(mode="json"), spec.model.checkpoint)


def rows_of(spec: RunSpec) -> tuple[Inputs, Pending | None]:
    """Return the rows of training and evaluation, and the data to make first; the base may be missing.

    Raises DataError or SpecError.
    """
    found, pending = rows_of_training(spec)
    if spec.evaluation and spec.evaluation.data:
        held_out, more = _held_out(spec, spec.evaluation.data)
        notes = (*found.notes, *held_out.notes)
        found = replace(found, evaluation=held_out.dataset, evaluation_rows=held_out.rows, notes=notes)
        pending = _together(pending, more)
    return found, pending


def _together(*pending: Pending | None) -> Pending | None:
    parts = tuple(part for part in pending if part)
    return PendingAll(parts=parts) if len(parts) > 1 else next(iter(parts), None)


def _held_out(spec: RunSpec, path: str) -> tuple[Inputs, Pending | None]:
    """Find the rows of evaluation, which are made like those of training."""
    if len(spec.data.input_columns) > 2:
        raise SpecError(
            f"data.input_columns has {len(spec.data.input_columns)} columns; evaluation reads input_ids and labels",
            hint="leave evaluation out, or set data.input_columns: [input_ids, labels]",
        )
    if spec.data.sample and _is_raw(path):
        raise SpecError(
            f"evaluation.data {path} is raw, and data.sample makes its own tokenizer",
            hint="launcher data preprocess makes rows of it, with the tokenizer that launcher submit says",
        )
    return _dataset(spec, "evaluation.data", path)


def with_base(found: Inputs, model: ModelSpec) -> Inputs:
    """Return ``found`` with the base checkpoint of ``model``, checked against it. Raises CheckpointError."""
    if model.checkpoint is None:
        return found
    base, shards = find_base(model.model_dump(mode="json"), model.checkpoint)
    notes = (*found.notes, *base.notes)
    return replace(found, checkpoint=str(base.path), base_dtypes=base.dtypes, notes=notes, shards=shards)


def pending_base(model: ModelSpec) -> Pending | None:
    """Return the base that must be converted first, or None. Raises CheckpointError."""
    base = _converted_base(model)
    return None if base is None or base.is_made else base


def verify_base(model: ModelSpec) -> str:
    """Compare a converted base with its folder, every value, and return a note. Raises CheckpointError."""
    base = _converted_base(model)
    if base is None:
        return "nothing to verify: the base is not converted from a Hugging Face folder"
    if not base.is_made:
        return "nothing to verify: the base is not converted yet"
    base.verify()
    return f"every value of the base {base.target} is that of {base.folder}"


def _converted_base(model: ModelSpec) -> FolderBase | None:
    """Return the base of ``model`` where it is a Hugging Face folder, converted or not. Raises CheckpointError."""
    folder = Path(os.path.abspath(model.checkpoint)) if model.checkpoint else None  # noqa: PTH100 - as below
    if folder is None:
        return None
    from launcher.checkpoint.hf_folder import is_hugging_face

    return _folder_base(folder, model.model_dump(mode="json")) if is_hugging_face(folder) else None


def _folder_base(folder: Path, model: Mapping[str, Any]) -> FolderBase:
    from launcher.checkpoint.hf_folder import folder_base

    return folder_base(folder, model, resources.cache_root() / "bases")


def find_base(model: Mapping[str, Any], checkpoint: str) -> tuple[Base, ShardedBase | None]:
    """Return the weights at ``checkpoint``, checked against ``model``, and their shards if they are in shards.

    ``model`` is the model section of a spec. Raises CheckpointError.
    """
    absolute = Path(_existing(checkpoint, "checkpoint", for_missing_base(), CheckpointError))
    if is_job_folder(absolute):
        raise CheckpointError(
            f"checkpoint {absolute} is a job's folder, not a base",
            hint=f"launcher merge-ckpt {absolute.name}; then --checkpoint {JobPaths(root=absolute).merged}",
        )
    from launcher.checkpoint.base import check_file, check_tensors
    from launcher.checkpoint.hf_folder import is_hugging_face
    from launcher.checkpoint.sharded import holds_shards, read_sharded

    if is_hugging_face(absolute):
        return _folder_base(absolute, model).base, None
    if not holds_shards(absolute):
        return check_file(_whole_file(absolute), model), None
    shards = read_sharded(absolute)
    whole = {name: (tensor.shape, tensor.dtype) for name, tensor in shards.tensors.items()}
    return check_tensors(whole, model, absolute), shards


def check_base_again(paths: JobPaths) -> None:
    """Check the base of a job that was planned before against its model again, as it may have changed since.

    Raises CheckpointError, and JobError when the job's own files cannot be read.
    """
    if not paths.plan.is_file():
        return
    try:
        base = json.loads(paths.plan.read_text(encoding="utf-8"))["checkpoint"]
        model = json.loads(paths.spec.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JobError(f"cannot read what {paths.job_id} trains: {error}", hint="launcher submit it anew") from error
    if base is not None:
        find_base(model, base)


def make_rows_again(paths: JobPaths) -> None:
    """Make the rows of a job that was planned before if they are gone: the cache may be emptied at any time.

    Raises DataError when what they were made of is gone, or has changed, and JobError when the job's own files cannot
    be read.
    """
    if not paths.plan.is_file():
        return
    try:
        plan = json.loads(paths.plan.read_text(encoding="utf-8"))
        planned = {plan[key] for key in ("dataset", "evaluation") if plan.get(key)}
        gone = sorted(rows for rows in planned if read_info(Path(rows)) is None)
        if not gone:
            return
        spec = RunSpec.model_validate_json(paths.spec.read_text(encoding="utf-8"), strict=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JobError(f"cannot read what {paths.job_id} trains: {error}", hint="launcher submit it anew") from error
    lost = f"{paths.job_id} trains on {gone[0]}, which is gone"
    hint = f"launcher submit --from {paths.job_id} begins anew with what is there"
    try:
        found, pending = rows_of(spec)
    except LauncherError as error:
        raise DataError(f"{lost} and cannot be made again: {error.message}", hint=hint) from error
    if pending is None or not {found.dataset, found.evaluation}.issuperset(gone):
        raise DataError(f"{lost}; what it was made of has changed", hint=hint)
    warnings.warn(f"the rows of {paths.job_id} are gone: {pending.describe()}", Note, stacklevel=2)
    pending.make()


def rows_of_training(spec: RunSpec) -> tuple[Inputs, Pending | None]:
    """Return the training rows of ``spec`` and the data to make first; no base. Raises DataError or SpecError."""
    if spec.data.sample:
        sample = sample_set.SampleSet(
            size=spec.data.sample.size,
            seed=spec.data.sample.seed,
            template=spec.data.template,
            vocab_size=spec.model.vocab_size,
            seq_length=spec.model.seq_length,
            packing=spec.data.packing,
        )
        found = Inputs(
            dataset=str(sample.dataset),
            rows=sample.rows,
            tokenizer=str(sample.tokenizer),
            checkpoint=None,
        )
        if not sample.exists():
            return found, sample
        info = read_info(sample.dataset)
        if info is None:
            return found, None
        return replace(found, rows=info.rows, notes=(*_losses("data.sample", info), *_packed(spec, info))), None
    if not isinstance(spec.data.train, str):
        return _raw(spec, "data.train", spec.data.sources)
    return _dataset(spec, "data.train", spec.data.train)


def _dataset(spec: RunSpec, key: str, path: str) -> tuple[Inputs, Pending | None]:
    """Return the rows named by ``key`` of the spec: a .mindrecord, or raw records, which are tokenized first."""
    if _is_raw(path):
        return _raw(spec, key, (SourceSpec(path=path),))
    dataset = _existing(path, "dataset", "launcher data preprocess makes one", DataError)
    return _ready(spec, key, dataset), None


def _is_raw(path: str) -> bool:
    return Path(path).suffix != ROWS_SUFFIX


def _source(given: SourceSpec) -> DataSource:
    """Return a source of the spec, its path absolute. Raises DataError when it does not exist or cannot be read."""
    is_pattern = glob.has_magic(given.path) and not Path(given.path).exists()
    hint = "launcher data preprocess --help says what is read"
    path = os.path.abspath(given.path) if is_pattern else _existing(given.path, "dataset", hint, DataError)  # noqa: PTH100
    reading = Reading(
        columns=checked_columns({str(part): column for part, column in given.columns.items()}),
        ignore=given.ignore,
        encoding=checked_encoding(given.encoding) if given.encoding else None,
        format=given.format,
        header=given.csv_header,
        quotes=given.csv_quotes == "double",
    )
    return DataSource(path=path, weight=given.weight, reading=reading)


def raw_options(spec: RunSpec, key: str, sources: Sequence[SourceSpec], tokenizer: str) -> PreprocessOptions:
    """Return how rows of raw records are made, before their place in the cache is known. Raises DataError."""
    is_training, data = key == "data.train", spec.data
    fraction = spec.evaluation.fraction if spec.evaluation and is_training else None
    return PreprocessOptions(
        source=tuple(map(_source, sources)),
        tokenizer=Path(tokenizer),
        target=Path("train.mindrecord" if is_training else "evaluation.mindrecord"),
        seq_length=spec.model.seq_length,
        template=data.template,
        kind=data.type,
        overflow=overflow_of(data.too_long),
        train_on=data.train_on,
        eval_fraction=fraction or 0.0,
        dedup=data.dedup,
        packing=data.packing,
        mix=Mix(by=data.mix.by, until=data.mix.until, seed=data.mix.seed),
    )


def _raw(spec: RunSpec, key: str, sources: Sequence[SourceSpec]) -> tuple[Inputs, Pending | None]:
    """Find the rows of raw records: tokenized once, cached under a hash of their inputs and options."""
    paths = [_source(source).path for source in sources]
    tokenizer = _tokenizer_of_spec(spec) or _tokenizer_of_base(spec)
    if tokenizer is None:
        raise SpecError(
            f"{key} {', '.join(paths)} is raw, and model.tokenizer is not given",
            hint=f"set model.tokenizer: {spec.model.architecture.tokenizer_file}; {for_missing_tokenizer(spec.model)}",
        )
    made_with = _checked_tokenizer(spec.model, tokenizer)
    from launcher.data.cache import in_cache  # with it comes all that makes rows

    options = in_cache(raw_options(spec, key, sources, tokenizer), resources.cache_root() / "datasets")
    info = whole_info(options.target)  # in the cache: what breaks off is made again
    notes = (*_choice_of_tokenizer(spec, tokenizer), *_other_tokenizers(spec, key, made_with), *options.found.notes)
    found = Inputs(dataset=str(options.target), rows=None, tokenizer=tokenizer, checkpoint=None, notes=notes)
    split = eval_path(options.target) if options.eval_fraction else None
    found = replace(found, evaluation=str(split) if split else None)
    if info is None:
        return found, PendingRows(options=options)
    held_out = whole_info(split) if split else None
    return replace(
        found,
        rows=info.rows,
        evaluation_rows=held_out.rows if held_out else None,
        notes=(*notes, *_losses(key, info), *_packed(spec, info), *_said_of(info), *_shared(held_out)),
        sources=tuple(info.stats.get("sources", ())),
    ), None


def _shared(held_out: DatasetInfo | None) -> Iterator[str]:
    """Yield a note on held-out records that are trained on too."""
    if held_out and (warning := shared_warning(held_out.counts)):
        yield warning


def _said_of(info: DatasetInfo) -> Iterator[str]:
    """Yield what was found out about the files, and how many records repeat others."""
    yield from info.stats.get("notes", ())
    if repeated := info.counts.get("repeated"):
        yield f"{repeated:,} records are exact duplicates of earlier ones: data.dedup: true leaves them out"


def _losses(key: str, info: DatasetInfo) -> Iterator[str]:
    """Yield a note for records that are cut or left out of the rows, where that is known."""
    cut, without_loss, lost = (info.counts.get(name, 0) for name in ("truncated", "without_loss", "lost_tokens"))
    if cut or without_loss:
        records, total = info.counts["conversations"], info.counts["loss_tokens"] + lost
        left_out = f", {without_loss:,} of them left out as nothing of their answer fits" if without_loss else ""
        yield (
            f"{cut:,} of {records:,} conversations of {key} are longer than seq_length {info.seq_length} and cut"
            f"{left_out}; {lost:,} of {total:,} tokens in the loss are lost ({lost / max(total, 1):.1%}){_enough(info)}"
        )
    if info.counts.get("dropped"):
        dropped = f"{info.counts['dropped']:,} conversations of {key}"
        yield f"{dropped} longer than seq_length {info.seq_length} are left out{_enough(info)}"


def _enough(info: DatasetInfo) -> str:
    """Return the seq_length that keeps 99 % of the samples whole, where more than 1 % are too long."""
    too_long = info.counts.get("truncated", 0) + info.counts.get("dropped", 0)
    needed = info.stats["lengths"]["p99"] - 1
    return f"; seq_length {needed:,} keeps 99 % whole" if too_long > info.counts["conversations"] / 100 else ""


def _packed(spec: RunSpec, info: DatasetInfo) -> Iterator[str]:
    """Yield a note on what packed rows change: a step sees more samples, and each counts by its tokens."""
    if spec.data.packing and info.counts:
        a_row = f"{info.samples_a_row:.1f}"
        yield f"packing: a row holds {a_row} samples on average, so a step sees as many times more (docs/data.md)"


def _ready(spec: RunSpec, key: str, dataset: str) -> Inputs:
    info = _rows(dataset)
    _check_packing(spec, key, info)
    tokenizer = _find_tokenizer(spec, info)
    _check_fit(spec, key, info, dataset)
    if tokenizer:
        _checked_tokenizer(spec.model, tokenizer)
    notes = (*_other_tokenizers(spec, key, info.tokenizer), *_losses(key, info), *_packed(spec, info), *_shared(info))
    return Inputs(dataset=dataset, rows=info.rows, tokenizer=tokenizer, checkpoint=None, notes=notes)


def _rows(dataset: str) -> DatasetInfo:
    """Read the description in a MindRecord file."""
    if not Path(f"{dataset}.db").is_file():
        raise DataError(f"dataset {dataset} lacks its index {dataset}.db", hint="copy both files: they belong together")
    info = read_info(Path(dataset))
    if info is None:
        raise DataError(f"dataset {dataset} is not a MindRecord file", hint="launcher data preprocess makes one")
    return info


def _check_packing(spec: RunSpec, key: str, info: DatasetInfo) -> None:
    """Check that the rows are packed if the spec says so, and only then; and that they have its columns."""
    if SEAMS in info.columns and not spec.data.packing:
        raise SpecError(
            f"the rows of {key} {info.path} are packed: without data.packing their samples would see each other",
            hint="set data.packing: true",
        )
    if spec.data.packing and SEAMS not in info.columns:
        raise SpecError(
            f"data.packing is true, but the rows of {key} {info.path} are not packed",
            hint="make them again with launcher data preprocess --packing, or set data.packing: false",
        )
    _check_columns(spec, info, str(info.path))


def _existing(path: str, what: str, hint: str, error: type[LauncherError]) -> str:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links and lose the user's name
    if not absolute.exists():
        raise error(f"{what} {path} does not exist (looked for {absolute})", hint=path_hint(Path(path), hint))
    if not os.access(absolute, os.R_OK):
        raise error(f"{what} {absolute} is not readable", hint=f"chmod u+r {absolute}")
    return str(absolute)


def _find_tokenizer(spec: RunSpec, info: DatasetInfo) -> str | None:
    """Return the spec's tokenizer, else the one with which the dataset was made, if it still exists."""
    if named := _tokenizer_of_spec(spec):
        return named
    if info.tokenizer and Path(info.tokenizer.path).is_file():
        return info.tokenizer.path
    return None


def _tokenizer_of_spec(spec: RunSpec) -> str | None:
    """Return the file that model.tokenizer names."""
    if not spec.model.tokenizer:
        return None
    named = _existing(spec.model.tokenizer, "tokenizer", for_missing_tokenizer(spec.model), DataError)
    return str(find_tokenizer(Path(named)).path or named)


def _tokenizer_of_base(spec: RunSpec) -> str | None:
    """Return the tokenizer beside the base's weights."""
    folder = _base_folder(spec)
    found = find_tokenizer(folder).path if folder else None
    return str(found) if found and found.is_file() else None


def _base_folder(spec: RunSpec) -> Path | None:
    base = Path(os.path.abspath(spec.model.checkpoint)) if spec.model.checkpoint else None  # noqa: PTH100 - as above
    if base is None or base.is_dir():
        return base
    return base.parent if base.is_file() else None


def _choice_of_tokenizer(spec: RunSpec, tokenizer: str) -> Iterator[str]:
    if not spec.model.tokenizer:
        yield f"model.tokenizer is not given: the base's {tokenizer} is taken"
    if note := find_tokenizer(Path(spec.model.tokenizer or tokenizer)).note:
        yield note


def _other_tokenizers(spec: RunSpec, key: str, made_with: TokenizerInfo | None) -> Iterator[str]:
    """Yield a note for each tokenizer of the run that cannot be compared with that of the rows.

    Raises SpecError when an id means one piece in the rows and another one to the model.
    """
    if made_with is None:
        return
    for what, place in (("model.tokenizer", _tokenizer_of_spec(spec)), ("the base's", _tokenizer_of_base(spec))):
        other = Path(place) if place else None
        if other is not None and other.is_file() and file_sha256(other) != made_with.sha256:
            yield from _compared(f"{key} was tokenized with {made_with.path}", made_with, what, other)


def _compared(begin: str, made_with: TokenizerInfo, what: str, other: Path) -> Iterator[str]:
    """Compare two tokenizers whose bytes differ piece by piece: one may be written in two ways, or in two formats."""
    from launcher.data.tokenizer import differing_id, load_tokenizer

    own = Path(made_with.path)
    hint = f"make the rows with it: launcher data preprocess --tokenizer {other}; or give the raw records as data.train"
    if not own.is_file() or file_sha256(own) != made_with.sha256:
        if own.suffix == other.suffix:
            raise SpecError(f"{begin}, which is no longer there and is not {what} {other}", hint=hint)
        yield f"{begin}, which is no longer there to be compared with {what} {other}"
        return
    rows, model = load_tokenizer(own), load_tokenizer(other)
    token = differing_id(rows, model)
    if token is not None:
        raise SpecError(
            f"{begin}, which is not {what} {other}: token {token} is {rows.piece(token)!r} in the rows and "
            f"{model.piece(token)!r} to the model",
            hint=hint,
        )


def _check_columns(spec: RunSpec, info: DatasetInfo, dataset: str) -> None:
    missing = [column for column in spec.data.input_columns if column not in info.columns]
    if missing:
        raise SpecError(
            f"data.input_columns names {', '.join(missing)}, but {dataset} has {', '.join(info.columns)}",
            hint=f"set data.input_columns: [{', '.join(info.columns)}]",
        )


def _check_fit(spec: RunSpec, key: str, info: DatasetInfo, dataset: str) -> None:
    length = spec.model.seq_length
    if info.seq_length not in (None, length):
        raise SpecError(
            f"model.seq_length is {length}, but the rows of {key} {dataset} were made for {info.seq_length}",
            hint=_other_length(spec, key, info.seq_length, Path(dataset)),
        )
    if info.tokenizer and info.tokenizer.vocab_size > spec.model.vocab_size:
        pieces = info.tokenizer.vocab_size
        raise SpecError(
            f"model.vocab_size is {spec.model.vocab_size}, but {dataset} was made with {pieces} pieces",
            hint=f"set model.vocab_size: {pieces}"
            if spec.model.checkpoint is None
            else "make the rows again with the base's own tokenizer: launcher data preprocess",
        )
    if info.template not in (None, spec.data.template):
        raise SpecError(
            f"data.template is {spec.data.template}, but {dataset} was made with {info.template}",
            hint=f"set data.template: {info.template}; answers are asked for with the template of training",
        )


def _other_length(spec: RunSpec, key: str, length: int | None, dataset: Path) -> str:
    """Return the hint for rows of another length; its command names an output of its own."""
    options = f"--seq-length {spec.model.seq_length} --template {spec.data.template}"
    again = f"launcher data preprocess RECORDS {options} -o {dataset.stem}-{spec.model.seq_length}.mindrecord"
    if key != "data.train":
        return f"evaluation takes rows of training's length: {again}"
    return f"set model.seq_length: {length}, or make others: {again}"


def _checked_tokenizer(model: ModelSpec, tokenizer: str) -> TokenizerInfo:
    """Return the info of ``tokenizer``. Raises SpecError when the spec's vocabulary or special tokens differ."""
    from launcher.data.tokenizer import load_tokenizer

    found = load_tokenizer(Path(tokenizer))
    if found.info.vocab_size > model.vocab_size:
        where = f" ({Path(model.folder) / 'config.json'})" if model.folder else ""
        raise SpecError(
            f"model.vocab_size is {model.vocab_size}{where}, but {tokenizer} has {found.info.vocab_size} pieces",
            hint=for_large_tokenizer(model, found.info.vocab_size),
        )
    check_special_ids(model, found)
    return found.info


def check_tokenizer(spec: RunSpec) -> None:
    """Check the spec's vocabulary and special tokens against its tokenizer, if that exists. Raises SpecError."""
    if spec.model.tokenizer and Path(spec.model.tokenizer).exists() and (file := _tokenizer_of_spec(spec)):
        _checked_tokenizer(spec.model, file)


def _whole_file(absolute: Path) -> Path:
    """Return the weights file at ``absolute``: itself, or the file of merge-ckpt or convert-ckpt in that folder."""
    if absolute.is_dir():
        return _weights_in(absolute)
    if absolute.suffix not in WEIGHTS_SUFFIXES:
        raise CheckpointError(
            f"checkpoint {absolute} is neither .safetensors nor .ckpt",
            hint="launcher convert-ckpt converts others",
        )
    return absolute


def _weights_in(folder: Path) -> Path:
    merged = next((path for name in (WEIGHTS, CKPT_WEIGHTS) if (path := folder / name).is_file()), None)
    if merged is None:
        raise CheckpointError(f"checkpoint folder {folder} has no {WEIGHTS}", hint="name the weights file")
    return merged
