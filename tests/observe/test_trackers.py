"""``launcher track``: what TensorBoard reads in what was written, and what a tracker is told after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.job_folders import Made, MadeJob

from launcher import jobs
from launcher.cli.app import main
from launcher.errors import JobError, SpecError
from launcher.jobs import JobPaths
from launcher.observe import trackers
from launcher.observe.trackers import Run


class Told:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def begin(self, run: Run, first_step: int) -> None:
        self.calls.append(("begin", run.job_id, first_step))

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        self.calls.append(("step", step, values["loss"]))

    def evaluation(self, step: int, when: float, loss: float) -> None:
        self.calls.append(("evaluation", step, loss))

    def end(self, state: str) -> None:
        self.calls.append(("end", state))


def tell(root: Path, job: MadeJob) -> list[tuple[Any, ...]]:
    told = Told()
    trackers.tell(told, "told", JobPaths(root=root / job.job_id), job.make_record())
    return told.calls


def test_a_tracker_is_told_what_is_new_and_what_was_done_again(tmp_path: Path) -> None:
    first = Made(ended=40.0, steps=3, loss=lambda rank_id, step: 1.0 * step)
    job = MadeJob(state=jobs.FAILED, steps=5, attempts=(first,))
    job.write(tmp_path)
    assert tell(tmp_path, job) == [
        ("begin", "bcdfg-made", 1), *(("step", step, step) for step in (1, 2, 3)), ("end", "failed")
    ]  # fmt: skip
    assert tell(tmp_path, job) == []

    second = Made(began=50.0, ended=80.0, from_step=2, steps=2, loss=lambda rank_id, step: 10.0 * step, held_out=(4,))
    again = MadeJob(steps=4, attempts=(first, second))
    kept = (tmp_path / "bcdfg-made" / "trackers" / "told.json").read_text()
    again.write(tmp_path / "new")
    (tmp_path / "new" / "bcdfg-made" / "trackers").mkdir()
    (tmp_path / "new" / "bcdfg-made" / "trackers" / "told.json").write_text(kept)

    assert tell(tmp_path / "new", again) == [
        ("begin", "bcdfg-made", 3), ("step", 3, 30.0), ("step", 4, 40.0), ("evaluation", 4, 9 / 4), ("end", "succeeded")
    ]  # fmt: skip


def test_only_one_process_tells_a_tracker(tmp_path: Path) -> None:
    job = MadeJob()
    paths = job.write(tmp_path)
    first = trackers.Telling(Told(), "told", paths)
    with pytest.raises(JobError, match="told is being told of bcdfg-made by another process"):
        trackers.Telling(Told(), "told", paths)
    first.end(jobs.SUCCEEDED)

    assert trackers.tell(Told(), "told", paths, job.make_record()) == 4


def test_a_running_job_is_followed_to_its_end(tmp_path: Path) -> None:
    job = MadeJob(state=jobs.RUNNING, steps=4, attempts=(Made(steps=2),), record={"host": "another"})
    paths = job.write(tmp_path / "a")
    ended = MadeJob(attempts=(Made(ended=30.0),))
    whole = ended.write(tmp_path / "b")

    def meanwhile(_seconds: float) -> None:
        for rank_id in (0, 1):
            paths.rank_events(rank_id).write_text(whole.rank_events(rank_id).read_text())
        jobs.write_record(paths, ended.make_record())

    told = Told()
    count = trackers.follow(told, "told", paths, job.make_record(), sleep=meanwhile)

    assert count == 4
    assert [call[:2] for call in told.calls] == [
        ("begin", "bcdfg-made"), *(("step", step) for step in (1, 2, 3, 4)), ("end", "succeeded")
    ]  # fmt: skip


@pytest.fixture
def tensorboard() -> Any:
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.mark.slow
def test_tensorboard_reads_the_tags_of_mindformers(tmp_path: Path, tensorboard: Any) -> None:
    attempt = Made(ended=30.0, held_out=(4,), more=lambda rank_id, step: {"loss_scale": 1024.0, "grad_norm": 0.5})
    MadeJob(attempts=(attempt,)).write(tmp_path)
    done = CliRunner().invoke(main, ["track", "last", "--jobs-dir", str(tmp_path)])
    assert done.output == "bcdfg-made: 4 step(s) given to tensorboard\n"

    read = tensorboard.EventAccumulator(str(tmp_path / "bcdfg-made" / "tensorboard" / "rank_0"))
    read.Reload()
    found = {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}

    assert found["loss"] == [(1, 8.25), (2, 4.25), (3, pytest.approx(8 / 3 + 0.25)), (4, 2.25)]
    assert found["iteration-time"] == [(1, 10000), (2, 1000), (3, 1000), (4, 1000)]
    assert found["throughput"][1:] == [(2, 16), (3, 16), (4, 16)]  # 32 rows a second, on 2 cards
    assert found["batch-size"] == [(step, 32) for step in (1, 2, 3, 4)]
    assert found["B-samples-per-day"][1] == (2, pytest.approx(32 * 86400 / 1e9))
    assert found["eval-loss"] == [(4, 2.25)]
    assert {"learning-rate", "grad-norm", "loss-scale", "model-flops-throughput-per-npu"} <= set(found)
    assert read.Scalars("loss")[0].wall_time == 1767225620.0
    assert "model.hidden_size/text_summary" in read.Tags()["tensors"]


@pytest.mark.slow
def test_steps_done_again_replace_the_first_ones_in_tensorboard(tmp_path: Path, tensorboard: Any) -> None:
    first = Made(ended=40.0, steps=3)
    second = Made(began=50.0, ended=80.0, from_step=1, steps=2, loss=lambda rank_id, step: 10.0 * step)
    job, again = MadeJob(attempts=(first,)), MadeJob(attempts=(first, second))
    paths = job.write(tmp_path)
    trackers.tell(trackers.find("tensorboard"), "tensorboard", paths, job.make_record())
    later = again.write(tmp_path / "later").attempt_folder
    (later).rename(paths.root / "attempts" / "2")
    trackers.tell(trackers.find("tensorboard"), "tensorboard", paths, again.make_record())

    read = tensorboard.EventAccumulator(str(paths.root / "tensorboard" / "rank_0"))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(1, 8.25), (2, 20.0), (3, 30.0)]


def test_a_tracker_that_is_none_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="no tracker 'tensorbord'") as caught:
        trackers.find("tensorbord")

    assert caught.value.hint == "did you mean tensorboard?"


def test_one_tracker_at_a_time_is_followed(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["track", "-f", "--to", "tensorboard", "--to", "x", "--jobs-dir", str(tmp_path)])

    assert (done.exit_code, "--follow takes one --to" in done.stderr) == (2, True)
