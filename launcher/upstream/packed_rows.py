"""Rows that several samples share, of which none sees the others.

The column actual_seq_len says where each sample ends in a row of seq_length tokens, then seq_length as often as the
column is long: the form that MindFormers' own loaders make (mindformers 1.9.0, dataset/blended_datasets/gpt_dataset.py,
_get_eod_attention_mask). On Ascend the networks take it as it is: with use_eod_attn_mask_compression flash attention
computes each sample by itself (models/llama/llama_transformer.py, layout TND). CPU has no flash attention; there the
ranks make the attention mask of it, which the same networks take too. Rotary positions are relative, so they need not
begin anew with each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SEAMS = "actual_seq_len"
MASK = "attention_mask"

# mindformers 1.9.0, modules/transformer/transformer.py (LowerTriangularMaskWithDynamic) and parallel_core's
# mask_generate.py refuse shorter rows with a compressed mask.
LEAST_SEQ_LENGTH = 2048
# CANN's FlashAttentionVarLenScore takes at most this many sequences at a time: those of all rows of a batch.
MOST_SEAMS = 2048
# MindFormers' default for the number of samples of a row (dataset/dataloader/hf_dataloader.py of 1.9.0,
# compressed_eod_mask_length).
_LEAST_SEAMS = 128
_TOKENS_A_SAMPLE = 32


def seams_of(seq_length: int) -> int:
    """Return the length of the column ``actual_seq_len``: one more than the most samples that share a row."""
    return min(max(_LEAST_SEAMS, seq_length // _TOKENS_A_SAMPLE), seq_length)


def arguments(columns: tuple[str, ...], target: str) -> tuple[str, ...]:
    """Return the arguments of the network that the columns of a dataset become on ``target``."""
    return tuple(MASK if column == SEAMS and target == "CPU" else column for column in columns)


def masks(tokens: Any, ends: Any, pad: int) -> Any:
    """Return the attention masks of packed rows, uint8 of shape (rows, 1, seq_length, seq_length): 1 hides.

    ``tokens``: (rows, seq_length or more); ``ends``: (rows, seams), see above. As the networks' own masks do
    (modules/transformer/transformer.py), they hide the pad token, also within a sample.
    """
    import numpy as np

    length = int(ends[0, -1])
    places = np.arange(length)
    hidden = np.empty((len(ends), 1, length, length), dtype=np.uint8)
    for row, row_tokens, row_ends in zip(hidden[:, 0], tokens[:, :length], ends, strict=True):
        sample = np.searchsorted(row_ends, places, side="right")
        # In place: the mask of one row of 2,048 tokens takes 4 MB.
        seen = sample[:, None] == sample
        seen &= places[:, None] >= places
        seen &= row_tokens != pad
        np.logical_not(seen, out=row.view(bool))
    return hidden


def running_ends(ends: Any, parts: int) -> Any:
    """Return ``ends`` counted through the rows that one rank computes at a time: a ``parts``-th of the batch.

    For the layout TND all of those rows are one long sequence (mindformers 1.9.0, asl_batch_wrapper in
    dataset/causal_language_model_dataset.py). MindSpore cuts a batch in parts for data-parallel ranks and leaves the
    numbers as they are (mindspore 2.9, ReplaceActualSeqLenForSplitSeqInTnd in
    frontend/parallel/ops_info/flash_attention_score_info.cc), so each part counts from 0.
    """
    import numpy as np

    at_once = max(len(ends) // parts, 1)
    before = np.arange(len(ends), dtype=ends.dtype) % at_once * ends[0, -1]
    return ends + before[:, None]


def prepare(trainer: Any, config: Any) -> None:
    """Make MindFormers' ``trainer`` feed the networks what they take for packed rows. ``config``: the rank's YAML.

    Call it before the networks are built. Does nothing for rows that are not packed.
    """
    if SEAMS not in config.train_dataset.input_columns:
        return
    if config.context.device_target == "CPU":
        _take_masks(config.use_legacy)
        change: Callable[[int], Any] = lambda _parts: _masking(config.model.model_config.pad_token_id)  # noqa: E731
    else:
        change = _counting
    copies, micro = _parts(config)
    trainer.create_train_dataset = _changed(trainer.create_train_dataset, change(copies * micro))
    trainer.create_eval_dataset = _changed(trainer.create_eval_dataset, change(copies))


def _parts(config: Any) -> tuple[int, int]:
    """Return how many data-parallel parts, and micro batches of each, a batch has that a rank reads."""
    from mindspore import get_auto_parallel_context

    # Otherwise a rank reads only what it computes. Read before MindFormers changes the degrees.
    if get_auto_parallel_context("parallel_mode") != "semi_auto_parallel":
        return 1, 1
    degrees = config.parallel_config
    micro = degrees.micro_batch_num if degrees.pipeline_stage > 1 else config.runner_config.gradient_accumulation_steps
    return int(degrees.data_parallel), int(micro or 1)


def _changed(create: Any, change: Any) -> Any:
    def create_changed(*arguments: Any, **options: Any) -> Any:
        return change(create(*arguments, **options))

    return create_changed


def _masking(pad: int) -> Any:
    def change(dataset: Any) -> Any:
        columns = ["input_ids", SEAMS]
        made = dataset.map(
            lambda tokens, ends: (tokens, masks(tokens, ends, pad)), columns, output_columns=["input_ids", MASK]
        )
        return made.project(["input_ids", "labels", MASK])

    return change


def _counting(parts: int) -> Any:
    def change(dataset: Any) -> Any:
        return dataset.map(lambda ends: running_ends(ends, parts), input_columns=[SEAMS])

    return change


def _take_masks(legacy: bool) -> None:
    """Make the legacy networks apply an attention mask that they are given.

    mindformers 1.9.0 casts it to uint8 (models/llama/llama.py), as flash attention wants it; without flash attention it
    is added to the scores as it is, 1 where its own masks have -10000 (models/llama/llama_transformer.py, _attn). The
    mcore networks multiply (``cpu_mcore``).
    """
    if legacy:
        from mindformers.models.llama.llama_transformer import LLamaAttention

        LLamaAttention._attn = _attention


def _attention(self: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
    """Do what LLamaAttention._attn does, with a mask of 0 and 1. MindSpore compiles it as a method."""
    scores = self.mul(self.batch_matmul_q_k(query, key), self.inv_norm_factor)
    scores = self.add(self.cast(mask, self.softmax_dtype) * -10000.0, self.cast(scores, self.softmax_dtype))
    weights = self.softmax(scores)
    return self._merge_heads(self.batch_matmul(self.cast(weights, self.dtype), value))
