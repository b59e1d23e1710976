"""Replacement of functions of MindSpore and MindFormers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def replace_everywhere(original: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Replace ``original`` by ``new`` in all modules of mindspore and mindformers that hold it by its name."""
    name = original.__name__
    for module in [module for key, module in sys.modules.items() if key.startswith(("mindspore", "mindformers"))]:
        if vars(module).get(name) is original:
            setattr(module, name, new)
