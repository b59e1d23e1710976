"""Merge the shards of one step: plan, compare, stream, verify, and put the result in place whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.checkpoint import huggingface
from launcher.checkpoint.compare import (
    Identity,
    check_crc,
    check_not_copied,
    compare_copies,
    compared_ranks,
    identify,
    small_record,
)
from launcher.checkpoint.dtypes import FLOATS, Q8_0
from launcher.checkpoint.entries import CKPT, SAFETENSORS, DamagedFile
from launcher.checkpoint.gather import Gathered, OpenShards, gather, single_file
from launcher.checkpoint.lora import LoraConfig, only_scale, read_lora, recorded_scale, scales_text
from launcher.checkpoint.model_check import check_adapters, check_floats, check_model, check_moments
from launcher.checkpoint.model_files import CKPT_WEIGHTS, MODEL_CONFIG, WEIGHTS, tokenizer_files
from launcher.checkpoint.record import MERGE_RECORD, RECORD_VERSION, differences, read_record, record_text
from launcher.checkpoint.shards import TRAINABLE, Moment, Shards, find_shards, moment_text
from launcher.checkpoint.steps import Step, check_steps, choose_step, step_before
from launcher.checkpoint.stream import BLOCK_BYTES, NUM_THREADS, PlannedFile, planned, write_file
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Fold, Output, Whole
from launcher.checkpoint.verify import Verified, verify_planned, verifying_bytes
from launcher.common.atomic import write_atomic
from launcher.common.folders import check_target, is_taken, only_writer, real_path, sync_file, whole_folder
from launcher.common.nearest import name_hint
from launcher.common.peak_memory import peak_so_far
from launcher.errors import CheckpointError, SpecError
from launcher.models import names
from launcher.models.registry import shapes_of
from launcher.upstream.installed import installed

MINDSPORE, HF, PEFT, GGUF = "mindspore", "hf", "peft", "gguf"
# What weights may be cast to, and what matrices of GGUF may be.
CASTS, QUANTIZED = ("float32", "float16", "bfloat16"), ("float32", "float16", Q8_0)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The folder of the shards and the known facts of the run that wrote them.

    lora: alpha and r of the adapters. model: the content for launcher_model.json. base: a whole base checkpoint, or a
    folder of merge-ckpt or convert-ckpt that holds one, for folders that hold adapters alone. state: that of a job
    which has not ended, and so writes steps and removes them; "" for all else.
    """

    name: str
    folder: Path
    num_ranks: int | None = None
    strategy: Path | None = None
    lora: LoraConfig | None = None
    model: Mapping[str, Any] | None = None
    tokenizer: Path | None = None
    base: Path | None = None
    state: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a merge. ``step``: counted over the whole run, or (epoch, step in it); None: the newest complete one.

    layout: MINDSPORE, HF, PEFT or GGUF. file_format: SAFETENSORS or CKPT (MINDSPORE only). dtype: None keeps each
    tensor's own; of GGUF a value of gguf_file.DTYPES. max_shard_bytes: size of one file (HF only).
    """

    step: int | Moment | None = None
    layout: str = MINDSPORE
    file_format: str = SAFETENSORS
    dtype: str | None = None
    fold: bool = True
    with_optimizer: bool = False
    verify_full: bool = False
    max_shard_bytes: int = huggingface.SHARD_BYTES

    def check(self) -> None:
        """Raise SpecError for layouts and types that there are not, and for options that exclude each other: none is
        ignored silently."""
        _check_choice("layout", self.layout, (MINDSPORE, HF, PEFT, GGUF))
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, QUANTIZED if self.layout == GGUF else CASTS)
        if self.layout == MINDSPORE:
            return
        wrong = {
            "--no-fold": self.layout in (HF, GGUF) and not self.fold,
            "--with-optimizer": self.with_optimizer,
            "--file-format ckpt": self.file_format == CKPT,
        }
        for option, is_set in wrong.items():
            if is_set:
                raise SpecError(
                    f"{option} does not go with --format {self.layout}", hint="leave one out, or use --format mindspore"
                )


def _check_choice(what: str, given: str, choices: Sequence[str]) -> None:
    if given not in choices:
        hint = name_hint(given, choices, f"there are {', '.join(choices)}")
        raise SpecError(f"there is no {what} {given!r}", hint=hint)


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """The decisions of one merge, nothing written yet.

    scales: the scale of B A for each adapted weight. texts: small files by name. notes: for the user.
    """

    source: Source
    options: Options
    shards: Shards
    opened: OpenShards
    gathered: Gathered
    base: TensorFile | None
    chosen: Step
    scales: Mapping[str, float]
    files: tuple[PlannedFile, ...]
    texts: Mapping[str, bytes]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def scale(self) -> float | None:
        """Return the scale of all adapters; None when there are none, or several scales."""
        return only_scale(self.scales)

    @property
    def step(self) -> int | None:
        """Return the number of the merged step, by ``chosen.said_by``."""
        return self.chosen.number

    @property
    def outputs(self) -> list[Output]:
        return [output for file in self.files for output in file.outputs]

    @property
    def num_folded(self) -> int:
        return sum(output.fold is not None for output in self.outputs)

    @property
    def size(self) -> int:
        """Return the bytes that the result needs on disk."""
        return sum(file.bytes.size for file in self.files) + sum(map(len, self.texts.values()))

    @property
    def peak_bytes(self) -> int:
        """Return an upper bound of the memory for merging: the peak of planning (with the interpreter and the index of
        every file) and the buffers of writing or verifying."""
        # Adapters are held in their own dtype and in float32, or in float64 while verifying.
        adapters = [output.fold for output in self.outputs if output.fold]
        largest = max((8 * (fold.lora_a.nbytes + fold.lora_b.nbytes) for fold in adapters), default=0)
        widest = max((output.whole.row_items * 4 for output in self.outputs), default=0)
        # A thread has six buffers, each of a block, or of one row in float32 where a row is larger.
        writing = NUM_THREADS * 6 * max(BLOCK_BYTES, widest)
        return peak_so_far() + largest + max(writing, verifying_bytes(widest // 4, full=self.options.verify_full))

    def recipe(self) -> dict[str, Any]:
        """Return everything but the inputs that decides the result: equal recipes and inputs give equal bytes."""
        return {
            "step": self.step,
            "moment": moment_text(self.chosen.moment),
            "lora_scale": recorded_scale(self.scales),
            "format": self.options.layout,
            "file_format": self.options.file_format,
            "dtype": self.options.dtype,
            "fold": self.options.fold,
            "with_optimizer": self.options.with_optimizer,
            # Without effect in other layouts, where it must not make the same merge look like another.
            "max_shard_bytes": self.options.max_shard_bytes if self.options.layout == HF else None,
            "small_files": self._digest_of_texts(),
            "record": RECORD_VERSION,
        }

    def _digest_of_texts(self) -> str:
        digest = hashlib.sha256()
        for name, content in sorted(self.texts.items()):
            # With the length no other split into names and contents gives the same bytes.
            digest.update(f"{name} {len(content)}\n".encode() + content)
        for file in self.files if self.options.layout == GGUF else ():
            # Configuration and tokenizer are in its head.
            for _, literal in file.bytes.literals:
                digest.update(literal)
        return digest.hexdigest()

    def identities(self) -> dict[TensorFile, Identity]:
        """Return the checkpoint files that are read or compared, each with its identity."""
        files = [*self.opened.opened.values(), *([self.base] if self.base else [])]
        return dict(zip(files, identify(files, full=self.options.verify_full), strict=True))

    def inputs(self, identities: Mapping[TensorFile, Identity]) -> list[dict[str, Any]]:
        """Return the files that are read, compared or copied, for merge.json."""
        ranks = {file: rank for rank, file in self.opened.opened.items()}
        found: list[dict[str, Any]] = []
        for file, identity in identities.items():
            role = {"kind": "shard", "rank": ranks[file]} if file in ranks else {"kind": "base"}
            found.append({**role, **identity.record()})
        small = [("strategy", path) for path in self.gathered.strategies]
        small += [("adapter_config", self.shards.adapter_config)] if self.shards.adapter_config else []
        small += [("tokenizer", self.source.tokenizer)] if self.source.tokenizer else []
        return found + [{"kind": kind, **small_record(path)} for kind, path in small]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The result of a merge, made now or found already made (``fresh`` False). ``step``: None when no file says it."""

    folder: Path
    step: int | None
    num_tensors: int
    num_folded: int
    fresh: bool
    size: int = 0
    verified: Verified | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ planning


def plan_merge(source: Source, options: Options, stack: ExitStack) -> MergePlan:
    """Plan a merge. Files stay open until ``stack`` closes.

    Raises CheckpointError when the shards are incomplete, of several steps, or not as their strategy says; SpecError
    when options exclude each other.
    """
    options.check()
    return _plan_beside(source, options, stack) if source.state else _plan(source, options, stack)


# A job that writes a step, or removes one, at the very moment has done it a little later.
_TRIES, _TRY_AGAIN_S = 3, 0.3


def _plan_beside(source: Source, options: Options, stack: ExitStack) -> MergePlan:
    """Plan a merge of a job that goes on writing beside us; what is open stays readable when the job removes it."""
    for left in reversed(range(_TRIES)):
        try:
            return _plan(source, options, stack)
        except CheckpointError as error:
            if not left:
                said = f"{source.name} is {source.state}: {error.message}"
                raise CheckpointError(said, hint=f"launcher status {source.name}, and again after a save") from error
        time.sleep(_TRY_AGAIN_S)
    raise AssertionError  # the last try returns or raises


def _plan(source: Source, options: Options, stack: ExitStack) -> MergePlan:
    shards = find_shards(source.folder, strategy=source.strategy, num_ranks=source.num_ranks)
    base = _open_base(source, shards, options, stack)
    chosen = choose_step(shards, options.step)
    while True:
        try:
            # A failed attempt closes its own files; those of the plan stay open with ``stack``.
            with ExitStack() as opened:
                plan = _plan_step(source, options, shards, base, chosen, opened)
                stack.push(opened.pop_all())
                return plan
        except DamagedFile as error:
            # An interrupted save damages the newest files only: take the step before, unless one was requested.
            older = step_before(shards, chosen, error.message) if options.step is None else None
            if older is None:
                raise
            chosen = older


def _plan_step(
    source: Source, options: Options, shards: Shards, base: TensorFile | None, chosen: Step, stack: ExitStack
) -> MergePlan:
    if shards.listed and options.with_optimizer:
        raise CheckpointError(
            f"{shards.folder} keeps the optimizer's state in files of its own, which are not merged",
            hint="leave out --with-optimizer",
        )
    paths = shards.at(chosen.moment)
    opened = stack.enter_context(OpenShards(paths))
    gathered = gather(opened, shards.strategies_at(chosen.moment))
    for rank in compared_ranks(gathered.copies, full=options.verify_full):
        # Opened while planning, so that a damaged copy shows before anything is written.
        _ = opened[rank]
    chosen = check_steps(chosen, paths, opened.opened, full=options.verify_full)
    # Trained tensors replace those of the base.
    tensors = {**(_base_tensors(base) if base else {}), **gathered.tensors}
    _check(source, shards, options, tensors)
    scales = _scales(source, shards, options, tensors)
    outputs = _Outputs(tensors, options, scales, source)
    files = tuple(outputs.files())
    return MergePlan(
        source=source,
        options=options,
        shards=shards,
        opened=opened,
        gathered=gathered,
        base=base,
        chosen=chosen,
        scales=scales,
        files=files,
        texts=_texts(source, options, scales, files),
        left_out=outputs.left_out(),
        notes=(
            *_state_note(source, options, chosen),
            *_notes(source, shards, options, tensors, scales),
            *_gguf_notes(options, files),
        ),
    )


def _open_base(source: Source, shards: Shards, options: Options, stack: ExitStack) -> TensorFile | None:
    """Open the base of shards that hold adapters alone; return None where it is not needed."""
    if shards.kind != TRAINABLE or options.layout == PEFT:
        return None
    if source.base is None:
        raise CheckpointError(
            f"{source.folder} holds adapters only", hint="give the base they were trained on: --base FILE"
        )
    return stack.enter_context(TensorFile(base_file(source.base)))


def base_file(path: Path) -> Path:
    """Return the weights file of ``path``: the file itself, or the one in a folder of merge-ckpt or convert-ckpt.

    Raises CheckpointError when a folder holds none.
    """
    if not path.is_dir():
        return path
    found = next((file for name in (WEIGHTS, CKPT_WEIGHTS) if (file := path / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{path} has no {WEIGHTS} nor {CKPT_WEIGHTS}",
            hint="give a file, or a folder that merge-ckpt or convert-ckpt wrote (with --format mindspore)",
        )
    return found


def _base_tensors(base: TensorFile) -> dict[str, Whole]:
    found = {name: whole for name, whole in single_file(base).items() if names.is_weight(name)}
    if names.embedding_in(found) is None:
        raise CheckpointError(
            f"{base.path} has no weights by MindFormers' names", hint="launcher convert-ckpt makes such a file"
        )
    return found


def _check(source: Source, shards: Shards, options: Options, tensors: Mapping[str, Whole]) -> None:
    model = source.model["model"] if source.model else None
    if shards.kind == TRAINABLE and options.layout == PEFT:
        check_adapters(tensors, shapes_of(model) if model else None)
        check_floats(tensors)
    else:
        check_model(source.folder, tensors, model, hint=_missing_hint(shards))
    if options.with_optimizer:
        check_moments(tensors)


def _missing_hint(shards: Shards) -> str:
    if shards.strategies or shards.listed or shards.num_ranks == 1:
        return "the shards are not all there, or the model is another one"
    return (
        "without strategy files every rank is taken to hold the whole model, or its share of whole tensors: if the run "
        "had pipeline stages or tensor parallel, give its strategy files: --strategy FOLDER"
    )


def _scales(source: Source, shards: Shards, options: Options, tensors: Mapping[str, Whole]) -> dict[str, float]:
    """Return the scale of B A for each adapted weight; empty without adapters, or when they are kept unfolded."""
    weights = sorted({names.weight_of(name) for name in tensors if names.is_adapter(name)})
    config = source.lora or (read_lora(shards.adapter_config) if shards.adapter_config and weights else None)
    # Unfolded adapters in MindFormers' layout are complete without a scale: a note tells that infer will ask for it.
    if not weights or (config is None and not options.fold and options.layout == MINDSPORE):
        return {}
    if config is None:
        raise CheckpointError(
            f"{source.folder} has LoRA adapters but no adapter_config.json to say alpha and r",
            hint="put the run's adapter_config.json beside the checkpoints",
        )
    _check_config(config, weights, tensors)
    scales = {weight: config.scale_of(weight) for weight in weights}
    if not options.fold and only_scale(scales) is None:
        raise CheckpointError(
            f"{shards.adapter_config} gives weights different scales: {scales_text(scales)}",
            hint="--no-fold has a place for one: fold, or keep them apart with --format peft",
        )
    return scales


def _check_config(config: LoraConfig, weights: Sequence[str], tensors: Mapping[str, Whole]) -> None:
    for weight in weights:
        rows, rank = tensors[names.adapters_of(weight)[0]].shape[0], config.rank_of(weight)
        if rows != rank:
            raise CheckpointError(
                f"{names.adapters_of(weight)[0]} has rank {rows}, the run says r = {rank}",
                hint="adapter_config.json is of another run",
            )
    # A pattern without a match is a sign of another run's config, whose scales would be wrong without any error.
    unused = config.unused_pattern(weights)
    if unused:
        raise CheckpointError(
            f"the pattern {unused!r} of adapter_config.json matches none of the adapted weights",
            hint="adapter_config.json is of another run",
        )


def _state_note(source: Source, options: Options, chosen: Step) -> Iterator[str]:
    """Yield what is taken of a job that has not ended."""
    if source.state:
        which = f"{chosen} is its newest complete one" if options.step is None else f"this is {chosen}"
        yield f"{source.name} is {source.state}: {which}"


def _gguf_notes(options: Options, files: Sequence[PlannedFile]) -> Iterator[str]:
    """Yield which matrices are not quantized as asked."""
    if options.layout == GGUF and options.dtype:
        from launcher.checkpoint.gguf_file import halved

        names_ = [name for file in files for name in halved(file.outputs, options.dtype)]
        if names_:
            yield f"{len(names_)} matrices are f16: rows of {options.dtype} have a multiple of 32 numbers ({names_[0]})"


def _notes(
    source: Source, shards: Shards, options: Options, tensors: Mapping[str, Whole], scales: Mapping[str, float]
) -> tuple[str, ...]:
    notes = []
    if len(set(scales.values())) > 1:
        notes.append(f"LoRA scales by weight: {scales_text(scales)}")
    if not scales and any(map(names.is_adapter, tensors)):
        notes.append("no adapter_config.json: the scale is not written, and launcher infer --adapter will ask for it")
    if options.layout == PEFT and huggingface.origin_folder(source.base) is None:
        notes.append("adapter_config.json names no base: no Hugging Face folder is known that it came from")
    # Without a model section a missing head cannot be told from a tied one.
    embedding = names.embedding_in(tensors)
    if source.model is None and embedding and not names.has_head(tensors) and options.layout != PEFT:
        notes.append(
            f"no {names.head_of(embedding)} on any of {shards.num_ranks} ranks: taken for a model whose head is its "
            "embedding (--config FILE would tell)"
        )
    return tuple(notes)


class _Outputs:
    """Selects the tensors to write and groups them into files."""

    def __init__(
        self,
        tensors: Mapping[str, Whole],
        options: Options,
        scales: Mapping[str, float],
        source: Source,
    ) -> None:
        self._source = source
        self._model = source.model["model"] if source.model else None
        self._tensors = tensors
        self._options = options
        self._scales = scales

    def files(self) -> list[PlannedFile]:
        weights = [self._output(name) for name in self._tensors if names.is_weight(name)]
        adapters = [self._output(name) for name in self._tensors if names.is_adapter(name)]
        if self._options.layout == HF:
            return huggingface.weight_files(weights, self._options.max_shard_bytes, self._model)
        if self._options.layout == PEFT:
            return [huggingface.adapter_file(adapters, self._model)]
        if self._options.layout == GGUF:
            return [self._gguf(weights)]
        return self._mindspore(weights, adapters)

    def _gguf(self, weights: list[Output]) -> PlannedFile:
        from launcher.checkpoint.gguf_file import check_installed, gguf_file

        check_installed()
        source = self._source
        whole = huggingface.weight_files(weights, sum(output.nbytes for output in weights), self._model)
        texts = huggingface.model_texts(source.model, source.base, source.tokenizer, whole)
        return gguf_file(whole[0].outputs, texts, self._options.dtype or "float16", Path(source.name).name)

    def _mindspore(self, weights: list[Output], adapters: list[Output]) -> list[PlannedFile]:
        suffix = self._options.file_format
        if self._options.fold:
            groups = {CKPT_WEIGHTS if suffix == CKPT else WEIGHTS: weights}
        else:
            groups = {f"base.{suffix}": weights, f"adapter.{suffix}": adapters}
        if self._options.with_optimizer:
            kept = [name for name in self._tensors if not names.is_weight(name) and not names.is_adapter(name)]
            groups[f"optimizer.{suffix}"] = [self._as_it_is(name) for name in kept]
        return [planned(name, outputs, suffix, "mindformers") for name, outputs in groups.items() if outputs]

    def left_out(self) -> tuple[str, ...]:
        """Return the names of unknown tensors (no weight, adapter or known optimizer state), which deserve a note."""
        if self._options.with_optimizer:
            return ()
        rest = (name for name in self._tensors if not names.is_weight(name) and not names.is_adapter(name))
        return tuple(name for name in rest if not names.is_known_extra(name))

    def _as_it_is(self, name: str) -> Output:
        whole = self._tensors[name]
        return Output(name=name, dtype=whole.dtype, whole=whole)

    def _output(self, name: str) -> Output:
        whole = self._tensors[name]
        # A requested dtype is for weights: counters stay whole numbers.
        asked = None if self._options.layout == GGUF else self._options.dtype  # which has several
        dtype = asked if asked and whole.dtype in FLOATS else whole.dtype
        fold = self._fold(name) if self._options.fold and names.is_weight(name) else None
        return Output(name=name, dtype=dtype, whole=whole, fold=fold)

    def _fold(self, name: str) -> Fold | None:
        lora_a, lora_b = names.adapters_of(name)
        if lora_a not in self._tensors:
            return None
        return Fold(lora_a=self._tensors[lora_a], lora_b=self._tensors[lora_b], scale=self._scales[name])


def _texts(
    source: Source, options: Options, scales: Mapping[str, float], files: Sequence[PlannedFile]
) -> dict[str, bytes]:
    if options.layout == HF:
        return huggingface.model_texts(source.model, source.base, source.tokenizer, files)
    if options.layout == PEFT:
        return huggingface.adapter_texts(scales, files, source.base)
    if options.layout == GGUF:
        return {}
    texts = {}
    if source.model is not None:
        texts[MODEL_CONFIG] = (json.dumps(source.model, indent=2) + "\n").encode()
    if source.tokenizer is not None:
        texts |= tokenizer_files(source.tokenizer)
    if not options.fold and scales:
        texts["adapter.json"] = (json.dumps({"scale": only_scale(scales)}) + "\n").encode()
    return texts


# ------------------------------------------------------------------------------------------------ carrying out


def merge(
    plan: MergePlan,
    target: Path,
    *,
    force: bool = False,
    on_begin: Callable[[], None] | None = None,
    on_progress: OnProgress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Merged:
    """Carry out ``plan`` into the folder ``target``, which is whole afterwards or untouched.

    A link is followed. on_begin: called when there is something to do. on_wait: called when another process is writing
    ``target`` and is waited for. on_progress: called with bytes written since the last call and bytes in
    total, from several threads.
    Writes nothing when ``target`` holds the same merge. Raises CheckpointError when copies differ, a file is damaged,
    ``target`` holds another merge and not ``force``, or verification fails; HostError when the disk is full.
    """
    # The lock and the final rename need the real folder; the result shows the path as the user gave it.
    place = real_path(target)
    # An impossible target fails before waiting for another writer; space is checked only when something is written.
    check_target(place, 0)
    with only_writer(place, on_wait):
        identities = plan.identities()
        inputs = plan.inputs(identities)
        found = already_merged(plan, identities, inputs, place, force=force) if is_taken(place) else None
        if found is None:
            found = _write(plan, place, identities, inputs, force=force, on_begin=on_begin, on_progress=on_progress)
    return replace(found, folder=target)


def _write(
    plan: MergePlan,
    target: Path,
    identities: Mapping[TensorFile, Identity],
    inputs: list[dict[str, Any]],
    *,
    force: bool,
    on_begin: Callable[[], None] | None,
    on_progress: OnProgress | None,
) -> Merged:
    check_target(target, plan.size)
    if on_begin is not None:
        on_begin()
    # Inputs are compared before the scratch folder is made: refused shards leave nothing behind.
    clock = Clock()
    compare_inputs(plan, plan.outputs, identities)
    clock.lap("compare")
    with whole_folder(target, replace=force) as scratch:
        _stream(plan, scratch, on_progress)
        clock.lap("write")
        verified = _verify(plan, scratch)
        clock.lap("verify")
        _finish(scratch, {**plan.texts, MERGE_RECORD: record_of(plan, inputs, verified)})
    clock.lap("sync")
    made = merged_by(plan, target, verified)
    return replace(made, fresh=True, size=plan.size, timings_s=clock.laps_s)


def merged_by(plan: MergePlan, target: Path, verified: Verified | None) -> Merged:
    """Return the result of ``plan`` that is in ``target``, as one found already made."""
    return Merged(
        folder=target,
        step=plan.step,
        num_tensors=len(plan.outputs),
        num_folded=plan.num_folded,
        fresh=False,
        verified=verified,
    )


def _finish(scratch: Path, texts: Mapping[str, bytes]) -> None:
    """Write the small files and sync everything to the disk."""
    for name, content in texts.items():
        (scratch / name).write_bytes(content)
    for path in scratch.iterdir():
        sync_file(path)


def compare_inputs(
    plan: MergePlan,
    outputs: Sequence[Output],
    identities: Mapping[TensorFile, Identity],
    files: Sequence[TensorFile] | None = None,
) -> None:
    """Compare inputs with their CRC (``files``; None for all), with each other, and with the strategy.

    Only what goes into ``outputs`` is compared: optimizer state that is left out may differ and costs no reading.
    Raises CheckpointError, naming what differs.
    """
    for file in identities if files is None else files:
        check_crc(file)
    check_not_copied(plan.gathered.tensors.values(), identities)
    wanted = {output.whole.name for output in outputs} | {
        whole.name for output in outputs if output.fold for whole in (output.fold.lora_a, output.fold.lora_b)
    }
    copies = [same for same in plan.gathered.copies if same.name in wanted]
    compare_copies(plan.opened, copies, full=plan.options.verify_full)


def _verify(plan: MergePlan, folder: Path) -> Verified:
    return verify_planned({folder / file.name: file for file in plan.files}, full=plan.options.verify_full)


class Clock:
    """The seconds of each phase of a merge."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps_s: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End the phase ``name``."""
        now = time.monotonic()
        self.laps_s[name] = now - self._last
        self._last = now


def _stream(plan: MergePlan, scratch: Path, on_progress: OnProgress | None) -> None:
    total = sum(output.nbytes for output in plan.outputs)

    def on_bytes(count: int) -> None:
        if on_progress is not None:
            on_progress(count, total)

    for file in plan.files:
        write_file(scratch / file.name, file.bytes, on_bytes)


def already_merged(
    plan: MergePlan,
    identities: Mapping[TensorFile, Identity],
    inputs: list[dict[str, Any]],
    target: Path,
    *,
    force: bool,
) -> Merged | None:
    """Return the same merge found in ``target``, fully verified if requested, or None when it is to be replaced.

    Raises CheckpointError when it holds another merge and not ``force``.
    """
    record, full = read_record(target), plan.options.verify_full
    found, verified = differences(record, plan.recipe(), inputs, compared=full), None
    if full and not found:
        compare_inputs(plan, plan.outputs, identities)
        found, verified = _held_against(plan, target)
    if not found:
        if full:
            # Inputs may be rewritten files with the same bytes: with their new times the next quick check passes.
            write_atomic(target / MERGE_RECORD, record_text({**record, "inputs": inputs}))
        return merged_by(plan, target, verified)
    if force:
        return None
    raise CheckpointError(
        f"{target} holds another merge: {'; '.join(found)}",
        hint="give another --output, or --force to replace it",
    )


def _held_against(plan: MergePlan, target: Path) -> tuple[list[str], Verified | None]:
    """Return the differences of ``target`` from the shards in words, or none and the verification result."""
    try:
        return [], _verify(plan, target)
    except CheckpointError as error:
        return [f"it is not what these shards give: {error.message}"], None


def record_of(plan: MergePlan, inputs: list[dict[str, Any]], verified: Verified) -> bytes:
    """Return the text of merge.json."""
    record = {
        "source": plan.source.name,
        "step": plan.step,
        "step_from": plan.chosen.said_by,
        "skipped": [
            {"moment": moment_text(skipped.moment), "missing_ranks": skipped.missing, "damage": skipped.damage}
            for skipped in plan.chosen.skipped
        ],
        "lora_scale": recorded_scale(plan.scales),
        "tensors": len(plan.outputs),
        "folded": plan.num_folded,
        "verified": asdict(verified),
        "recipe": plan.recipe(),
        "inputs": inputs,
        "versions": installed(),
    }
    return record_text(record)
