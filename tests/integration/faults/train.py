"""A rank with real MindSpore and little else: an all-reduce a step, checkpoints, and one fault on demand.

usage: train.py JOB_FOLDER, with $FAULT "name" and $FAULT_RANK. The fault's moment is written to JOB_FOLDER/fault_at.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher.jobs import JobPaths
from launcher.jobs.events import EventWriter, Position
from launcher.worker import main

STEPS = 8
FAULT_STEP = 4
ENDLESS = 1_000_000

FAULT = os.environ.get("FAULT", "none")
IS_FAULTY = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK_ID")) == os.environ.get("FAULT_RANK", "1")
IS_RANK = os.environ.get("MS_ROLE") != "MS_SCHED"

# Faults that come from outside: training goes on until then.
EXTERNAL = ("engine", "scheduler", "supervisor", "follower")


def strikes(name: str) -> bool:
    """Whether this process is the one that has the fault ``name``; the moment is noted."""
    if not (IS_RANK and IS_FAULTY and name == FAULT):
        return False
    (Path(sys.argv[1]) / "fault_at").write_text(repr(time.time()), encoding="ascii")
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def strike_dead() -> None:
    strikes(FAULT)
    die()


def train(paths: JobPaths, rank_id: int, events: EventWriter) -> None:
    if strikes("death_in_import"):
        die()
    import mindspore
    from mindspore import Parameter, Tensor, ops
    from mindspore.communication import init

    mindspore.set_context(mode=mindspore.PYNATIVE_MODE, device_target="CPU")
    if FAULT == "death_in_cluster_build" and IS_FAULTY:
        threading.Timer(0.3, strike_dead).start()
    init()
    events.write("ready", mindspore=mindspore.__version__, mindformers="")
    reduce, position = ops.AllReduce(), Position(paths.rank_position(rank_id))
    total = Parameter(Tensor([0.0]), name="total")
    steps = ENDLESS if FAULT.startswith(EXTERNAL) else STEPS
    for number in range(1, steps + 1):
        if number == FAULT_STEP and FAULT in IN_STEP and strikes(FAULT):
            IN_STEP[FAULT](paths)
        position.enter(number)
        began = time.monotonic()
        loss = float(reduce(Tensor([1.0])).asnumpy()[0])
        events.write("step", step=number, loss=loss, lr=0.1, overflow=False, grad_norm=None,
                     step_s=time.monotonic() - began)  # fmt: skip
        if number % 4 == 0 and steps == STEPS:
            save(paths, rank_id, number, total)
        time.sleep(0.02)


def save(paths: JobPaths, rank_id: int, number: int, total: object) -> None:
    import mindspore

    file = paths.checkpoints / f"rank_{rank_id}" / f"t_rank_{rank_id}-1_{number}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix("")
    mindspore.save_checkpoint([{"name": "total", "data": total}], str(whole), format="safetensors")
    if number == STEPS and strikes("death_in_save"):
        data = file.read_bytes()
        file.chmod(0o600)
        file.write_bytes(data[:-2])
        die()


def raise_error(paths: JobPaths) -> None:
    raise ValueError("no luck")


def stop_with_3(paths: JobPaths) -> None:
    sys.exit(3)


def signal_own(name: str) -> Callable[[JobPaths], None]:
    return lambda paths: os.kill(os.getpid(), getattr(signal, name))


def hang(paths: JobPaths) -> None:
    time.sleep(600)


def leave_child(paths: JobPaths) -> None:
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.3)
    raise ValueError("a child is left")


def delete_logs(paths: JobPaths) -> None:
    shutil.rmtree(paths.logs)
    raise ValueError("logs are gone")


def print_much(paths: JobPaths) -> None:
    line = "x" * 1023 + "\n"
    for _ in range(100 << 10):
        sys.stdout.write(line)
    raise ValueError("said enough")


def fill_disk(paths: JobPaths) -> None:
    with (paths.work / "fill").open("wb") as file:
        while True:
            file.write(b"x" * 65536)


IN_STEP: dict[str, Callable[[JobPaths], None]] = {
    "exception": raise_error,
    "exit3": stop_with_3,
    **{name: signal_own(name) for name in ("SIGKILL", "SIGSEGV", "SIGSTOP")},
    "hang": hang,
    "stubborn_child": leave_child,
    "logs_deleted": delete_logs,
    "much_output": print_much,
    "disk_full": fill_disk,
}


if __name__ == "__main__":
    if strikes("never_starts"):
        time.sleep(600)
    main.main(sys.argv[1], train)
    if strikes("crash_after_done"):
        os.kill(os.getpid(), signal.SIGSEGV)
