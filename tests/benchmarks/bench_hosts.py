"""How many hosts one leader can carry: fake agents that only write signs of life, the real leader, one shared folder.

usage: python tests/benchmarks/bench_hosts.py [--hosts 10,100,1000,4000] [--seconds 15] [--folder DIR]

A fake agent is one line of a status file a second and one report at the end; a thread-free writer process carries many
of them, so what is measured is the leader and the folder. For each number of hosts: the leader's time for one look at
all status files, its processor share, files and bytes in the job's folder, time from a failure on one host to the
verdict, and from the silence of one host to the verdict. The last lines extrapolate to 10,000 hosts from the slope.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import psutil  # noqa: E402

from launcher import jobs  # noqa: E402
from launcher.jobs import JobPaths  # noqa: E402
from launcher.plan.launch import Launch, Limits, NodePlace, RankPlace  # noqa: E402
from launcher.supervise.multinode.leader import Leader  # noqa: E402
from launcher.supervise.multinode.status_file import StatusFile, read_status  # noqa: E402
from launcher.supervise.stop_signals import catch_stop_signals  # noqa: E402

RANKS_A_HOST = 8
WRITERS = 4


def launch_of(hosts: int) -> Launch:
    return Launch(
        engine="direct", target="CPU", address="", port=0, program="", rank_table="",
        ranks=tuple(
            RankPlace(rank_id=n, local_rank=n % RANKS_A_HOST, host=f"n{n // RANKS_A_HOST}", device_id=n % RANKS_A_HOST,
                      node_rank=n // RANKS_A_HOST)
            for n in range(hosts * RANKS_A_HOST)
        ),
        nodes=tuple(NodePlace(node_rank=n, name=f"n{n}", address="") for n in range(hosts)),
        scheduler="given", limits=Limits(register_s=600.0, start_timeout_s=600.0),
    )  # fmt: skip


def here(number: int) -> str:
    address = f"10.{number >> 16}.{(number >> 8) & 255}.{number & 255}"
    document = {"name": f"n{number}", "time": time.time(), "versions": {}, "addresses": {"eth0": [address]},
                "address": address, "port": 9, "devices": []}  # fmt: skip
    return json.dumps(document)


def write_agents(paths: JobPaths, numbers: range, heartbeat_s: float, fault: tuple[int, str]) -> None:
    """Be many agents: a sign of life each ``heartbeat_s``. On SIGUSR1 the host of ``fault`` fails, or falls silent."""
    status_files = {number: StatusFile(paths.node_status(number)) for number in numbers}
    for number in numbers:
        paths.node_here(number).write_text(here(number))
    struck: list[float] = []
    signal.signal(signal.SIGUSR1, lambda *_: struck.append(time.time()))
    heartbeat = 0
    ended: set[int] = set()
    while len(ended) < len(status_files):
        began = time.monotonic()
        heartbeat += 1
        leader = read_status(paths.leader_status) or {}
        for number, status_file in status_files.items():
            ending = leader.get("action") in ("stop", "end")
            if struck and number == fault[0]:
                if fault[1] == "silent":
                    ended.add(number)
                    continue
                ending = True
            if number in ended:
                continue
            state, ranks = (
                "running",
                {str(number * RANKS_A_HOST + r): ["ready", heartbeat] for r in range(RANKS_A_HOST)},
            )
            if ending:
                state = "ended"
                paths.node_end(number).write_text(json.dumps(end_of(struck, number == fault[0])))
                ended.add(number)
            status_file.write(
                {
                    "heartbeat": heartbeat,
                    "time": time.time(),
                    "state": state,
                    "ranks": ranks,
                    "step_s": 1.0,
                    "stop_signal": None,
                }
            )
        time.sleep(max(0.0, heartbeat_s - (time.monotonic() - began)))


def end_of(struck: list[float], failed: bool) -> dict[str, object]:
    verdict = {"rank_id": 0, "reason": "x", "step": 1, "kind": "exit", "text": {"en": "x"}}
    state = jobs.FAILED if failed and struck else jobs.CANCELLED
    return {"state": state, "verdict": verdict if state == jobs.FAILED else None, "warnings": [], "saved_step": None,
            "failed_at": struck[0] if struck else None}  # fmt: skip


def strike(paths: JobPaths, victim: int, seconds: float) -> None:
    """The fault, some time after all hosts are ready."""
    while not paths.start.exists():
        time.sleep(0.1)
    time.sleep(seconds)
    (paths.root / "struck").write_text(repr(time.time()))
    os.kill(victim, signal.SIGUSR1)


def apart(work: Callable[[], None]) -> int:
    """Run ``work`` in a process that is no descendant of this one: the leader ends those. Returns its pid."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        grandchild = os.fork()
        if grandchild == 0:
            work()
        else:
            os.write(writing, str(grandchild).encode())
        os._exit(0)
    pid = int(os.read(reading, 32))
    os.close(reading)
    os.close(writing)
    return pid


class Measured(Leader):
    """The leader, with a watch on how long one look at all hosts takes."""

    looks: list[float]

    def _tick(self, timeout_s: float) -> None:
        began = time.monotonic()
        super()._tick(timeout_s)
        self.looks.append(time.monotonic() - began - timeout_s)


def run(hosts: int, seconds: float, kind: str, root: Path) -> dict[str, float]:
    paths = JobPaths(root=root / f"{hosts}-{kind}")
    launch = launch_of(hosts)
    paths.nodes.mkdir(parents=True)
    paths.record.write_text("{}")  # without it the leader takes the folder for removed
    size = -(-hosts // WRITERS)
    fault = (hosts // 2, kind)
    writers = []
    for first in range(0, hosts, size):
        numbers = range(first, min(first + size, hosts))
        writers.append((first, apart(partial(write_agents, paths, numbers, 0.8, fault))))
    running: list[float] = []

    def tell(state: str, _watch: object) -> None:
        if state == jobs.RUNNING:
            running.append(time.time())

    with catch_stop_signals() as signals:
        leader = Measured(paths, launch, signals, tell)
        leader.looks = []
        victim = next(pid for first, pid in reversed(writers) if first <= fault[0])
        apart(partial(strike, paths, victim, seconds))
        before = psutil.Process().cpu_times()
        began = time.monotonic()
        outcome = leader.run()
        took = time.monotonic() - began
        after = psutil.Process().cpu_times()
    assert (paths.root / "struck").exists(), outcome  # it ended before the fault
    struck = float((paths.root / "struck").read_text())
    ended = time.time()
    while any(psutil.pid_exists(pid) for _, pid in writers):
        time.sleep(0.1)
    assert outcome.state == jobs.FAILED, outcome
    files = [entry.stat() for entry in paths.root.rglob("*") if entry.is_file()]
    steady = sorted(leader.looks)[len(leader.looks) // 2]
    cpu = (after.user + after.system - before.user - before.system) / took
    return {
        "look_s": steady, "cpu": cpu, "verdict_s": ended - struck, "files": len(files),
        "mib": sum(item.st_size for item in files) / (1 << 20),
        "gather_s": running[0] - (ended - took) if running else -1.0,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", default="10,100,1000,4000")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    print(f"{socket.gethostname()}: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {RANKS_A_HOST} ranks a host")
    print("hosts  all ready s  one look s  leader CPU  failure to verdict s  silence to verdict s  files    MiB")
    points = []
    for hosts in map(int, options.hosts.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            failed = run(hosts, options.seconds, "failed", Path(folder))
            silent = run(hosts, options.seconds, "silent", Path(folder))
        points.append((hosts, failed))
        print(
            f"{hosts:>5}  {failed['gather_s']:>11.1f}  {failed['look_s']:>10.4f}  {failed['cpu']:>9.0%}  "
            f"{failed['verdict_s']:>20.2f}  {silent['verdict_s']:>20.2f}  {failed['files']:>5}  {failed['mib']:>5.1f}",
            flush=True,
        )
    (few, small), (many, large) = points[0], points[-1]
    slope = (large["look_s"] - small["look_s"]) / max(1, many - few)
    files, mib = large["files"] / many * 10_000, large["mib"] / many * 10_000
    print(f"for 10,000 hosts: one look {slope * 10_000:.2f} s, {files:.0f} files, {mib:.0f} MiB")
    print("10,000 agents rewrite 12,500 files a second and read the leader's as often; the leader reads as many")
    print(
        f"one look takes a heartbeat of 0.8 s at {0.8 / slope:,.0f} hosts, half of lost_s (8 s) at {4.0 / slope:,.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
