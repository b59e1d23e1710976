"""MindFormers' network on Ascend: imported, built and loaded. The only part of inference that sets MindSpore up.

Without cards it can be built too, without its cache, whose kernels Ascend alone has. Nobody is answered by it there
(``numpy_network``); tests compare it with what answers.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from launcher.checkpoint.dtypes import Array, numpy_dtype
from launcher.errors import HostError, LauncherError
from launcher.inference.model import Model
from launcher.inference.weights import Tensors, read, whole_array
from launcher.models import names
from launcher.runspec.sections import ModelSpec
from launcher.upstream.bare_packages import package_folder, put_bare
from launcher.upstream.versions import pip_install_here

# Their __init__ import trainers, datasets (Hugging Face's), metrics (nltk, scipy): half of the time that importing
# mindformers takes. LLaMA's modules use none of it. Tried with mindformers 1.9.0.
_SKIPPED = ("", ".models", ".models.llama", ".models.auto", ".core", ".dataset")
_SKIPPED_VERSION = "1.9.0"
_BLOCK = 16


def target() -> str:
    """Return the device that this host computes on: "Ascend" or "CPU"."""
    from launcher.cluster.discover import ascend_device_ids

    return "Ascend" if ascend_device_ids() else "CPU"


@contextmanager
def mindspore_errors() -> Iterator[None]:
    """Turn MindSpore's exceptions into one error with the first line; their stacks are thousands of lines of C++.

    Those of numpy, which computes on CPU, go the same way.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise could_not_run(error) from error


def could_not_run(error: Exception) -> LauncherError:
    """Return an error with the first line of another one; our own as they are."""
    if isinstance(error, LauncherError):
        return error
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return LauncherError(f"the model could not be run: {first}", hint="launcher doctor")


def build(model: Model, *, batch_size: int, device_id: int | None = None, incremental: bool = True) -> Any:
    """Build LlamaForCausalLM with the weights of ``model``.

    incremental: with MindFormers' own cache, where the device has it (Ascend). Raises CheckpointError when the weights
    do not fit, HostError when MindSpore or the device is missing.
    """
    device = target()
    mindformers = _import_mindformers()
    _set_context(mindformers, device, device_id)
    with ExitStack() as stack, mindspore_errors():
        tensors = model.open(stack)
        bfloat16 = device == "Ascend" and has_bfloat16()
        config = network_config(model, device, batch_size, incremental=incremental, bfloat16=bfloat16)
        network = _empty(mindformers, config)
        if tensors.adapters:
            _add_lora(network, tensors)
        _fill(network, tensors, config["param_init_type"])
    return network


# ------------------------------------------------------------------------------------------------ set up


def _import_mindformers() -> types.SimpleNamespace:
    """Import the three needed names of MindFormers. RUN_MODE must be set before any of its modules is imported."""
    os.environ["RUN_MODE"] = "predict"
    _skip_packages()
    try:
        # In this order: core.context alone goes in a circle.
        llama = importlib.import_module("mindformers.models.llama.llama")
        config = importlib.import_module("mindformers.models.llama.llama_config")
        context = importlib.import_module("mindformers.core.context.build_context")
    except ImportError as error:
        raise HostError(f"cannot import MindFormers: {error}", hint=pip_install_here()) from error
    return types.SimpleNamespace(
        build_context=context.build_context, LlamaForCausalLM=llama.LlamaForCausalLM, LlamaConfig=config.LlamaConfig
    )


def _skip_packages() -> None:
    """Replace packages by empty ones so that their __init__ does not run; their modules are found as usual."""
    root = None if os.environ.get("LAUNCHER_FULL_IMPORT") else package_folder("mindformers", _SKIPPED_VERSION)
    if root is None:
        return
    for part in _SKIPPED:
        put_bare(f"mindformers{part}", root.joinpath(*part.split(".")[1:]))
    sys.modules["mindformers"].__version__ = _SKIPPED_VERSION  # type: ignore[attr-defined]


def _set_context(mindformers: Any, device: str, device_id: int | None) -> None:
    # postprocess_use_numpy: tokens are chosen on the host; CPU lacks the kernels of the other way (TopkExt).
    context = {"mode": 0, "device_target": device, "postprocess_use_numpy": True}
    if device_id is not None:
        context["device_id"] = device_id
    mindformers.build_context({"context": context, "parallel": {}, "use_parallel": False, "run_mode": "predict"})


# ------------------------------------------------------------------------------------------------ network


def has_bfloat16() -> bool:
    """Return whether the cards of this host compute in bfloat16; assumed for cards of unknown kind."""
    from launcher.cluster.discover import local_cluster
    from launcher.cluster.model import KINDS

    kind = local_cluster().kind
    return kind is None or KINDS[kind].bfloat16


def sixteen_bits(wanted: str, *, bfloat16: bool) -> str:
    """Return ``wanted`` in a dtype of Ascend's attention kernels: bfloat16 where the card has it, else float16."""
    return wanted if wanted == "float16" else ("bfloat16" if bfloat16 else "float16")


def network_config(
    model: Model, device: str, batch_size: int, *, incremental: bool = True, bfloat16: bool = True
) -> dict[str, Any]:
    """Return the settings for LlamaConfig. CPU: those that have kernels there. Ascend: the fast ones."""
    spec = model.spec
    ascend = device == "Ascend"
    compute = sixteen_bits(model.compute_dtype, bfloat16=bfloat16) if ascend else "float32"
    return {
        "batch_size": batch_size if ascend else 1,
        "seq_length": spec.seq_length,
        "hidden_size": spec.hidden_size,
        "num_layers": spec.num_layers,
        "num_heads": spec.num_heads,
        "n_kv_heads": spec.kv_heads,
        "intermediate_size": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "rms_norm_eps": spec.rms_norm_eps,
        "theta": spec.rope_theta,
        "max_position_embedding": spec.max_position_embedding or spec.seq_length,
        **rope_scaling(spec),
        **spec.architecture.network_settings(),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": spec.eos_token_id,
        "pad_token_id": spec.pad_token_id,
        "compute_dtype": compute,
        "param_init_type": compute,
        "layernorm_compute_type": "float32",
        "softmax_compute_type": compute,
        "rotary_dtype": "float32",
        "use_past": ascend and incremental,
        "is_dynamic": ascend and incremental,
        "use_flash_attention": ascend,
        "fused_rms_norm": ascend,  # "Unsupported op [RmsNorm] on CPU"
        "use_rope_slice": not ascend,  # the other way needs a broadcasting BatchMatMul, which CPU lacks
        "block_size": _BLOCK,
        "num_blocks": -(-spec.seq_length // _BLOCK) * batch_size,
        "checkpoint_name_or_path": "",
    }


def rope_scaling(spec: ModelSpec) -> dict[str, Any]:
    """Return the settings of Llama 3's stretched wavelengths, as templates/rank.yaml.j2 has them in training."""
    scaling = spec.rope_scaling
    if scaling is None:
        return {}
    factors = {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embedding,
    }
    return {"extend_method": "LLAMA3", "scaling_factor": factors}


def _empty(mindformers: Any, config: dict[str, Any]) -> Any:
    """Build the network without weights: initializing random ones takes longer than reading the real ones."""
    from mindspore.nn.utils import no_init_parameters

    with no_init_parameters():
        network = mindformers.LlamaForCausalLM(mindformers.LlamaConfig(**config))
    network.set_train(False)
    return network


def _add_lora(network: Any, tensors: Tensors) -> None:
    """Wrap the layers that have adapters in MindFormers' own LoRA cells, as in training."""
    from mindformers.pet.pet_config import LoraConfig
    from mindformers.pet.tuners.lora_adapter import LoraAdapter

    targets = "|".join(f".*{layer}" for layer in sorted(tensors.adapted))
    config = LoraConfig(
        lora_rank=tensors.rank, lora_alpha=tensors.scale * tensors.rank, lora_dropout=0.0, target_modules=targets
    )
    LoraAdapter.get_pet_model(network, config)
    network.set_train(False)


def _fill(network: Any, tensors: Tensors, dtype: str) -> None:
    from mindspore import Parameter

    for name, parameter in network.parameters_and_names():
        array = np.ascontiguousarray(_array(tensors, name).astype(numpy_dtype(dtype), copy=False))
        value = Parameter(_tensor(array), name=parameter.name, requires_grad=False)
        parameter.set_data(value)


def _tensor(array: Array) -> Any:
    import mindspore

    if array.dtype == numpy_dtype("bfloat16"):  # numpy knows it by ml_dtypes alone, MindSpore does not
        return mindspore.Tensor(array.astype(np.float32), mindspore.bfloat16)
    return mindspore.Tensor.from_numpy(array)


def _array(tensors: Tensors, name: str) -> Array:
    if name in tensors.adapters:
        return whole_array(tensors.adapters[name])
    if name in names.HEADS and name not in tensors.weights:
        name = str(names.embedding_in(tensors.weights))
    return read(tensors.weights[name])
