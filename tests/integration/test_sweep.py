"""A sweep whose trials really train, two at a time, one rank each."""

from __future__ import annotations

import json

import pytest
from support.shop import Workshop

import launcher

pytestmark = pytest.mark.mindspore


def test_four_trials_train_side_by_side_and_the_best_is_named(workshop: Workshop) -> None:
    spec = workshop.write_spec("swept", lora=True, steps=4, epochs=1)
    rates = ("--grid", "training.lr_schedule.learning_rate=1e-6,1e-2")
    options = ("--cards", "1", "--parallel", "2", "--engine", "direct", "--no-prune", "--goal", "min")
    refused = workshop.launcher("sweep", spec, *rates, "--grid", "lora.r=4,-8", *options, code=2)
    assert "trial 2: " in refused.stderr
    said = workshop.launcher("sweep", spec, *rates, "--grid", "lora.r=4,8", *options).stdout
    found = json.loads(workshop.launcher("sweep", "status", "--format", "json").stdout)

    assert found["state"] == "done"
    assert [trial["state"] for trial in found["trials"]] == ["succeeded"] * 4
    assert [trial["step"] for trial in found["trials"]] == [4] * 4
    for trial in found["trials"]:
        job = launcher.job(workshop.folder / "jobs" / trial["job_id"])
        assert trial["value"] == pytest.approx(job.summary().last_loss)
        assert json.loads(job.paths.spec.read_text())["lora"]["r"] == trial["settings"]["lora.r"]
    best = found["trials"][found["best"] - 1]
    assert best["value"] == min(trial["value"] for trial in found["trials"])
    assert best["settings"]["training.lr_schedule.learning_rate"] == 1e-2
    assert workshop.launcher("sweep", "best").stdout.strip() == best["job_id"]
    assert f"Best: trial {best['number']}. Next: launcher merge-ckpt {best['job_id']}" in said
    assert workshop.launcher("sweep", "stop", code=6).stderr.startswith(
        f"error: sweep {found['sweep_id']} is not running"
    )
    page = workshop.launcher("sweep", "report").stdout.strip()
    assert (workshop.folder / page).read_text(encoding="utf-8").count("<polyline") == 4
