"""Compiled graphs that a run leaves for the next one of the same kind, by MindSpore's compile cache.

MindSpore asks only whether the files of a graph's source are the same before it takes one ("Be aware of correctness
risks", mindspore 2.9.0, compile_cache_manager.cc); weights are not in it. So a graph's folder is named after all that
decides it: the rank's YAML except for places and names, the versions, and our changes to MindFormers.

It is in the user's cache, for other jobs too. Where a model is split it is in the job's folder, for its next attempt:
only compiling writes the strategy files that a merge needs, and those the job has then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from launcher import upstream
from launcher.common.folders import made_once
from launcher.common.resources import cache_root
from launcher.jobs import JobPaths
from launcher.plan.launch import read_launch
from launcher.upstream.installed import installed

# Keys of the rank's YAML that no graph depends on: they say where files are, and what a run is called.
_PLACES = {"output_dir", "load_checkpoint", "dataset_files", "save_file", "directory", "model_name", "callbacks"}
_MOST_BYTES = 1 << 30


def reuse_graphs(
    paths: JobPaths, rank_id: int, environment: MutableMapping[str, str] = os.environ
) -> Callable[[], None]:
    """Make MindSpore take this rank's graphs from an earlier run, or keep them for a later one.

    Call it before a graph is compiled. Returns the function to call when the graph of a step has run.
    """
    import yaml  # with the frameworks: a scheduler does without

    config = yaml.safe_load(paths.rank_config(rank_id).read_text(encoding="utf-8"))
    # Parallel modes: 0 is data parallel, 1 semi-auto.
    is_split = bool(config.get("use_parallel")) and config["parallel"]["parallel_mode"] != 0
    if not is_wanted(paths, is_split=is_split):
        return lambda: None
    kept = (paths.compiled if is_split else cache_root() / "graphs" / "training") / _key(config, environment)
    # In a copy: MindSpore writes graphs that it compiles later, as one of evaluation, beside those that it read.
    folder = paths.attempt_folder / "compiled"
    own = folder / f"rank_{rank_id}"  # mindspore 2.9.0 adds it to MS_COMPILER_CACHE_PATH
    with contextlib.suppress(OSError):
        shutil.copytree(kept, own)
    environment["MS_COMPILER_CACHE_ENABLE"] = "1"
    environment["MS_COMPILER_CACHE_PATH"] = str(folder)
    if not own.is_dir():
        return lambda: _keep(own, kept)
    with contextlib.suppress(OSError):
        os.utime(kept)
    return lambda: None


def is_wanted(paths: JobPaths, *, is_split: bool) -> bool:
    """Return the spec's ``resilience.compile_cache``; left out, yes on CPU where a graph can be found again."""
    wanted = json.loads(paths.spec.read_text(encoding="utf-8")).get("resilience", {}).get("compile_cache")
    if wanted is not None:
        return bool(wanted)
    launch = read_launch(paths)
    is_of_use = launch.limits.max_restarts > 0 or not is_split
    return launch.target == "CPU" and is_of_use and not os.environ.get("LAUNCHER_NO_GRAPH_CACHE")


def _key(config: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    sources = sorted(Path(upstream.__file__).parent.glob("*.py"))
    switches = {key: value for key, value in environment.items() if key.startswith("MS_DEV_") or key == "MS_ROLE"}
    described = [
        _without_places(config),
        installed(),
        switches,
        *(path.read_text(encoding="utf-8") for path in sources),
    ]
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items() if key not in _PLACES}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


def _keep(written: Path, kept: Path) -> None:
    """Copy what MindSpore has written to its place; without it the next run compiles again."""
    with contextlib.suppress(OSError), made_once(kept) as scratch:
        shutil.copytree(written, scratch, dirs_exist_ok=True)
    with contextlib.suppress(OSError):
        _forget_oldest(kept.parent)


def _forget_oldest(folder: Path) -> None:
    """Remove the graphs that were used longest ago, as far as all are more than ``_MOST_BYTES``."""
    total = 0
    for kept in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        total += sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        if total > _MOST_BYTES:
            shutil.rmtree(kept, ignore_errors=True)
