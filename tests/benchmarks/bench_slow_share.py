"""What a job on two hosts does when they see each other's new names late, as by NFS, and how long it takes.

usage: python tests/benchmarks/bench_slow_share.py [--delays 0,3,30,60]    (root, bindfs; about 5 minutes)

The real leader and real agents in network namespaces, two stand-in ranks a host, each host with a view of the jobs
folder of its own (tests/support/slow_share.py). Seconds, of one run each; * marks what was not as it must be.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from support.events import read_events  # noqa: E402
from support.netlab import NetHost, lab  # noqa: E402
from support.slow_share import Shared, slow_share  # noqa: E402
from support.supervised import marked, report, wait_until  # noqa: E402

from launcher import jobs  # noqa: E402

STEPS = 100
ENDS = f"ready()\nfor n in range(1, {STEPS + 1}):\n    step(n, seconds=0.05)\n"
GOES_ON = "ready()\nfor n in range(1, 100000):\n    step(n, seconds=0.05)\n"
RAISES = "step(1)\nif rank == 3:\n    raise ValueError('no luck')\ntime.sleep(600)"


@dataclass(frozen=True)
class Case:
    """``run`` returns the seconds and whether everything was as it must be."""

    name: str
    run: Callable[[Shared], tuple[float, bool]]
    program: str


def until_the_first_step(job: Shared) -> tuple[float, bool]:
    began = time.monotonic()
    job.start().wait_for_pids()
    seconds = time.monotonic() - began
    record = job.end()
    events = [read_events(job.paths.rank_events(rank)) for rank in range(4)]
    whole = all(sum(event["event"] == "step" for event in rank) == STEPS for rank in events)
    return seconds, whole and record.state == jobs.SUCCEEDED and not record.warnings


def until_the_verdict_on_a_rank(job: Shared) -> tuple[float, bool]:
    record = job.start().end()
    failed = next(e["time"] for e in read_events(job.paths.rank_events(3)) if e["event"] == "error")
    right = report(record).startswith("rank 3 failed first, after step 1: ValueError: no luck\n")
    return _ended(job) - failed, right


def until_the_verdict_on_a_host(job: Shared) -> tuple[float, bool]:
    job.start().wait_for_pids()
    for pid in job.on_host(1):
        os.kill(pid, signal.SIGKILL)
    died = time.time()
    record = job.end()
    return _ended(job) - died, report(record).startswith("host node2 (10.77.0.2) failed first: it is lost")


def until_all_have_stopped(job: Shared) -> tuple[float, bool]:
    job.start().wait_for_pids()
    asked = time.time()
    record = job.stop()
    return _ended(job) - asked, record.state == jobs.CANCELLED


def until_nothing_runs_without_a_leader(job: Shared) -> tuple[float, bool]:
    record = job.start().wait_for_pids()
    for process in (record.guard, record.supervisor):
        assert process is not None
        process.send(signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: not marked(job.mark), "the end of all ranks")
    seconds = time.monotonic() - killed
    for agent in job.agents:
        agent.wait(timeout=60)
    return seconds, "from which the job was led, failed first: it is lost" in report(job.record())


def _ended(job: Shared) -> float:
    """When everything had ended and the verdict was written, by the clock of the file server."""
    return job.paths.record.stat().st_mtime


CASES = (
    Case("from submit to the first step of all ranks; every event read", until_the_first_step, ENDS),
    Case("from an error on a host to the verdict, everything ended", until_the_verdict_on_a_rank, RAISES),
    Case("from the loss of a host (3 s of silence) to the verdict", until_the_verdict_on_a_host, GOES_ON),
    Case("from launcher stop to the end", until_all_have_stopped, GOES_ON),
    Case("from the death of the leader to the end of all ranks", until_nothing_runs_without_a_leader, GOES_ON),
)


def measure(case: Case, hosts: Sequence[NetHost], delay_s: float) -> str:
    mark = f"launcher-share-{os.urandom(4).hex()}"
    with tempfile.TemporaryDirectory() as folder, slow_share(Path(folder), hosts, delay_s) as (shared, seen):
        job = Shared(root=shared / "job", program=case.program, mark=mark, hosts=seen, per_host=2)
        seconds, right = case.run(job)
        wait_until(lambda: not marked(mark), "the end of all processes")
    return f"{seconds:.1f}{'' if right else ' *'}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delays", default="0,3,30,60")
    delays = [float(text) for text in parser.parse_args().delays.split(",")]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| names show after | " + " | ".join(f"{delay:g} s" for delay in delays) + " |")
    print("|---" * (1 + len(delays)) + "|")
    with lab(2) as made:
        for case in CASES:
            cells = [measure(case, made.hosts, delay) for delay in delays]
            print(f"| {case.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
