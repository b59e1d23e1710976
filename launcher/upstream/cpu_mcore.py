"""The workarounds that MindFormers 1.9.0's mcore networks need on MindSpore's CPU backend, beside those in ``cpu``.

Their cells call kernels that only Ascend has; each is replaced by one that computes the same from kernels that CPU has.
"""

from __future__ import annotations

import math
from typing import Any

from launcher.upstream.patching import replace_everywhere


def prepare_network() -> None:
    """Make mcore networks compile on CPU. Call after mindformers is imported, before a network is built."""
    from mindformers.parallel_core.training_graph.base_models.common.embeddings import rotary_pos_embedding
    from mindformers.parallel_core.training_graph.transformer import attention, dropout, flash_attention, norm
    from mindspore import get_auto_parallel_context

    # "Unsupported op [RmsNorm] on CPU"; Qwen3 takes the fused norm whatever model_config.fused_norm says
    # (gpt_layer_specs.py, get_gpt_layer_local_spec, and transformer_block.py, _get_block_submodules).
    replace_everywhere(norm.FusedNorm, norm.Norm)
    # "Unsupported op [DropoutExt] on CPU"
    replace_everywhere(dropout.Dropout, _dropout_cell())
    # "Unsupported op [FlashAttentionScore] on CPU"; gpt_layer_specs.py takes it also when use_flash_attention is off.
    replace_everywhere(flash_attention.FlashAttention, _attention_cell())
    # With use_flash_attention off it repeats heads along the batch: it expects BNSD, and is given SBND. The cell does.
    attention.Attention._repeat_kv = _unrepeated
    # "Unsupported op [Outer] on CPU"
    rotary_pos_embedding.Outer = _outer_cell()
    if get_auto_parallel_context("parallel_mode") != "semi_auto_parallel":
        _hold_whole_models()


def _hold_whole_models() -> None:
    """Replace what is only needed, or only right, where each rank holds the whole model."""
    from mindformers.parallel_core.training_graph.base_models.gpt import gpt_model
    from mindformers.parallel_core.training_graph.tensor_parallel import layers

    # "Unsupported op [EmbeddingDenseBackward] on CPU", where all weights are trained
    layers.VocabParallelEmbedding.embedding_func = _embedding_function()
    # It makes the groups of ranks that share a layer, and refuses data-parallel mode, in which trainer/base_trainer.py
    # has set data_parallel to 1: it is no product of degrees.
    gpt_model.initialize_model_parallel = lambda **_degrees: None


def norm_cell() -> Any:
    """Return a cell that takes gradients and returns them as they are, with their norm, in place of ClipGradNorm.

    Without clipping MFTrainOneStepCell returns None for the norm, and the runtime on CPU refuses it in the graph of an
    mcore network ("Invalid abstract;AbstractNone", control_node_parser.cc).
    """
    from mindformers.core import clip_grad
    from mindspore import ops

    class NormAlone(clip_grad.ClipGradNorm):  # type: ignore[misc]
        def construct(self, x: Any) -> tuple[Any, Any]:
            return x, ops.sqrt(ops.addn(self.hyper_map(clip_grad.get_square_sum, x)))

    return NormAlone()


def _unrepeated(self: Any, x: Any, rep: int) -> Any:  # noqa: ARG001 - MindSpore compiles it as a method
    return x


def _embedding_function() -> Any:
    from mindspore import ops

    def embedding_func(self: Any, input_: Any, weight: Any) -> Any:  # noqa: ARG001 - compiled as a method
        return ops.gather(weight, input_, 0)

    return embedding_func


def _dropout_cell() -> Any:
    from mindspore import nn

    class Dropout(nn.Dropout):  # type: ignore[misc]
        def __init__(self, drop_prob: float = 0.5) -> None:
            super().__init__(p=drop_prob)

        def shard(self, strategy: Any) -> None:
            """Nothing is split on CPU."""

    return Dropout


def _outer_cell() -> Any:
    from mindspore import nn, ops

    class Outer(nn.Cell):  # type: ignore[misc]
        def construct(self, one: Any, other: Any) -> Any:
            return ops.reshape(one, (-1, 1)) * ops.reshape(other, (1, -1))

        def shard(self, strategy: Any) -> None:
            """Nothing is split on CPU."""

    return Outer


def _attention_cell() -> Any:
    from mindspore import nn, ops

    class DotProductAttention(nn.Cell):  # type: ignore[misc]
        """Attention of queries (sequence, batch, heads, width) to keys and values with as many heads or fewer."""

        def __init__(self, config: Any, layer_number: int) -> None:
            super().__init__()
            self.scale = 1 / math.sqrt(config.kv_channels)
            self.repeats = config.num_attention_heads // config.num_query_groups
            self.softmax_in = config.softmax_compute_dtype
            self.scores = ops.BatchMatMul(transpose_b=True)
            self.mix = ops.BatchMatMul()

        def construct(self, query: Any, key: Any, value: Any, attention_mask: Any) -> Any:
            key, value = self.by_head(key, self.repeats), self.by_head(value, self.repeats)
            scores = ops.cast(self.scores(self.by_head(query, 1), key) * self.scale, self.softmax_in)
            # 1 where nothing may be read; the legacy networks add the same number (modules/transformer).
            scores = scores + ops.cast(attention_mask, self.softmax_in) * -10000.0
            mixed = self.mix(ops.cast(ops.softmax(scores, -1), value.dtype), value)
            mixed = ops.transpose(mixed, (2, 0, 1, 3))
            return ops.reshape(mixed, (mixed.shape[0], mixed.shape[1], -1))

        def by_head(self, tensor: Any, repeats: int) -> Any:
            tensor = ops.transpose(tensor, (1, 2, 0, 3))
            return tensor if repeats == 1 else ops.repeat_interleave(tensor, repeats, 1)

    return DotProductAttention
