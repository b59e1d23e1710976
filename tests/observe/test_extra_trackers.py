"""SwanLab, MLflow and Weights & Biases, where they are installed: what they kept, before and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.job_folders import Made, MadeJob

from launcher import jobs
from launcher.jobs import JobPaths
from launcher.observe import extra_trackers, trackers

FIRST = Made(ended=40.0, steps=3)
SECOND = Made(began=50.0, ended=80.0, from_step=2, steps=2, loss=lambda rank_id, step: 10.0 * step, held_out=(4,))

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def tell_twice(tmp_path: Path, name: str, make: Any) -> JobPaths:
    """Tell a job of three steps, and again after a resume that did the third once more, and a fourth."""
    job = MadeJob(state=jobs.FAILED, steps=4, attempts=(FIRST,))
    paths = job.write(tmp_path)
    trackers.tell(make(), name, paths, job.make_record())
    again = MadeJob(steps=4, attempts=(FIRST, SECOND))
    again.write(tmp_path / "later").attempt_folder.rename(paths.root / "attempts" / "2")
    trackers.tell(make(), name, paths, again.make_record())
    return paths


def test_mlflow_has_one_run_in_a_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'launcher[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    paths = tell_twice(tmp_path, "mlflow", extra_trackers.MLflow)

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("launcher").experiment_id])
    assert (run.info.run_name, run.info.status) == (paths.job_id, "FINISHED")
    found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")]
    assert found[0] == (1, 8.25)
    assert found[-2:] == [(3, 30.0), (4, 40.0)]
    assert run.data.metrics["eval-loss"] == 9 / 4
    assert "model.hidden_size" in run.data.params


def test_wandb_writes_two_parts_of_one_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install 'launcher[wandb]'")
    paths = tell_twice(tmp_path, "wandb", extra_trackers.WandB)

    parts = sorted((paths.root / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert {file.name for part in parts for file in part.glob("*.wandb")} == {f"run-{paths.job_id}.wandb"}
    assert all(b"learning-rate" in file.read_bytes() for part in parts for file in part.glob("*.wandb"))


def test_swanlab_keeps_the_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("swanlab", reason="pip install 'launcher[swanlab]'")
    paths = tell_twice(tmp_path, "swanlab", extra_trackers.SwanLab)

    kept = b"".join(file.read_bytes() for file in (paths.root / "swanlab").rglob("*") if file.is_file())
    assert paths.job_id.encode() in kept
    assert b"learning-rate" in kept
