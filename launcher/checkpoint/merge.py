"""Merge the shards of one step: plan, compare, stream, verify, and put the result in place whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.checkpoint import huggingface, names
from launcher.checkpoint.compare import check_crc, compare_copies, compared_ranks, identify
from launcher.checkpoint.dtypes import FLOATS
from launcher.checkpoint.folder import (
    CKPT_WEIGHTS,
    MERGE_RECORD,
    MODEL_CONFIG,
    TOKENIZER,
    WEIGHTS,
    check_room,
    read_record,
    sync_file,
    whole_folder,
)
from launcher.checkpoint.gather import Gathered, OpenShards, gather, global_step, single_file
from launcher.checkpoint.shards import TRAINABLE, Moment, Shards, find_shards, moment_text, read_scale
from launcher.checkpoint.stream import BLOCK_BYTES, NUM_THREADS, PlannedFile, planned, write_file
from launcher.checkpoint.tensorfile import CKPT, SAFETENSORS, TensorFile
from launcher.checkpoint.tensors import Fold, Output, Whole
from launcher.checkpoint.verify import Verified, check_architecture, verify_files
from launcher.errors import CheckpointError
from launcher.installed import installed

MINDSPORE, HF, PEFT = "mindspore", "hf", "peft"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where shards lie and what is known of the run that wrote them.

    scale: alpha / r of LoRA and r. model: what launcher_model.json shall hold. base: a whole base checkpoint, for
    folders that hold adapters alone.
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
    """How to merge. ``step`` counts over the whole run; None is the newest that is complete.

    layout: MINDSPORE, HF or PEFT. file_format: SAFETENSORS or CKPT (MINDSPORE only). dtype: None keeps each
    tensor's own. max_shard_bytes: size of one file (HF only).
    """

    step: int | None = None
    layout: str = MINDSPORE
    file_format: str = SAFETENSORS
    dtype: str | None = None
    fold: bool = True
    with_optimizer: bool = False
    verify_full: bool = False
    max_shard_bytes: int = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """All decisions of one merge, nothing written yet. ``texts``: small files by name."""

    source: Source
    options: Options
    shards: Shards
    opened: OpenShards
    gathered: Gathered
    moment: Moment
    step: int
    scale: float | None
    files: tuple[PlannedFile, ...]
    texts: Mapping[str, bytes]
    left_out: tuple[str, ...]

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
        """What decides the result: two merges with equal recipes give the same bytes."""
        return {
            "step": self.step,
            "lora_scale": self.scale,
            "format": self.options.layout,
            "file_format": self.options.file_format,
            "dtype": self.options.dtype,
            "fold": self.options.fold,
            "with_optimizer": self.options.with_optimizer,
            "max_shard_bytes": self.options.max_shard_bytes if self.options.layout == HF else None,
            "inputs": identify(self.opened.opened, full=self.options.verify_full),
        }


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What merging made, or found already made (``fresh`` False). ``step`` counts over the whole run."""

    folder: Path
    step: int
    num_tensors: int
    num_folded: int
    fresh: bool
    size: int = 0
    verified: Verified | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ planning


def plan_merge(source: Source, options: Options, stack: ExitStack) -> MergePlan:
    """Decide everything. Files stay open until ``stack`` closes.

    Raises CheckpointError when the shards are not complete, of one step, and such as their strategy says.
    """
    shards = find_shards(source.folder, strategy=source.strategy, num_ranks=source.num_ranks)
    moment = choose_moment(shards, options.step)
    opened = stack.enter_context(OpenShards(shards.at(moment)))
    gathered = gather(opened, shards.strategies)
    for rank in compared_ranks(gathered.copies, full=options.verify_full):
        _ = opened[rank]
    step = global_step(opened)
    if options.step is not None and step != options.step:
        raise CheckpointError(f"{moment_text(moment)} is step {step}, not {options.step}", hint="see --list")
    tensors = dict(gathered.tensors)
    if shards.kind == TRAINABLE:
        tensors = {**_base_tensors(source, stack), **tensors}
    _check_model(source, tensors)
    scale = _scale(source, shards, tensors)
    outputs = _Outputs(tensors, options, scale)
    files = tuple(outputs.files())
    return MergePlan(
        source=source,
        options=options,
        shards=shards,
        opened=opened,
        gathered=gathered,
        moment=moment,
        step=step,
        scale=scale,
        files=files,
        texts=_texts(source, options, scale, files),
        left_out=outputs.left_out(),
    )


def choose_moment(shards: Shards, step: int | None) -> Moment:
    """The newest moment complete on all ranks, or the one whose whole-run step is ``step``.

    Raises CheckpointError when there is none.
    """
    complete = shards.complete()
    if step is None:
        return complete[-1]
    for moment in reversed(complete):
        if step_of(shards, moment) == step:
            return moment
    known = ", ".join(str(step_of(shards, moment)) for moment in complete)
    raise CheckpointError(
        f"step {step} is not complete in {shards.folder}; complete are {known}", hint="launcher merge-ckpt --list ..."
    )


def step_of(shards: Shards, moment: Moment) -> int | None:
    """The whole-run step of ``moment``, from the first rank that has it; None when that file does not say."""
    path = next(files[moment] for files in shards.files if moment in files)
    with TensorFile(path) as file:
        return int(file.array(names.GLOBAL_STEP).reshape(-1)[0]) if names.GLOBAL_STEP in file.entries else None


def _base_tensors(source: Source, stack: ExitStack) -> dict[str, Whole]:
    if source.base is None:
        raise CheckpointError(
            f"{source.folder} holds adapters alone", hint="give the base they were trained on: --base FILE"
        )
    base = single_file(stack.enter_context(TensorFile(source.base)))
    found = {name: whole for name, whole in base.items() if names.is_weight(name)}
    if not found:
        raise CheckpointError(
            f"{source.base} has no weights by MindFormers' names", hint="launcher convert-ckpt makes such a file"
        )
    return found


def _check_model(source: Source, tensors: Mapping[str, Whole]) -> None:
    """Names and shapes are those of the model of the run, or of one LLaMA when the run is not known."""
    found = {name: whole.shape for name, whole in tensors.items() if names.is_weight(name)}
    if names.EMBEDDING not in found:
        raise CheckpointError(
            f"{source.folder} has no {names.EMBEDDING}: no LLaMA of MindFormers, or a pipeline stage is missing",
            hint="copy the missing ranks' folders from the hosts that wrote them",
        )
    expected = names.shapes_of(source.model["model"]) if source.model else names.inferred_shapes(found)
    if names.HEAD not in found and source.model is None:  # tied to the embedding
        expected.pop(names.HEAD)
    check_architecture(found, expected)


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
    if source.model is not None and options.fold:
        texts[MODEL_CONFIG] = (json.dumps(source.model, indent=2) + "\n").encode()
    if source.tokenizer is not None and options.fold:
        try:
            texts[TOKENIZER] = source.tokenizer.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"cannot read the tokenizer {source.tokenizer}: {error.strerror}", hint="put it back"
            ) from error
    if not options.fold and scale is not None:
        texts["adapter.json"] = (json.dumps({"scale": scale}) + "\n").encode()
    return texts


# ------------------------------------------------------------------------------------------------ carrying out


def merge(plan: MergePlan, target: Path, *, force: bool = False, on_progress: OnProgress | None = None) -> Merged:
    """Carry out ``plan`` into the folder ``target``, which is whole afterwards or untouched.

    The same merge made before writes nothing. Raises CheckpointError when copies differ, a file is damaged, another
    merge is in ``target`` and not ``force``, or the result is not what it should be; HostError when the disk is full.
    """
    recipe = plan.recipe()
    if target.exists():
        found = _already(plan, recipe, target, force=force)
        if found is not None:
            return found
    check_room(target, plan.size)
    clock = _Clock()
    for file in plan.opened.opened.values():
        check_crc(file)
    wanted = {output.whole.name for output in plan.outputs} | {
        whole.name for output in plan.outputs if output.fold for whole in (output.fold.lora_a, output.fold.lora_b)
    }
    copies = [same for same in plan.gathered.copies if same.name in wanted]
    compare_copies(plan.opened, copies, full=plan.options.verify_full)
    clock.lap("compare")
    with whole_folder(target, replace=force) as scratch:
        _stream(plan, scratch, on_progress)
        clock.lap("write")
        verified = verify_files(
            {scratch / file.name: file.outputs for file in plan.files}, full=plan.options.verify_full
        )
        clock.lap("verify")
        for name, content in {**plan.texts, MERGE_RECORD: _record(plan, recipe, verified)}.items():
            (scratch / name).write_bytes(content)
        for path in scratch.iterdir():
            sync_file(path)
    clock.lap("sync")
    return Merged(
        folder=target,
        step=plan.step,
        num_tensors=len(plan.outputs),
        num_folded=plan.num_folded,
        fresh=True,
        size=plan.size,
        verified=verified,
        timings_s=clock.laps_s,
    )


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


def _already(plan: MergePlan, recipe: Mapping[str, Any], target: Path, *, force: bool) -> Merged | None:
    """The same merge found in ``target``, or None when it is to be replaced."""
    record = read_record(target)
    known, wanted = record.get("recipe", {}), json.loads(json.dumps(recipe))
    if known == wanted:
        return Merged(
            folder=target, step=plan.step, num_tensors=record["tensors"], num_folded=record["folded"], fresh=False
        )
    if force:
        return None
    raise CheckpointError(
        f"{target} holds another merge: {_differences(known, wanted)}",
        hint="give another --output, or --force to replace it",
    )


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    odd = [key for key in wanted if key != "inputs" and known.get(key) != wanted[key]]
    shown = [f"{key} {known.get(key)!r} there, {wanted[key]!r} here" for key in odd]
    return "; ".join(shown) or "made from other files, or files that have changed"


def _record(plan: MergePlan, recipe: Mapping[str, Any], verified: Verified) -> bytes:
    record = {
        "source": plan.source.name,
        "step": plan.step,
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
        "recipe": recipe,
        "versions": installed(),
    }
    return (json.dumps(record, indent=2) + "\n").encode()
