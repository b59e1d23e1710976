"""How far the memory estimate can be held against MindSpore's CPU backend: peak of a process, by what is changed.

CPU has no statistics of its own (mindspore 2.9.0: mindspore.runtime.memory_stats() is all zero), so the peak resident
memory of one training step is taken, and only differences are compared: between two runs that differ in one thing.

    python tests/benchmarks/bench_memory.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

from launcher.plan.memory import estimate
from launcher.runspec.sections import RunSpec

BASE = {"batch_size": 4, "seq_length": 256, "vocab_size": 2000, "num_layers": 4}
CHANGES = ({"batch_size": 8}, {"num_layers": 8}, {"seq_length": 512}, {"vocab_size": 16000})
SHAPE = {"hidden_size": 512, "num_heads": 8, "intermediate_size": 1376}


def estimated_mib(values: dict[str, int]) -> float:
    """The estimate for the run that ``values`` describe."""
    model = {**SHAPE, **{key: value for key, value in values.items() if key != "batch_size"}}
    spec = {
        "name": "x", "model": model, "data": {"train": "x.mindrecord", "batch_size": values["batch_size"]}, "lora": {},
        "precision": {"params": "float32", "compute": "float32"},
        "runtime": {"recompute": False, "flash_attention": False},
    }  # fmt: skip
    return estimate(RunSpec.model_validate(spec), target="CPU", pool_gib=None).total / 2**20


def step(values: dict[str, int]) -> None:
    """Two forward and backward passes in this process; prints its peak in MiB."""
    import mindspore as ms
    import numpy as np
    from mindformers import LlamaConfig, LlamaForCausalLM
    from mindformers.pet import get_pet_model

    ms.set_context(mode=0, device_target="CPU")
    kernels = {"use_flash_attention": False, "fused_rms_norm": False, "use_rope_slice": True}
    dtypes = {"param_init_type": "float32", "compute_dtype": "float32"}
    network = LlamaForCausalLM(LlamaConfig(**SHAPE, **values, **kernels, **dtypes))
    lora = {
        "pet_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": "wq|wk|wv|wo",
    }
    network = get_pet_model(network, lora)
    network.set_train(True)
    gradient: Any = ms.jit(ms.value_and_grad(network, None, weights=network.trainable_params()))
    rows = np.full((values["batch_size"], values["seq_length"] + 1), 7, np.int32)
    for _ in range(2):
        gradient(ms.Tensor(rows), ms.Tensor(rows))[0].asnumpy()
    print(f"PEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def peak_mib(values: dict[str, int]) -> float:
    output = subprocess.run(
        [sys.executable, __file__, json.dumps(values)], check=True, capture_output=True, text=True
    ).stdout
    return float(next(line for line in output.splitlines() if line.startswith("PEAK")).split()[1])


def main() -> None:
    if len(sys.argv) > 1:
        step(json.loads(sys.argv[1]))
        return
    peak, guess = peak_mib(BASE), estimated_mib(BASE)
    print(f"{'change':<22} {'peak +MiB':>10} {'estimate +MiB':>14} {'ratio':>6}")
    for change in CHANGES:
        values = {**BASE, **change}
        more, guessed = peak_mib(values) - peak, estimated_mib(values) - guess
        (text,) = (f"{key} {BASE[key]} -> {value}" for key, value in change.items())
        print(f"{text:<22} {more:>10.0f} {guessed:>14.0f} {more / guessed:>6.1f}")


if __name__ == "__main__":
    main()
