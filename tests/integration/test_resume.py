"""A run that is killed half way and resumed is the run in one go, with real MindSpore and every part of it restored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from support.events import read_events
from support.shop import Job, Trained, Workshop

from launcher import jobs

pytestmark = pytest.mark.mindspore

# Nothing in a run without dropout is random; the optimizer, the schedule and the place in the data are saved.
TOLERANCE = 1e-6


def losses(job: Job, attempt: int) -> dict[int, float]:
    paths = job.paths.of_attempt(attempt)
    return {event["step"]: event["loss"] for event in read_events(paths.rank_events(0)) if event["event"] == "step"}


# Its 256 samples share 83 rows: 42 a rank, of which 8 batches take 40.
QWEN3 = {"family": "qwen3", "n_kv_heads": 1, "head_dim": 24, "seq_length": 191}
PACKED = {"train": "math.jsonl", "packing": True, "batch_size": 5}


def spec(
    workshop: Workshop, name: str, model: Mapping[str, Any] | None = None, *, cards: int = 2, **training: Any
) -> str:
    """Two epochs of 8 steps on ``cards`` ranks, saved every 4 steps; a Qwen3's rows are packed, from raw records."""
    import yaml

    file = workshop.write_spec(name, lora=True, epochs=2, **training)
    path = workshop.folder / file
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["lora"]["dropout"] = 0.0
    values["data"]["batch_size"] = 32 // cards
    if model:
        values["model"] |= model
        values["data"] |= PACKED
        del values["lora"]["target_modules"]  # the family's own
    values["checkpoint"] = {"every_steps": 4, "keep": 8}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.mark.parametrize(("model", "cards"), [({}, 2), (QWEN3, 2), ({}, 1)], ids=["llama", "qwen3", "llama-alone"])
def test_eight_steps_and_eight_resumed_are_sixteen_in_one_go(
    workshop: Workshop, model: dict[str, Any], cards: int
) -> None:
    """The first run is ended right after step 10; all ranks have saved step 8.

    The run in one go takes all its steps and dies then, before it says that it is done: nothing is left to train.
    """
    hook = workshop.folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(HOOK, encoding="utf-8")

    def dies(name: str, after: str) -> Job:
        env = {"LAUNCHER_TEST_DIE_AFTER": after, "LAUNCHER_TEST_DIE_RANK": str(cards - 1), "PYTHONPATH": str(hook)}
        options = (spec(workshop, name, model, cards=cards), "--cards", str(cards), "--engine", "direct")
        workshop.launcher("submit", *options, code=7, env=env)
        return workshop.job("last")

    late = dies("whole", "done")
    said = workshop.launcher("resume", "last") if not model and cards > 1 else None
    whole = workshop.job("last")
    failed = dies("halved", "10")
    workshop.launcher("resume", "last")
    resumed = workshop.job("last")

    assert [job.record.state for job in (late, failed, resumed)] == [jobs.FAILED, jobs.FAILED, jobs.SUCCEEDED]
    assert failed.record.verdict is not None
    assert failed.record.verdict["rank_id"] == cards - 1
    expected, second = losses(late, 1), losses(resumed, 2)
    assert list(expected) == list(range(1, 17))
    assert list(second) == list(range(9, 17))
    for step, loss in {**losses(resumed, 1), **second}.items():
        assert loss == pytest.approx(expected[step], abs=TOLERANCE), step
    names = {path.name for path in (resumed.paths.checkpoints / "rank_0").glob("*.safetensors")}
    assert names == {f"launcher_rank_0-{moment}.safetensors" for moment in ("1_4", "1_8", "2_4", "2_8")}
    assert "merged" in workshop.launcher("merge-ckpt", "last").stdout
    if said:
        assert "step 16/16  nothing is left to train" in said.stdout + said.stderr
        assert (whole.record.attempt, whole.record.state, losses(whole, 2)) == (2, jobs.SUCCEEDED, {})
        assert "merged" in workshop.launcher("merge-ckpt", whole.record.job_id).stdout


def test_a_graph_compiled_with_one_base_is_right_for_another(workshop: Workshop, trained: Trained) -> None:
    """MindSpore's kept graphs have no weights in them: losses are those of a graph compiled anew, to the last bit."""
    other = workshop.folder / "other_base"
    shutil.copytree(trained.base.paths.merged, other)
    for path in other.glob("*.safetensors"):
        save_file({name: 0.9 * array for name, array in load_file(path).items()}, path, metadata={"format": "np"})
    cache = workshop.folder / "graph_cache"
    options = ("submit", spec(workshop, "graph", steps=3, seed=77), "--cards", "1", "--checkpoint")

    def run(base: Path, **env: str) -> tuple[dict[int, float], int]:
        """The losses, and how many graphs are kept afterwards."""
        workshop.launcher(*options, str(base), env={"LAUNCHER_CACHE": str(cache), **env})
        return losses(workshop.job("last"), 1), len(list((cache / "graphs" / "training").iterdir()))

    first, graphs = run(trained.base.paths.merged)
    second, graphs_after = run(other)
    anew, _ = run(other, LAUNCHER_NO_GRAPH_CACHE="1")
    assert (graphs, graphs_after) == (1, 1)
    assert second == anew
    assert second != first


# A rank dies in its first attempt: after a step, or before it is done.
HOOK = """
import os
if os.environ.get("LAUNCHER_TEST_DIE_AFTER") and os.environ.get("LAUNCHER_ATTEMPT") == "1":
    from launcher.jobs.events import EventWriter
    original = EventWriter.write
    def write(self, event, **fields):
        dies = str(self._rank_id) == os.environ["LAUNCHER_TEST_DIE_RANK"]
        after = os.environ["LAUNCHER_TEST_DIE_AFTER"] if dies else ""
        if after == event == "done":
            os.kill(os.getpid(), 9)
        original(self, event, **fields)
        if event == "step" and after == str(fields["step"]):
            os.kill(os.getpid(), 9)
    EventWriter.write = write
"""
