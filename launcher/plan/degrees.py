"""Defaults of a spec, resolved for its model and cards. Impossible specs are refused before anything is spawned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.cluster.model import KINDS, Cluster
from launcher.errors import SpecError
from launcher.models.names import MCORE
from launcher.plan import memory
from launcher.plan.memory import GIB, Memory
from launcher.runspec.sections import ModelSpec, ParallelSpec, PrecisionSpec, RunSpec, RuntimeSpec
from launcher.upstream import packed_rows

DEFAULT_WARMUP_RATIO = 0.03


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """The degrees of parallelism of a job; their product is the world size."""

    data_parallel: int
    model_parallel: int
    pipeline_stage: int

    @property
    def split(self) -> int:
        """Return the number of ranks that hold one copy of the model together."""
        return self.model_parallel * self.pipeline_stage


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A resolved spec: no value is open. ``notes``: the decisions; ``memory``: that of its fullest rank."""

    spec: RunSpec
    degrees: Degrees
    notes: tuple[str, ...]
    memory: Memory


def resolve_defaults(spec: RunSpec, cluster: Cluster) -> Resolved:
    """Return ``spec`` with every open value decided. Raises SpecError when model, cards and settings do not fit."""
    check_target(spec, cluster)
    notes = []
    if spec.training.optimizer.type == "FP32StateAdamWeightDecay":
        notes.append("optimizer FP32StateAdamWeightDecay: no bias correction, so its first steps are not AdamW's")
    spec = _resolve_plain(spec, cluster)
    if spec.data.packing and cluster.target == "Ascend":
        _check_packing(spec)
        notes.append("data.packing on Ascend is set as MindFormers' own loaders set it, and has not yet run there")
    limit = pool_gib(spec, cluster)
    spec, degrees, chosen = choose_split(spec, cluster, limit)
    check_loading(spec, cluster)
    _check_recompute(spec.runtime, degrees)
    need = memory.estimate(spec, target=cluster.target, pool_gib=limit)
    if chosen:
        notes.append(_chosen_note(degrees, spec, need))
    if need.verdict in ("does not fit", "tight"):
        least, most = need.band
        notes.append(
            f"memory: {need.pool / GIB:.1f} GiB a card by estimate ({least:.1f} to {most:.1f} by its error), "
            f"of {need.pool_gib:g}: {need.verdict}"
        )
    return Resolved(spec=spec, degrees=degrees, notes=tuple(notes), memory=need)


def _with(spec: RunSpec, section: str, **changes: Any) -> RunSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=changes)})


# --------------------------------------------------------------------------------------------------- plain values


def _resolve_plain(spec: RunSpec, cluster: Cluster) -> RunSpec:
    """Return ``spec`` with precision, runtime and schedule, which depend on the kind of cards alone."""
    ascend = cluster.target == "Ascend"
    schedule = spec.training.lr_schedule
    if schedule.warmup_ratio is None and schedule.warmup_steps is None:
        spec = _with(spec, "training", lr_schedule=schedule.model_copy(update={"warmup_ratio": DEFAULT_WARMUP_RATIO}))
    if spec.data.workers is None:
        spec = _with(spec, "data", workers=8 if ascend else 1)
    spec = spec.model_copy(update={"precision": _precision(spec, cluster), "runtime": _runtime(spec.runtime, ascend)})
    if ascend and cluster.num_devices > 1 and spec.parallel.mode is None and spec.model.architecture.route == MCORE:
        # Mcore networks know no other: data_parallel is one of their degrees.
        spec = _with(spec, "parallel", mode="semi_auto")
    if ascend and spec.runtime.max_device_memory_gib is None:
        spec = _with(spec, "runtime", max_device_memory_gib=_default_pool(spec, cluster))
    return spec


def _precision(spec: RunSpec, cluster: Cluster) -> PrecisionSpec:
    given = spec.precision
    if cluster.target == "CPU":
        compute: Any = given.compute or "float32"
        params: Any = given.params or "float32"
    else:
        compute = given.compute or _card_dtype(cluster)
        # Trained weights need float32: small updates vanish in 16 bits. With LoRA the base is frozen.
        params = given.params or (compute if spec.lora else "float32")
    loss_scale = given.loss_scale
    if loss_scale is None:
        # float16 gradients underflow without it; bfloat16 has the exponents of float32.
        loss_scale = "dynamic" if compute == "float16" else 1.0
    return given.model_copy(update={"compute": compute, "params": params, "loss_scale": loss_scale})


def _card_dtype(cluster: Cluster) -> str:
    """Return bfloat16 if the card has it; float16 if it has not or its kind is unknown."""
    return "bfloat16" if cluster.kind and KINDS[cluster.kind].bfloat16 else "float16"


def _runtime(given: RuntimeSpec, ascend: bool) -> RuntimeSpec:
    keys = ("recompute", "flash_attention", "sink_mode")
    return given.model_copy(update={key: ascend for key in keys if getattr(given, key) is None})


def _default_pool(spec: RunSpec, cluster: Cluster) -> float:
    # Without a kind the compute dtype tells: a card with bfloat16 is at least an A2.
    if cluster.kind:
        return memory.POOL_GIB[cluster.kind]
    return memory.POOL_GIB["A2"] if spec.precision.compute == "bfloat16" else memory.POOL_GIB["910"]


def pool_gib(spec: RunSpec, cluster: Cluster) -> float | None:
    """Return the GiB that a rank may use: the card's pool, or on CPU the host's memory divided by its ranks."""
    if cluster.target == "CPU":
        import psutil

        return psutil.virtual_memory().total / GIB / max(len(host.devices) for host in cluster.hosts)
    return spec.runtime.max_device_memory_gib


# --------------------------------------------------------------------------------------------------- refusals


def check_target(spec: RunSpec, cluster: Cluster) -> None:
    """Raise SpecError when the cards, or MindSpore's CPU backend, cannot do what ``spec`` asks for."""
    if spec.model.architecture.route == MCORE:
        _check_mcore(spec, cluster)
    if cluster.target == "CPU":
        _check_cpu(spec)
        return
    lacks = cluster.kind is not None and not KINDS[cluster.kind].bfloat16
    if lacks and "bfloat16" in (spec.precision.params, spec.precision.compute):
        raise SpecError(
            f"precision bfloat16: {cluster.kind} cards have no bfloat16",
            hint="set precision: {params: float16, compute: float16}, or leave precision out",
        )


def check_loading(spec: RunSpec, cluster: Cluster) -> None:
    """Raise SpecError when MindFormers would not load the base of a resolved ``spec``.

    In semi_auto mode it compiles the graph before it loads, which works with data sinking only (mindformers 1.9.0,
    checkpoint/utils.py, compile_model); a whole .ckpt is loaded before that.
    """
    checkpoint, ascend = spec.model.checkpoint, cluster.target == "Ascend"
    split = spec.parallel.mode == "semi_auto" and cluster.num_devices > 1
    if ascend and split and checkpoint and not checkpoint.endswith(".ckpt") and not spec.runtime.sink_mode:
        raise SpecError(
            "runtime.sink_mode false: in semi_auto mode MindFormers loads a base with sink_mode true only",
            hint="leave runtime.sink_mode out",
        )


def _check_packing(spec: RunSpec) -> None:
    """Raise SpecError when flash attention on Ascend cannot keep packed samples apart."""
    seams = packed_rows.seams_of(spec.model.seq_length)
    rules = (
        (not spec.runtime.flash_attention,
         "runtime.flash_attention false: on Ascend nothing else keeps packed samples apart",
         "leave runtime.flash_attention out, or set data.packing: false"),
        (spec.model.seq_length < packed_rows.LEAST_SEQ_LENGTH,
         f"model.seq_length {spec.model.seq_length}: on Ascend packed rows have {packed_rows.LEAST_SEQ_LENGTH} or more",
         f"set model.seq_length: {packed_rows.LEAST_SEQ_LENGTH}, which packing fills; or data.packing: false"),
        (spec.data.batch_size * seams > packed_rows.MOST_SEAMS,
         f"batch_size {spec.data.batch_size}: of {seams} samples a row, flash attention takes {packed_rows.MOST_SEAMS}",
         f"set data.batch_size: {max(packed_rows.MOST_SEAMS // seams, 1)}"),
    )  # fmt: skip
    for is_broken, problem, hint in rules:
        if is_broken:
            raise SpecError(problem, hint=hint)


def _check_mcore(spec: RunSpec, cluster: Cluster) -> None:
    """Raise SpecError for what MindFormers does not do with its mcore networks.

    mindformers 1.9.0, parallel_core/training_graph: gpt_model.py (degrees whose product is not the world size; labels
    are always given), attention.py (without flash attention heads are repeated along the wrong axis),
    transformer_config.py (the vocabulary is split wherever the layers are).
    """
    family, ascend = spec.model.family, cluster.target == "Ascend"
    rules = (
        (ascend and cluster.num_devices > 1 and spec.parallel.mode == "data",
         f"parallel.mode data: MindFormers trains {family} in semi_auto alone, data parallel too",
         "leave parallel.mode out"),
        (ascend and spec.runtime.flash_attention is False,
         f"runtime.flash_attention false: MindFormers computes {family} on Ascend with flash attention alone",
         "leave runtime.flash_attention out"),
        (spec.parallel.vocab_split is False, f"parallel.vocab_split false: MindFormers always splits that of {family}",
         "leave parallel.vocab_split out"),
        (sorted(spec.data.input_columns) != ["input_ids", "labels"],
         f"data.input_columns {', '.join(spec.data.input_columns)}: {family} is trained on input_ids and labels",
         "leave data.input_columns out, and make the rows with launcher data preprocess"),
        (spec.precision.rotary == "float16", f"precision.rotary float16: MindFormers refuses it for {family}",
         "leave precision.rotary out"),
    )  # fmt: skip
    for is_broken, problem, hint in rules:
        if is_broken:
            raise SpecError(problem, hint=hint)


def _check_cpu(spec: RunSpec) -> None:
    parallel, runtime = spec.parallel, spec.runtime
    collectives = {
        f"parallel.mode {parallel.mode}": parallel.mode == "semi_auto",
        f"model_parallel {parallel.model_parallel}": (parallel.model_parallel or 1) > 1,
        f"pipeline_stage {parallel.pipeline_stage}": (parallel.pipeline_stage or 1) > 1,
        f"optimizer_shard {parallel.optimizer_shard}": parallel.shards_optimizer,
        "sequence_parallel": parallel.sequence_parallel,
        "vocab_split": parallel.vocab_split,
    }
    asked = [name for name, is_asked in collectives.items() if is_asked]
    if asked:
        raise SpecError(
            "the CPU backend trains data-parallel only: MindSpore has no CPU kernels for the collectives of "
            f"{', '.join(asked)}",
            hint="set parallel: {mode: data}; or run on Ascend cards",
        )
    repeats = spec.training.gradient_accumulation
    if repeats > 1:
        raise SpecError(
            f"training.gradient_accumulation {repeats}: MindFormers accumulates in parallel.mode semi_auto alone, "
            "which the CPU backend does not have",
            hint=f"set training.gradient_accumulation: 1 and data.batch_size: {repeats * spec.data.batch_size}, "
            "whose steps see as many rows; or run on Ascend cards",
        )
    if {spec.precision.params, spec.precision.compute} - {None, "float32"}:
        raise SpecError(
            f"the CPU backend trains in float32, not params {spec.precision.params or 'float32'}, "
            f"compute {spec.precision.compute or 'float32'}",
            hint="leave precision out; or run on Ascend cards",
        )
    kernels = [key for key in ("flash_attention", "sink_mode", "recompute") if getattr(runtime, key)]
    if kernels:
        raise SpecError(
            f"runtime.{kernels[0]}: there is none on the CPU backend",
            hint=f"leave runtime.{kernels[0]} out; or run on Ascend cards",
        )


def split_problems(model: ModelSpec, parallel: ParallelSpec, degrees: Degrees) -> list[str]:
    """Return the reasons why MindFormers could not split ``model`` this way; empty when it can."""
    parts, stages = degrees.model_parallel, degrees.pipeline_stage
    rules = (
        (model.num_heads % parts, f"num_heads {model.num_heads} is not a multiple of model_parallel {parts}"),
        (model.kv_heads % parts, f"n_kv_heads {model.kv_heads} is not a multiple of model_parallel {parts}"),
        (model.intermediate_size % parts, f"intermediate_size {model.intermediate_size} is not a multiple of {parts}"),
        (model.num_layers % stages, f"num_layers {model.num_layers} is not a multiple of pipeline_stage {stages}"),
        *_stage_rules(model, parallel, stages),
        (stages > 1 and model.tie_word_embeddings, "tied embeddings would lie on two pipeline stages"),
        ((parallel.vocab_split or model.architecture.route == MCORE) and model.vocab_size % parts,
         f"vocab_size {model.vocab_size} does not split in {parts}"),
        (parallel.sequence_parallel and model.seq_length % parts, f"seq_length {model.seq_length} % {parts} is not 0"),
        (parallel.mode == "data" and degrees.split > 1, "parallel.mode data does not split the model; use semi_auto"),
        (parallel.micro_batches and stages > parallel.micro_batches > 0 and stages > 1,
         f"micro_batches {parallel.micro_batches} is below pipeline_stage {stages}"),
        (parallel.micro_batches and parallel.micro_batches > 1 and stages == 1,
         "micro_batches has no effect without a pipeline; use training.gradient_accumulation"),
        (parallel.mode == "data" and parallel.shards_optimizer, "optimizer_shard needs parallel.mode semi_auto"),
        (parallel.sequence_parallel and parts == 1, "sequence_parallel has no effect with model_parallel 1"),
        (parallel.vocab_split and parts == 1 and stages == 1, "vocab_split has no effect with model_parallel 1"),
    )  # fmt: skip
    return [problem for is_broken, problem in rules if is_broken]


def _check_recompute(runtime: RuntimeSpec, degrees: Degrees) -> None:
    """Raise SpecError for more numbers in runtime.recompute than stages (mindformers 1.9.0, tools/check_rules.py)."""
    if isinstance(runtime.recompute, tuple) and len(runtime.recompute) > degrees.pipeline_stage:
        raise SpecError(
            f"runtime.recompute {list(runtime.recompute)}: one number for each of {degrees.pipeline_stage} stage(s)",
            hint="set runtime.recompute: true to recompute all layers",
        )


def _stage_rules(model: ModelSpec, parallel: ParallelSpec, stages: int) -> Iterator[tuple[bool, str]]:
    """Yield the rules on layer_offset: one per stage, no empty stage (mindformers 1.9.0, models/utils.py)."""
    offset = parallel.layer_offset
    if offset is None:
        return
    share = model.num_layers // stages
    yield len(offset) != stages, f"layer_offset {list(offset)} is not one number for each of {stages} stage(s)"
    yield sum(offset) != 0, f"layer_offset {list(offset)} adds up to {sum(offset)}, not 0"
    yield share + min(offset, default=0) < 1, f"layer_offset {list(offset)} leaves a stage of {share} without a layer"


# --------------------------------------------------------------------------------------------------- degrees


def choose_split(spec: RunSpec, cluster: Cluster, limit: float | None) -> tuple[RunSpec, Degrees, bool]:
    """Return ``spec`` with degrees whose product is the number of devices, the degrees, and True if they were chosen.

    Unset degrees become the split into the fewest parts that fits the cards, the estimate's error included; if none
    fits with that error, the one that needs the least memory. Raises SpecError when given degrees do not multiply to
    the number of cards or do not suit the model, or when nothing fits.
    """
    parallel, world_size = spec.parallel, cluster.num_devices
    given = (parallel.model_parallel, parallel.pipeline_stage)
    # Nothing is open: CPU and mode "data" do not split the model, and given degrees are the user's.
    if cluster.target == "CPU" or parallel.mode == "data" or None not in given:
        degrees = _given_degrees(spec, world_size)
        return with_degrees(spec, degrees), degrees, False
    options = [degrees for degrees in _options(spec, cluster) if not _obstacles(spec, degrees, cluster)]
    if not options:
        raise _no_split(spec, cluster)
    tried = [(made, degrees) for degrees in options for made in _shared_out(spec, degrees)]
    needs = [memory.estimate(made, target="Ascend", pool_gib=limit) for made, _ in tried]
    # The first that fits has the fewest parts: every further part costs communication.
    for (made, degrees), need in zip(tried, needs, strict=True):
        if need.verdict in ("fits", "unknown"):
            return made, degrees, True
    least = min(range(len(tried)), key=lambda index: needs[index].pool)
    if needs[least].verdict == "tight":
        return *tried[least], True
    raise _too_large(*tried[least], needs[least], cluster)


def _shared_out(spec: RunSpec, degrees: Degrees) -> Iterator[RunSpec]:
    """Yield ``spec`` with these degrees; and, if it leaves that open, with its optimizer states sharded too.

    MindFormers' recipes for full-parameter finetuning do the same. With LoRA there are few states, and frozen weights
    would be gathered whole at every step.
    """
    yield with_degrees(spec, degrees)
    if spec.parallel.optimizer_shard is None and spec.lora is None and degrees.data_parallel > 1:
        yield with_degrees(_with(spec, "parallel", optimizer_shard="states"), degrees)


def _too_large(spec: RunSpec, degrees: Degrees, need: Memory, cluster: Cluster) -> SpecError:
    changes = smallest_changes(spec, degrees, need, cluster)
    smaller = f"--set {changes[0].keys.replace(' ', ' --set ')} makes it fit; or take more cards" if changes else ""
    return SpecError(
        f"{spec.name} does not fit {cluster.num_devices} card(s) of {need.pool_gib:g} GiB: "
        f"{_name_split(degrees, spec)} needs the least, {need.pool / GIB:.1f} GiB a card",
        hint=smaller or "take more cards; --set parallel.mode=data shows what takes the memory",
    )


def _given_degrees(spec: RunSpec, world_size: int) -> Degrees:
    parallel = spec.parallel
    parts, stages = parallel.model_parallel or 1, parallel.pipeline_stage or 1
    data_parallel = parallel.data_parallel or max(1, world_size // (parts * stages))
    product = data_parallel * parts * stages
    if product != world_size:
        raise _other_product(parallel, data_parallel, product, world_size)
    degrees = Degrees(data_parallel=data_parallel, model_parallel=parts, pipeline_stage=stages)
    problems = split_problems(spec.model, parallel, degrees)
    if problems:
        raise SpecError(
            f"{name_degrees(degrees)}: {'; '.join(problems)}", hint="leave parallel out to have a split chosen"
        )
    return degrees


def _other_product(parallel: ParallelSpec, data_parallel: int, product: int, world_size: int) -> SpecError:
    parts, stages = parallel.model_parallel or 1, parallel.pipeline_stage or 1
    if parallel.data_parallel is None and world_size > parts * stages:
        return SpecError(
            f"model_parallel {parts} x pipeline_stage {stages} = {parts * stages} does not divide --cards {world_size}",
            hint="set degrees whose product divides the cards, or leave parallel out to have a split chosen",
        )
    return SpecError(
        f"data_parallel {data_parallel} x model_parallel {parts} x pipeline_stage {stages} = {product}, "
        f"but --cards is {world_size}",
        hint=f"pass --cards {product}, or leave parallel.data_parallel out",
    )


def _no_split(spec: RunSpec, cluster: Cluster) -> SpecError:
    """Return the error for cards that cannot be split, with the most frequent reasons against each split first."""
    world_size = cluster.num_devices
    reasons = Counter(reason for degrees in _options(spec, cluster) for reason in _obstacles(spec, degrees, cluster))
    if not reasons:  # the given degrees do not divide the cards
        _given_degrees(spec, world_size)
    shown = [reason for reason, _ in reasons.most_common(_SHOWN_REASONS)]
    more = len(reasons) - len(shown)
    return SpecError(
        f"no split of {world_size} cards on {len(cluster.hosts)} host(s) suits this model",
        problems=shown + ([f"and {more} more"] if more else []),
        hint="leave degrees out, or name all of them: model_parallel and pipeline_stage",
    )


_SHOWN_REASONS = 10


def _obstacles(spec: RunSpec, degrees: Degrees, cluster: Cluster) -> list[str]:
    """Return the reasons against ``degrees``. Ranks that share a layer communicate in each one: they need one host."""
    per_host = min(len(host.devices) for host in cluster.hosts)
    found = split_problems(spec.model, spec.parallel, degrees)
    # Host by host the ranks are dealt in order, so a group crosses hosts unless its size divides theirs.
    if per_host % degrees.model_parallel:
        found.append(
            f"model_parallel {degrees.model_parallel} ranks share a layer, and the smallest host has {per_host} card(s)"
        )
    return found


def _options(spec: RunSpec, cluster: Cluster) -> Iterator[Degrees]:
    """Yield the splits of all devices, the fewest parts first; for each, model parallelism before a pipeline."""
    parallel, world_size = spec.parallel, cluster.num_devices
    for split in (number for number in range(1, world_size + 1) if world_size % number == 0):
        for stages in (number for number in range(1, split + 1) if split % number == 0):
            degrees = Degrees(data_parallel=world_size // split, model_parallel=split // stages, pipeline_stage=stages)
            if _as_given(degrees, parallel):
                yield degrees


def _as_given(degrees: Degrees, parallel: ParallelSpec) -> bool:
    keys = ("data_parallel", "model_parallel", "pipeline_stage")
    return all(getattr(parallel, key) in (None, getattr(degrees, key)) for key in keys)


def with_degrees(spec: RunSpec, degrees: Degrees) -> RunSpec:
    """Return ``spec`` with these degrees, and the mode and micro batches that they need."""
    parallel = spec.parallel
    needs_split = degrees.split > 1 or parallel.shards_optimizer or spec.training.gradient_accumulation > 1
    # Fewer micro batches than stages leave stages idle; twice as many shorten the idle time at both ends of a step.
    micro = parallel.micro_batches or (2 * degrees.pipeline_stage if degrees.pipeline_stage > 1 else 1)
    divides = degrees.model_parallel > 1 and spec.model.vocab_size % degrees.model_parallel == 0
    return _with(
        spec,
        "parallel",
        mode=parallel.mode or ("semi_auto" if needs_split else "data"),
        data_parallel=degrees.data_parallel,
        model_parallel=degrees.model_parallel,
        pipeline_stage=degrees.pipeline_stage,
        micro_batches=micro,
        optimizer_shard=parallel.optimizer_shard or "off",
        vocab_split=divides if parallel.vocab_split is None else parallel.vocab_split,
    )


def name_degrees(degrees: Degrees) -> str:
    return (
        f"data_parallel {degrees.data_parallel} x model_parallel {degrees.model_parallel} "
        f"x pipeline_stage {degrees.pipeline_stage}"
    )


def _name_split(degrees: Degrees, spec: RunSpec) -> str:
    level = spec.parallel.optimizer_shard
    return name_degrees(degrees) + (f", optimizer_shard {level}" if spec.parallel.shards_optimizer else "")


def _chosen_note(degrees: Degrees, spec: RunSpec, need: Memory) -> str:
    room = f", {need.pool / GIB:.1f} of {need.pool_gib:g} GiB a card" if need.pool_gib else ""
    return f"split: {_name_split(degrees, spec)} ({spec.parallel.mode}{room} by estimate)"


# --------------------------------------------------------------------------------------------------- smaller


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change to the spec, as typed after --set, and the resulting memory."""

    keys: str
    memory: Memory


def smallest_changes(spec: RunSpec, degrees: Degrees, need: Memory, cluster: Cluster) -> list[Change]:
    """Return the single changes that make a resolved ``spec`` fit; those that do not change results come first."""
    if need.verdict in ("fits", "unknown"):
        return []
    found = []
    for keys, changed in _changes(spec, degrees, cluster):
        smaller = memory.estimate(changed, target=cluster.target, pool_gib=need.pool_gib)
        if smaller.verdict == "fits":
            found.append(Change(keys=keys, memory=smaller))
    return found


def _changes(spec: RunSpec, degrees: Degrees, cluster: Cluster) -> Iterator[tuple[str, RunSpec]]:
    if cluster.target == "Ascend":
        for key in ("recompute", "flash_attention"):
            if not getattr(spec.runtime, key):
                yield f"runtime.{key}=true", _with(spec, "runtime", **{key: True})
        yield from _higher_levels(spec, degrees)
        yield from _wider_splits(spec, degrees, cluster)
    batch = spec.data.batch_size // 2
    while batch:
        yield f"data.batch_size={batch}", _with(spec, "data", batch_size=batch)
        batch //= 2
    length = spec.model.seq_length // 2
    while length >= 128:
        yield f"model.seq_length={length}", _with(spec, "model", seq_length=length)
        length //= 2


_LEVELS = ("off", "states", "gradients", "weights")


def _higher_levels(spec: RunSpec, degrees: Degrees) -> Iterator[tuple[str, RunSpec]]:
    higher = _LEVELS[_LEVELS.index(spec.parallel.optimizer_shard or "off") + 1 :] if degrees.data_parallel > 1 else ()
    for level in higher:
        keys = "parallel.mode=semi_auto " if spec.parallel.mode != "semi_auto" else ""
        yield (
            f"{keys}parallel.optimizer_shard={level}",
            _with(spec, "parallel", mode="semi_auto", optimizer_shard=level),
        )


def _wider_splits(spec: RunSpec, degrees: Degrees, cluster: Cluster) -> Iterator[tuple[str, RunSpec]]:
    # The spec is resolved by now, so its own degrees would leave no other split.
    free = spec.model_copy(update={"parallel": ParallelSpec()})
    for option in _options(free, cluster):
        # A split into as many parts or fewer needs no less memory.
        if option.split > degrees.split and not _obstacles(free, option, cluster):
            keys = f"parallel.mode=semi_auto parallel.model_parallel={option.model_parallel}"
            keys += f" parallel.pipeline_stage={option.pipeline_stage}" if option.pipeline_stage > 1 else ""
            keys += f" parallel.data_parallel={option.data_parallel}"
            update = {"mode": "semi_auto", "micro_batches": None, "vocab_split": None}
            cleared = spec.parallel.model_copy(update=update)
            yield keys, with_degrees(spec.model_copy(update={"parallel": cleared}), option)
