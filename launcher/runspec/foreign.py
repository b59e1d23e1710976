"""Translation of a MindFormers YAML to a run spec, by a list of known keys: mapped, replaced, left out or passed on.

Every other key is refused by name: a setting that is dropped silently would train another model than requested.

Read for this: configs/llama and configs/llama2 of mindformers r0.6 to r1.3 (run_llama_7b_lora.yaml,
lora_llama2_7b.yaml, run_llama_65b.yaml), and the template of 1.9.0 (tools/register/template.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from launcher.common.yaml_lines import Loc, YamlDocument
from launcher.errors import SpecError

_MISSING = object()
NO_WEIGHTS = (
    "load_checkpoint is a name to download, which mindformers no longer does: give the weights with --checkpoint"
)
NO_DATASET = "the YAML names no dataset: give it with --set data.train=FILE.mindrecord"

# MindFormers' key -> the run spec's. Where two of them name one value, the first that is there counts.
_MAPPED: dict[str, str] = {
    "trainer.model_name": "name",
    "load_checkpoint": "model.checkpoint",
    "model.model_config.checkpoint_name_or_path": "model.checkpoint",
    "seed": "training.seed",
    "runner_config.epochs": "training.epochs",
    "runner_config.batch_size": "data.batch_size",
    "runner_config.gradient_accumulation_steps": "training.gradient_accumulation",
    "runner_config.sink_mode": "runtime.sink_mode",
    "optimizer.type": "training.optimizer.type",
    "optimizer.eps": "training.optimizer.eps",
    "optimizer.betas": "training.optimizer.betas",
    "optimizer.weight_decay": "training.optimizer.weight_decay",
    **{
        f"lr_schedule.{key}": f"training.lr_schedule.{key}"
        for key in ("type", "learning_rate", "lr_end", "warmup_ratio", "warmup_steps", "warmup_lr_init",
                    "total_steps", "num_cycles", "power")
    },
    "train_dataset.data_loader.shuffle": "data.shuffle",
    "train_dataset.input_columns": "data.input_columns",
    "train_dataset.num_parallel_workers": "data.workers",
    "train_dataset.drop_remainder": "data.drop_remainder",
    "parallel.enable_parallel_optimizer": "parallel.optimizer_shard",
    "parallel_config.use_seq_parallel": "parallel.sequence_parallel",
    "model.model_config.offset": "parallel.layer_offset",
    "recompute_config.recompute": "runtime.recompute",
    **{
        f"model.model_config.{key}": f"model.{key}"
        for key in ("seq_length", "hidden_size", "num_layers", "num_heads", "n_kv_heads", "intermediate_size",
                    "vocab_size", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
                    "tie_word_embeddings")
    },
    "model.model_config.max_position_embedding": "model.max_position_embedding",
    "model.model_config.theta": "model.rope_theta",
    "model.model_config.compute_dtype": "precision.compute",
    "model.model_config.param_init_type": "precision.params",
    "model.model_config.softmax_compute_type": "precision.softmax",
    "model.model_config.softmax_compute_dtype": "precision.softmax",
    "model.model_config.layernorm_compute_type": "precision.layernorm",
    "model.model_config.layernorm_compute_dtype": "precision.layernorm",
    "model.model_config.rotary_dtype": "precision.rotary",
    "model.model_config.use_flash_attention": "runtime.flash_attention",
    "model.model_config.pet_config.lora_rank": "lora.r",
    "model.model_config.pet_config.lora_alpha": "lora.alpha",
    "model.model_config.pet_config.lora_dropout": "lora.dropout",
    "model.model_config.pet_config.target_modules": "lora.target_modules",
    "model.arch.pet.pet_config.lora_rank": "lora.r",
    "model.arch.pet.pet_config.lora_alpha": "lora.alpha",
    "model.arch.pet.pet_config.lora_dropout": "lora.dropout",
}  # fmt: skip

# The only values with which the launcher trains what the YAML says; a key that is left out is good.
_ONLY: dict[str, tuple[Any, ...]] = {
    "run_mode": ("finetune", "train"),
    "trainer.type": ("CausalLanguageModelingTrainer",),
    "model.arch.type": ("LlamaForCausalLM", "LlamaForCausalLMWithLora"),
    "model.model_config.type": ("LlamaConfig",),
    "model.arch.pet.pet_type": ("lora",),
    **{f"{pet}.{key}": value
       for pet in ("model.model_config.pet_config", "model.arch.pet.pet_config")
       for key, value in {"pet_type": ("lora",), "exclude_layers": ([],), "reg_pattern": ("",), "freeze_include": ([],),
                          "freeze_exclude": ([],), "lora_a_init": ("normal",), "lora_b_init": ("zeros",)}.items()},
    "model.model_config.extend_method": ("None", "LLAMA3"),
    **{f"model.model_config.{key}": (False,)
       for key in ("use_past", "attn_proj_has_bias", "qkv_concat", "use_ring_attention",
                   "input_sliced_sig", "calculate_per_token_loss", "use_eod_attn_mask_compression")},
    "model.model_config.qkv_has_bias": (False, True),
    "model.model_config.rotary_pct": (1.0,),
    "model.model_config.emb_dropout_prob": (0.0,),
    "model.model_config.pp_interleave_num": (1,),
    "moe_config.expert_num": (1,),
    **{f"parallel_config.{key}": (1,) for key in ("context_parallel", "expert_parallel", "seq_split_num")},
    "parallel.pipeline_config.pipeline_interleave": (False,),
    "train_dataset_task.type": ("CausalLanguageModelDataset",),
    "lr_schedule.warmup_epochs": (),
    "runner_wrapper.type": ("MFTrainOneStepCell",),
    **{f"optimizer.{key}": (False,) for key in ("amsgrad", "maximize", "swap")},
    **dict.fromkeys(("layer_scale", "lr_scale", "resume_training"), (False,)),
    **dict.fromkeys(("freeze_include", "freeze_exclude"), ([],)),
    "use_legacy": (True,),
}  # fmt: skip

# Decided for each run by the launcher, which says so in one line.
_OWNED = (
    "output_dir", "use_parallel", "auto_trans_ckpt", "only_save_strategy", "src_strategy_path_or_dir",
    "load_ckpt_format", "trainer.config", "trainer.model_name", "callbacks", "context", "train_dataset_task",
    *(f"runner_wrapper.{key}" for key in ("scale_sense", "use_clip_grad", "max_grad_norm", "enable_check_overflow")),
    *(f"optimizer.{key}" for key in ("beta1", "beta2", "learning_rate", "use_fused")),
    *(f"train_dataset.{key}" for key in (
        "data_loader.type", "data_loader.dataset_dir", "data_loader.dataset_files", "construct_args_key", "batch_size",
        "repeat", "python_multiprocessing", "numa_enable", "prefetch_size", "do_eval", "seed", "auto_tune",
        "filepath_prefix", "autotune_per_step", "profile")),
    *(f"parallel.{key}" for key in (
        "parallel_mode", "gradients_mean", "full_batch", "dataset_strategy", "search_mode", "enable_alltoall",
        "strategy_ckpt_config", "strategy_ckpt_save_file", "parallel_optimizer_config", "device_num",
        "loss_repeated_mean", "auto_pipeline")),
    *(f"parallel_config.{key}" for key in (
        "data_parallel", "model_parallel", "pipeline_stage", "micro_batch_num", "vocab_emb_dp", "optimizer_shard",
        "gradient_aggregation_group", "mem_coeff", "mp_comm_recompute", "recompute_slice_activation")),
    *(f"model.model_config.{key}" for key in (
        "batch_size", "multiple_of", "ffn_dim_multiplier", "ignore_token_id", "scaling_factor",
        "fused_rms_norm", "use_rope_slice")),
    *(f"recompute_config.{key}" for key in ("mp_comm_recompute", "recompute_slice_activation")),
)  # fmt: skip

# Read by nothing when mindformers 1.6 to 1.9 finetunes, or changes no result: named when it says anything.
_LEFT_OUT = (
    "eval_callbacks", "processor", "metric", "do_eval", "eval_step_interval", "eval_epoch_interval", "eval_dataset",
    "eval_dataset_task", "auto_tune", "filepath_prefix", "autotune_per_step", "profile", "profile_start_step",
    "profile_stop_step", "init_start_profile", "profile_communication", "profile_memory", "layer_decay",
    "lr_scale_factor", "remote_save_url", "micro_batch_interleave_num", "moe_config", "load_ckpt_async",
    "profiler_level", "profile_rank_ids", "profile_pipeline", "use_graceful_exit", "enable_mindio_ttp_save_ckpt",
    "ignore_data_skip", "data_skip_steps", "runner_config.sink_size", "runner_config.num_classes",
    "runner_config.image_size",
    *(f"recompute_config.{key}" for key in (
        "select_recompute", "select_comm_recompute", "parallel_optimizer_comm_recompute")),
    *(f"model.model_config.{key}" for key in (
        "compute_in_2d", "use_past_shard", "pretrain_seqlen", "rotary_emb_base", "kv_channels", "fine_grain_interleave",
        "max_position_embeddings")),
    *(f"parallel.pipeline_config.{key}" for key in ("pipeline_scheduler",)),
)  # fmt: skip

# Handed on to MindFormers as they are: they change no weight of the network and nothing that the launcher decides.
_PASSED = tuple(
    f"model.model_config.{key}"
    for key in ("repetition_penalty", "max_decode_length", "top_k", "top_p", "do_sample", "temperature", "block_size",
                "num_blocks", "num_block", "is_dynamic", "is_flexible_shape", "use_paged_attention", "use_kvcache_op",
                "embedding_init_type", "use_attn_mask_compression", "initializer_range", "init_method_std",
                "rmsnorm_compute_2d", "residual_dtype")
)  # fmt: skip

_KNOWN = frozenset((*_MAPPED, *_ONLY, *_OWNED, *_LEFT_OUT, *_PASSED))


_SHARD_LEVELS = {"level1": "states", "level2": "gradients", "level3": "weights"}


def is_foreign(source: YamlDocument) -> bool:
    """Return True if ``source`` is a MindFormers YAML and not a run spec."""
    model = source.values.get("model")
    nested = isinstance(model, dict) and "model_config" in model
    return nested or ("runner_config" in source.values and "trainer" in source.values)


def translate(source: YamlDocument) -> YamlDocument:
    """Return the run spec equivalent to the MindFormers YAML ``source``; ``changes`` lists the translations.

    Values are not checked here but by the checks of a spec, with the YAML's lines. Raises SpecError for settings that
    the launcher does not know, or with which it would train something else.
    """
    problems = [*_other_models(source), *_unknown(source)]
    if problems:
        raise SpecError(
            f"{source.name} asks for what the launcher does not do: {len(problems)} problem(s)",
            problems=problems,
            hint="take these keys out if it is to be trained without; --set mindformers.KEY=VALUE hands one on",
        )
    return _Translation(source).result()


def _other_models(source: YamlDocument) -> Iterator[str]:
    for path, good in _ONLY.items():
        loc = tuple(path.split("."))
        value = source.value(loc)
        if not _empty(value) and value not in good:
            instead = f"; it takes {' or '.join(str(item) for item in good if item != [])}" if any(good) else ""
            yield f"{source.place(loc)}: {path}: {value!r} is not what the launcher trains{instead}"
    loc = ("model", "model_config", "pet_config")
    if not _empty(source.value(loc)) and source.value((*loc, "pet_type")) is None:
        yield f"{source.place(loc)}: model.model_config.pet_config has no pet_type; the launcher does lora"
    if source.value(("model", "arch", "type")) is None and source.value(("model", "model_config", "type")) is None:
        yield f"{source.place(('model',))}: model.arch.type is missing; the launcher trains LlamaForCausalLM"


def _unknown(source: YamlDocument) -> Iterator[str]:
    for _, loc in _leaves(source.values):
        path = ".".join(map(str, loc))
        known = any(".".join(map(str, loc[:end])) in _KNOWN for end in range(1, len(loc) + 1))
        if not known and not _empty(source.value(loc)):
            yield f"{source.place(loc)}: {path}: the launcher does not know it"


class _Translation:
    def __init__(self, source: YamlDocument) -> None:
        self._source = source
        self._values: dict[str, Any] = {}
        self._lines: dict[Loc, int] = {(): 1}
        self._taken: set[Loc] = set()
        self._changes: list[str] = []

    def result(self) -> YamlDocument:
        for old, new in _MAPPED.items():
            value = self._find(old)
            self._taken.add(tuple(old.split(".")))
            if value is not _MISSING and not _empty(value):
                self._put(new, _number(value, new), old)
        for step in (self._name, self._model, self._lora, self._data, self._optimizer, self._parallel, self._saving):
            step()
        passed = self._passed_through()
        if passed:
            self._values["mindformers"] = passed
        return replace(
            self._source,
            values=self._values,
            lines=self._lines,
            changes=(f"{self._source.name} is a MindFormers YAML: read as a run spec", *self._changes),
        )

    # -------------------------------------------------------------------------------------------- parts

    def _name(self) -> None:
        name = str(self._values.get("name") or "finetune")
        self._values["name"] = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-")[:64] or "finetune"

    def _model(self) -> None:
        model = self._values.setdefault("model", {})
        if "intermediate_size" not in model and isinstance(model.get("hidden_size"), int):
            width = _feed_forward(model["hidden_size"], self._get("model.model_config.multiple_of", 256),
                                  self._get("model.model_config.ffn_dim_multiplier", None))  # fmt: skip
            model["intermediate_size"] = width
            self._changes.append(f"model.intermediate_size: {width}, from multiple_of and ffn_dim_multiplier")
        if self._get("model.model_config.qkv_has_bias", False):
            model["family"] = "qwen2"
            self._mark("model.family", "model.model_config.qkv_has_bias")
        pad, vocabulary = model.get("pad_token_id"), model.get("vocab_size")
        if isinstance(pad, int) and isinstance(vocabulary, int) and pad >= vocabulary:
            model["pad_token_id"] = 0
            self._changes.append(f"model.pad_token_id: {pad} is not below vocab_size {vocabulary}; 0 stands in")
        checkpoint = model.get("checkpoint")
        if isinstance(checkpoint, str) and "/" not in checkpoint and "." not in checkpoint:
            del model["checkpoint"]
            self._changes.append(NO_WEIGHTS)
        self._rope(model)

    def _rope(self, model: dict[str, Any]) -> None:
        factors = self._get("model.model_config.scaling_factor", None)
        method = self._get("model.model_config.extend_method", "None")
        if method == "LLAMA3" and isinstance(factors, dict):
            scaling = dict(factors)
            scaling["original_max_position_embedding"] = scaling.pop("original_max_position_embeddings", None)
            model["rope_scaling"] = scaling

    def _lora(self) -> None:
        lora = self._values.get("lora")
        if lora is None:
            self._changes.append("no pet_config: all weights are trained")
        elif "target_modules" not in lora:
            # mindformers, LlamaForCausalLMWithLora in models/llama/llama.py: first it took two layers, later four.
            older = self._find("model.arch.pet") is not _MISSING
            lora["target_modules"] = "wq|wv" if older else "wq|wk|wv|wo"
            self._changes.append(f"lora.target_modules: {lora['target_modules']}, what that release adapted unasked")

    def _data(self) -> None:
        data = self._values.setdefault("data", {})
        files = self._get("train_dataset.data_loader.dataset_files", None)
        path = files[0] if isinstance(files, list) and files else self._get("train_dataset.data_loader.dataset_dir", "")
        loader = self._get("train_dataset.data_loader.type", "MindDataset")
        if loader != "MindDataset":
            path = ""
            self._changes.append(f"train_dataset.data_loader.type {loader}: the launcher reads MindRecord and raw rows")
        if path:
            data["train"] = path
            self._mark("data.train", "train_dataset.data_loader")
        else:
            self._changes.append(NO_DATASET)
        batch = self._get("train_dataset.batch_size", None)
        if batch is not None and batch != data.get("batch_size"):
            self._changes.append(
                f"train_dataset.batch_size {batch}: runner_config.batch_size {data.get('batch_size')} counts"
            )

    def _optimizer(self) -> None:
        training = self._values.setdefault("training", {})
        optimizer = training.setdefault("optimizer", {})
        betas = [self._get(f"optimizer.{key}", None) for key in ("beta1", "beta2")]
        if None not in betas:
            optimizer["betas"] = [_number(beta, "betas") for beta in betas]
            self._mark("training.optimizer.betas", "optimizer.beta1")
        if self._get("runner_wrapper.use_clip_grad", False):
            training["max_grad_norm"] = _number(self._get("runner_wrapper.max_grad_norm", 1.0), "max_grad_norm")
        if training.get("seed") == 0:
            training["seed"] = 42
            self._changes.append("seed: 0 is none; 42 stands in")
        self._loss_scale(self._get("runner_wrapper.scale_sense", None))
        if optimizer.get("type") == "FP32StateAdamWeightDecay" and "eps" not in optimizer:
            optimizer["eps"] = 1e-6
            self._changes.append("optimizer.eps: 1e-6, what FP32StateAdamWeightDecay has unasked")

    def _loss_scale(self, scale: Any) -> None:
        """Keep a fixed scale; start and changes of a dynamic one are the launcher's own (templates/rank.yaml.j2)."""
        if scale is None:
            return
        self._values.setdefault("precision", {})["loss_scale"] = "dynamic" if isinstance(scale, dict) else scale
        self._mark("precision.loss_scale", "runner_wrapper.scale_sense")
        for key, ours in _DYNAMIC_SCALE.items() if isinstance(scale, dict) else ():
            if scale.get(key, ours) != ours:
                self._changes.append(f"runner_wrapper.scale_sense.{key} {scale[key]}: {ours} stands in")

    def _parallel(self) -> None:
        parallel = self._values.setdefault("parallel", {})
        mode = self._get("parallel.parallel_mode", 1)
        parallel["mode"] = {0: "data", "DATA_PARALLEL": "data"}.get(mode, "semi_auto")
        if mode in (2, 3):
            self._changes.append(f"parallel.parallel_mode {mode}: semi_auto stands in for it")
        given = {key: self._get(f"parallel_config.{key}", 1) for key in ("model_parallel", "pipeline_stage")}
        parallel.update(given)
        # The file's number of cards is not this run's: data_parallel takes what the others leave.
        data_parallel = self._get("parallel_config.data_parallel", None)
        if data_parallel is not None:
            self._changes.append(f"parallel_config.data_parallel {data_parallel}: follows from --cards instead")
        if given["pipeline_stage"] != 1:
            parallel["micro_batches"] = self._get("parallel_config.micro_batch_num", 1)
            parallel.pop("vocab_split", None)
        elif given["model_parallel"] != 1:
            parallel["vocab_split"] = not self._get("parallel_config.vocab_emb_dp", True)
        self._without_effect(parallel, given["model_parallel"])
        if parallel.get("optimizer_shard"):
            self._optimizer_shard(parallel)
        elif given == {"model_parallel": 1, "pipeline_stage": 1}:
            self._plain_data_parallel(parallel)

    def _without_effect(self, parallel: dict[str, Any], model_parallel: int) -> None:
        if model_parallel == 1 and parallel.pop("sequence_parallel", False):
            self._changes.append("parallel_config.use_seq_parallel: left out, it has no effect with model_parallel 1")
        if not any(_as_list(parallel.get("layer_offset", 0))):
            parallel.pop("layer_offset", None)  # 0 and [0, 0] say that all stages have as many

    def _optimizer_shard(self, parallel: dict[str, Any]) -> None:
        """Take the level: optimizer_level, or gradient_accumulation_shard of older files."""
        config = self._get("parallel.parallel_optimizer_config", {})
        config = config if isinstance(config, dict) else {}
        level = config.get("optimizer_level", "level2" if config.get("gradient_accumulation_shard") else "level1")
        parallel["optimizer_shard"] = _SHARD_LEVELS.get(level, level)
        for key, kept in (("parallel_optimizer_threshold", 64), ("optimizer_weight_shard_size", -1)):
            if config.get(key, kept) != kept:
                self._changes.append(f"parallel_optimizer_config.{key} {config[key]}: {kept} stands in")

    def _plain_data_parallel(self, parallel: dict[str, Any]) -> None:
        if self._values["training"].get("gradient_accumulation", 1) == 1 and parallel["mode"] == "semi_auto":
            parallel["mode"] = "data"
            self._changes.append("parallel.parallel_mode: data, as nothing is split; each rank then reads its own rows")

    def _saving(self) -> None:
        callbacks = self._get("callbacks", [])
        for callback in callbacks if isinstance(callbacks, list) else []:
            if isinstance(callback, dict) and str(callback.get("type")).startswith("CheckpointMo"):
                names = {"every_steps": "save_checkpoint_steps", "keep": "keep_checkpoint_max"}
                saving = {key: callback[name] for key, name in names.items() if callback.get(name) is not None}
                self._values["checkpoint"] = saving
                self._mark("checkpoint", "callbacks")
        memory = re.fullmatch(r"([0-9.]+)GB", str(self._get("context.max_device_memory", "")))
        if memory:
            self._values.setdefault("runtime", {})["max_device_memory_gib"] = float(memory[1])
            self._mark("runtime.max_device_memory_gib", "context.max_device_memory")
        self._changes.append("callbacks, context and output folder are the launcher's own")

    # -------------------------------------------------------------------------------------------- helpers

    def _find(self, path: str) -> Any:
        value = self._source.values
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return _MISSING
            value = value[key]
        return value

    def _get(self, path: str, default: Any) -> Any:
        value = self._find(path)
        return default if value is _MISSING or value is None else value

    def _put(self, new: str, value: Any, old: str) -> None:
        *parents, last = new.split(".")
        section = self._values
        for key in parents:
            section = section.setdefault(key, {})
        if last not in section:
            section[last] = value
            self._mark(new, old)

    def _mark(self, new: str, old: str) -> None:
        """Make errors about ``new`` point at the line of ``old``."""
        line = self._source.lines.get(tuple(old.split(".")))
        if line is not None:
            self._lines[tuple(new.split("."))] = line

    def _passed_through(self) -> dict[str, Any]:
        """Take the settings that MindFormers gets unchanged; errors about them point at their own lines."""
        rest = _pruned(self._source.values, (), self._is_mapped)
        kept = _pruned(rest, (), self._is_left_out)
        stays = {loc for _, loc in _leaves(kept)}
        left_out = [name for name, loc in _leaves(rest) if loc not in stays]
        telling = [name for name in left_out if not name.endswith((": False", ": -1", ": ''"))]
        if telling:
            self._changes.append(f"left out: {', '.join(name.partition(':')[0] for name in telling)}")
        for name, loc in _leaves(kept):
            self._changes.append(f"passed through: {name}")
            here: Loc = ("mindformers", *loc)
            self._lines[here] = self._source.lines.get(loc, 1)
        return kept

    def _is_mapped(self, loc: Loc) -> bool:
        path = ".".join(map(str, loc))
        return loc in self._taken or path in _OWNED or path in _ONLY

    def _is_left_out(self, loc: Loc) -> bool:
        return ".".join(map(str, loc)) in _LEFT_OUT


# What templates/rank.yaml.j2 renders for a dynamic loss scale.
_DYNAMIC_SCALE = {
    "type": "DynamicLossScaleUpdateCell",
    "loss_scale_value": 65536,
    "scale_factor": 2,
    "scale_window": 1000,
}
_FRACTIONS = (
    "eps",
    "learning_rate",
    "lr_end",
    "warmup_lr_init",
    "weight_decay",
    "rope_theta",
    "max_grad_norm",
    "betas",
)


def _empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _number(value: Any, key: str) -> Any:
    """Return ``value``, as a float where a recipe has an integer for a fraction; YAML 1.2 reads "1.e-8" as a number."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and key.rpartition(".")[2] in _FRACTIONS else value


def _feed_forward(hidden: int, multiple_of: Any, multiplier: Any) -> int:
    """Return the width of LLaMA's feed-forward layer in MindFormers (mindformers 1.9.0, models/llama/llama_layer.py):
    two thirds of four times the hidden size, times the multiplier, rounded up to a multiple."""
    width = 4 * hidden
    if isinstance(multiplier, (int, float)):
        width = int((multiplier + 0.01) * width)
    width = int(2 * width / 3)
    step = multiple_of if isinstance(multiple_of, int) and multiple_of > 0 else 256
    return step * ((width + step - 1) // step)


def _pruned(values: Mapping[str, Any], loc: Loc, drop: Callable[[Loc], bool]) -> dict[str, Any]:
    """Return ``values`` without the keys in ``drop``, and without sections that are empty then."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        here = (*loc, key)
        if drop(here):
            continue
        if isinstance(value, dict):
            below = _pruned(value, here, drop)
            if below:
                kept[key] = below
        elif value is not None:
            kept[key] = value
    return kept


def _leaves(values: Mapping[str, Any], loc: Loc = ()) -> Iterator[tuple[str, Loc]]:
    """Yield ("a.b: value", its place) for every value that is not a section."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*loc, key))
        else:
            yield f"{'.'.join(map(str, (*loc, key)))}: {value!r}", (*loc, key)
