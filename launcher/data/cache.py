"""Rows made on demand, once: what ``launcher submit`` does with a raw JSON dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.data.convert import Progress
from launcher.data.info import DatasetInfo
from launcher.data.preprocess import PreprocessOptions, fingerprint, preprocess


def prepare(
    options: PreprocessOptions, folder: Path, *, progress: Progress = lambda *_: None
) -> tuple[DatasetInfo, bool]:
    """The rows of ``options`` below ``folder``, named by their fingerprint; and whether they are new.

    ``options.target`` gives the file's name only. The same input, tokenizer, template and options are found
    again, wherever the input lies.
    Raises what ``preprocess`` raises.
    """
    made = dataclasses.replace(options, target=folder / fingerprint(options)[:16] / options.target.name)
    return preprocess(made, force=True, progress=progress)
