"""The loss on held-out rows during training: the loss that a training step without an update would report.

mindformers 1.9.0 feeds a model that it evaluates whole rows (models/llama/llama.py), its metric leaves out the last
prediction and averages over batches of this rank (core/metric). Here rows are cut and labels shifted as in training,
and each token in the loss counts the same, in all batches and on all ranks that see different rows.
"""

from __future__ import annotations

import os
from typing import Any

METRIC = "LauncherHeldOutLoss"


def prepare(trainer: Any, config: Any) -> None:
    """Register the metric, and make MindFormers' ``trainer`` evaluate the network as described. Call it first.

    ``config``: the rank's YAML.
    """
    _register_metric()
    wrap = trainer.wrap_eval_network_with_tool_cells
    # Read now: MindFormers changes it in data-parallel mode. The number of parts a semi_auto model cuts a batch into.
    data_parallel = config.parallel_config.data_parallel
    trainer.wrap_eval_network_with_tool_cells = lambda network: wrap(
        _shifted(network, data_parallel) if config.use_legacy else _masked(network, config.model.model_config)
    )


def _masked(network: Any, model_config: Any) -> Any:
    """Wrap an mcore network, whose rows are cut and shifted already, and which gives its logits alone."""
    from mindspore import float32, nn, ops

    class Masked(nn.Cell):  # type: ignore[misc]
        """Gives logits (rows x seq_length, vocab), and labels and the mask that mcore's own loss has (gpt_model.py)."""

        def __init__(self) -> None:
            super().__init__(auto_prefix=False)  # the weights keep their names
            self.network = network
            self.pad, self.ignored = model_config.pad_token_id, model_config.ignore_token_id

        def construct(self, input_ids: Any, labels: Any, seams: Any = None) -> tuple[Any, Any, Any]:
            mask = ops.logical_and(ops.not_equal(input_ids, self.pad), ops.not_equal(labels, self.ignored))
            logits = self.network(input_ids, labels) if seams is None else self.network(input_ids, labels, seams)
            return logits, labels, ops.cast(mask, float32)

    return Masked()


def _shifted(network: Any, data_parallel: int) -> Any:
    from mindspore import get_auto_parallel_context, nn, ops

    class Shifted(nn.Cell):  # type: ignore[misc]
        """Gives logits (rows, seq_length, vocab), and labels and mask (rows, seq_length) of what each predicts."""

        def __init__(self) -> None:
            super().__init__(auto_prefix=False)  # the weights keep their names
            self.network = network
            self.slice = ops.StridedSlice()
            if get_auto_parallel_context("parallel_mode") == "semi_auto_parallel":
                self.slice.shard(((data_parallel, 1),))

        def construct(self, input_ids: Any, labels: Any = None, seams: Any = None) -> tuple[Any, Any, Any]:
            rows, length = input_ids.shape
            tokens = self.slice(input_ids, (0, 0), (rows, length - 1), (1, 1))
            wanted = self.slice(input_ids if labels is None else labels, (0, 1), (rows, length), (1, 1))
            given = None if labels is None else wanted
            # What keeps packed samples apart (``packed_rows``) is for seq_length tokens already.
            logits, _, mask = self.network(tokens, given) if seams is None else self.network(tokens, given, seams)
            return logits, wanted, mask

    return Shifted()


def _register_metric() -> None:
    from mindformers.core.metric import PerplexityMetric
    from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

    if MindFormerRegister.is_exist(MindFormerModuleType.METRIC, METRIC):
        return

    class LauncherHeldOutLoss(PerplexityMetric):  # type: ignore[misc]
        """PerplexityMetric, each batch weighted with its tokens in the loss, and no label shifted once more."""

        def __init__(self) -> None:
            super().__init__()
            self.ppl_loss = _mean_loss()
            self._sum = self._tokens = 0.0

        def clear(self) -> None:
            super().clear()
            self._sum = self._tokens = 0.0

        def update(self, *outputs: Any) -> None:
            before = self.total_loss
            super().update(*outputs)
            tokens = float(outputs[-1].asnumpy().sum())
            self._sum += (self.total_loss - before) * tokens
            self._tokens += tokens

        def eval(self) -> Any:
            total, tokens = _over_ranks(self._sum, self._tokens)
            self.total_loss, self.num_data = total, max(tokens, 1.0)
            return super().eval()

    MindFormerRegister.register_cls(LauncherHeldOutLoss, MindFormerModuleType.METRIC)


def _mean_loss() -> Any:
    from mindformers.core.loss import CrossEntropyLoss
    from mindspore import nn

    class MeanLoss(nn.Cell):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.loss = CrossEntropyLoss()

        def construct(self, logits: Any, labels: Any, mask: Any) -> Any:
            return self.loss(logits.reshape((-1, logits.shape[-1])), labels.reshape((-1,)), mask.reshape((-1,)))

    return MeanLoss()


def _over_ranks(*values: float) -> tuple[float, ...]:
    """Return the sums of ``values`` over the ranks that see different rows; in semi_auto mode all ranks see all."""
    import mindspore
    from mindspore import Tensor, ops

    is_data = mindspore.get_auto_parallel_context("parallel_mode") == "data_parallel"
    if not is_data or int(os.environ.get("RANK_SIZE", "1")) == 1:
        return values
    return tuple(map(float, ops.AllReduce()(Tensor(values, mindspore.float32)).asnumpy()))
