"""The run spec: what the user asks for, parsed once, every problem reported at once with its line.

A spec is a YAML file that users own. It is read as YAML 1.2 core: ``1e-5`` is a number and ``no`` is a word,
which PyYAML's own YAML 1.1 rules get the other way round. Relative paths in it are relative to the working folder.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from launcher import resources
from launcher.errors import SpecError

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
DType = Literal["float32", "float16", "bfloat16"]
Loc = tuple[int | str, ...]

# The projections that a MindFormers LLaMA layer has (mindformers 1.9.0, models/llama/llama_transformer.py and
# llama_layer.py); LoRA may be put on these and on nothing else.
LLAMA_LINEAR_LAYERS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Section):
    """Architecture of a LLaMA, its base weights and its tokenizer. Names are those of MindFormers' LlamaConfig."""

    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    seq_length: PositiveInt
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    checkpoint: str | None = None
    tokenizer: str | None = None

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads; as many as query heads unless grouped-query attention is on."""
        return self.n_kv_heads or self.num_heads

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if (self.hidden_size // self.num_heads) % 2:
            raise ValueError(f"hidden_size / num_heads is {self.hidden_size // self.num_heads}: rotary needs it even")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        return self


class SampleSpec(_Section):
    """Made-up school arithmetic, written and tokenized by the launcher itself (``launcher data sample``)."""

    size: PositiveInt
    seed: int = 0


class DataSpec(_Section):
    """Training rows: a MindRecord file (``train``), or ``sample`` to have the launcher make some."""

    train: str | None = None
    sample: SampleSpec | None = None
    template: str = "vicuna"
    batch_size: PositiveInt = 2
    drop_remainder: bool = True
    shuffle: bool = True
    input_columns: tuple[str, ...] = ("input_ids", "labels")

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if (self.train is None) == (self.sample is None):
            raise ValueError("give one of data.train (a .mindrecord file) and data.sample")
        return self


class OptimizerSpec(_Section):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

    type: Literal["AdamW"] = "AdamW"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class ScheduleSpec(_Section):
    """Linear warm-up, then half a cosine down to ``lr_end``. ``total_steps`` -1 means the steps of the run."""

    type: Literal["CosineWithWarmUpLR"] = "CosineWithWarmUpLR"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    lr_end: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Fraction = 0.03
    total_steps: int = -1


class TrainingSpec(_Section):
    """How long and how. ``steps`` stops early when it is less than ``epochs`` passes over the data give."""

    epochs: PositiveInt = 1
    steps: PositiveInt | None = None
    seed: Annotated[int, Field(ge=1)] = 42
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    lr_schedule: ScheduleSpec = ScheduleSpec()


class LoraSpec(_Section):
    """Low-rank adaptation (Hu et al., arXiv:2106.09685). ``target_modules``: a regular expression on layer names."""

    r: PositiveInt = 16
    alpha: PositiveInt = 16
    dropout: Fraction = 0.05
    target_modules: str = "wq|wk|wv|wo"

    @property
    def scale(self) -> float:
        """The factor on B @ A: alpha / r."""
        return self.alpha / self.r

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers of LLaMA that ``target_modules`` matches from their beginning, as MindFormers' re.match does."""
        return tuple(name for name in LLAMA_LINEAR_LAYERS if re.match(self.target_modules, name))

    @model_validator(mode="after")
    def _matches_something(self) -> LoraSpec:
        try:
            matched = self.targets
        except re.error as error:
            raise ValueError(f"target_modules {self.target_modules!r} is not a regular expression: {error}") from error
        if not matched:
            known = ", ".join(LLAMA_LINEAR_LAYERS)
            raise ValueError(f"target_modules {self.target_modules!r} matches no layer; layers are {known}")
        return self


class ParallelSpec(_Section):
    """How the job is split over ranks. ``data_parallel`` left out means what the other two leave of the cards."""

    mode: Literal["data", "semi_auto"] = "data"
    data_parallel: PositiveInt | None = None
    model_parallel: PositiveInt = 1
    pipeline_stage: PositiveInt = 1


class PrecisionSpec(_Section):
    """``params`` is the dtype weights are stored and trained in, ``compute`` the one of matrix products."""

    params: DType = "float32"
    compute: DType = "float32"


class CheckpointSpec(_Section):
    """A checkpoint every ``every_steps`` steps and one at the end; the newest ``keep`` stay."""

    every_steps: PositiveInt = 500
    keep: PositiveInt = 3


class RunSpec(_Section):
    """Everything one run needs. ``lora`` left out means that all weights are trained."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    lora: LoraSpec | None = None
    parallel: ParallelSpec = ParallelSpec()
    precision: PrecisionSpec = PrecisionSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    env: dict[str, str] = {}


# ------------------------------------------------------------------------------------------------ reading


_MOST_VALUES = 10_000


class _SpecLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 core, and no dates: a spec has none."""


_SpecLoader.yaml_implicit_resolvers = {}
for _tag, _regex, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
):
    _SpecLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_regex), list(_first))


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # decimal only: YAML 1.1 would read 010 as eight


_SpecLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True, kw_only=True)
class SpecSource:
    """A YAML document with the place of every key: what errors are pointed at."""

    name: str
    values: dict[str, Any]
    lines: dict[Loc, int]

    def place(self, loc: Loc) -> str:
        """ "file:line" of ``loc``, or of the nearest enclosing key that is written down."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.lines:
                return f"{self.name}:{self.lines[loc[:end]]}"
        return self.name

    def value(self, loc: Loc) -> Any:
        """What stands at ``loc``, or None."""
        found: Any = self.values
        for key in loc:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return None
        return found


def find_spec(name: str) -> Path:
    """The file that ``name`` means: a path as it is, or a name in ``configs/`` (".yaml" may be left out).

    Raises SpecError when there is none, with the nearest names.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    stem = name.removesuffix(".yaml")
    found = resources.find("configs", f"{stem}.yaml") if stem else None
    if found:
        return found
    known = resources.names("configs", ".yaml")
    near = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a .yaml file, or one of: {', '.join(known)}"
    raise SpecError(f"no run spec {name!r}: no such file, and no such name in configs/", hint=hint)


def load_spec(name: str) -> RunSpec:
    """Read, parse and check the spec ``name`` (see find_spec). Raises SpecError with every problem in it."""
    return parse_spec(read_source(find_spec(name)))


def read_source(path: Path) -> SpecSource:
    """The YAML document at ``path``. Raises SpecError when it cannot be read or is no mapping of keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the run spec {path}: {error}", hint="give a readable UTF-8 YAML file") from error
    return parse_text(text, name=str(path))


def parse_text(text: str, *, name: str) -> SpecSource:
    """``text`` as a SpecSource; ``name`` stands in messages. Raises SpecError as read_source does."""
    try:
        values, lines = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{name} is not YAML: {_yaml_reason(error)}", hint="check it with an editor") from error
    if not isinstance(values, dict):
        raise SpecError(f"{name}: a run spec is a mapping of keys, this is {_kind(values)}", hint="see configs/")
    return SpecSource(name=name, values=values, lines=lines)


def _load(text: str) -> tuple[Any, dict[Loc, int]]:
    loader = _SpecLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        # The lines first: aliases in aliases make a few lines of YAML stand for millions of values.
        lines = dict(islice(_lines(node, ()), _MOST_VALUES + 1))
        if len(lines) > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values, counting what aliases stand for")
        return loader.construct_document(node), lines
    finally:
        loader.dispose()


def parse_spec(source: SpecSource) -> RunSpec:
    """The RunSpec that ``source`` describes. Raises SpecError with every problem: place, key, value and reason."""
    try:
        # By way of JSON: its strict mode takes a list for a tuple and nothing else for anything else.
        return RunSpec.model_validate_json(json.dumps(source.values), strict=True)
    except TypeError as error:
        raise SpecError(f"{source.name}: {error}", hint="use plain YAML values") from error
    except ValidationError as error:
        problems = [_problem(source, item["type"], item["loc"], item["msg"]) for item in error.errors()]
    raise SpecError(f"{source.name}: {len(problems)} problem(s)", problems=problems)


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem or error.context} (line {mark.line + 1}, column {mark.column + 1})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _kind(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _lines(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                mark = key.start_mark
                raise yaml.MarkedYAMLError(problem=f"key {name!r} stands twice", problem_mark=mark)
            seen.add(name)
            yield (*loc, name), key.start_mark.line + 1
            yield from _lines(value, (*loc, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*loc, index), value.start_mark.line + 1
            yield from _lines(value, (*loc, index))


def _problem(source: SpecSource, kind: str, loc: Loc, message: str) -> str:
    key = ".".join(map(str, loc))
    if kind == "missing":
        return f"{source.place(loc)}: missing key {key}"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _keys_at(loc[:-1]), n=1)
        return f"{source.place(loc)}: unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    reason = message.removeprefix("Value error, ")
    if kind == "value_error":
        return f"{source.place(loc)}: {reason}"
    return f"{source.place(loc)}: {key}: {reason[:1].lower()}{reason[1:]}, got {source.value(loc)!r}"


def _keys_at(loc: Loc) -> list[str]:
    model: Any = RunSpec
    for key in loc:
        model = _section(model.model_fields[str(key)].annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _section(annotation: Any) -> Any:
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((item for item in options if isinstance(item, type) and issubclass(item, _Section)), None)
