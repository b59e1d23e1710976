"""Estimate of a rank's memory, term by term, from the resolved run spec alone. Nothing is measured here.

``h`` is the hidden size, ``kv`` the width of keys, ``i`` of the feed-forward layer, ``a`` the query heads, ``s`` the
sequence length, ``t`` = batch_size x s the tokens a rank works on, ``V`` the vocabulary, ``L`` the layers of a rank,
``mp`` the model_parallel degree, ``c`` the bytes of the compute dtype. The activations kept for the backward pass
follow Korthikanti et al., "Reducing Activation Recomputation", arXiv:2205.05198, section 4, adapted to LLaMA's layer
(RMSNorm, rotary, SwiGLU, no attention dropout) and to frozen weights, whose inputs need not be kept.

A step has two peaks, and the larger counts: when its backward pass begins, all activations exist and no gradients;
when it ends, it is the other way round. Not counted: workspaces of single operators and fragmentation.
tests/plan/test_memory_published.py compares the estimate with published figures; ``LEAST``, ``MOST`` are its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from launcher.checkpoint.layout import optimizer_cuts, slice_shape
from launcher.checkpoint.split_layout import SplitPlan, layout_of
from launcher.models import base
from launcher.models.names import MCORE, SCHEMES, Scheme
from launcher.runspec.sections import LoraSpec, ModelSpec, RunSpec

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Framework:
    """The properties of a framework that determine memory. The defaults are MindFormers 1.9.0's on Ascend.

    adam_bytes: both moments of a weight. update_bytes: copies of each trained weight while it is updated.
    sums_in_place: the optimizer reads the accumulated gradients themselves, not a copy.
    logit_bytes, logit_copies: a logit at the loss's peak, in bytes and in copies of the compute dtype.
    norm_bytes: per number of a norm's input; None: the compute dtype's. mask_bytes: dropout mask per number.
    row_bytes: per row and head of attention.
    """

    # core/optim/adamw.py, clone_state: float32, one weight after the other.
    adam_bytes: int = 8
    update_bytes: int = 0
    # wrapper.py: accu_grads are scaled into new tensors for the optimizer.
    sums_in_place: bool = False
    # core/loss/loss.py: softmax in float32, its logarithm, the one-hot label and the gradient.
    logit_bytes: int = 16
    logit_copies: int = 2
    # llama_layer.py, LlamaRMSNorm: its cast to float32 is computed again (cast.recompute()).
    norm_bytes: int | None = None
    # DropoutDoMask takes a bit a number (CANN).
    mask_bytes: float = 1 / 8
    # FlashAttentionScore returns the maximum and the sum of each row, eight float32 each (CANN).
    row_bytes: int = 2 * 8 * 4
    # Adapters of wq, wk and wv that are one layer drop out their input once.
    fused_qkv: bool = False
    # Whether outputs of norms and of silu x w3 are computed again (a compiler that fuses them).
    recomputes_pointwise: bool = False
    # Whether grouped keys and values are repeated for each query head.
    repeats_kv: bool = False


MINDFORMERS = Framework()
ADAM_BYTES = MINDFORMERS.adam_bytes
GIB = 1 << 30
# Ratio of used to estimated memory for four of five published figures (tests/plan/test_memory_published.py).
LEAST, MOST = 0.9, 1.25

# HBM of a card, and what MindSpore may take of it; the rest is CANN's and HCCL's (MindFormers' own configurations
# ask for 58 or 59 of 64, and 30 or 31 of 32). 910B4 has 32: set runtime.max_device_memory_gib. 950: 84 to 128 seen.
HBM_GIB = {"910": 32.0, "A2": 64.0, "A3": 64.0, "950": 84.0, "310P": 24.0}
POOL_GIB = {"910": 30.0, "A2": 58.0, "A3": 58.0, "950": 76.0, "310P": 21.0}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a rank's memory: its name, its size in bytes, and the formula behind it.

    ``counts``: it exists at the peak; terms that do not are shown all the same.
    """

    name: str
    size: int
    formula: str
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of the fullest rank. ``pool_gib``: the limit of MindSpore's pool; None if unknown."""

    terms: tuple[Term, ...]
    pool_gib: float | None

    @property
    def pool(self) -> int:
        """Return the bytes in MindSpore's pool: all but the communication buffers."""
        return sum(term.size for term in self.terms if term.counts and term.name != "communication")

    @property
    def total(self) -> int:
        return sum(term.size for term in self.terms if term.counts)

    @property
    def verdict(self) -> str:
        """Return "fits", "does not fit", "tight" where the estimate's error decides, or "unknown"."""
        if self.pool_gib is None:
            return "unknown"
        # The error works both ways: "fits" must hold at its upper end, "does not fit" at its lower.
        share = self.pool / (self.pool_gib * GIB)
        return "fits" if share * MOST <= 1 else "does not fit" if share * LEAST > 1 else "tight"

    @property
    def band(self) -> tuple[float, float]:
        """Return the lower and upper GiB of the pool between which four of five runs end, by the estimate's error."""
        return self.pool * LEAST / GIB, self.pool * MOST / GIB


# --------------------------------------------------------------------------------------------------- parameters


def layer_sizes(model: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of each projection of a layer."""
    return base.linear_shapes(model.architecture, model.sizes)


def parameter_count(model: ModelSpec) -> int:
    """Return the number of parameters, including biases and norms."""
    return base.parameter_count(model.architecture, model.sizes)


def lora_count(model: ModelSpec, lora: LoraSpec | None) -> int:
    """Return the number of weights that LoRA adds: r x (inputs + outputs) of every layer with an adapter."""
    if lora is None:
        return 0
    sizes = layer_sizes(model)
    return model.num_layers * lora.r * sum(sum(sizes[name]) for name in lora.targets_in(model.architecture))


def split_plan(spec: RunSpec) -> SplitPlan:
    """Return the distribution of the model over the ranks of a resolved ``spec``."""
    parallel = spec.parallel
    parts, stages = parallel.model_parallel or 1, parallel.pipeline_stage or 1
    # A pipeline cuts the vocabulary whether asked or not, where it divides (templates/rank.yaml.j2, vocab_emb_dp), and
    # so does mcore (mindformers 1.9.0, training_graph/tensor_parallel/layers.py, VocabParallelEmbedding).
    divides = spec.model.vocab_size % parts == 0
    return SplitPlan(
        data_parallel=parallel.data_parallel or 1,
        model_parallel=parts,
        pipeline_stage=stages,
        optimizer_shards=-1 if parallel.shards_optimizer else 1,
        cut_vocabulary=divides and bool(parallel.vocab_split or stages > 1 or spec.model.architecture.route == MCORE),
    )


@dataclass(frozen=True, kw_only=True)
class Held:
    """Sizes of some weights on one rank, in numbers. ``whole``: as the rank computes with them, after tensor parallel.

    ``kept``: the part that the rank keeps under optimizer parallel. ``cut``: the part of ``whole`` that this cuts.
    """

    whole: int = 0
    kept: int = 0
    cut: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(whole=self.whole + other.whole, kept=self.kept + other.kept, cut=self.cut + other.cut)

    def times(self, count: int) -> Held:
        """Return the sizes of ``count`` times these weights."""
        return Held(whole=count * self.whole, kept=count * self.kept, cut=count * self.cut)


def _held(name: str, shape: tuple[int, ...], plan: SplitPlan, bytes_: int) -> Held:
    layout = layout_of(name, shape, plan, nbytes=math.prod(shape) * bytes_)
    # Without the optimizer's cut: the forward pass gathers the weight to this size.
    whole = math.prod(slice_shape(replace(layout, opt_step=0), shape, 0))
    cuts = optimizer_cuts(layout)
    return Held(whole=whole, kept=whole // cuts, cut=whole if cuts > 1 else 0)


# --------------------------------------------------------------------------------------------------- one rank


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One pipeline stage. ``in_flight``: number of batches whose activations wait for their backward pass."""

    spec: RunSpec
    layers: int
    first: bool
    last: bool
    in_flight: int
    framework: Framework

    @property
    def parts(self) -> int:
        return self.spec.parallel.model_parallel or 1

    @property
    def table_parts(self) -> int:
        """Return the number of ranks that share embedding and output layer."""
        return self.parts if self.plan.cut_vocabulary else 1

    @property
    def keeps_whole_inputs(self) -> bool:
        """Return True if every rank keeps the whole input of a layer that is recomputed, also where ranks share it.

        recompute_slice_activation splits it between them; mcore refuses that key (mindformers 1.9.0,
        transformer_config.py), and only sequence parallel splits it there.
        """
        return self.spec.model.architecture.route == MCORE and not self.spec.parallel.sequence_parallel

    @property
    def compute_bytes(self) -> int:
        return BYTES[self.spec.precision.compute or "float32"]

    @property
    def param_bytes(self) -> int:
        return BYTES[self.spec.precision.params or "float32"]

    @property
    def tokens(self) -> int:
        return self.spec.data.batch_size * self.spec.model.seq_length

    @cached_property
    def plan(self) -> SplitPlan:
        """Return the launcher's own split, the same that writing and merging use."""
        return split_plan(self.spec)

    @property
    def level(self) -> str:
        """Return the level of sharding between data-parallel ranks: off, states, gradients or weights."""
        return self.spec.parallel.optimizer_shard or "off"

    @property
    def names(self) -> Scheme:
        return SCHEMES[self.spec.model.architecture.route]

    @cached_property
    def layer(self) -> Held:
        """Return the weights of one layer."""
        shapes = self.spec.model.architecture.layer_shapes(self.spec.model.sizes).items()
        return sum((self._held(f"{self.names.layers}.0.{name}", shape) for name, shape in shapes), Held())

    @cached_property
    def tables(self) -> Held:
        """Return the embedding, output layer and last norm, if this stage has them."""
        model = self.spec.model
        shape, found = (model.vocab_size, model.hidden_size), Held()
        # With tied embeddings the last stage reads the table too.
        if self.first or (self.last and model.tie_word_embeddings):
            found += self._held(self.names.embedding, shape)
        if self.last:
            found += self._held(self.names.norm, (model.hidden_size,))
            found += Held() if model.tie_word_embeddings else self._held(self.names.head, shape)
        return found

    @cached_property
    def base(self) -> Held:
        return self.layer.times(self.layers) + self.tables

    @cached_property
    def lora(self) -> Held:
        """Return the adapters: of A and B, the one at the axis that tensor parallel cuts is cut, the other is whole."""
        lora, family, found = self.spec.lora, self.spec.model.architecture, Held()
        for name in lora.targets_in(family) if lora else ():
            outputs, inputs = layer_sizes(self.spec.model)[name]
            stem, rank = f"{self.names.layers}.0.{family.path_of(name)}", lora.r if lora else 0
            lora_a, lora_b = self.names.lora
            found += self._held(stem + lora_a, (rank, inputs)) + self._held(stem + lora_b, (outputs, rank))
        return found.times(self.layers)

    @property
    def trained(self) -> Held:
        return self.lora if self.spec.lora else self.base

    def _held(self, name: str, shape: tuple[int, ...]) -> Held:
        return _held(name, shape, self.plan, self.param_bytes)


def _layer_activations(stage: _Stage) -> int:
    """Return the bytes that one layer keeps for its backward pass without recomputation.

    They are: inputs of both norms; inputs of trained projections; queries, keys, values, attention's output and rows;
    and in the feed-forward layer silu's input and output, and the factor that it is multiplied by.
    """
    model, c, made = stage.spec.model, stage.compute_bytes, stage.framework
    inputs, kv_width = _kept_inputs(stage), model.q_width if made.repeats_kv else model.kv_width
    whole = 2 * model.hidden_size * (made.norm_bytes or c) + inputs.whole
    # Outside attention and feed-forward only sequence parallel splits the tokens.
    whole /= stage.parts if stage.spec.parallel.sequence_parallel else 1
    swiglu = 2 if made.recomputes_pointwise else 3
    split = c * (2 * model.q_width + 2 * kv_width + swiglu * model.intermediate_size) + inputs.split
    return int(stage.tokens * (whole + (split + _attention_bytes(stage)) / stage.parts))


def _attention_bytes(stage: _Stage) -> int:
    """Return the bytes per token that attention keeps: numbers per row, or all weights before and after the cast."""
    model, spec = stage.spec.model, stage.spec
    if spec.runtime.flash_attention:
        return model.num_heads * stage.framework.row_bytes
    repeated = 2 * stage.compute_bytes * model.q_width if model.kv_heads != model.num_heads else 0
    softmax = BYTES[spec.precision.softmax]
    return repeated + model.num_heads * model.seq_length * (2 * softmax + stage.compute_bytes)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Bytes per token of the inputs of trained projections: ``whole`` on every model-parallel rank, or ``split``."""

    whole: float
    split: float


def _kept_inputs(stage: _Stage) -> _Inputs:
    """Return the inputs of trained projections: one for all readers, or with dropout one per adapter and its mask."""
    kept = [_reader_inputs(stage, place) for place in range(len(stage.spec.model.architecture.readers))]
    return _Inputs(whole=kept[0] + kept[2], split=kept[1] + kept[3])


def _reader_inputs(stage: _Stage, place: int) -> float:
    model, lora, c, made = stage.spec.model, stage.spec.lora, stage.compute_bytes, stage.framework
    readers = model.architecture.readers[place]
    width = layer_sizes(model)[readers[0]][1]
    recomputed = made.recomputes_pointwise and place != 1
    if lora is None:
        return 0 if recomputed else c * width
    trained = [name for name in readers if name in lora.targets_in(model.architecture)]
    low = c * lora.r * len(trained)
    if not lora.dropout:
        return c * width * bool(trained and not recomputed) + low
    adapters = min(len(trained), 1) if made.fused_qkv and place == 0 else len(trained)
    return adapters * width * (c + made.mask_bytes) + low


def _kept(stage: _Stage) -> int:
    """Return the bytes that all layers keep until their backward pass."""
    if stage.spec.runtime.recompute is not True:  # a list says which layers do, and counts as none
        return stage.in_flight * stage.layers * _layer_activations(stage)
    layer = stage.tokens * stage.compute_bytes * stage.spec.model.hidden_size
    return stage.in_flight * stage.layers * (layer // (1 if stage.keeps_whole_inputs else stage.parts))


def _one_layer(stage: _Stage) -> int:
    """Return the bytes of a layer's backward pass: its gradients, and tensors recomputed, gathered or cast for it."""
    model, c = stage.spec.model, stage.compute_bytes
    found = stage.tokens * c * (2 * model.hidden_size + 2 * model.intermediate_size // stage.parts)
    found += _layer_activations(stage) if stage.spec.runtime.recompute is True else 0
    return found + (stage.layer.whole * c if _copied_by_layer(stage) else 0)


def _copied_by_layer(stage: _Stage) -> bool:
    """Return True if a layer's weights are gathered or cast just for that layer, and freed after it."""
    casts = stage.param_bytes != stage.compute_bytes and stage.spec.runtime.recompute is True
    return stage.level == "weights" or (stage.level == "off" and bool(casts))


def _copies(stage: _Stage) -> tuple[int, str]:
    """Return the bytes of weight copies that stay from the forward to the backward pass, and their description.

    Frozen weights are cut like trained ones (mindspore, opt_param_mgr.cc, SplitParam). Up to optimizer_level level2 the
    AllGather in front of a layer is excluded from recomputation, so its result stays; level3 includes it
    (operator_info.cc, AddCommOpFusionType). A cast of float32 weights comes before it.
    """
    bytes_ = min(stage.compute_bytes, stage.param_bytes)
    if stage.level in ("states", "gradients"):
        cut = stage.base.cut + stage.lora.cut
        return cut * bytes_, f"{cut:,} x {bytes_} bytes, gathered from the data-parallel ranks"
    if stage.level == "off" and stage.param_bytes != bytes_ and stage.spec.runtime.recompute is not True:
        return stage.base.whole * bytes_, f"{stage.base.whole:,} x {bytes_} bytes, cast for computing"
    return 0, "none stays"


def _accumulated(stage: _Stage) -> tuple[int, str]:
    """Return the number of gradients that are summed over batches and so exist all the time, also as text.

    A gradient of a weight that optimizer parallel cuts is reduced and scattered as soon as it exists; the accumulated
    one is whole below level2 (mindspore, parameter_manager.cc, SetClonedTensorShapeForOptimizer).
    """
    spec, trained = stage.spec, stage.trained
    if max(spec.training.gradient_accumulation, spec.parallel.pipeline_stage or 1) == 1:
        return 0, ""
    summed = trained.whole if stage.level == "states" else trained.kept
    return summed, f"{summed:,}"


def _loss(stage: _Stage) -> int:
    made = stage.framework
    logit = made.logit_copies * stage.compute_bytes + made.logit_bytes
    return stage.tokens * (stage.spec.model.vocab_size // stage.table_parts) * logit if stage.last else 0


def _communication(spec: RunSpec) -> tuple[int, int]:
    """Return (groups, bytes): HCCL gives every group twice HCCL_BUFFSIZE (CANN, HCCL_BUFFSIZE)."""
    parallel = spec.parallel
    degrees = (parallel.data_parallel or 1, parallel.model_parallel or 1, parallel.pipeline_stage or 1)
    wider = [degree for degree in degrees if degree > 1]
    # One group for each degree in use, and one of all ranks unless a single degree is that already.
    groups = len(wider) + (1 if len(wider) > 1 else 0)
    return groups, groups * 2 * spec.hccl.buffer_mib << 20


def _stages(spec: RunSpec, framework: Framework) -> list[_Stage]:
    """Return the first and the last stage: no other needs more memory."""
    pipeline = spec.parallel.pipeline_stage or 1
    # The fullest stage: the rounded share, and the largest offset on top.
    layers = -(-spec.model.num_layers // pipeline) + max(spec.parallel.layer_offset or (0,))
    micro = spec.parallel.micro_batches or pipeline
    if pipeline == 1:
        return [_Stage(spec=spec, framework=framework, layers=layers, first=True, last=True, in_flight=1)]
    return [
        _Stage(spec=spec, framework=framework, layers=layers, first=True, last=False, in_flight=min(pipeline, micro)),
        _Stage(spec=spec, framework=framework, layers=layers, first=False, last=True, in_flight=1),
    ]


def estimate(spec: RunSpec, *, target: str, pool_gib: float | None, framework: Framework = MINDFORMERS) -> Memory:
    """Return the memory of the fullest rank of a resolved ``spec``. ``target``: "Ascend" or "CPU" (no HCCL buffers)."""
    found = [Memory(terms=_terms(stage, target), pool_gib=pool_gib) for stage in _stages(spec, framework)]
    return max(found, key=lambda memory: memory.total)


def _terms(stage: _Stage, target: str) -> tuple[Term, ...]:
    """Return the terms: those that always exist, then those at the beginning and the end of the backward pass."""
    params, adam = stage.param_bytes, stage.framework.adam_bytes
    base, lora, trained = stage.base.kept, stage.lora.kept, stage.trained.kept
    (summed, counted), groups = _accumulated(stage), _communication(stage.spec) if target == "Ascend" else (0, 0)
    return (
        Term(name="base weights", size=base * params, formula=f"{base:,} x {params} bytes"),
        Term(name="LoRA weights", size=lora * params, formula=f"{lora:,} x {params} bytes"),
        Term(name="optimizer states", size=trained * adam, formula=f"{trained:,} x {adam} bytes"),
        *((Term(name="accumulated", size=summed * params, formula=f"{counted} gradients x {params} bytes"),)
          if summed else ()),
        *_peak(stage),
        Term(name="communication", size=groups[1],
             formula=f"{groups[0]} group(s) x 2 x {stage.spec.hccl.buffer_mib} MiB"),
    )  # fmt: skip


def _peak(stage: _Stage) -> tuple[Term, ...]:
    """Return the terms of both peaks of a step; those of the larger peak count."""
    (copies, copied), trained, params = _copies(stage), stage.trained.kept, stage.param_bytes
    layers, layer = f"{stage.in_flight} x {stage.layers} layers", _one_layer(stage)
    share = "" if stage.keeps_whole_inputs else " / mp"
    kept = (
        f"{layers} x t x c x h{share}" if stage.spec.runtime.recompute is True else f"{layers} x all that a layer keeps"
    )
    begins = (
        Term(name="weight copies", size=copies, formula=copied),
        Term(name="activations kept", size=_kept(stage), formula=kept),
        Term(name="workspace", size=max(layer, _loss(stage)),
             formula=f"larger of one layer's backward pass and the loss, t x V x ({_logit(stage)})"),
    )  # fmt: skip
    # A framework that sums in place has counted these gradients as accumulated.
    fresh = 0 if stage.framework.sums_in_place and _accumulated(stage)[0] else trained
    ends = (
        Term(name="gradients", size=fresh * params, formula=f"{fresh:,} x {params} bytes"),
        Term(name="one layer", size=max(layer, trained * stage.framework.update_bytes),
             formula="the last backward pass, or the update"),
    )  # fmt: skip
    late = sum(term.size for term in ends) > sum(term.size for term in begins)
    return tuple(replace(term, counts=(term in ends) is late) for term in (*begins, *ends))


def _logit(stage: _Stage) -> str:
    return f"{stage.framework.logit_copies}c + {stage.framework.logit_bytes}"
