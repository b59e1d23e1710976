"""Hints on tokenizers: what to do depends on whether the model has weights, which know one tokenizer alone."""

from __future__ import annotations

from launcher.runspec.sections import ModelSpec


def for_missing_tokenizer(model: ModelSpec) -> str:
    """Return what to do about a tokenizer that is not there."""
    if model.checkpoint is None:
        return "launcher data tokenizer trains one"
    file = model.architecture.tokenizer_file
    return f"copy the {file} that the base came with: with any other tokenizer its weights mean nothing"


def for_missing_base() -> str:
    """Return what to do about a base checkpoint that is not there."""
    return "launcher convert-ckpt FOLDER makes one of a Hugging Face model, launcher merge-ckpt JOB of a job"


def for_large_tokenizer(model: ModelSpec, pieces: int) -> str:
    """Return what to do about a tokenizer with more ``pieces`` than the model's vocabulary."""
    if model.checkpoint is None:
        return f"set model.vocab_size: {pieces}, or use another tokenizer"
    if model.folder is None:
        return "set model.tokenizer to the file that the base came with"
    return (
        "the tokenizer has tokens that the embedding has no rows for: give the one that the weights were trained with "
        f"(--set model.tokenizer=FILE), or in transformers: model.resize_token_embeddings({pieces}), save_pretrained"
    )
