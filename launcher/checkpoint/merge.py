"""Merge the shards of one step: plan, compare, stream, verify, and put the result in place whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.checkpoint import huggingface, names
from launcher.checkpoint.compare import (
    Identity,
    check_crc,
    check_not_copied,
    compare_copies,
    compared_ranks,
    identify,
    small_record,
)
from launcher.checkpoint.dtypes import FLOATS
from launcher.checkpoint.folder import (
    CKPT_WEIGHTS,
    MODEL_CONFIG,
    WEIGHTS,
    check_target,
    is_taken,
    sync_file,
    tokenizer_files,
    whole_folder,
)
from launcher.checkpoint.gather import Gathered, OpenShards, gather, single_file
from launcher.checkpoint.record import MERGE_RECORD, differences, read_record
from launcher.checkpoint.shards import TRAINABLE, Moment, Shards, find_shards, moment_text, read_scale
from launcher.checkpoint.steps import Step, check_steps, choose_step
from launcher.checkpoint.stream import BLOCK_BYTES, NUM_THREADS, PlannedFile, planned, write_file
from launcher.checkpoint.tensorfile import CKPT, SAFETENSORS, TensorFile
from launcher.checkpoint.tensors import Fold, Output, Whole
from launcher.checkpoint.verify import Verified, check_architecture, verify_files
from launcher.errors import CheckpointError, SpecError
from launcher.installed import installed

MINDSPORE, HF, PEFT = "mindspore", "hf", "peft"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where shards lie and what is known of the run that wrote them.

    scale: alpha / r of LoRA and r. model: what launcher_model.json shall hold. base: a whole base checkpoint, or a
    folder of merge-ckpt or convert-ckpt that holds one, for folders that hold adapters alone.
    """

    name: str
    folder: Path
    num_ranks: int | None = None
    strategy: Path | None = None
    scale: tuple[float, int] | None = None
    model: Mapping[str, Any] | None = None
    tokenizer: Path | None = None
    base: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to merge. ``step``: counted over the whole run, or (epoch, step in it); None is the newest complete one.

    layout: MINDSPORE, HF or PEFT. file_format: SAFETENSORS or CKPT (MINDSPORE only). dtype: None keeps each
    tensor's own. max_shard_bytes: size of one file (HF only).
    """

    step: int | Moment | None = None
    layout: str = MINDSPORE
    file_format: str = SAFETENSORS
    dtype: str | None = None
    fold: bool = True
    with_optimizer: bool = False
    verify_full: bool = False
    max_shard_bytes: int = 5_000_000_000

    def check(self) -> None:
        """Raises SpecError for options that do not go together: none is passed over in silence."""
        if self.layout == MINDSPORE:
            return
        wrong = {
            "--no-fold": self.layout == HF and not self.fold,
            "--with-optimizer": self.with_optimizer,
            "--file-format ckpt": self.file_format == CKPT,
        }
        for option, is_set in wrong.items():
            if is_set:
                raise SpecError(
                    f"{option} does not go with --format {self.layout}", hint="leave one out, or use --format mindspore"
                )


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """All decisions of one merge, nothing written yet. ``texts``: small files by name."""

    source: Source
    options: Options
    shards: Shards
    opened: OpenShards
    gathered: Gathered
    base: TensorFile | None
    chosen: Step
    scale: float | None
    files: tuple[PlannedFile, ...]
    texts: Mapping[str, bytes]
    left_out: tuple[str, ...]

    @property
    def step(self) -> int | None:
        """The step that is merged, by ``chosen.said_by``."""
        return self.chosen.number

    @property
    def outputs(self) -> list[Output]:
        return [output for file in self.files for output in file.outputs]

    @property
    def num_folded(self) -> int:
        return sum(output.fold is not None for output in self.outputs)

    @property
    def size(self) -> int:
        """Bytes that the result needs on disk."""
        return sum(file.bytes.size for file in self.files) + sum(map(len, self.texts.values()))

    @property
    def peak_bytes(self) -> int:
        """An upper bound of the memory that merging needs beyond the interpreter's own 50 MB."""
        adapters = [output.fold for output in self.outputs if output.fold]
        largest = max((4 * (fold.lora_a.nbytes + fold.lora_b.nbytes) for fold in adapters), default=0)
        widest = max((output.whole.row_items * 4 for output in self.outputs), default=0)
        return NUM_THREADS * 6 * max(BLOCK_BYTES, widest) + largest

    def recipe(self) -> dict[str, Any]:
        """What decides the result beside the inputs: with equal recipes the same inputs give the same bytes."""
        return {
            "step": self.step,
            "moment": moment_text(self.chosen.moment),
            "lora_scale": self.scale,
            "format": self.options.layout,
            "file_format": self.options.file_format,
            "dtype": self.options.dtype,
            "fold": self.options.fold,
            "with_optimizer": self.options.with_optimizer,
            "max_shard_bytes": self.options.max_shard_bytes if self.options.layout == HF else None,
            "small_files": self._digest_of_texts(),
        }

    def _digest_of_texts(self) -> str:
        digest = hashlib.sha256()
        for name, content in sorted(self.texts.items()):
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def identities(self) -> dict[TensorFile, Identity]:
        """Every checkpoint file that is read or compared, and what tells it from others."""
        files = [*self.opened.opened.values(), *([self.base] if self.base else [])]
        return dict(zip(files, identify(files, full=self.options.verify_full), strict=True))

    def inputs(self, identities: Mapping[TensorFile, Identity]) -> list[dict[str, Any]]:
        """Every file that is read, compared or copied, for merge.json."""
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
    """What merging made, or found already made (``fresh`` False). ``step``: None when no file says it."""

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
    """Decide everything. Files stay open until ``stack`` closes.

    Raises CheckpointError when the shards are not complete, of one step, and such as their strategy says; SpecError
    when options do not go together.
    """
    options.check()
    shards = find_shards(source.folder, strategy=source.strategy, num_ranks=source.num_ranks)
    chosen = choose_step(shards, options.step)
    paths = shards.at(chosen.moment)
    opened = stack.enter_context(OpenShards(paths))
    gathered = gather(opened, shards.strategies)
    for rank in compared_ranks(gathered.copies, full=options.verify_full):
        _ = opened[rank]
    chosen = check_steps(chosen, paths, opened.opened, full=options.verify_full)
    tensors, base = dict(gathered.tensors), None
    if shards.kind == TRAINABLE:
        base = _open_base(source, stack)
        tensors = {**_base_tensors(base), **tensors}
    _check_model(source, shards, tensors)
    scale = _scale(source, shards, tensors)
    outputs = _Outputs(tensors, options, scale)
    files = tuple(outputs.files())
    return MergePlan(
        source=source,
        options=options,
        shards=shards,
        opened=opened,
        gathered=gathered,
        base=base,
        chosen=chosen,
        scale=scale,
        files=files,
        texts=_texts(source, options, scale, files),
        left_out=outputs.left_out(),
    )


def _open_base(source: Source, stack: ExitStack) -> TensorFile:
    if source.base is None:
        raise CheckpointError(
            f"{source.folder} holds adapters alone", hint="give the base they were trained on: --base FILE"
        )
    return stack.enter_context(TensorFile(base_file(source.base)))


def base_file(path: Path) -> Path:
    """The weights that ``path`` means: the file itself, or the one in a folder of merge-ckpt or convert-ckpt.

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
    if names.EMBEDDING not in found:
        raise CheckpointError(
            f"{base.path} has no weights by MindFormers' names", hint="launcher convert-ckpt makes such a file"
        )
    return found


def _check_model(source: Source, shards: Shards, tensors: Mapping[str, Whole]) -> None:
    """Names and shapes are those of the model of the run, or of one LLaMA when the run is not known."""
    found = {name: whole.shape for name, whole in tensors.items() if names.is_weight(name)}
    if names.EMBEDDING not in found:
        raise CheckpointError(
            f"{source.folder} has no {names.EMBEDDING}: no LLaMA of MindFormers, or a pipeline stage is missing",
            hint=_missing_hint(shards),
        )
    expected = names.shapes_of(source.model["model"]) if source.model else names.inferred_shapes(found)
    check_architecture(found, expected, hint=_missing_hint(shards))


def _missing_hint(shards: Shards) -> str:
    if shards.strategies or shards.num_ranks == 1:
        return "the shards are not all there, or the model is another one"
    return (
        "without strategy files every rank is taken to hold the whole model: if the run had pipeline stages or tensor "
        "parallel, give its strategy files: --strategy FOLDER"
    )


def _scale(source: Source, shards: Shards, tensors: Mapping[str, Whole]) -> float | None:
    adapters = [whole for name, whole in tensors.items() if names.is_adapter(name) and name.endswith(names.LORA_A)]
    if not adapters:
        return None
    known = source.scale or (read_scale(shards.adapter_config) if shards.adapter_config else None)
    if known is None:
        raise CheckpointError(
            f"{source.folder} has LoRA adapters but no adapter_config.json to say alpha and r",
            hint="put the run's adapter_config.json beside the checkpoints",
        )
    odd = next((whole for whole in adapters if whole.shape[0] != known[1]), None)
    if odd:
        raise CheckpointError(
            f"{odd.name} has rank {odd.shape[0]}, the run says r = {known[1]}",
            hint="adapter_config.json is of another run",
        )
    return known[0]


class _Outputs:
    """What is written of ``tensors``, and into which files."""

    def __init__(self, tensors: Mapping[str, Whole], options: Options, scale: float | None) -> None:
        self._tensors = tensors
        self._options = options
        self._scale = scale
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Every adapter has its partner and its weight, and their shapes fit."""
        wanted = {name for weight in self._tensors if names.is_weight(weight) for name in names.adapters_of(weight)}
        for name in self._tensors:
            if names.is_adapter(name) and name not in wanted:
                raise CheckpointError(f"{name} has no weight", hint="the shards are not all there")
        for name in filter(names.is_weight, self._tensors):
            self._fold(name)

    def files(self) -> list[PlannedFile]:
        weights = [self._output(name) for name in self._tensors if names.is_weight(name)]
        adapters = [self._output(name) for name in self._tensors if names.is_adapter(name)]
        if self._options.layout == HF:
            return huggingface.weight_files(weights, self._options.max_shard_bytes)
        if self._options.layout == PEFT:
            return [huggingface.adapter_file(adapters)]
        return self._mindspore(weights, adapters)

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
        """Names that are no weight, no adapter, and nothing known of the optimizer: worth a word."""
        if self._options.with_optimizer:
            return ()
        rest = (name for name in self._tensors if not names.is_weight(name) and not names.is_adapter(name))
        return tuple(name for name in rest if not names.is_known_extra(name))

    def _as_it_is(self, name: str) -> Output:
        whole = self._tensors[name]
        return Output(name=name, dtype=whole.dtype, whole=whole)

    def _output(self, name: str) -> Output:
        whole = self._tensors[name]
        dtype = self._options.dtype if self._options.dtype and whole.dtype in FLOATS else whole.dtype
        fold = self._fold(name) if self._options.fold and names.is_weight(name) else None
        return Output(name=name, dtype=dtype, whole=whole, fold=fold)

    def _fold(self, name: str) -> Fold | None:
        lora_a, lora_b = (self._tensors.get(adapter) for adapter in names.adapters_of(name))
        if lora_a is None and lora_b is None:
            return None
        weight = self._tensors[name]
        if lora_a is None or lora_b is None or self._scale is None:
            raise CheckpointError(f"{name} has one LoRA adapter of two", hint="the shards are not all there")
        if lora_a.shape[1:] != weight.shape[1:] or lora_b.shape != (weight.shape[0], lora_a.shape[0]):
            raise CheckpointError(
                f"{name} {list(weight.shape)} and its adapters {list(lora_a.shape)}, {list(lora_b.shape)} do not fit",
                hint="give the strategy files of the run that wrote these checkpoints",
            )
        return Fold(lora_a=lora_a, lora_b=lora_b, scale=self._scale)


def _texts(source: Source, options: Options, scale: float | None, files: Sequence[PlannedFile]) -> dict[str, bytes]:
    if options.layout == HF:
        return huggingface.model_texts(source.model, source.base, source.tokenizer, files)
    if options.layout == PEFT:
        return huggingface.adapter_texts(scale, files)
    texts = {}
    if source.model is not None:
        texts[MODEL_CONFIG] = (json.dumps(source.model, indent=2) + "\n").encode()
    if source.tokenizer is not None:
        texts |= tokenizer_files(source.tokenizer)
    if not options.fold and scale is not None:
        texts["adapter.json"] = (json.dumps({"scale": scale}) + "\n").encode()
    return texts


# ------------------------------------------------------------------------------------------------ carrying out


def merge(
    plan: MergePlan,
    target: Path,
    *,
    force: bool = False,
    on_begin: Callable[[], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Merged:
    """Carry out ``plan`` into the folder ``target``, which is whole afterwards or untouched.

    on_begin: called when there is something to do. on_progress: called with bytes written, and how many there will be.
    The same merge made before writes nothing. Raises CheckpointError when copies differ, a file is damaged, another
    merge is in ``target`` and not ``force``, or the result is not what it should be; HostError when the disk is full.
    """
    check_target(target, 0)
    identities = plan.identities()
    inputs = plan.inputs(identities)
    if is_taken(target):
        found = _already(plan, inputs, target, force=force)
        if found is not None:
            return found
    check_target(target, plan.size)
    if on_begin is not None:
        on_begin()
    clock = _Clock()
    _compare(plan, identities)
    clock.lap("compare")
    with whole_folder(target, replace=force) as scratch:
        _stream(plan, scratch, on_progress)
        clock.lap("write")
        verified = _verify(plan, scratch)
        clock.lap("verify")
        _finish(scratch, {**plan.texts, MERGE_RECORD: _record(plan, inputs, verified)})
    clock.lap("sync")
    made = _merged(plan, target, verified)
    return replace(made, fresh=True, size=plan.size, timings_s=clock.laps_s)


def _merged(plan: MergePlan, target: Path, verified: Verified | None) -> Merged:
    return Merged(
        folder=target,
        step=plan.step,
        num_tensors=len(plan.outputs),
        num_folded=plan.num_folded,
        fresh=False,
        verified=verified,
    )


def _finish(scratch: Path, texts: Mapping[str, bytes]) -> None:
    """Write the small files and bring everything to the disk."""
    for name, content in texts.items():
        (scratch / name).write_bytes(content)
    for path in scratch.iterdir():
        sync_file(path)


def _compare(plan: MergePlan, identities: Mapping[TensorFile, Identity]) -> None:
    """Inputs against their CRC, each other, and what the strategy says of them."""
    for file in identities:
        check_crc(file)
    check_not_copied(plan.gathered.tensors.values(), identities)
    wanted = {output.whole.name for output in plan.outputs} | {
        whole.name for output in plan.outputs if output.fold for whole in (output.fold.lora_a, output.fold.lora_b)
    }
    copies = [same for same in plan.gathered.copies if same.name in wanted]
    compare_copies(plan.opened, copies, full=plan.options.verify_full)


def _verify(plan: MergePlan, folder: Path) -> Verified:
    return verify_files({folder / file.name: file.outputs for file in plan.files}, full=plan.options.verify_full)


class _Clock:
    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps_s: dict[str, float] = {}

    def lap(self, name: str) -> None:
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


def _already(plan: MergePlan, inputs: list[dict[str, Any]], target: Path, *, force: bool) -> Merged | None:
    """The same merge found in ``target``, or None when it is to be replaced. Verified in full if that is asked for."""
    found = differences(read_record(target), plan.recipe(), inputs)
    if not found:
        return _merged(plan, target, _verify_again(plan, target) if plan.options.verify_full else None)
    if force:
        return None
    raise CheckpointError(
        f"{target} holds another merge: {'; '.join(found)}",
        hint="give another --output, or --force to replace it",
    )


def _verify_again(plan: MergePlan, target: Path) -> Verified:
    _compare(plan, plan.identities())
    return _verify(plan, target)


def _record(plan: MergePlan, inputs: list[dict[str, Any]], verified: Verified) -> bytes:
    record = {
        "source": plan.source.name,
        "step": plan.step,
        "step_from": plan.chosen.said_by,
        "skipped": [
            {"moment": moment_text(skipped.moment), "missing_ranks": skipped.missing} for skipped in plan.chosen.skipped
        ],
        "lora_scale": plan.scale,
        "tensors": len(plan.outputs),
        "folded": plan.num_folded,
        "verified": {
            "full": verified.full,
            "tensors": verified.tensors,
            "values": verified.values,
            "max_error": verified.max_error,
            "tolerance": verified.tolerance,
        },
        "recipe": plan.recipe(),
        "inputs": inputs,
        "versions": installed(),
    }
    return (json.dumps(record, indent=2) + "\n").encode()
