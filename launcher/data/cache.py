"""Rows prepared once on demand, for raw JSON datasets given to ``launcher submit``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.data.options import PreprocessOptions
from launcher.data.preprocess import fingerprint


def in_cache(options: PreprocessOptions, folder: Path) -> PreprocessOptions:
    """Return ``options`` with a target below ``folder``, named by their fingerprint.

    ``options.target`` gives the file's name only. The same input, tokenizer, template and options give the same
    target, wherever the input lies; nothing is written. Raises DataError when the input cannot be read.
    """
    return dataclasses.replace(options, target=folder / fingerprint(options)[:16] / options.target.name)
