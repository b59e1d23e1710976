"""Supervision against plain ``msrun --join=True``: the same worker, the same job, in the same run, interleaved.

usage: bench_supervise.py [--runs 7] [--cases whole,SIGKILL,exception,before_init] [--folder DIR]

Each run is a process as a user would start it: ours starts the supervisor and follows it as ``launcher submit`` does,
the peer is msrun's own command line. Times are from the start of that process, or from the fault.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "integration" / "faults"), str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from faults import RealJob  # noqa: E402
from support.events import read_events  # noqa: E402
from support.supervised import marked  # noqa: E402

from launcher.jobs import JobPaths  # noqa: E402

FAULTS = {"whole": "none", "SIGKILL": "SIGKILL", "exception": "exception", "before_init": "death_in_import"}
PEER_LIMIT_S = 60.0


def submit(root: str, engine: str, fault: str, mark: str) -> None:
    """What the child process of one of our runs does: start the job, follow it, print its end."""
    from launcher.control.follow import follow, noted_signals
    from launcher.jobs.verdict import verdict_text

    job = RealJob(root=Path(root), program="", mark=mark, engine=engine, env={"FAULT": fault, "FAULT_RANK": "1"})
    job.start()
    with noted_signals() as signals:
        record = follow(job.paths, lambda event: None, lambda record: None, signals)
    print(verdict_text(record.verdict, "en") if record.verdict else record.state, flush=True)
    assert job.guard is not None
    job.guard.wait()


def ours(engine: str, fault: str, root: Path, mark: str) -> float:
    argv = (sys.executable, __file__, "--submit", str(root), engine, fault, mark)
    began = time.time()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return began


def peer(fault: str, root: Path, mark: str) -> float:
    """msrun as it is, with MindSpore's defaults."""
    paths = JobPaths(root=root)
    job = RealJob(root=root, program="", mark=mark, engine="msrun", env={"FAULT": fault, "FAULT_RANK": "1"})
    (program,) = job.launch().programs(paths)
    for folder in (paths.logs, paths.events, paths.work):
        folder.mkdir(parents=True)
    env = {key: value for key, value in program.command.env.items() if not key.startswith("MS_RETRY")}
    began = time.time()
    process = subprocess.Popen(
        program.command.argv, env={**os.environ, **env}, cwd=paths.work, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        process.wait(timeout=PEER_LIMIT_S)
    except subprocess.TimeoutExpired:
        for left in marked(mark):
            left.send_signal(signal.SIGKILL)
        process.wait()
    return began


def measure(engine: str, case: str, folder: Path) -> dict[str, float]:
    """Seconds: to the first step, from the last step to the end, in all; or from the fault to the end."""
    mark = f"launcher-bench-{os.urandom(4).hex()}"
    root, fault = folder / f"{engine}-{mark}", FAULTS[case]
    began = peer(fault, root, mark) if engine == "plain" else ours(engine, fault, root, mark)
    ended = time.time()
    if case != "whole":
        return {"fault to end": ended - float((root / "fault_at").read_text())}
    events = [event for rank in (0, 1) for event in read_events(JobPaths(root=root).rank_events(rank))]
    steps = [event["time"] for event in events if event["event"] == "step"]
    return {"to first step": min(steps) - began, "last step to end": ended - max(steps), "in all": ended - began}


def main() -> None:
    if sys.argv[1:2] == ["--submit"]:
        submit(*sys.argv[2:6])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cases", default=",".join(FAULTS))
    parser.add_argument("--engines", default="plain,msrun,direct,mpirun")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {options.runs} runs, medians [min-max] in s")
    for case in options.cases.split(","):
        seen: dict[str, list[dict[str, float]]] = {engine: [] for engine in options.engines.split(",")}
        for _ in range(options.runs):
            for engine, values in seen.items():
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    values.append(measure(engine, case, Path(folder)))
        report(case, seen)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def report(case: str, seen: dict[str, list[dict[str, float]]]) -> None:
    medians: dict[str, dict[str, Any]] = {}
    for engine, values in seen.items():
        medians[engine] = {key: statistics.median(v[key] for v in values) for key in values[0]}
        for key, median in medians[engine].items():
            low, high = min(v[key] for v in values), max(v[key] for v in values)
            ratio = f"  {median / medians['plain'][key]:.3f} x plain" if "plain" in medians else ""
            print(f"{case:12} {engine:8} {key:18} {median:7.2f} [{low:.2f}-{high:.2f}]{ratio}", flush=True)


if __name__ == "__main__":
    main()
