"""Trackers whose packages are extras of this one: SwanLab and Weights & Biases offline, MLflow in a SQLite file.

Each is found by its entry point. The job's id is the run's, so a resumed job goes on in the run it had.
"""

from __future__ import annotations

import fcntl
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from launcher.observe.trackers import Run

PROJECT = "launcher"


class SwanLab:
    """A run in ``swanlab`` of the job's folder, to be uploaded with ``swanlab sync``.

    SwanLab keeps the first value that a step was given: steps done again after a resume keep their old ones.
    """

    package = "swanlab"

    def __init__(self) -> None:
        self._swanlab: Any = import_module(self.package)
        self._run: Any = None

    def begin(self, run: Run, first_step: int) -> None:
        if self._run is None:
            folder = run.folder / "swanlab"
            folder.mkdir(exist_ok=True)
            self._run = self._swanlab.init(
                project=PROJECT, name=run.job_id, id=run.job_id, resume="allow", mode="offline", log_dir=str(folder),
                config=run.settings,
            )  # fmt: skip

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        self._swanlab.log(values, step=step)

    def evaluation(self, step: int, when: float, loss: float) -> None:
        self._swanlab.log({"eval-loss": loss}, step=step)

    def end(self, state: str) -> None:
        self._swanlab.finish(state="success" if state == "succeeded" else "crashed")
        self._run = None


class WandB:
    """A run in ``wandb`` of the job's folder, to be uploaded with ``wandb sync --append``; one part for each attempt.

    Points lie over ``step``, a value of their own: wandb's own step never goes back, and would drop steps done again.
    """

    package = "wandb"

    def __init__(self) -> None:
        self._wandb: Any = import_module(self.package)
        self._run: Any = None

    def begin(self, run: Run, first_step: int) -> None:
        if self._run is None:
            self._run = self._wandb.init(
                project=PROJECT, name=run.job_id, id=run.job_id, resume="allow", mode="offline", dir=str(run.folder),
                config=run.settings,
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def evaluation(self, step: int, when: float, loss: float) -> None:
        self._run.log({"eval-loss": loss, "step": step})

    def end(self, state: str) -> None:
        self._run.finish(exit_code=0 if state == "succeeded" else 1)
        # The file is written by a process of wandb's own, which finish does not wait for.
        self._wandb.teardown()
        self._run = None


# MLflow's states by the job's; a job that goes on stays RUNNING.
_ENDS = {"succeeded": "FINISHED", "cancelled": "KILLED", "failed": "FAILED", "lost": "FAILED"}


class MLflow:
    """A run in ``mlflow.db`` of the folder of all jobs, or wherever $MLFLOW_TRACKING_URI says.

    MLflow shows the newest value of a step.
    """

    package = "mlflow"

    def __init__(self) -> None:
        self._mlflow: Any = import_module(self.package)
        self._client: Any = None
        self._run_id = ""

    def begin(self, run: Run, first_step: int) -> None:
        if self._client is not None:
            return
        store = run.folder.parent / "mlflow.db"
        with (run.folder.parent / ".mlflow.lock").open("a") as lock:
            # Two jobs that make the tables at once would fail; closing the file gives the lock back.
            fcntl.flock(lock, fcntl.LOCK_EX)
            address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store}"
            self._client = self._mlflow.MlflowClient(tracking_uri=address)
            self._run_id = self._open(run, store.parent)

    def _open(self, run: Run, jobs_dir: Path) -> str:
        client, entities = self._client, self._mlflow.entities
        found = client.get_experiment_by_name(PROJECT)
        artifacts = str(jobs_dir / "mlflow-artifacts")
        experiment = found.experiment_id if found else client.create_experiment(PROJECT, artifacts)
        known = client.search_runs([experiment], filter_string=f"tags.`launcher.job` = '{run.job_id}'", max_results=1)
        if known:
            client.update_run(known[0].info.run_id, status="RUNNING")
            return str(known[0].info.run_id)
        run_id = client.create_run(experiment, run_name=run.job_id, tags={"launcher.job": run.job_id}).info.run_id
        settings = [entities.Param(key, str(value)[:500] or "-") for key, value in run.settings.items()]
        for begin in range(0, len(settings), 100):  # MLflow takes so many at once
            client.log_batch(run_id, params=settings[begin : begin + 100])
        return str(run_id)

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        metric = self._mlflow.entities.Metric
        found = [metric(key, value, int(when * 1000), step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=found)

    def evaluation(self, step: int, when: float, loss: float) -> None:
        self.step(step, when, {"eval-loss": loss})

    def end(self, state: str) -> None:
        if state in _ENDS:
            self._client.set_terminated(self._run_id, _ENDS[state])
        self._client = None
