"""Compiled graphs that an attempt leaves for the next: MindSpore's compile cache, in the job's folder.

MindSpore asks only whether its own files are the same before it takes a graph from there ("Be aware of correctness
risks", mindspore 2.9.0, compile_cache_manager.cc). So a graph is found only by the same job with the same YAML and the
same versions: its folder is named after all three. It is put in its place whole, after the first step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, MutableMapping
from pathlib import Path

from launcher.jobs import JobPaths
from launcher.plan.launch import read_launch
from launcher.upstream.installed import installed


def reuse_graphs(
    paths: JobPaths, rank_id: int, environment: MutableMapping[str, str] = os.environ
) -> Callable[[], None]:
    """Make MindSpore take this rank's graphs from an earlier attempt, or keep them for a later one.

    Call it before a graph is compiled. Returns the function to call when the graph of a step has run.
    """
    if not is_wanted(paths):
        return lambda: None
    kept = paths.compiled / _key(paths, rank_id)
    rank = f"rank_{rank_id}"  # mindspore 2.9.0 adds it to MS_COMPILER_CACHE_PATH
    there = (kept / rank).is_dir()
    folder = kept if there else paths.attempt_folder / "compiled"
    environment["MS_COMPILER_CACHE_ENABLE"] = "1"
    environment["MS_COMPILER_CACHE_PATH"] = str(folder)
    return (lambda: None) if there else lambda: _keep(folder / rank, kept / rank)


def is_wanted(paths: JobPaths) -> bool:
    """Return the spec's ``resilience.compile_cache``; left out, yes on CPU for a job that may be restarted."""
    wanted = json.loads(paths.spec.read_text(encoding="utf-8")).get("resilience", {}).get("compile_cache")
    if wanted is not None:
        return bool(wanted)
    launch = read_launch(paths)
    return launch.target == "CPU" and launch.limits.max_restarts > 0


def _key(paths: JobPaths, rank_id: int) -> str:
    content = [paths.rank_config(rank_id).read_text(encoding="utf-8"), json.dumps(installed(), sort_keys=True)]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]


def _keep(written: Path, kept: Path) -> None:
    """Move what MindSpore has written to its place; without it the next attempt compiles again."""
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        written.rename(kept)
