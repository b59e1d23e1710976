"""FP32StateAdamWeightDecay of MindFormers up to 1.5, under its old name, so that recipes with it train by its rule.

It is Adam with decoupled weight decay and without bias correction (mindspore.nn.AdamWeightDecay), its moments in
float32 whatever the weights are in. AdamW corrects the bias: its first steps are up to (1 - beta1) / sqrt(1 - beta2)
times smaller or larger.
"""

from __future__ import annotations

from typing import Any

NAME = "FP32StateAdamWeightDecay"


def register() -> None:
    """Register the optimizer with MindFormers versions that have removed it. Call before Trainer."""
    from mindformers.core.optim.adamw import AdamW
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
    from mindspore import nn

    if MindFormerRegister.is_exist(MindFormerModuleType.OPTIMIZER, NAME):
        return

    class FP32StateAdamWeightDecay(nn.AdamWeightDecay):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.swap = False
            self.moments1 = AdamW.clone_state(self, prefix="adam_m", init="zeros")
            self.moments2 = AdamW.clone_state(self, prefix="adam_v", init="zeros")
            # The fused kernel takes gradients in the weights' format; written out, all is computed in float32.
            self.use_fused_opt = False

    MindFormerRegister.register_cls(FP32StateAdamWeightDecay, MindFormerModuleType.OPTIMIZER)
