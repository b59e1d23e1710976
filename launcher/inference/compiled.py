"""Graphs compiled once per model architecture and kept in the user's cache, so that a second start need not compile.

MindSpore keeps the graph, not the weights (0.4 MB for 8 layers); compiling takes 4 s and reading 0.4 s. MindSpore does
not compare constants, so the folder's name contains everything that a graph depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.common.folders import made_once
from launcher.common.resources import cache_root
from launcher.upstream.installed import installed

_GRAPH_SOURCE = Path(__file__).with_name("cached.py")


@contextmanager
def graph_program() -> Iterator[None]:
    """Context for importing MindSpore: it takes argv[0] for the program that made a graph, reads it to detect changes,
    and fails where there is none (python -c)."""
    program, sys.argv[0] = sys.argv[0], str(_GRAPH_SOURCE)
    try:
        yield
    finally:
        sys.argv[0] = program


@contextmanager
def graph_cache(described: Mapping[str, Any]) -> Iterator[None]:
    """Context that reads compiled graphs from the cache or adds them. ``described``: all that decides the graph.

    A cache that cannot be written is not used. Set LAUNCHER_NO_GRAPH_CACHE to disable it.
    """
    folder = _folder(described)
    if folder is None:
        yield
        return
    if folder.is_dir():
        with _used(folder):
            yield
        return
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(_used(stack.enter_context(made_once(folder))))
        yield


def _folder(described: Mapping[str, Any]) -> Path | None:
    if os.environ.get("LAUNCHER_NO_GRAPH_CACHE"):
        return None
    key = json.dumps({"of": described, "versions": installed()}, sort_keys=True, default=str).encode()
    parent = cache_root() / "graphs"
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return parent / hashlib.sha256(key + _GRAPH_SOURCE.read_bytes()).hexdigest()[:24]


@contextmanager
def _used(folder: Path) -> Iterator[None]:
    import mindspore

    mindspore.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
    try:
        yield
    finally:
        mindspore.set_context(enable_compile_cache=False)
