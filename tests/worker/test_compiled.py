"""Which runs find the compiled graph of another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import upstream
from launcher.jobs import JobPaths
from launcher.worker import compiled

CONFIG: dict[str, Any] = {
    "seed": 42,
    "use_parallel": True,
    "parallel": {"parallel_mode": 0, "strategy_ckpt_config": {"save_file": "/a/strategy.ckpt"}},
    "train_dataset": {"data_loader": {"dataset_files": ["/data/one.mindrecord"]}, "batch_size": 4},
    "callbacks": [{"type": "CheckpointMonitor", "directory": "/a"}],
}
ELSEWHERE = {
    "output_dir": "/b",
    "parallel": {"parallel_mode": 0, "strategy_ckpt_config": {"save_file": "/b/strategy.ckpt"}},
    "train_dataset": {"data_loader": {"dataset_files": ["/data/two.mindrecord"]}, "batch_size": 4},
    "callbacks": [{"type": "CheckpointMonitor", "directory": "/b"}],
    "load_checkpoint": "/bases/other",
}
SPLIT = {"parallel": {"parallel_mode": 1}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
        monkeypatch.delenv(name, raising=False)


def run(root: Path, config: dict[str, Any], environment: dict[str, str] | None = None) -> bool:
    """Take part in a job as its rank 0, compile where there is no graph; return whether there was one."""
    paths, environment = JobPaths(root=root), {} if environment is None else environment
    paths.rank_config(0).parent.mkdir(parents=True, exist_ok=True)
    paths.spec.write_text(json.dumps({"resilience": {"compile_cache": True}}), encoding="utf-8")
    paths.rank_config(0).write_text(yaml.safe_dump(config), encoding="utf-8")
    ran = compiled.reuse_graphs(paths, 0, environment)
    file = Path(environment["MS_COMPILER_CACHE_PATH"]) / "rank_0" / "graph.mindir"
    found = file.exists()
    if not found:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"graph")
    ran()
    return found


def test_a_run_of_the_same_kind_finds_it_whatever_its_files_are(tmp_path: Path) -> None:
    assert not run(tmp_path / "one", CONFIG)
    assert run(tmp_path / "two", {**CONFIG, **ELSEWHERE})


@pytest.mark.parametrize(
    ("changed", "environment"),
    [
        ({"seed": 43}, {}),
        ({"train_dataset": {**CONFIG["train_dataset"], "batch_size": 8}}, {}),
        ({}, {"MS_DEV_JIT_SYNTAX_LEVEL": "0"}),
        ({}, {"MS_ROLE": "MS_WORKER"}),
    ],
)
def test_what_decides_a_graph_makes_it_another(
    changed: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    run(tmp_path / "one", CONFIG)
    assert not run(tmp_path / "two", {**CONFIG, **changed}, environment)


def test_another_workaround_for_mindformers_makes_it_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "one", CONFIG)
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "cpu.py").write_text("# other cells\n", encoding="utf-8")
    monkeypatch.setattr(upstream, "__file__", str(tmp_path / "upstream" / "__init__.py"))
    assert not run(tmp_path / "two", CONFIG)


def test_of_a_split_model_it_stays_with_the_job_whose_strategy_files_it_needs(tmp_path: Path) -> None:
    assert not run(tmp_path / "one", {**CONFIG, **SPLIT})
    assert not run(tmp_path / "two", {**CONFIG, **SPLIT})
    again = JobPaths(root=tmp_path / "one").of_attempt(2)
    environment: dict[str, str] = {}
    compiled.reuse_graphs(again, 0, environment)
    assert (again.attempt_folder / "compiled" / "rank_0" / "graph.mindir").read_bytes() == b"graph"


def test_those_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MOST_BYTES", 12)  # two of five bytes each
    kept = tmp_path / "cache" / "graphs" / "training"
    for seed in (1, 2):
        run(tmp_path / f"{seed}", {**CONFIG, "seed": seed})
    for age, folder in enumerate(sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(folder, (1_000_000 + age, 1_000_000 + age))
    assert run(tmp_path / "1 again", {**CONFIG, "seed": 1})
    run(tmp_path / "3", {**CONFIG, "seed": 3})
    assert [run(tmp_path / f"{seed} last", {**CONFIG, "seed": seed}) for seed in (1, 3)] == [True, True]
    assert not run(tmp_path / "2 last", {**CONFIG, "seed": 2})


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "file"))
    assert not run(tmp_path / "one", CONFIG)
    assert not run(tmp_path / "two", CONFIG)
