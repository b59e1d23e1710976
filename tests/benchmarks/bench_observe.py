"""The time to read a long job and to write its report: ``.venv/bin/python tests/benchmarks/bench_observe.py``.

A job of 100,000 steps on 8 ranks is made in a temporary folder (230 MB of events), read without a cache and with one,
and reported. Each is a process of its own, as a user's command is; the imports are named apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
_READ = """
import sys, time
from pathlib import Path
begun = time.perf_counter()
import pyarrow.json
from launcher.jobs import JobStore
from launcher.observe.history import read_history
from launcher.observe.report import make_report
from launcher.observe.summary import summarize
print(f"imports {time.perf_counter() - begun:.2f} s", end="  ")
begun = time.perf_counter()
history = read_history(*JobStore(Path(sys.argv[1])).get("last"))
print(f"read {time.perf_counter() - begun:.2f} s", end="  ")
begun = time.perf_counter()
page = make_report([history], "en")
print(f"report {time.perf_counter() - begun:.2f} s, {len(page.encode()) / 1e6:.2f} MB, {len(history.steps)} steps")
"""


def write_rank(path: Path, rank_id: int, steps: int) -> None:
    chance = random.Random(rank_id)
    with path.open("w") as file:
        file.write(
            json.dumps({"time": 1767225600.0, "rank_id": rank_id, "event": "begin", "pid": 1, "started": 1.0}) + "\n"
        )
        file.write(json.dumps({"time": 1767225601.0, "rank_id": rank_id, "event": "ready", "from_step": 0}) + "\n")
        for step in range(1, steps + 1):
            event = {
                "time": round(1767225610.0 + step * 0.4, 3), "rank_id": rank_id, "event": "step", "step": step,
                "loss": 1 + 6 / (1 + step / 500) + chance.gauss(0, 0.05), "lr": 1e-4 * (1 - step / steps),
                "overflow": False, "grad_norm": abs(chance.gauss(1, 0.2)), "step_s": round(chance.gauss(0.4, 0.01), 4),
                "memory_mib": 40000, "loss_scale": 1.0, "input_s": round(abs(chance.gauss(0, 0.001)), 4),
                "tokens": 1234, "begun": round(1767225609.6 + step * 0.4 + chance.random() / 100, 4),
                "core_wait_s": round(chance.random() / 1000, 4),
            }  # fmt: skip
            file.write(json.dumps(event) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=8)
    asked = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from support.job_folders import Made, MadeJob

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "jobs"
        paths = MadeJob(cards=asked.ranks, steps=asked.steps, attempts=(Made(ended=asked.steps * 0.4, steps=0),)).write(
            root
        )
        begun = time.perf_counter()
        for rank_id in range(asked.ranks):
            write_rank(paths.rank_events(rank_id), rank_id, asked.steps)
        size = sum(file.stat().st_size for file in paths.events.iterdir()) / 1e6
        print(
            f"{asked.steps} steps x {asked.ranks} ranks, {size:.0f} MB, written in {time.perf_counter() - begun:.0f} s"
        )
        env = {**os.environ, "LAUNCHER_CACHE": f"{folder}/cache"}
        for name in ("without a cache", "with a cache"):
            print(f"{name:16}", end=" ", flush=True)
            subprocess.run((sys.executable, "-c", _READ, str(root)), env=env, check=True)


if __name__ == "__main__":
    main()
