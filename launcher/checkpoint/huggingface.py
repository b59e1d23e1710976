"""Hugging Face's models and MindFormers': the same tensors under different names, and their accompanying files.

peft 0.21, tuners/lora. Tensor names, what is fused, and the meaning of config.json are defined by the family
(``launcher.models``); no weight is transposed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.checkpoint.entries import SAFETENSORS
from launcher.checkpoint.model_files import CONVERT_RECORD, TOKENIZER, tokenizer_files
from launcher.checkpoint.stream import PlannedFile, planned
from launcher.checkpoint.tensors import Output, unwoven
from launcher.errors import CheckpointError
from launcher.models import names
from launcher.models.generation import generation_config
from launcher.models.registry import family_of, hf_names, known_text, model_of_config, runs_of
from launcher.runspec.folders import CHAT_TEMPLATE, OWN_TEMPLATES

PEFT_PREFIX = "base_model.model."
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
_GENERATION, _TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"
SHARD_BYTES = 5 * 10**9  # as transformers has it
_SENTENCEPIECE_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# What transformers' chat templates call what the launcher's call otherwise.
_CHAT_HEAD = (
    "{%- set bos = bos_token -%}{%- set eos = eos_token -%}"
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set messages = messages[1:] -%}"
    "{%- else -%}{%- set system = none -%}{%- endif -%}"
    "{%- macro token(name) -%}{{ name }}{%- endmacro -%}"
)
# What stands before an answer where the template writes it with the answer.
_ANSWER_BEGINS = {
    "llama3": '{% if add_generation_prompt %}{{ header("assistant") }}{% endif %}',
    "chatml": '{% if add_generation_prompt %}{{ open("assistant") }}{% endif %}',
}


# ------------------------------------------------------------------------------------------------ weights


def in_order(outputs: Iterable[Output]) -> list[Output]:
    """Sort in the order of a forward pass: embedding, layers, norm, head."""
    return sorted(outputs, key=lambda output: _order(output.whole.name))


def _order(name: str) -> tuple[int, int, str]:
    match = names.LAYER.fullmatch(name)
    if match:
        return 1, int(match[1]), name
    return (0 if name in names.EMBEDDINGS else 2), 0 if name in names.NORMS else 1, name


def peft_names(name: str) -> tuple[str, ...]:
    """Return peft's names of the MindFormers adapter ``name``. Raises KeyError when it has none."""
    side = "lora_A" if name.endswith(names.LORA_A) else "lora_B"
    modules = (part.removesuffix(".weight") for part in hf_names(names.weight_of(name)))
    return tuple(f"{PEFT_PREFIX}{module}.{side}.weight" for module in modules)


def parts_of(output: Output, model: Mapping[str, Any] | None) -> list[Output]:
    """Return what transformers has for the weight or the adapter ``output``: several where MindFormers fuses layers.

    The parts of a fused layer share its lora_a. model: its model section. Raises CheckpointError when nothing is known.
    """
    name = output.name
    try:
        theirs = peft_names(name) if names.is_adapter(name) else hf_names(name)
    except KeyError as error:
        raise CheckpointError(
            f"{name} has no counterpart in transformers", hint=f"families are {known_text()}"
        ) from error
    if len(theirs) == 1 or name.endswith(names.LORA_A):
        return [replace(output, name=part) for part in theirs]
    if model is None:
        raise _unknown_heads()
    runs = runs_of(name, model)
    return [_part(output, part, runs, number) for number, part in enumerate(theirs)]


def _part(output: Output, name: str, runs: tuple[int, ...], number: int) -> Output:
    fold = output.fold and replace(output.fold, lora_b=unwoven(output.fold.lora_b, runs, number))
    return replace(output, name=name, whole=unwoven(output.whole, runs, number), fold=fold)


def weight_files(outputs: Sequence[Output], max_bytes: int, model: Mapping[str, Any] | None) -> list[PlannedFile]:
    """Plan ``outputs`` under transformers' names, in files of at most ``max_bytes`` unless one tensor is larger."""
    groups: list[list[Output]] = [[]]
    for part in (part for output in in_order(outputs) for part in parts_of(output, model)):
        if groups[-1] and sum(item.nbytes for item in groups[-1]) + part.nbytes > max_bytes:
            groups.append([])
        groups[-1].append(part)
    total = len(groups)
    if total == 1:
        return [planned("model.safetensors", groups[0], SAFETENSORS, "pt")]
    return [
        planned(f"model-{number:05d}-of-{total:05d}.safetensors", group, SAFETENSORS, "pt")
        for number, group in enumerate(groups, 1)
    ]


def adapter_file(outputs: Sequence[Output], model: Mapping[str, Any] | None) -> PlannedFile:
    """Plan the file of adapters under peft's names. Raises CheckpointError when there are none."""
    if not outputs:
        raise CheckpointError("these shards have no LoRA adapters", hint="use --format hf")
    renamed = [part for output in outputs for part in parts_of(output, model)]
    return planned("adapter_model.safetensors", renamed, SAFETENSORS, "pt")


def _unknown_heads() -> CheckpointError:
    return CheckpointError(
        "how many attention heads the model has is not known", hint="give its --config (a config.json will do)"
    )


# ------------------------------------------------------------------------------------------------ texts


def model_texts(
    model: Mapping[str, Any] | None, base: Path | None, tokenizer: Path | None, files: Sequence[PlannedFile]
) -> dict[str, bytes]:
    """Return the small files of a transformers model, by name.

    model: the content of launcher_model.json. base: base checkpoint of the run, whose folder may hold the config.json
    it was converted from, with settings that MindFormers cannot express (rope scaling). tokenizer: of SentencePiece.
    What the base came with stays where nothing changed it: tokenizer and chat template byte for byte.
    Raises CheckpointError when ``model`` is None: shapes do not say how many heads there are.
    """
    if model is None:
        raise _unknown_heads()
    config = config_of_model(model["model"], _beside(base, CONFIG), files)
    generation = generation_config(config, model.get("generation") or {}, _beside(base, _GENERATION))
    texts = {CONFIG: config, _GENERATION: generation}
    if len(files) > 1:
        texts[INDEX] = _index(files)
    found = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in texts.items()}
    return found | (tokenizer_texts(tokenizer, model) if tokenizer else {})


def origin_folder(base: Path | None) -> Path | None:
    """Return the Hugging Face folder that ``base`` was converted from, if it is known and still there."""
    record = (base if base.is_dir() else base.parent) / CONVERT_RECORD if base else None
    inputs = read_json(record).get("inputs") if record and record.is_file() else None
    if not isinstance(inputs, list) or not inputs or not isinstance(inputs[0], dict):
        return None
    folder = Path(str(inputs[0].get("path"))).parent
    return folder if (folder / CONFIG).is_file() else None


def _beside(base: Path | None, name: str) -> dict[str, Any]:
    path = base.parent / name if base else None
    return read_json(path) if path and path.is_file() else {}


def read_json(path: Path, hint: str = "put it back") -> dict[str, Any]:
    """Read the JSON object in ``path``. Raises CheckpointError when there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", hint=hint) from error
    return found


def config_of_model(
    model: Mapping[str, Any], origin: Mapping[str, Any], files: Sequence[PlannedFile]
) -> dict[str, Any]:
    """Return the config.json of transformers for a model section of a run spec; other keys come from ``origin``."""
    outputs = {output.whole.name: output for file in files for output in file.outputs}
    return {
        **family_of(model).config.config_of_model(model, origin),
        "tie_word_embeddings": not names.has_head(outputs),
        "torch_dtype": next((output.dtype for output in outputs.values()), "float32"),
    }


def _index(files: Sequence[PlannedFile]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(output.nbytes for file in files for output in file.outputs)},
        "weight_map": {output.name: file.name for file in files for output in file.outputs},
    }


def tokenizer_texts(tokenizer: Path, model: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the tokenizer and the files that AutoTokenizer needs. Raises CheckpointError when it is missing."""
    found = tokenizer_files(tokenizer)
    if model.get("template") in OWN_TEMPLATES:
        return found
    is_fast = TOKENIZER not in found
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_fast else "LlamaTokenizer",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model["model"]["seq_length"],
        **({} if is_fast else {**_SENTENCEPIECE_TOKENS, "add_bos_token": True, "add_eos_token": False, "legacy": True}),
    }
    if _TOKENIZER_CONFIG in found:
        config = read_json(tokenizer.with_name(_TOKENIZER_CONFIG))
    chat = _chat_template(model.get("template"), by_name=is_fast)
    if chat:  # that of training, whatever the tokenizer came with
        config["chat_template"] = chat
        found.pop(CHAT_TEMPLATE, None)
    found[_TOKENIZER_CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    if not is_fast:
        found["special_tokens_map.json"] = (json.dumps(_SENTENCEPIECE_TOKENS, indent=2) + "\n").encode()
    return found


def _chat_template(name: str | None, *, by_name: bool) -> str | None:
    """Return the chat template of training for transformers; None where transformers cannot reproduce it.

    by_name: the tokenizer recognises control tokens by their names in a text, as a tokenizer.json does.
    """
    from launcher.common import resources

    path = resources.find("templates", f"chat/{name}.jinja") if name else None
    text = path.read_text(encoding="utf-8") if path else ""
    if not text or ("token(" in text and not by_name):
        return None
    return (
        _CHAT_HEAD + re.sub(r"\{#.*?#\}\s*", "", text, flags=re.DOTALL).rstrip("\n") + _ANSWER_BEGINS.get(str(name), "")
    )


def template_of_chat(chat: str) -> str | None:
    """Return the template of the launcher that ``chat``, a chat template of transformers, was written from, if any."""
    from launcher.data.templates import template_names

    return next((name for name in template_names() if chat == _chat_template(name, by_name=True)), None)


def adapter_texts(
    scales: Mapping[str, float], files: Sequence[PlannedFile], base: Path | None = None
) -> dict[str, bytes]:
    """Return the adapter_config.json of a peft LoRA whose weights are in ``files``. scales: by weight name.

    base: the base of the run; peft is told the Hugging Face folder that it was converted from.
    """
    origin = origin_folder(base)
    first = [output for output in files[0].outputs if output.whole.name.endswith(names.LORA_A)]
    ranks = {_peft_module(output.name): output.shape[0] for output in first}
    alphas = {
        _peft_module(output.name): _whole_number(scales[names.weight_of(output.whole.name)] * output.shape[0])
        for output in first
    }
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(origin) if origin else None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in ranks}),
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    return {"adapter_config.json": (json.dumps(config, indent=2) + "\n").encode()}


def _peft_module(adapter: str) -> str:
    return adapter.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")


def _commonest(values: Iterable[float]) -> float:
    (value, _), *_ = Counter(values).most_common(1)
    return value


def _whole_number(value: float) -> float:
    return int(value) if value == int(value) else value


# A transformers model may be made for 131072 tokens; keys and values for all of them need more memory than a card has.
_MOST_CONTEXT = 4096


def asked_model_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``model_of_config`` with the default seq_length of inference."""
    model = model_of_config(config)
    return {**model, "seq_length": min(model["seq_length"], _MOST_CONTEXT)}
