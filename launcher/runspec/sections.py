"""The sections and keys of a run spec. The docstring under each key is its line in the reference.

A key whose default is None is chosen when the run is planned (``launcher.plan.degrees``), from the model and the cards.
Names of the model's own settings are those of MindFormers' LlamaConfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Template
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from launcher.models import registry
from launcher.models.base import Family, Sizes
from launcher.upstream.packed_rows import SEAMS

MOST = 2**31 - 1  # MindSpore holds shapes, steps and seeds in int32 in places

PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
DType = Literal["float32", "float16", "bfloat16"]
ColumnPart = Literal["question", "answer", "system", "history", "input", "messages", "tools", "text", "id"]


def _known_family(name: str) -> str:
    return registry.family(name).name


FamilyName = Annotated[str, AfterValidator(_known_family), Field(json_schema_extra={"enum": list(registry.FAMILIES)})]


# Cells between the network and its projections. mindformers 1.9.0 (pet/tuners/lora_adapter.py) does not look inside
# a cell whose own name target_modules matches: ".*" would put LoRA on the output layer and on nothing else.
_CONTAINERS = ("model", "layers", "0", "attention", "feed_forward", "lm_head", "decoder", "self_attention", "mlp",
               "output_layer")  # fmt: skip

# Set by the launcher or by msrun for each rank.
OWNED_VARIABLES = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE", "MS_ROLE", "MS_WORKER_NUM", "MS_NODE_ID",
                   "MS_SCHED_HOST", "MS_SCHED_PORT", "ASCEND_RT_VISIBLE_DEVICES")  # fmt: skip


class Section(BaseModel):
    """Unknown keys are errors, nothing changes after it is read, and infinity is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RopeScalingSpec(Section):
    """Llama 3.1's stretching of rotary positions (MindFormers: extend_method LLAMA3)."""

    factor: Annotated[float, Field(ge=1)]
    """How many times longer the context becomes."""
    low_freq_factor: Positive = 1.0
    """Wavelengths above original_max_position_embedding / this are stretched whole."""
    high_freq_factor: Positive = 4.0
    """Wavelengths below original_max_position_embedding / this stay."""
    original_max_position_embedding: PositiveInt = 8192
    """Context length the base was trained with."""

    @model_validator(mode="after")
    def _ordered(self) -> RopeScalingSpec:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor")
        return self


class ModelSpec(Section):
    """The architecture (a preset's, or key by key), its base weights and its tokenizer."""

    preset: str | None = None
    """A model by name (`launcher config presets`): fills every key of the architecture that is not given."""
    folder: Text | None = None
    """A Hugging Face folder: fills every key of the architecture, checkpoint and tokenizer that are not given."""
    family: FamilyName = registry.DEFAULT
    """Kind of the architecture (docs/models.md): llama and what has its shape, qwen2, which has biases, or qwen3."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_layers: PositiveInt
    """Decoder layers."""
    num_heads: PositiveInt
    """Query heads."""
    n_kv_heads: PositiveInt | None = None
    """Key and value heads; left out, as many as query heads."""
    head_dim: PositiveInt | None = None
    """Dimension of a head (qwen3); left out, hidden_size / num_heads."""
    intermediate_size: PositiveInt
    """Width of the feed-forward layer."""
    vocab_size: PositiveInt
    """Rows of the embedding: at least the tokenizer's pieces."""
    seq_length: PositiveInt
    """Tokens a training row trains on (rows hold one more)."""
    max_position_embedding: PositiveInt | None = None
    """Longest context the model is meant for; left out, seq_length."""
    rms_norm_eps: Positive = 1e-5
    """Epsilon of RMSNorm."""
    rope_theta: Positive = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScalingSpec | None = None
    """Stretched rotary positions, as in Llama 3.1 and 3.2."""
    tie_word_embeddings: bool = False
    """Whether the output layer is the embedding, as in Llama 3.2 1B."""
    bos_token_id: Count = 1
    """Token that begins a text."""
    eos_token_id: Count = 2
    """Token that ends an answer."""
    pad_token_id: Count = 0
    """Token that fills rows up."""
    checkpoint: Text | None = None
    """Base weights: .safetensors, .ckpt, a folder that merge-ckpt wrote, or a Hugging Face folder as it is."""
    tokenizer: Text | None = None
    """SentencePiece model; left out, the one that the dataset was made with."""

    @property
    def kv_heads(self) -> int:
        """Return the number of key and value heads; that of query heads unless grouped-query attention is on."""
        return self.n_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Return the dimension of a head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def q_width(self) -> int:
        """Return the number of outputs of queries."""
        return self.head_size * self.num_heads

    @property
    def kv_width(self) -> int:
        """Return the number of outputs of keys, and of values."""
        return self.head_size * self.kv_heads

    @property
    def architecture(self) -> Family:
        """Return the architecture of ``family``."""
        return registry.family(self.family)

    @property
    def sizes(self) -> Sizes:
        """Return the sizes that determine the shapes of all weights."""
        return Sizes(
            hidden=self.hidden_size,
            layers=self.num_layers,
            kv_size=self.kv_width,
            intermediate=self.intermediate_size,
            vocab=self.vocab_size,
            tied=self.tie_word_embeddings,
            head=self.head_size,
            queries=self.q_width,
        )

    @model_validator(mode="after")
    def _fits_together(self) -> ModelSpec:
        problems = [problem for problem in _head_problems(self) if problem]
        tokens = {"bos": self.bos_token_id, "eos": self.eos_token_id, "pad": self.pad_token_id}
        problems += [
            f"{name}_token_id {number} is not below vocab_size {self.vocab_size}"
            for name, number in tokens.items()
            if number >= self.vocab_size
        ]
        limit = self.max_position_embedding
        if limit is not None and self.seq_length > limit:
            problems.append(f"seq_length {self.seq_length} is above max_position_embedding {limit}")
        if self.rope_scaling and self.rope_scaling.original_max_position_embedding >= (limit or self.seq_length):
            problems.append("rope_scaling needs max_position_embedding above its original_max_position_embedding")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _head_problems(model: ModelSpec) -> tuple[str, ...]:
    if model.hidden_size % model.num_heads:
        return (f"hidden_size {model.hidden_size} is not a multiple of num_heads {model.num_heads}",)
    family, head = model.architecture, model.hidden_size // model.num_heads
    own = "head_dim" if model.head_dim else "hidden_size / num_heads"
    return (
        f"head_dim {model.head_dim} is not {head} (hidden_size / num_heads), and a {family.title} has no other"
        if model.head_size != head and not family.config.own_head_dim
        else "",
        f"{own} is {model.head_size}: rotary needs it even" if model.head_size % 2 else "",
        f"num_heads {model.num_heads} is not a multiple of n_kv_heads {model.n_kv_heads}"
        if model.num_heads % model.kv_heads
        else "",
        f"rope_scaling is not supported for a {family.title}"
        if model.rope_scaling and not family.config.scales_rope
        else "",
    )


class SampleSpec(Section):
    """Made-up school arithmetic, written and tokenized by the launcher itself (``launcher data sample``)."""

    size: PositiveInt
    """Rows to make."""
    seed: Count = 0
    """Another seed makes other rows."""


class SourceSpec(Section):
    """One source of raw records in a list of them."""

    path: Text
    """A file, a folder, or a pattern such as data/*.parquet."""
    weight: Positive | None = None
    """Its part of the mixture; left out beside others that have one, 1; where none has, each record comes once."""
    columns: dict[ColumnPart, Text] = {}
    """Which field holds the question, answer, system, history, input, messages, tools, text or id."""
    ignore: tuple[Text, ...] = ()
    """Fields to leave out although they hold text."""
    encoding: Text | None = None
    """Encoding of text files; left out, it is found."""
    format: Literal["json", "csv", "tsv", "parquet", "arrow", "text"] | None = None
    """What the files are; left out, name and content tell."""
    csv_header: tuple[Text, ...] = ()
    """Names of the columns of a csv or tsv whose first row has none."""
    csv_quotes: Literal["double", "none"] = "double"
    """What encloses a field with commas or line breaks; none: a quote is text."""


class MixSpec(Section):
    """What weights of sources mean (docs/data.md has the formula)."""

    by: Literal["samples", "tokens"] = "samples"
    """What the weights are parts of."""
    until: Literal["all", "first"] = "all"
    """all: every record occurs, some repeatedly; first: no record is repeated, some are left out."""
    seed: Count = 0
    """Another seed repeats or leaves out other records."""


def _kind_of_train(given: Any) -> str:
    return "a list" if isinstance(given, list | tuple) else "a path"


def _kind_of_source(given: Any) -> str:
    return "a path" if isinstance(given, str) else "a source"


# With discriminators, so that a fault is told of the one kind that was given.
_Source = Annotated[
    Annotated[Text, Tag("a path")] | Annotated[SourceSpec, Tag("a source")], Discriminator(_kind_of_source)
]
_Sources = Annotated[tuple[_Source, ...], Field(min_length=1)]
_Train = Annotated[Annotated[Text, Tag("a path")] | Annotated[_Sources, Tag("a list")], Discriminator(_kind_of_train)]


class DataSpec(Section):
    """Training rows: a MindRecord file or raw records (``train``), or ``sample`` to have the launcher make some."""

    train: _Train | None = None
    """A .mindrecord file, or raw records, tokenized first: a file, a folder, a pattern, or a list of sources."""
    type: Literal["chat", "text"] = "chat"
    """What raw records are: conversations, or plain text for continued pretraining."""
    mix: MixSpec = MixSpec()
    """What the weights of several sources mean."""
    train_on: Literal["all", "last", "prompt"] = "all"
    """What is in the loss: all answers, the last answer only, or everything, the prompt too."""
    too_long: Literal["cut", "drop", "split", "error"] = "cut"
    """What becomes of raw samples that are longer than a row."""
    dedup: bool = False
    """Whether raw records whose text occurred before are left out."""
    sample: SampleSpec | None = None
    """Rows that the launcher makes up."""
    template: Text = "vicuna"
    """Prompt template of the rows, used again when the model is asked."""
    packing: bool = False
    """Whether samples share rows, each unseen by the others, so that short ones waste no row (docs/data.md)."""
    batch_size: PositiveInt = 2
    """Rows that one data-parallel rank sees at a time."""
    drop_remainder: bool = True
    """Whether a last batch that is not full is left out."""
    shuffle: bool = True
    """Whether rows come in a new order each epoch."""
    input_columns: Annotated[tuple[Text, ...], Field(min_length=1)] = ("input_ids", "labels")
    """Columns of the file that are read."""
    workers: PositiveInt | None = None
    """Reader threads a rank; left out, 8 on Ascend and 1 on CPU."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if (self.train is None) == (self.sample is None):
            raise ValueError("give one of data.train and data.sample, and null for the other")
        if self.packing and self.input_columns != ("input_ids", "labels"):
            raise ValueError("data.packing reads its own columns: leave data.input_columns out")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of the file that a rank reads."""
        return (*self.input_columns, SEAMS) if self.packing else self.input_columns

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """Return the sources of ``train``, one if it is a path."""
        if self.train is None:
            return ()
        given = (self.train,) if isinstance(self.train, str) else self.train
        return tuple(SourceSpec(path=one) if isinstance(one, str) else one for one in given)


class EvaluationSpec(Section):
    """Loss on held-out rows while training goes on, the mean over their tokens in the loss on all ranks."""

    data: Text | None = None
    """Held-out rows, made as those of training: a .mindrecord file, or raw records."""
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Part of the raw records of data.train that is held out instead, chosen by a hash of their ids."""
    every_steps: PositiveInt = 100
    """Steps between two evaluations."""
    batch_size: PositiveInt | None = None
    """Rows at a time; left out, data.batch_size."""

    @model_validator(mode="after")
    def _one_of_both(self) -> EvaluationSpec:
        if (self.data is None) == (self.fraction is None):
            raise ValueError("give one of evaluation.data and evaluation.fraction")
        return self


class OptimizerSpec(Section):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), its two moments in float32."""

    type: Literal["AdamW", "FP32StateAdamWeightDecay"] = "AdamW"
    """FP32StateAdamWeightDecay, of recipes before mindformers 1.6, is AdamW without bias correction."""
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""


ScheduleType = Literal[
    "CosineWithWarmUpLR",
    "LinearWithWarmUpLR",
    "ConstantWarmUpLR",
    "PolynomialWithWarmUpLR",
    "CosineWithRestartsAndWarmUpLR",
]


class ScheduleSpec(Section):
    """Learning rate over the run: a linear warm-up, then what ``type`` says."""

    type: ScheduleType = "CosineWithWarmUpLR"
    """How the rate goes down after the warm-up."""
    learning_rate: Positive = 1e-5
    """The highest rate."""
    lr_end: NotNegative = 0.0
    """The rate at the end (cosine and polynomial)."""
    warmup_ratio: Fraction | None = None
    """Part of the steps that warms up; left out, 0.03 unless warmup_steps is given."""
    warmup_steps: Count | None = None
    """Steps that warm up, instead of warmup_ratio."""
    warmup_lr_init: NotNegative = 0.0
    """The rate the warm-up begins with."""
    total_steps: Annotated[int, Field(ge=-1, le=MOST)] = -1
    """Steps the schedule is made for; -1 means the steps of the run."""
    num_cycles: Positive | None = None
    """Waves of the cosine; left out, half a one, or one with restarts."""
    power: Positive = 1.0
    """Power of PolynomialWithWarmUpLR."""

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSpec:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("give one of lr_schedule.warmup_ratio and lr_schedule.warmup_steps")
        if self.total_steps == 0:
            raise ValueError("lr_schedule.total_steps 0 is no schedule; -1 means the steps of the run")
        if self.type.startswith("Polynomial") and self.lr_end >= self.learning_rate:
            raise ValueError(f"lr_schedule.lr_end {self.lr_end} must be below learning_rate {self.learning_rate}")
        return self


class TrainingSpec(Section):
    """How long and how. ``steps`` stops early when it is less than ``epochs`` passes over the data give."""

    epochs: PositiveInt = 1
    """Passes over the data."""
    steps: PositiveInt | None = None
    """Most optimizer steps."""
    seed: PositiveInt = 42
    """Seed of initial weights, dropout and the order of rows."""
    gradient_accumulation: PositiveInt = 1
    """Batches whose gradients make one optimizer step (semi_auto only; a pipeline has micro_batches for it)."""
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this norm; left out, they are not."""
    max_nan_steps: Count = 10
    """Steps in a row with a loss that is NaN or infinite after which the run has failed; 0 lets it go on."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimizer."""
    lr_schedule: ScheduleSpec = ScheduleSpec()
    """The learning rate."""


class LoraSpec(Section):
    """Low-rank adaptation (Hu et al., arXiv:2106.09685)."""

    r: PositiveInt = 16
    """Rank of the two factors."""
    alpha: PositiveInt = 16
    """The product is scaled by alpha / r."""
    dropout: Fraction = 0.05
    """Dropout in front of the factors."""
    target_modules: Annotated[str, Field(max_length=500)] | tuple[str, ...] = "wq|wk|wv|wo"
    """Layers that are adapted: a regular expression on their names, or a list of names; for qwen3 left out,
    linear_qkv|linear_proj."""

    @property
    def scale(self) -> float:
        """Return the factor on B @ A: alpha / r."""
        return self.alpha / self.r

    @property
    def pattern(self) -> str:
        """Return ``target_modules`` as the regular expression for MindFormers."""
        if isinstance(self.target_modules, str):
            return self.target_modules
        return f"(?:{'|'.join(self.target_modules)})$"

    def targets_in(self, family: Family) -> tuple[str, ...]:
        """Return the layers whose names the pattern matches from their beginning, like MindFormers' re.match."""
        return tuple(name for name in family.linear_layers if re.match(self.pattern, name))

    @model_validator(mode="after")
    def _is_a_pattern(self) -> LoraSpec:
        problem = _pattern_problem(self) if isinstance(self.target_modules, str) else ""
        if problem:
            raise ValueError(problem)
        return self


def _lora_problem(lora: LoraSpec, family: Family) -> str:
    """Return why no layer of ``family`` can be what ``target_modules`` names, or ""."""
    known, key = ", ".join(family.linear_layers), "lora.target_modules"
    listed = isinstance(lora.target_modules, tuple)
    named = lora.target_modules if isinstance(lora.target_modules, tuple) else lora.target_modules.split("|")
    ours = {part: name for name in family.linear_layers for part in registry.linear_parts(family, name)}
    if listed and not named:
        return f"{key} is empty; layers are {known}"
    fused = {part: name for part, name in ours.items() if family.path_of(name) in family.fused}
    part = next((name for name in named if registry.hf_linear(name) in fused), None)
    if part:
        return _part_problem(part, fused[registry.hf_linear(part)], family)
    wrong = [name for name in named if name not in family.linear_layers] if listed else []
    if wrong:
        renamed = [f"{ours[name]} for {name}" for name in wrong if name in ours]
        suggestion = f"; did you mean {', '.join(renamed)}?" if renamed else ""
        return f"{key} names {', '.join(wrong)[:200]}: no such layer; layers are {known}{suggestion}"
    if not lora.targets_in(family):
        return f"{key} {lora.pattern!r} matches no layer; layers are {known}"
    return ""


def _part_problem(part: str, layer: str, family: Family) -> str:
    together = ", ".join(registry.linear_parts(family, layer))
    return (
        f"lora.target_modules names {part}, which is a part of {layer}: MindFormers keeps {together} of a "
        f"{family.title} in one layer, with one adapter; name {layer}, or all of them"
    )


# Escapes, classes and openings of groups are one part each.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?.|.", re.DOTALL)
_MOST_CHOICES = 8


def _takes_for_ever(pattern: str) -> bool:
    """Return True if trying all ways to match may take unacceptably long, here and in MindFormers.

    Python's re tries them one by one: they multiply with every repetition and every "|" in a group.
    """
    depth = choices = 0
    before = ""
    for part in _PART.findall(pattern):
        is_repetition = part in ("*", "+", "?", "{")
        depth += part.startswith("(") - (part == ")")
        choices = 0 if part == "|" and depth == 0 else choices + (is_repetition or part == "|")
        if choices > _MOST_CHOICES or (is_repetition and before == ")"):
            return True
        before = part
    return False


def _pattern_problem(lora: LoraSpec) -> str:
    if _takes_for_ever(lora.pattern):
        return (
            f"target_modules {lora.pattern[:80]!r} has more than {_MOST_CHOICES} repetitions and alternatives in one "
            "branch, or a repeated group: matching it may take for ever. Name the layers: wq|wk|wv|wo"
        )
    try:
        beside = [name for name in _CONTAINERS if re.match(lora.pattern, name)]
    except (re.error, OverflowError, RecursionError) as error:
        return f"target_modules {lora.pattern!r} is not a regular expression: {error}"
    if beside:
        return (
            f"target_modules {lora.pattern!r} matches {beside[0]}, a cell that holds or follows the layers; "
            "MindFormers would not look inside it. Name the layers: wq|wk|wv|wo"
        )
    return ""


def _shard_level(given: Any) -> Any:
    """Return the level for true and false: off is false in YAML, and true has always rendered level 1."""
    return {True: "states", False: "off"}[given] if isinstance(given, bool) else given


_Levels = Literal["off", "states", "gradients", "weights"]
OptimizerShard = Annotated[_Levels, BeforeValidator(_shard_level, json_schema_input_type=_Levels | bool)]


class ParallelSpec(Section):
    """How the job is split over ranks. What is left out is chosen, so that the product is the number of cards."""

    mode: Literal["data", "semi_auto"] | None = None
    """data: every rank has the whole model. semi_auto: MindSpore splits operators as the degrees say; for qwen3 on
    several cards also where every rank has the whole model."""
    data_parallel: PositiveInt | None = None
    """Groups of ranks that see different rows."""
    model_parallel: PositiveInt | None = None
    """Ranks that share each layer."""
    pipeline_stage: PositiveInt | None = None
    """Groups of ranks that hold different layers."""
    micro_batches: PositiveInt | None = None
    """Batches in flight through a pipeline, at least pipeline_stage; left out, twice that."""
    layer_offset: tuple[int, ...] | None = None
    """Layers that each pipeline stage has more than an equal share, or fewer; left out, all have as many."""
    optimizer_shard: OptimizerShard | None = None
    """What data-parallel ranks share out between them (MindSpore's optimizer parallel); left out, it is chosen."""
    sequence_parallel: bool = False
    """Whether norms and residuals are split along the sequence between the ranks that share a layer."""
    vocab_split: bool | None = None
    """Whether ranks that share a layer share embedding and output layer too; left out, where the vocabulary divides."""

    @property
    def shards_optimizer(self) -> bool:
        """Return True if optimizer parallel is on."""
        return self.optimizer_shard not in (None, "off")


class PrecisionSpec(Section):
    """Number formats. Left out: float32 on CPU; on Ascend bfloat16, or float16 where the card has no bfloat16."""

    params: DType | None = None
    """What weights are stored and trained in; float32 when all weights are trained."""
    compute: DType | None = None
    """What matrices are multiplied in."""
    softmax: DType = "float32"
    """What attention weights are computed in."""
    rotary: DType = "float32"
    """What rotary positions are computed in."""
    layernorm: DType = "float32"
    """What norms are computed in."""
    loss_scale: Literal["dynamic"] | Annotated[float, Field(ge=1)] | None = None
    """Factor on the loss, or dynamic; left out, dynamic with float16 and 1 with the others."""


class RuntimeSpec(Section):
    """What costs memory or time and changes no result."""

    recompute: bool | tuple[Count, ...] | None = None
    """Whether activations are computed again instead of kept, or of how many layers in each pipeline stage; left out,
    yes on Ascend."""
    flash_attention: bool | None = None
    """Whether attention runs as one fused kernel; left out, yes on Ascend (there is none on CPU)."""
    sink_mode: bool | None = None
    """Whether MindSpore feeds whole steps to the card; left out, yes on Ascend."""
    max_device_memory_gib: Positive | None = None
    """Memory MindSpore may take of a card; left out, 58 of 64, or 30 of 32."""


class CheckpointSpec(Section):
    """A checkpoint every ``every_steps`` steps and one at the end; the newest ``keep`` stay."""

    every_steps: PositiveInt = 500
    """Steps between two checkpoints."""
    keep: PositiveInt = 3
    """Checkpoints that stay; older ones are deleted."""
    adapters: bool = False
    """Whether a small file with the LoRA weights alone is written beside each checkpoint."""


class HcclSpec(Section):
    """Time-outs and buffers of HCCL, set on every rank alike (Ascend only)."""

    connect_timeout_s: Annotated[int, Field(ge=120, le=7200)] = 600
    """Seconds ranks wait for each other at the start (HCCL_CONNECT_TIMEOUT)."""
    exec_timeout_s: Annotated[int, Field(ge=0, le=MOST)] = 1836
    """Seconds a collective waits for the slowest rank; 0 means for ever (HCCL_EXEC_TIMEOUT)."""
    buffer_mib: Annotated[int, Field(ge=1, le=65536)] = 200
    """Buffer of a communication group; twice this is used (HCCL_BUFFSIZE)."""

    @model_validator(mode="after")
    def _connects_before_it_executes(self) -> HcclSpec:
        if 0 < self.exec_timeout_s < self.connect_timeout_s:
            raise ValueError(f"hccl.exec_timeout_s {self.exec_timeout_s} is below connect_timeout_s")
        return self


class HcclRetrySpec(Section):
    """HCCL's own repetition of a collective after a link has failed for a moment (A3 only, CANN's
    HCCL_OP_RETRY_ENABLE)."""

    times: Annotated[int, Field(ge=1, le=10)] = 1
    """Most repetitions (MaxCnt)."""
    hold_ms: Annotated[int, Field(ge=0, le=60_000)] = 5000
    """Milliseconds from the failure to the first (HoldTime)."""
    interval_ms: Annotated[int, Field(ge=0, le=60_000)] = 1000
    """Milliseconds between two (IntervalTime)."""


class ResilienceSpec(Section):
    """What MindSpore and HCCL do themselves about faults. Not yet run on Ascend."""

    compile_cache: bool | None = None
    """Whether compiled graphs stay for the next run of the same kind; left out, on CPU. Not yet run on Ascend."""
    tft: tuple[Literal["TRE", "UCE", "HCCE", "TSP", "TTP", "ARF"], ...] = ()
    """Switches of MindSpore's fault tolerance (MS_ENABLE_TFT, Ascend only). TRE: back to the last checkpoint when the
    gradient norm is wrong. UCE: repair of memory errors, HCCE: collectives anew, TSP: pause of steps; these need
    MindIO, and UCE and HCCE a copy of every weight on another rank. TTP and ARF are refused."""
    hccl_retry: HcclRetrySpec | None = None


class GenerationSection(Section):
    """How the trained model answers unless `infer`, `chat` or `serve` are told otherwise. It travels with the model."""

    max_new_tokens: PositiveInt = 128
    """Most tokens of an answer."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 is greedy decoding."""
    top_k: Count = 0
    """Sample among the K likeliest; 0 is all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest that make up P together."""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Above 1, what was said becomes less likely."""
    stop: tuple[Text, ...] = ()
    """Texts that end an answer."""


Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _split_problem(data: DataSpec) -> str:
    """Return why no part of the training data can be held out, or ""."""
    if data.sample:
        return "evaluation.fraction holds out raw records of data.train, and data.sample has none: give evaluation.data"
    if isinstance(data.train, str) and data.train.endswith(".mindrecord"):
        return (
            "evaluation.fraction holds out raw records, and data.train is a .mindrecord: give its records, or "
            "evaluation.data (launcher data preprocess --eval-fraction makes such a file)"
        )
    return ""


Occasion = Literal["end", "failure", "restart"]
# What may stand as $name in a notice's body, and in the arguments of a command.
PLACEHOLDERS = (
    "text",
    "title",
    "occasion",
    "job_id",
    "name",
    "state",
    "attempt",
    "reason",
    "verdict",
    "host",
    "folder",
)


def _unknown_placeholders(value: Any) -> list[str]:
    if isinstance(value, str):
        found = [
            match["named"] or match["braced"] or ""
            for match in Template.pattern.finditer(value)
            if not match["escaped"]
        ]
        return [name for name in found if name not in PLACEHOLDERS]
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [name for item in below for name in _unknown_placeholders(item)]


class NotifySpec(Section):
    """Who is told when the job ends, fails or is restarted. Addresses with keys in them, and passwords, are never
    written here: a key named ``*_env`` names an environment variable that holds one, ``*_file`` a file."""

    to: Literal["webhook", "feishu", "lark", "dingtalk", "wecom", "slack", "email", "command"]
    """Where to: JSON over HTTP, a group robot, an e-mail, or a program."""
    when: Annotated[tuple[Occasion, ...], Field(min_length=1)] = ("end", "restart")
    """end: the job ended, however; failure: only when it failed or was lost; restart: another attempt begins."""
    lang: Literal["en", "zh"] | None = None
    """Language of the text; left out, that of the user's locale."""
    url: Text | None = None
    """Address of a webhook without a key in it."""
    url_env: Variable | None = None
    """Environment variable that holds the address."""
    url_file: Text | None = None
    """File that holds the address."""
    secret_env: Variable | None = None
    """Environment variable that holds the robot's signing key, the webhook's bearer token or the e-mail password."""
    secret_file: Text | None = None
    """File that holds it."""
    body: dict[str, Any] | None = None
    """JSON that a webhook gets instead of all fields; $text, $job_id and the like in it are replaced."""
    command: tuple[Text, ...] = ()
    """Program and arguments, without a shell; it gets all fields as JSON on its standard input."""
    smtp: Annotated[str, Field(pattern=r"^[^\s:/@]+(:[0-9]{1,5})?$")] | None = None
    """Mail server, host or host:port; port 465 with tls ssl, else 587."""
    tls: Literal["starttls", "ssl", "none"] = "starttls"
    """How the connection to the mail server is protected."""
    user: Text | None = None
    """Login at the mail server, with the secret as its password."""
    sender: Text | None = None
    """From whom the e-mail is."""
    recipients: tuple[Text, ...] = ()
    """To whom it goes."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Seconds that one try may take."""
    tries: Annotated[int, Field(ge=1, le=5)] = 3
    """How often it is tried, with 1, 2, 4 seconds between."""

    @model_validator(mode="after")
    def _complete(self) -> NotifySpec:
        problems = [problem for problem in _notify_problems(self) if problem]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _notify_problems(one: NotifySpec) -> Iterator[str]:
    over_http = one.to not in ("email", "command")
    if over_http:
        yield _address_problem(one)
    if one.secret_env is not None and one.secret_file is not None:
        yield "secret_env and secret_file exclude each other"
    if one.to == "email" and not (one.smtp and one.sender and one.recipients):
        yield "to email needs smtp, sender and recipients"
    if one.to == "command" and not one.command:
        yield "to command needs command"
    yield _login_problem(one)
    yield from _path_problems(one)
    for name in _unknown_placeholders([one.body, one.command]):
        yield f"${name} is no placeholder; there are {', '.join(PLACEHOLDERS)}, and $$ is a dollar"
    yield from (f"{key} is not used by {one.to}" for key in _unused_keys(one))


def _path_problems(one: NotifySpec) -> Iterator[str]:
    # The follower of a job works in "/".
    for key in ("url_file", "secret_file"):
        if not str(getattr(one, key) or "/").startswith(("/", "~/")):
            yield f"{key} must be a full path, or begin with ~/"
    if one.command and "/" in one.command[0] and not one.command[0].startswith("/"):
        yield "command must begin with a program on the PATH, or with a full path"


def _address_problem(one: NotifySpec) -> str:
    if sum(key is not None for key in (one.url, one.url_env, one.url_file)) != 1:
        return f"to {one.to} needs one of {'url, ' if one.to == 'webhook' else ''}url_env and url_file"
    if one.url is not None and one.to != "webhook":
        return f"url of {one.to} holds its key: keep it in url_env or url_file"
    if one.url is not None and not re.match(r"https?://[^\s/?#@]+([/?#]\S*)?$", one.url):
        return "url must begin with http:// or https://, without a user or password in it"
    return ""


def _login_problem(one: NotifySpec) -> str:
    if one.user is None:
        return ""
    if one.secret_env is None and one.secret_file is None:
        return "user needs secret_env or secret_file with its password"
    return "tls none would send the password of user in the clear: use starttls or ssl" if one.tls == "none" else ""


_KEYS_OF = {"body": "webhook", "command": "command", "smtp": "email", "tls": "email", "user": "email",
            "sender": "email", "recipients": "email"}  # fmt: skip


def _unused_keys(one: NotifySpec) -> list[str]:
    """Return the keys that say something and mean nothing for ``to``. A spec as used writes every default out."""
    foreign = [key for key, of in _KEYS_OF.items() if of != one.to]
    if one.to in ("email", "command"):
        foreign += ["url", "url_env", "url_file"]
    if one.to in ("command", "wecom", "slack"):
        foreign += ["secret_env", "secret_file"]
    return [key for key in foreign if getattr(one, key) != NotifySpec.model_fields[key].default]


class ObserveSpec(Section):
    """Programs that people watch runs with. A process beside the job tells them, at the lowest priority."""

    trackers: tuple[Text, ...] = ("tensorboard",)
    """tensorboard, swanlab, mlflow, wandb, or one that a package adds; [] for none."""


class UserConfig(Section):
    """A user's own settings, of every run: ~/.config/launcher/config.yaml."""

    notify: tuple[NotifySpec, ...] = ()
    """As in a spec; both are told."""


class RunSpec(Section):
    """Everything one run needs. ``lora`` left out means that all weights are trained."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """Name of the run; part of the job's id."""
    model: ModelSpec
    data: DataSpec
    evaluation: EvaluationSpec | None = None
    training: TrainingSpec = TrainingSpec()
    lora: LoraSpec | None = None
    parallel: ParallelSpec = ParallelSpec()
    precision: PrecisionSpec = PrecisionSpec()
    runtime: RuntimeSpec = RuntimeSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    hccl: HcclSpec = HcclSpec()
    resilience: ResilienceSpec = ResilienceSpec()
    generation: GenerationSection = GenerationSection()
    env: dict[Variable, str] = {}
    """Environment variables of every rank."""
    observe: ObserveSpec = ObserveSpec()
    notify: tuple[NotifySpec, ...] = ()
    """Who is told of the end, a failure, a restart; besides those of ~/.config/launcher/config.yaml."""
    mindformers: dict[str, Any] = {}
    """Other settings of MindFormers' YAML, passed through; what the launcher sets itself is refused here."""

    @model_validator(mode="after")
    def _sections_agree(self) -> RunSpec:
        problems = [f"env.{name} is set by the launcher for each rank" for name in self.env if name in OWNED_VARIABLES]
        steps = self.training.gradient_accumulation
        if steps > 1 and self.parallel.mode == "data":
            problems.append(
                f"training.gradient_accumulation {steps} needs parallel.mode semi_auto: "
                "in data-parallel mode MindFormers sets it back to 1 in silence"
            )
        if steps > 1 and (self.parallel.pipeline_stage or 1) > 1:
            problems.append(
                f"training.gradient_accumulation {steps}: a pipeline accumulates over parallel.micro_batches instead"
            )
        if self.lora and (problem := _lora_problem(self.lora, self.model.architecture)):
            problems.append(problem)
        if self.evaluation and self.evaluation.fraction and (problem := _split_problem(self.data)):
            problems.append(problem)
        if self.model.folder and self.data.sample:
            problems.append("data.sample makes a tokenizer of its own, and model.folder has another: give data.train")
        if problems:
            raise ValueError("\n".join(problems))
        return self
