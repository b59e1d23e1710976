"""A rank without MindSpore: everything of ``launcher.worker`` but the training, which is a program in the environment.

usage: rank.py JOB_FOLDER, with Python text in $RANK_PROGRAM. ``rank``, ``events``, ``step``, ``ready`` are at hand.
The scheduler's part is $SCHEDULER_PROGRAM, by default to wait for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from launcher.jobs import JobPaths
from launcher.jobs.events import EventWriter, Position
from launcher.worker import main


def train(paths: JobPaths, rank_id: int, events: EventWriter) -> None:
    position = Position(paths.rank_position(rank_id))

    def step(number: int, loss: float = 1.0, seconds: float = 0.01) -> None:
        position.enter(number)
        time.sleep(seconds)
        events.write("step", step=number, loss=loss, lr=0.1, overflow=False, grad_norm=None, step_s=seconds)

    def ready() -> None:
        events.write("ready", mindspore="0", mindformers="0")

    names: dict[str, Any] = {
        "rank": rank_id, "events": events, "paths": paths, "step": step, "ready": ready, "position": position,
        "os": os, "sys": sys, "time": time, "signal": signal,
    }  # fmt: skip
    exec(os.environ["RANK_PROGRAM"], names)  # noqa: S102


def schedule(paths: JobPaths) -> None:
    exec(os.environ.get("SCHEDULER_PROGRAM", "import time; time.sleep(600)"), {})  # noqa: S102


if __name__ == "__main__":
    main.schedule = schedule
    main.main(sys.argv[1], train)
