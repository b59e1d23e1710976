"""Sharded checkpoints from Python: list steps, read whole tensors as numpy arrays, merge, convert and split models.

The library behind the commands merge-ckpt, convert-ckpt and split-ckpt. MindSpore is not imported, and only the
requested tensors are held in memory. All weights are (out, in); bfloat16 arrays have the dtype of
``ml_dtypes.bfloat16``. Folders hold rank_0, rank_1, ... as merge-ckpt takes them; paths may be text.

>>> from launcher.checkpoint import list_steps, merge_shards, open_step
>>> [str(step) for step in list_steps("run7")]
['step 100', 'step 200']
>>> with open_step("run7") as step:
...     step.number, len(step), step["model.layers.0.attention.wq.weight"].shape
(200, 291, (4096, 4096))
>>> merge_shards("run7", "my-model", layout="hf", model="Llama-2-7b-hf/config.json").num_folded
128

They are those of ``launcher.checkpoint.api``, which is imported when one of them is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.checkpoint.api import (
        OpenStep,
        convert_model,
        list_steps,
        merge_shards,
        open_step,
        read_file,
        split_checkpoint,
    )

__all__ = [
    "OpenStep",
    "convert_model",
    "list_steps",
    "merge_shards",
    "open_step",
    "read_file",
    "split_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from launcher.checkpoint import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
