"""How much memory a rank needs, term by term, from the settled run spec alone. Nothing is measured here.

``h`` is the hidden size, ``kv`` the width of keys, ``i`` of the feed-forward layer, ``a`` the query heads, ``s`` the
sequence length, ``t`` = batch_size x s the tokens a rank works on, ``V`` the vocabulary, ``L`` the layers of a rank,
``mp`` the model_parallel degree, ``c`` the bytes of the compute dtype. What is kept for the backward pass follows
Korthikanti et al., "Reducing Activation Recomputation", arXiv:2205.05198, section 4, redone for LLaMA's layer
(RMSNorm in float32, rotary, SwiGLU, no attention dropout) and for frozen weights, whose inputs need not be kept.
Left out: workspaces of single operators and fragmentation; that is what the margin of 10 % is for.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.spec import LoraSpec, ModelSpec, RunSpec

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Two moments in float32 (mindformers 1.9.0, core/optim/adamw.py, clone_state).
ADAM_BYTES = 8
# FlashAttentionScore returns the maximum and the sum of each row, eight float32 each (CANN, aclnnFlashAttentionScore).
_FLASH_ROW_BYTES = 2 * 8 * 4
# Softmax in float32, its logarithm, the one-hot label and the gradient (mindformers 1.9.0, core/loss/loss.py).
_LOSS_FLOAT32_COPIES = 4
GIB = 1 << 30
MARGIN = 0.9

# HBM of a card, and what MindSpore may take of it; the rest is CANN's and HCCL's (MindFormers' own configurations
# ask for 58 or 59 of 64, and 30 or 31 of 32). 910B4 has 32: set runtime.max_device_memory_gib. 950: 84 to 128 seen.
HBM_GIB = {"910": 32.0, "A2": 64.0, "A3": 64.0, "950": 84.0, "310P": 24.0}
POOL_GIB = {"910": 30.0, "A2": 58.0, "A3": 58.0, "950": 76.0, "310P": 21.0}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a rank's memory: its size in bytes, how it is computed, and for what."""

    name: str
    size: int
    formula: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the fullest rank needs. ``pool_gib`` is what MindSpore may take; None where nothing is known."""

    terms: tuple[Term, ...]
    pool_gib: float | None

    @property
    def pool(self) -> int:
        """Bytes that come out of MindSpore's pool: all but the communication buffers."""
        return sum(term.size for term in self.terms if term.name != "communication")

    @property
    def total(self) -> int:
        return sum(term.size for term in self.terms)

    @property
    def verdict(self) -> str:
        """ "fits", "tight" (less than 10 % left), "does not fit", or "unknown"."""
        if self.pool_gib is None:
            return "unknown"
        share = self.pool / (self.pool_gib * GIB)
        return "fits" if share <= MARGIN else "tight" if share <= 1 else "does not fit"


# --------------------------------------------------------------------------------------------------- parameters


def layer_sizes(model: ModelSpec) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the seven projections of a layer."""
    hidden, width = model.hidden_size, model.intermediate_size
    return {
        "wq": (hidden, hidden), "wk": (model.kv_width, hidden), "wv": (model.kv_width, hidden), "wo": (hidden, hidden),
        "w1": (width, hidden), "w2": (hidden, width), "w3": (width, hidden),
    }  # fmt: skip


def parameter_count(model: ModelSpec) -> int:
    """Weights of a LLaMA: embedding, output, and per layer attention, feed-forward and two norms."""
    layer = sum(outputs * inputs for outputs, inputs in layer_sizes(model).values()) + 2 * model.hidden_size
    tables = (1 if model.tie_word_embeddings else 2) * model.vocab_size * model.hidden_size
    return model.num_layers * layer + tables + model.hidden_size


def lora_count(model: ModelSpec, lora: LoraSpec | None) -> int:
    """Weights that LoRA adds: r x (inputs + outputs) of every layer it is put on."""
    if lora is None:
        return 0
    sizes = layer_sizes(model)
    return model.num_layers * lora.r * sum(sum(sizes[name]) for name in lora.targets)


# Projections whose outputs are split between model-parallel ranks; the others' inputs are.
_SPLIT_BY_OUTPUT = ("wq", "wk", "wv", "w1", "w3")


def _rank_lora(model: ModelSpec, lora: LoraSpec, parts: int) -> int:
    """LoRA weights of one layer on one rank: of A and B the one beside the split axis is split, the other whole
    (mindformers 1.9.0, pet/tuners/lora_adapter.py)."""
    total = 0
    for name in lora.targets:
        outputs, inputs = layer_sizes(model)[name]
        split = (outputs // parts + inputs) if name in _SPLIT_BY_OUTPUT else (outputs + inputs // parts)
        total += lora.r * split
    return total


# --------------------------------------------------------------------------------------------------- one rank


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """What one pipeline stage holds. ``in_flight``: batches whose activations wait for their backward pass."""

    spec: RunSpec
    layers: int
    first: bool
    last: bool
    in_flight: int

    @property
    def parts(self) -> int:
        return self.spec.parallel.model_parallel or 1

    @property
    def table_parts(self) -> int:
        """Ranks that share embedding and output layer (mindformers 1.9.0, models/llama/llama.py)."""
        parallel, model = self.spec.parallel, self.spec.model
        split = parallel.vocab_split or (parallel.pipeline_stage or 1) > 1
        return self.parts if split and model.vocab_size % self.parts == 0 else 1

    @property
    def compute_bytes(self) -> int:
        return BYTES[self.spec.precision.compute or "float32"]

    @property
    def param_bytes(self) -> int:
        return BYTES[self.spec.precision.params or "float32"]

    @property
    def tokens(self) -> int:
        return self.spec.data.batch_size * self.spec.model.seq_length

    @property
    def base_weights(self) -> int:
        model = self.spec.model
        projections = sum(outputs * inputs for outputs, inputs in layer_sizes(model).values()) // self.parts
        table = model.vocab_size * model.hidden_size // self.table_parts
        tables = table * (int(self.first) + int(self.last and not (self.first and model.tie_word_embeddings)))
        return self.layers * (projections + 2 * model.hidden_size) + tables + int(self.last) * model.hidden_size

    @property
    def lora_weights(self) -> int:
        lora = self.spec.lora
        return self.layers * _rank_lora(self.spec.model, lora, self.parts) if lora else 0

    @property
    def trained(self) -> int:
        return self.lora_weights if self.spec.lora else self.base_weights

    @property
    def shards(self) -> int:
        """Ranks that share optimizer states."""
        parallel = self.spec.parallel
        return (parallel.data_parallel or 1) if parallel.optimizer_shard else 1


def _layer_activations(stage: _Stage) -> int:
    """Bytes that one layer keeps for its backward pass when nothing is recomputed."""
    model, bytes_ = stage.spec.model, stage.compute_bytes
    hidden, parts = model.hidden_size, stage.parts
    norm_copy = 4 if stage.spec.precision.layernorm == "float32" and bytes_ != 4 else 0
    norms = 2 * hidden * (2 * bytes_ + norm_copy)
    norms //= parts if stage.spec.parallel.sequence_parallel else 1
    split = bytes_ * (hidden + 2 * model.kv_width) + _attention_bytes(stage) + bytes_ * hidden
    split += bytes_ * 3 * model.intermediate_size + _kept_inputs(stage)
    return stage.tokens * (norms + split // parts)


def _attention_bytes(stage: _Stage) -> int:
    """A token's share of what attention keeps: two numbers a row, or all weights before and after the cast."""
    model, spec = stage.spec.model, stage.spec
    if spec.runtime.flash_attention:
        return model.num_heads * _FLASH_ROW_BYTES
    repeated = 2 * stage.compute_bytes * model.hidden_size if model.kv_heads != model.num_heads else 0
    softmax = BYTES[spec.precision.softmax]
    return repeated + model.num_heads * model.seq_length * (2 * softmax + stage.compute_bytes)


def _kept_inputs(stage: _Stage) -> int:
    """Inputs of trained projections: w2's own when all weights are trained, the dropped-out one of each adapter."""
    model, lora = stage.spec.model, stage.spec.lora
    if lora is None:
        return stage.compute_bytes * model.intermediate_size
    inputs = sum(layer_sizes(model)[name][1] for name in lora.targets)
    dropped = inputs * (stage.compute_bytes + 1) if lora.dropout else inputs * stage.compute_bytes
    return dropped + stage.compute_bytes * lora.r * len(lora.targets)


def _kept(stage: _Stage) -> int:
    if stage.spec.runtime.recompute is not True:
        return stage.in_flight * stage.layers * _layer_activations(stage)
    # recompute_slice_activation splits a layer's input between the ranks that share the layer.
    return (
        stage.in_flight
        * stage.layers
        * stage.tokens
        * stage.compute_bytes
        * stage.spec.model.hidden_size
        // (stage.parts)
    )


def _at_work(stage: _Stage) -> int:
    """The larger of one layer's backward pass and the loss: they are not at work at the same time."""
    model, bytes_ = stage.spec.model, stage.compute_bytes
    gradients = stage.tokens * bytes_ * (2 * model.hidden_size + 2 * model.intermediate_size // stage.parts)
    cast = sum(outputs * inputs for outputs, inputs in layer_sizes(model).values()) // stage.parts * bytes_
    one_layer = gradients + (_layer_activations(stage) if stage.spec.runtime.recompute is True else 0)
    one_layer += cast if stage.param_bytes != bytes_ else 0
    return max(one_layer, _loss(stage))


def _loss(stage: _Stage) -> int:
    per_token = stage.spec.model.vocab_size // stage.table_parts * (2 * stage.compute_bytes + 4 * _LOSS_FLOAT32_COPIES)
    return stage.tokens * per_token if stage.last else 0


def _communication(spec: RunSpec) -> tuple[int, int]:
    """(groups, bytes): HCCL gives every group twice HCCL_BUFFSIZE (CANN, HCCL_BUFFSIZE)."""
    parallel = spec.parallel
    degrees = (parallel.data_parallel or 1, parallel.model_parallel or 1, parallel.pipeline_stage or 1)
    wider = [degree for degree in degrees if degree > 1]
    groups = len(wider) + (1 if len(wider) > 1 else 0)
    return groups, groups * 2 * spec.hccl.buffer_mib << 20


def _stages(spec: RunSpec) -> list[_Stage]:
    """The first and the last stage: no other holds more."""
    pipeline = spec.parallel.pipeline_stage or 1
    layers = -(-spec.model.num_layers // pipeline) + max(spec.parallel.layer_offset or (0,))
    micro = spec.parallel.micro_batches or pipeline
    if pipeline == 1:
        return [_Stage(spec=spec, layers=layers, first=True, last=True, in_flight=1)]
    return [
        _Stage(spec=spec, layers=layers, first=True, last=False, in_flight=min(pipeline, micro)),
        _Stage(spec=spec, layers=layers, first=False, last=True, in_flight=1),
    ]


def estimate(spec: RunSpec, *, target: str, pool_gib: float | None) -> Memory:
    """Memory of the fullest rank of a settled ``spec``. ``target`` is "Ascend" or "CPU" (no HCCL buffers)."""
    terms = max((_terms(stage, target) for stage in _stages(spec)), key=lambda found: sum(term.size for term in found))
    return Memory(terms=terms, pool_gib=pool_gib)


def _terms(stage: _Stage, target: str) -> tuple[Term, ...]:
    spec, params = stage.spec, stage.param_bytes
    base = stage.base_weights // (1 if spec.lora else stage.shards)
    accumulated = max(spec.training.gradient_accumulation, spec.parallel.pipeline_stage or 1) > 1
    gradients = stage.trained * params * (2 if accumulated else 1) // stage.shards
    groups, buffers = _communication(spec) if target == "Ascend" else (0, 0)
    kept_how = f"{stage.in_flight} x {stage.layers} layers x t x c x h / mp" if spec.runtime.recompute is True else (
        f"{stage.in_flight} x {stage.layers} layers x all that a layer keeps"
    )  # fmt: skip
    per_token = f"V x (2c + {4 * _LOSS_FLOAT32_COPIES})"
    return (
        Term(name="base weights", size=base * params, formula=f"{base:,} x {params} bytes"),
        Term(name="LoRA weights", size=stage.lora_weights * params, formula=f"{stage.lora_weights:,} x {params} bytes"),
        Term(name="gradients", size=gradients, formula=f"{stage.trained:,} trained x {params} bytes"
             + (" x 2 (accumulated)" if accumulated else "") + _shared(stage)),
        Term(name="optimizer states", size=stage.trained * ADAM_BYTES // stage.shards,
             formula=f"{stage.trained:,} trained x {ADAM_BYTES} bytes" + _shared(stage)),
        Term(name="activations kept", size=_kept(stage), formula=kept_how),
        Term(name="at work", size=_at_work(stage),
             formula=f"larger of one layer's backward pass and the loss, t x {per_token}"),
        Term(name="communication", size=buffers, formula=f"{groups} group(s) x 2 x {spec.hccl.buffer_mib} MiB"),
    )  # fmt: skip


def _shared(stage: _Stage) -> str:
    return f" / {stage.shards} ranks" if stage.shards > 1 else ""
