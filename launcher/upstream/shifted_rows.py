"""The rows of a MindRecord as MindFormers' mcore networks want them: seq_length tokens, and what each of them predicts.

LlamaForCausalLM cuts rows of seq_length + 1 tokens itself (models/llama/llama.py, input_sliced_sig); the mcore networks
of mindformers 1.9.0 take tokens and labels as they come (gpt_model.py). So the rows on disk are the same for all.
"""

from __future__ import annotations

from typing import Any


def shift_datasets(trainer: Any) -> None:
    """Make MindFormers' ``trainer`` cut every batch that it reads, of training and of held-out rows."""
    for name in ("create_train_dataset", "create_eval_dataset"):
        setattr(trainer, name, _shifting(getattr(trainer, name)))


def _shifting(create: Any) -> Any:
    def create_shifted(*arguments: Any, **options: Any) -> Any:
        dataset = create(*arguments, **options).map(lambda tokens: tokens[:, :-1], input_columns=["input_ids"])
        return dataset.map(lambda labels: labels[:, 1:], input_columns=["labels"])

    return create_shifted
