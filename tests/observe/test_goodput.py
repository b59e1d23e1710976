"""Where the time of a job went: parts of a made course, to the second; and that they always add up to all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job_folders import Made, MadeJob, iso

from launcher import jobs
from launcher.observe.goodput import USUAL_CARD_HOURS, goodput
from launcher.observe.history import History, read_history


def course(root: Path, *attempts: Made, **changes: object) -> History:
    job = MadeJob(job_id=f"bcdfg-{len(list(root.iterdir()))}", attempts=attempts, steps=10_000_000)
    return read_history(job.write(root), replace(job.make_record(), **changes))  # type: ignore[arg-type]


def test_each_second_of_a_run_is_in_one_part(tmp_path: Path) -> None:
    made = Made(phases=True, steps=4, held_out=(4,), saves=(4,), ended=30.0)
    found = goodput(course(tmp_path, made))
    # The context is there after 10 s, the weights after 14; the first step took 10 s, the others 1 s.
    expected = {"spawn": 2, "import": 4, "rendezvous": 3, "load": 5, "compile": 5, "steps": 4, "evaluation": 0.5}
    assert found.parts == pytest.approx({**expected, "saving": 0.25, "stop": 6.25}, abs=1e-3)
    assert found.wall_s == pytest.approx(30)
    assert found.ratio == pytest.approx(4 / 30)
    assert (found.failures, found.lost_steps, found.repairs) == (0, 0, ())


def test_without_marks_the_start_is_as_fine_as_it_is_known(tmp_path: Path) -> None:
    found = goodput(course(tmp_path, Made(steps=4, ended=30.0)))
    assert found.parts == pytest.approx({"spawn": 2, "load": 8, "compile": 9, "steps": 4, "stop": 7})


def test_work_that_is_done_again_is_lost_and_a_repair_ends_with_a_step(tmp_path: Path) -> None:
    failed = Made(steps=4, ended=28.0, reason="SIGKILL", failed_at=24.0, found_at=24.5)
    after = Made(began=30.0, from_step=2, steps=4, ended=60.0)
    found = goodput(course(tmp_path, failed, after))
    assert found.parts["steps"] == pytest.approx(2 + 4)
    assert found.parts["wasted"] == pytest.approx(2 + 1)  # two steps, and the one it died in
    assert (found.parts["detection"], found.parts["idle"]) == pytest.approx((0.5, 2.0))
    assert found.wall_s == pytest.approx(60)
    assert (found.failures, found.lost_steps) == (1, 2)
    assert found.mean_repair_s == pytest.approx({"SIGKILL": 50 - 24})


def test_an_attempt_that_died_in_its_start_is_in_the_part_it_died_in(tmp_path: Path) -> None:
    failed = Made(steps=0, phases=True, ended=13.0, reason="SIGKILL", failed_at=12.0, found_at=12.25)
    found = goodput(course(tmp_path, failed, Made(began=13.0, steps=4, ended=43.0)))
    assert found.parts["detection"] == pytest.approx(0.25)
    assert found.wall_s == pytest.approx(43)
    assert found.parts["steps"] == pytest.approx(4)


def test_the_interval_between_checkpoints_says_its_inputs(tmp_path: Path) -> None:
    found = goodput(course(tmp_path, Made(steps=4, saves=(2, 4), ended=30.0)))
    assert found.interval is not None
    assert found.interval.save_s == 0.25
    assert not found.interval.measured
    assert found.interval.between_failures_s == pytest.approx(USUAL_CARD_HOURS * 3600 / 2)
    assert found.interval.seconds == pytest.approx(math.sqrt(2 * 0.25 * found.interval.between_failures_s))
    failed = Made(steps=4, saves=(2,), ended=26.0, reason="SIGKILL", failed_at=24.0)
    own = goodput(course(tmp_path, failed, Made(began=26.0, from_step=2, steps=4, ended=56.0))).interval
    assert own is not None
    assert own.measured
    assert own.between_failures_s == pytest.approx(56)


def test_a_short_run_without_failures_has_no_proposal(tmp_path: Path) -> None:
    job = MadeJob(attempts=(Made(steps=4, saves=(2, 4), ended=30.0),), steps=4)
    assert goodput(job.history(tmp_path)).interval is None


def test_the_wait_before_the_first_start_is_told_apart(tmp_path: Path) -> None:
    found = goodput(course(tmp_path, Made(began=100.0, steps=4, ended=130.0), created=iso(0)))
    assert found.waited_s == pytest.approx(100)
    assert found.wall_s == pytest.approx(30)


def test_a_job_that_has_not_begun_has_no_ratio(tmp_path: Path) -> None:
    found = goodput(course(tmp_path, Made(steps=0), started=None, state=jobs.PLANNED))
    assert found.ratio is None or found.ratio == 0
    assert found.to_dict()["interval"] is None


ATTEMPT = st.fixed_dictionaries(
    {"steps": st.integers(0, 6), "phases": st.booleans(), "lasts": st.floats(0, 60), "fails": st.booleans(),
     "gap": st.floats(0, 20), "back": st.integers(0, 3), "saves": st.lists(st.integers(1, 9), max_size=3)}
)  # fmt: skip


@given(st.lists(ATTEMPT, min_size=1, max_size=4))
def test_parts_add_up_whatever_happened(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[dict[str, object]]
) -> None:
    at, step, attempts = 0.0, 0, []
    for values in drawn:
        from_step = max(0, step - int(str(values["back"])))
        steps, lasts = int(str(values["steps"])), float(str(values["lasts"]))
        fails = bool(values["fails"])
        attempts.append(Made(
            began=at, ended=at + lasts, from_step=from_step, steps=steps, phases=bool(values["phases"]),
            saves=values["saves"],  # type: ignore[arg-type]
            reason="x" if fails else None, failed_at=at + lasts / 2 if fails else None,
        ))  # fmt: skip
        at, step = at + lasts + float(str(values["gap"])), from_step + steps
    found = goodput(course(tmp_path_factory.mktemp("job"), *attempts))
    assert all(seconds >= 0 for seconds in found.parts.values())
    assert found.wall_s == pytest.approx(at - float(str(drawn[-1]["gap"])), abs=0.01)
    assert found.ratio is None or 0 <= found.ratio <= 1
