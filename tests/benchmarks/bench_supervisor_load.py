"""What the supervisor itself costs: memory and CPU for ranks that report steps, and whether every event arrives.

usage: bench_supervisor_load.py [--ranks 8] [--rate 10] [--seconds 20]

Without training: one process writes the events of all ranks, the supervisor's own loop watches here.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from launcher.jobs.events import EventWriter  # noqa: E402
from launcher.supervise.attempt import Attempt  # noqa: E402
from launcher.supervise.attempt_control import LocalControl  # noqa: E402
from launcher.supervise.judge import TICK_S  # noqa: E402
from launcher.supervise.stop_signals import StopSignals, catch_stop_signals  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, catch_stop_signals() as signals:
        attempt = make_attempt(Path(folder), options.ranks, signals)
        writer = os.fork()
        if writer == 0:
            write_steps(Path(folder), options.ranks, options.rate, options.seconds)
            os._exit(0)
        own = psutil.Process()
        before, began = sum(own.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - began < options.seconds + 1.0:
            attempt._tick(TICK_S)
            attempt.judge.decide(attempt.states, 0, attempt._slow_look)
        busy = (sum(own.cpu_times()[:2]) - before) / (time.monotonic() - began)
        steps = {rank.last_step for rank in attempt.states.ranks.values()}
    rss = own.memory_info().rss / 2**20
    print(f"{options.ranks} ranks, {options.rate:g} steps/s each: {busy:.2%} of a core, {rss:.0f} MiB resident")
    print(f"last steps seen {sorted(map(str, steps))}, written {int(options.seconds * options.rate)}")


def make_attempt(root: Path, num_ranks: int, signals: StopSignals) -> Attempt:
    """An attempt that watches and has started nothing."""
    from support.supervised import Supervised

    from launcher.jobs import JobPaths

    paths = JobPaths(root=root)
    job = Supervised(root=root, program="", mark="bench", ranks=num_ranks)
    attempt = Attempt(paths, job.launch(), LocalControl(paths, signals, 5.0), lambda state, states: None)
    attempt._make_folders()
    return attempt


def write_steps(root: Path, num_ranks: int, rate: float, seconds: float) -> None:
    from launcher.jobs import JobPaths

    paths = JobPaths(root=root)
    writers = [EventWriter(paths.rank_events(rank_id), rank_id) for rank_id in range(num_ranks)]
    began = time.monotonic()
    for number in range(1, int(seconds * rate) + 1):
        for writer in writers:
            writer.write("step", step=number, loss=1.0, lr=0.1, overflow=False, grad_norm=None, step_s=1 / rate)
        time.sleep(max(0.0, began + number / rate - time.monotonic()))


if __name__ == "__main__":
    main()
