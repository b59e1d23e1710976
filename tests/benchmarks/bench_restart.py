"""A restart against a fresh submit, with real training on two CPU ranks: seconds to the first step, by phase.

usage: bench_restart.py [--pairs 5] [--engines msrun,direct] [--folder DIR] [--at-once]

A pair is one job, so that both halves meet the same load. Fresh: from the start of ``launcher submit`` to the first
step. Restart: from the death of rank 1 (SIGKILL) to the first step of the next attempt. Rank 1 dies when the processes
that wait for it have done their imports; ``--at-once``: five steps after the first. What they cost while they wait is
given as processor time: times of steps would show the other load of the machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from support.events import read_events  # noqa: E402
from support.shop import Workshop  # noqa: E402

from launcher.common.processes import ProcessId  # noqa: E402
from launcher.jobs import JobPaths  # noqa: E402

LIMIT_S = 600.0
STEPS = 30
PHASES = ("begin", "imported", "joined", "loaded", "step")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Seconds from its beginning to each phase, of the fresh start and of the restart.

    ``standby_mib``: proportional memory of a standby process; ``standby_cores``: what all of them use while they wait.
    """

    fresh: Mapping[str, float]
    restart: Mapping[str, float]
    standby_mib: float
    standby_cores: float

    @property
    def ratio(self) -> float:
        return self.restart["step"] / self.fresh["step"]


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
    return found


def prepare(folder: Path) -> Workshop:
    """A working folder with data and a tokenizer, and the spec of a model of 60,000 parameters."""
    shop = Workshop.made(folder, "train")
    shop.write_spec("bench", lora=True, epochs=200)
    return shop


def measure(shop: Workshop, engine: str, *, at_once: bool) -> Pair:
    argv = (sys.executable, "-m", "launcher", "submit", "bench.yaml", "--cards", "2", "--engine", engine)
    options = ("--max-restarts", "1", "--set", "checkpoint.every_steps=4")
    before = set(folders(shop))
    # A cache of its own: no graph is there from the job before.
    env = {**os.environ, "LAUNCHER_CACHE": tempfile.mkdtemp(dir=shop.folder)}
    submitted = time.time()
    with subprocess.Popen(
        [*argv, *options], cwd=shop.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as job:
        root = wait_until(lambda: next(iter(set(folders(shop)) - before), None), "a job")
        first, second = JobPaths(root=root), JobPaths(root=root, attempt=2)
        wait_until(lambda: len(steps(first)) > 5, "steps")
        waiting = [] if at_once else wait_until(lambda: idle(root), "processes that wait")
        mib = statistics.fmean(process.memory_full_info().pss / 2**20 for process in waiting) if waiting else 0.0
        count, since, used = len(steps(first)), time.monotonic(), cpu_s(waiting)
        wait_until(lambda: at_once or len(steps(first)) > count + STEPS, "steps while they wait")
        busy = (cpu_s(waiting) - used) / (time.monotonic() - since)
        died = time.time()
        ProcessId.from_dict(read_events(first.rank_events(1))[0]).send(signal.SIGKILL)
        wait_until(lambda: steps(second), "a step of the next attempt")
        shop.launcher("stop", root.name)
        job.wait(timeout=LIMIT_S)
    return Pair(
        fresh=phases(first, submitted), restart=phases(second, died), standby_mib=mib, standby_cores=busy
    )  # fmt: skip


def folders(shop: Workshop) -> list[Path]:
    return [path.parent for path in shop.folder.glob("jobs/*/job.json")]


def steps(paths: JobPaths) -> list[dict[str, Any]]:
    file = paths.rank_events(0)
    return [event for event in read_events(file) if event["event"] == "step"] if file.exists() else []


def idle(root: Path) -> list[psutil.Process]:
    """The processes that wait, once they have used no time for half a second."""
    found = [p for p in psutil.process_iter(["cmdline"]) if "launcher.worker.standby" in (p.info["cmdline"] or ())]
    ours = [p for p in found if p.environ().get("PYTHONPATH") and str(root) in str(p.cwd())]
    used = cpu_s(ours)
    time.sleep(0.5)
    return ours if len(ours) == 2 and used == cpu_s(ours) else []


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def phases(paths: JobPaths, since: float) -> dict[str, float]:
    """Seconds until both ranks had reached each phase, and until the first step."""
    events = [read_events(paths.rank_events(rank)) for rank in (0, 1)]
    found = {}
    for name in PHASES:
        at = [next(e["time"] for e in rank if name in (e["event"], e.get("name"))) for rank in events]
        found[name] = (min(at) if name == "step" else max(at)) - since
    return found


def report(engine: str, pairs: list[Pair]) -> None:
    for half in ("fresh", "restart"):
        reached = [getattr(pair, half) for pair in pairs]
        parts = " ".join(
            f"{name} {statistics.median(r[name] - (r[before] if before else 0.0) for r in reached):.2f}"
            for before, name in itertools.pairwise((None, *PHASES))
        )
        total = [r["step"] for r in reached]
        print(f"{engine:7} {half:8} {statistics.median(total):6.2f} s [{min(total):.2f}-{max(total):.2f}]  {parts}")
    ratios = [pair.ratio for pair in pairs]
    print(f"{engine:7} ratio    {statistics.median(ratios):6.2f} [{min(ratios):.2f}-{max(ratios):.2f}]", flush=True)
    if pairs[0].standby_mib:
        mib = statistics.median(pair.standby_mib for pair in pairs)
        cores = statistics.median(pair.standby_cores for pair in pairs)
        print(f"{engine:7} each process that waits has {mib:.0f} MiB of its own; all use {cores:.4f} cores", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--engines", default="msrun,direct")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {options.pairs} pairs, medians [min-max]")
    seen: dict[str, list[Pair]] = {engine: [] for engine in options.engines.split(",")}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shop = prepare(Path(folder))
        for _ in range(options.pairs):
            for engine, pairs in seen.items():
                pairs.append(measure(shop, engine, at_once=options.at_once))
    for engine, pairs in seen.items():
        report(engine, pairs)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
