"""Answers from a merged model on one device, and its loss on held-out rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.data.templates import ChatTemplate, get_template
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import CheckpointError, DataError, HostError, JobError, LauncherError
from launcher.jobs import JobStore
from launcher.spec import ModelSpec

WEIGHTS = "model.safetensors"
MODEL_CONFIG = "launcher_model.json"
TOKENIZER = "tokenizer.model"


@dataclass(frozen=True, kw_only=True)
class MergedModel:
    """A folder that answers: whole weights, how the model is built, tokenizer, and the prompt template of training."""

    folder: Path
    model: ModelSpec
    template: ChatTemplate
    params_dtype: str
    compute_dtype: str

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER


@dataclass(frozen=True, kw_only=True)
class GenerationSpec:
    """How answers are made. ``temperature`` 0 is greedy search; ``seed`` only matters above it."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """``finish``: "stop" when the model ended its answer, "length" when the limit or the context did."""

    prompt: str
    text: str
    prompt_tokens: int
    new_tokens: int
    finish: str


def open_merged(folder: Path) -> MergedModel:
    """What is in a merged folder. Raises CheckpointError when it is not one."""
    try:
        config = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
        return MergedModel(
            folder=folder,
            model=ModelSpec.model_validate(config["model"]),
            template=get_template(config["template"]),
            params_dtype=config["precision"]["params"],
            compute_dtype=config["precision"]["compute"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no merged model: {MODEL_CONFIG} is missing or damaged ({error})",
            hint="launcher merge-ckpt JOB makes one",
        ) from error


def find_merged(reference: str, jobs_dir: Path) -> MergedModel:
    """The merged model that ``reference`` means: a folder, or a job (an id, a prefix, "last").

    Raises JobError when there is no such job, CheckpointError when the job is not merged yet.
    """
    if os.sep in reference or (Path(reference) / MODEL_CONFIG).is_file():
        if not Path(reference).is_dir():
            raise JobError(f"no folder {reference}", hint="give a job, or a folder that merge-ckpt wrote")
        return open_merged(Path(reference))
    paths, record = JobStore(jobs_dir).get(reference)
    if not paths.merged.is_dir():
        raise CheckpointError(
            f"job {record.job_id} ({record.state}) is not merged yet",
            hint=f"launcher merge-ckpt {record.job_id}",
        )
    return open_merged(paths.merged)


class Session:
    """A model on one device. It is loaded when it is first needed, which takes seconds: make one, ask it often."""

    def __init__(self, merged: MergedModel, *, batch_size: int = 1) -> None:
        """Raises DataError for a bad tokenizer."""
        self.merged = merged
        self._batch_size = batch_size
        self.tokenizer = load_tokenizer(merged.tokenizer)
        if self.tokenizer.info.vocab_size > merged.model.vocab_size:
            raise DataError(
                f"{merged.tokenizer} has {self.tokenizer.info.vocab_size} pieces, the model {merged.model.vocab_size}",
                hint="use the tokenizer that the model was trained with",
            )

    @cached_property
    def _network(self) -> Any:
        """Raises CheckpointError when weights and architecture do not fit."""
        return _build(self.merged, self._batch_size)

    def encode(self, prompt: str, *, raw: bool = False) -> list[int]:
        """Token ids of a question in the template of training, or of the bare text, a bos token first."""
        if raw:
            return [self.merged.model.bos_token_id, *self.tokenizer.encode(prompt, start=True)]
        return self.merged.template.encode_prompt(self.tokenizer, prompt)

    def answer(self, prompts: Sequence[str], spec: GenerationSpec, *, raw: bool = False) -> list[Answer]:
        """Answers to ``prompts``, in their order, made as one batch. ``raw``: without the prompt template.

        Raises DataError when a prompt leaves no room for an answer in the model's seq_length.
        """
        ids = [self.encode(prompt, raw=raw) for prompt in prompts]
        self._check_lengths(prompts, ids)
        width = max(map(len, ids))
        batch = [row + [self.merged.model.pad_token_id] * (width - len(row)) for row in ids]
        with _mindspore_errors():
            outputs = self._network.generate(batch, **self._generation_arguments(spec))
        return [
            self._answer(prompt, len(row), list(map(int, output)), spec)
            for prompt, row, output in zip(prompts, ids, outputs, strict=True)
        ]

    def _check_lengths(self, prompts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        limit = self.merged.model.seq_length
        for prompt, row in zip(prompts, ids, strict=True):
            if len(row) >= limit:
                raise DataError(
                    f"prompt {prompt[:40]!r}... is {len(row)} tokens; the model's context is {limit} with the answer",
                    hint="ask something shorter",
                )

    def _generation_arguments(self, spec: GenerationSpec) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "max_new_tokens": spec.max_new_tokens,
            "do_sample": spec.temperature > 0,
            "eos_token_id": [self.merged.model.eos_token_id],
            "pad_token_id": self.merged.model.pad_token_id,
        }
        if spec.temperature > 0:
            arguments |= {
                "temperature": spec.temperature,
                "top_k": spec.top_k or self.merged.model.vocab_size,
                "top_p": spec.top_p,
                "seed": spec.seed,
            }
        return arguments

    def _answer(self, prompt: str, prompt_tokens: int, output: list[int], spec: GenerationSpec) -> Answer:
        new = output[prompt_tokens:]
        end = self.merged.model.eos_token_id
        finish = "stop" if end in new else "length"
        new = new[: new.index(end)] if end in new else new[: spec.max_new_tokens]
        return Answer(
            prompt=prompt,
            text=self.tokenizer.decode(new).strip(),
            prompt_tokens=prompt_tokens,
            new_tokens=len(new),
            finish=finish,
        )

    def loss(self, dataset: Path, *, limit: int | None = None) -> float:
        """Mean cross entropy in nats over the learnt tokens of ``dataset`` (a MindRecord as for training)."""
        import numpy as np
        from mindspore import Tensor
        from mindspore.dataset import MindDataset

        total, count = 0.0, 0
        rows = MindDataset([str(dataset)], columns_list=["input_ids", "labels"], shuffle=False)
        for number, row in enumerate(rows.create_dict_iterator(num_epochs=1, output_numpy=True)):
            if limit is not None and number >= limit:
                break
            with _mindspore_errors():
                logits = self._network(Tensor(row["input_ids"][None, :-1])).asnumpy()
            labels = row["labels"][1:]
            learnt = labels != -100
            total += float(_cross_entropy(logits[learnt], labels[learnt]).sum(dtype=np.float64))
            count += int(learnt.sum())
        if not count:
            raise DataError(f"{dataset} has no learnt token", hint="preprocess it with its answers")
        return total / count


@contextmanager
def _mindspore_errors() -> Iterator[None]:
    """What MindSpore raises, as one error with its first line; its stacks are thousands of lines of C++."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LauncherError(f"MindSpore could not run the model: {first}", hint="launcher doctor") from error


def _cross_entropy(logits: Any, labels: Any) -> Any:
    """logits (N, vocab) float32, labels (N,) int; returns (N,) float64."""
    import numpy as np

    logits = logits.astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return log_sum - np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=-1)[:, 0]


def _build(merged: MergedModel, batch_size: int) -> Any:
    """The network on this host's device, weights loaded. RUN_MODE must be set before mindformers looks at it."""
    os.environ["RUN_MODE"] = "predict"
    try:
        import mindspore
        from mindformers import LlamaConfig, LlamaForCausalLM, build_context
    except ImportError as error:
        raise HostError(f"cannot import MindSpore: {error}", hint="pip install mindspore==2.9.0") from error
    from launcher.discover import ascend_device_ids

    target = "Ascend" if ascend_device_ids() else "CPU"
    # Sampling would ask for kernels that CPU lacks (TopkExt) if numpy did not do it.
    context = {"mode": 0, "device_target": target, "postprocess_use_numpy": target == "CPU"}
    build_context({"context": context, "parallel": {}, "use_parallel": False, "run_mode": "predict"})
    network = LlamaForCausalLM(LlamaConfig(**_network_config(merged, target, batch_size)))
    network.set_train(False)
    parameters = mindspore.load_checkpoint(str(merged.weights), format="safetensors")
    missing, unused = mindspore.load_param_into_net(network, parameters)
    if missing or unused:
        raise CheckpointError(
            f"{merged.weights} does not fit the model: {len(missing)} weights missing ({', '.join(missing[:3])}), "
            f"{len(unused)} unknown ({', '.join(unused[:3])})",
            hint="merge the job again",
        )
    if target == "CPU":
        from launcher.cpu_backend import prepare_generation

        prepare_generation(network)
    return network


def _network_config(merged: MergedModel, target: str, batch_size: int) -> dict[str, Any]:
    model = merged.model
    on_ascend = target == "Ascend"
    return {
        "batch_size": batch_size,
        "seq_length": model.seq_length,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "n_kv_heads": model.kv_heads,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.rms_norm_eps,
        "theta": model.rope_theta,
        "max_position_embedding": model.max_position_embedding or model.seq_length,
        **_rope_scaling(model),
        "tie_word_embeddings": model.tie_word_embeddings,
        "bos_token_id": model.bos_token_id,
        "eos_token_id": model.eos_token_id,
        "pad_token_id": model.pad_token_id,
        "compute_dtype": merged.compute_dtype if on_ascend else "float32",
        "param_init_type": merged.params_dtype if on_ascend else "float32",
        "softmax_compute_type": merged.compute_dtype if on_ascend else "float32",
        "rotary_dtype": "float32",
        # Incremental decoding, flash attention and fused norm are Ascend kernels.
        "use_past": on_ascend,
        "use_flash_attention": on_ascend,
        "fused_rms_norm": on_ascend,
        "use_rope_slice": not on_ascend,
        "block_size": 16,
        "num_blocks": max(1, model.seq_length // 16) * batch_size,
        "checkpoint_name_or_path": "",
    }


def _rope_scaling(model: ModelSpec) -> dict[str, Any]:
    """Llama 3's stretched wavelengths, as templates/rank.yaml.j2 asks for them in training."""
    scaling = model.rope_scaling
    if scaling is None:
        return {}
    factors = {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embedding,
    }
    return {"extend_method": "LLAMA3", "scaling_factor": factors}
