"""Import MindFormers without the big packages of which a training run uses nothing: half of the time of its import.

mindformers 1.9.0 imports nltk (and so scipy.stats) for one metric of evaluation, Hugging Face's datasets (pandas,
aiohttp) for its loader of those, and by way of tensorboardX torch, where there is one, for its own converters.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

from launcher.upstream.bare_packages import package_folder

_TRIED_VERSION = "1.9.0"
# Modules from which mindformers takes functions or classes that it only calls.
_LATER = ("nltk", "nltk.translate", "nltk.translate.bleu_score", "datasets", "datasets.distributed")


@contextmanager
def light_imports() -> Iterator[None]:
    """Let what is imported in the block find some packages put off: each is imported when a name of it is used.

    torch is missing in the block. Does nothing for a version of mindformers in which this was not tried.
    """
    if package_folder("mindformers", _TRIED_VERSION) is None:
        yield
        return
    sys.modules.update({name: _Later(name) for name in _LATER if name.partition(".")[0] not in sys.modules})
    # Those of an earlier block too.
    put_off = [module for module in sys.modules.values() if isinstance(module, _Later)]
    for module in put_off:
        module.is_importing = True
    try:
        with without("torch"):
            yield
    finally:
        for module in put_off:
            module.is_importing = False


@contextmanager
def without(package: str) -> Iterator[None]:
    """Make importing ``package`` fail in the block, as where it is not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


class _Later(types.ModuleType):
    """A module in whose place the real one comes at the first use of one of its names."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.is_importing = False  # set by light_imports

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.is_importing:
            return getattr(_real(self.__name__), name)
        return self._called_later(name)

    def _called_later(self, name: str) -> Callable[..., Any]:
        def later(*arguments: Any, **options: Any) -> Any:
            return getattr(_real(self.__name__), name)(*arguments, **options)

        later.__name__ = name
        return later


def _real(name: str) -> types.ModuleType:
    """Import the real module ``name``, in place of every one of its package that was put off."""
    if isinstance(sys.modules.get(name), _Later):
        root = name.partition(".")[0]
        for other in [key for key, module in sys.modules.items() if isinstance(module, _Later)]:
            if other.partition(".")[0] == root:
                del sys.modules[other]
    return importlib.import_module(name)
