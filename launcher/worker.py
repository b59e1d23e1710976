"""What every rank runs: ``python -m launcher.worker JOB_FOLDER``. The only part that trains.

A rank learns who it is from RANK_ID, loads its own YAML, and reports through files in the job's folder (see
``launcher.events``): that it began, each step, the error that ended it, or that everything was saved.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from launcher.events import EventWriter
from launcher.jobs import JobPaths
from launcher.processes import ProcessId


def main(job_folder: str) -> None:
    """Train this process's rank of the job in ``job_folder``. Raises whatever MindFormers raises, after reporting."""
    faulthandler.enable()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        schedule()
        return
    paths = JobPaths(root=Path(job_folder))
    rank_id = int(os.environ["RANK_ID"])
    with EventWriter(paths.rank_events(rank_id), rank_id) as events:
        process = ProcessId.current()
        events.write("begin", pid=process.pid, started=process.started)
        try:
            train(paths, rank_id, events)
        except BaseException as error:
            # Reported here, at once: the interpreter's own exit takes MindSpore another 2 to 5 seconds.
            events.write("error", type=type(error).__name__, message=str(error), traceback=traceback.format_exc())
            raise
        events.write("done")


def schedule() -> None:
    """Be MindSpore's scheduler, which msrun starts with the ranks' own argv: let ranks find each other.

    A run of one rank has nobody to find and never registers; its scheduler would wait for ever.
    """
    if int(os.environ.get("MS_WORKER_NUM", "1")) > 1:
        from mindspore.communication import init

        init()


def train(paths: JobPaths, rank_id: int, events: EventWriter) -> None:
    """Build the context, then finetune as the rank's YAML says."""
    import mindformers
    import mindspore

    config = mindformers.MindFormerConfig(str(paths.rank_config(rank_id)))
    mindformers.build_context(config)
    if config.context.device_target == "CPU":
        from launcher import cpu_backend

        cpu_backend.prepare_training(num_ranks=int(os.environ.get("RANK_SIZE", "1")))
    check_rows(config)
    events.write("ready", mindspore=mindspore.__version__, mindformers=mindformers.__version__)
    trainer = mindformers.Trainer(args=config, task="text_generation", callbacks=[_progress_callback(events, paths)])
    trainer.finetune(finetune_checkpoint=config.load_checkpoint or False)


def check_rows(config: Any) -> None:
    """Raises ValueError when the dataset's first row is not one token longer than the model's seq_length.

    MindFormers finds out while it compiles, in words about broadcasting. Datasets that the launcher made are checked
    before a process is spawned; this is for the others.
    """
    from mindspore.dataset import MindDataset

    (dataset,) = config.train_dataset.data_loader.dataset_files
    (column, *_) = config.train_dataset.input_columns
    rows = MindDataset([dataset], columns_list=[column], shuffle=False, num_samples=1)
    row = next(rows.create_dict_iterator(num_epochs=1, output_numpy=True))
    seq_length = config.model.model_config.seq_length
    if len(row[column]) != seq_length + 1:
        raise ValueError(
            f"{dataset} has rows of {len(row[column])} tokens; model.seq_length {seq_length} needs {seq_length + 1}"
        )


def _progress_callback(events: EventWriter, paths: JobPaths) -> Any:
    from mindspore.train.callback import Callback

    stop_at = json.loads(paths.plan.read_text(encoding="utf-8"))["steps"] or math.inf

    class Progress(Callback):  # type: ignore[misc]
        """Writes one "step" event a step and ends the run after the number of steps that the spec asks for."""

        def on_train_step_begin(self, run_context: Any) -> None:
            self._began = time.monotonic()

        def on_train_step_end(self, run_context: Any) -> None:
            params = run_context.original_args()
            events.write("step", **step_fields(params.cur_step_num, params.net_outputs, time.monotonic() - self._began))
            if params.cur_step_num >= stop_at:
                run_context.request_stop()

    return Progress()


def step_fields(step: int, outputs: Any, seconds: float) -> dict[str, Any]:
    """What a step event says. ``outputs``: (loss, overflow, scale, learning rate, global norm) of the train cell."""
    loss, overflow, _, learning_rate, norm = outputs[:5]
    return {
        "step": int(step),
        "loss": _number(loss),
        "lr": _number(learning_rate),
        "overflow": bool(_number(overflow)),
        "grad_norm": _number(norm),
        "step_s": round(seconds, 4),
    }


def _number(value: Any) -> float | None:
    if value is None:
        return None
    array = value.asnumpy() if hasattr(value, "asnumpy") else value
    return float(array if isinstance(array, (int, float)) else array.reshape(-1)[0])


if __name__ == "__main__":
    main(sys.argv[1])
