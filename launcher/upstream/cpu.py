"""The workarounds that MindFormers 1.6-1.9 needs on MindSpore's CPU backend, each with its upstream reason.

Imported by the worker, only where the device target is CPU. Nothing here touches an Ascend run.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from launcher.upstream import cpu_mcore
from launcher.upstream.bare_packages import package_folder, put_bare
from launcher.upstream.patching import replace_everywhere

_TRIED_VERSION = "2.9.0"
TRAIN_CELL = "LauncherCpuTrainOneStepCell"


def prepare_training(world_size: int) -> None:
    """Make ``mindformers.Trainer`` work on CPU. Call after the MindSpore context is built, before Trainer."""
    _register_train_cell()
    if world_size > 1:
        _replace_barrier()


def be_scheduler() -> bool:
    """Run MindSpore's scheduler until the ranks have gone, with only MindSpore's C++ library loaded.

    Returns False, with nothing done, for a version of mindspore in which this was not tried.

    ``mindspore.communication.init`` ends in this call in a scheduler (mindspore 2.9.0, communication/management.py).
    Importing the rest would take 2 s of a core, which the ranks need for their own imports. Raises RuntimeError when
    the cluster cannot be built.
    """
    folder = package_folder("mindspore", _TRIED_VERSION)
    if folder is None:
        return False
    put_bare("mindspore", folder)
    importlib.import_module("mindspore._c_expression").init_cluster()
    return True


def _register_train_cell() -> None:
    """Register a train cell without the Ascend overflow kernels.

    MFTrainOneStepCell (mindformers 1.9.0, wrapper/wrapper.py) asks NPUGetFloatStatusV2 or FloatStatus whether a
    gradient overflowed; CPU has neither kernel. isfinite over the gradients answers the same question.
    """
    import mindspore.common.dtype as mstype
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindformers.wrapper import MFTrainOneStepCell
    from mindspore import ops
    from mindspore.ops import composite

    if MindFormerRegister.is_exist(MindFormerModuleType.WRAPPER, TRAIN_CELL):
        return
    count_bad = composite.MultitypeFuncGraph("launcher_count_not_finite")

    @count_bad.register("Tensor")  # type: ignore[untyped-decorator]
    def _count(grad: Any) -> Any:
        finite = ops.isfinite(ops.cast(grad, mstype.float32))
        return ops.reduce_sum(ops.cast(ops.logical_not(finite), mstype.float32))

    class LauncherCpuTrainOneStepCell(MFTrainOneStepCell):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            # Without clipping the norm is None: a graph with a Python value in it cannot be kept ("Cannot export a
            # PyExecute CNode in MindIR", mindir_exporter.cc).
            if not self.use_clip_grad and (not self.use_legacy or "MS_COMPILER_CACHE_ENABLE" in os.environ):
                self.use_clip_grad: bool = True
                self.clip_grad_norm = cpu_mcore.norm_cell()

        def start_overflow_check(self, pre_cond: Any, compute_input: Any) -> tuple[Any, Any]:
            return pre_cond, compute_input

        def get_overflow_status(self, status: Any, compute_output: Any) -> Any:
            counts = self.hyper_map(count_bad, compute_output)
            return ops.addn(counts) > 0

    MindFormerRegister.register_cls(LauncherCpuTrainOneStepCell, MindFormerModuleType.WRAPPER)


def _replace_barrier() -> None:
    """Replace ``barrier`` in mindformers by an all-reduce of one element.

    CPU has no Barrier kernel ("Unsupported op [Barrier] on CPU"), and loading a base checkpoint in a run of several
    ranks calls it (trainer/utils.py and others import the name, so every module that did is changed).
    """
    import mindspore.communication.comm_func as comm_func
    from mindspore import Tensor, ops

    original = comm_func.barrier
    all_reduce = ops.AllReduce()

    def barrier(*_args: Any, **_kwargs: Any) -> None:
        all_reduce(Tensor([1.0])).asnumpy()

    replace_everywhere(original, barrier)
