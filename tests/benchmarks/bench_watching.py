"""What watching costs: processor time and memory of the supervisor, and from the death of a rank to the verdict.

usage: bench_watching.py [--ranks 8,64,256] [--rate 10] [--seconds 20]     (about 3 minutes on an idle machine)

Without training. Load: one process stands for all ranks and writes their events, the supervisor's own loop watches it
as often as there are ranks. Death: as many stand-in ranks as real processes; one is killed, and the job ends when all
others are stopped too. The leader of many hosts has a benchmark of its own, bench_hosts.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from support.events import read_events  # noqa: E402
from support.supervised import LIMITS, Supervised, report, wait_until  # noqa: E402

from launcher import jobs  # noqa: E402
from launcher.common.processes import ProcessId  # noqa: E402
from launcher.jobs import JobPaths  # noqa: E402
from launcher.jobs.events import EventWriter  # noqa: E402
from launcher.supervise.attempt import Attempt  # noqa: E402
from launcher.supervise.attempt_control import LocalControl  # noqa: E402
from launcher.supervise.judge import TICK_S  # noqa: E402
from launcher.supervise.stop_signals import StopSignals, catch_stop_signals  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", default="8,64,256")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {options.rate:g} steps/s each")
    print("| ranks | of a core | a 100 ranks | MiB | death to the verdict, s | to the end of all, s |")
    print("|---|---|---|---|---|---|", flush=True)
    for ranks in map(int, options.ranks.split(",")):
        share, mib = watched(ranks, options.rate, options.seconds)
        verdict_s, end_s = death(ranks)
        print(
            f"| {ranks} | {share:.2%} | {100 * share / ranks:.2%} | {mib:.0f} | {verdict_s:.2f} | {end_s:.2f} |",
            flush=True,
        )
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def watched(ranks: int, rate: float, seconds: float) -> tuple[float, float]:
    """Return the share of a core, and MiB: in a process of its own, whose memory is its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(_watched(ranks, rate, seconds)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        share, mib = json.loads(answer.read())
    os.waitpid(child, 0)
    return share, mib


def _watched(ranks: int, rate: float, seconds: float) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder, catch_stop_signals() as signals:
        attempt = make_attempt(Path(folder), ranks, signals)
        writer = os.fork()
        if writer == 0:
            write_steps(Path(folder), ranks, rate, seconds)
            time.sleep(600.0)  # until it is killed: a rank that ended would be looked into
            os._exit(0)
        own, warm = psutil.Process(), time.monotonic() + 2.0
        while time.monotonic() < warm:  # what is imported at the first look is paid once
            attempt._tick(TICK_S)
            attempt.judge.decide(attempt.states, 0, attempt._slow_look)
        before, began = sum(own.cpu_times()[:2]), time.monotonic()
        last, most = set[int | None](), int(seconds * rate)
        while last != {most} and time.monotonic() - began < 3 * seconds:
            attempt._tick(TICK_S)
            attempt.judge.decide(attempt.states, 0, attempt._slow_look)
            last = {rank.last_step for rank in attempt.states.ranks.values()}
        busy = (sum(own.cpu_times()[:2]) - before) / (time.monotonic() - began)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        if last != {most}:
            raise RuntimeError(f"events are missing: last steps {last}")
    return busy, own.memory_info().rss / 2**20


def death(ranks: int) -> tuple[float, float]:
    """Return the seconds from a SIGKILL to the verdict and to the end of the job."""
    mark, program = f"launcher-watching-{os.urandom(4).hex()}", "step(1)\ntime.sleep(600)"
    limits = replace(LIMITS, start_timeout_s=600.0)
    with tempfile.TemporaryDirectory() as folder:
        job = Supervised(root=Path(folder) / "job", program=program, mark=mark, ranks=ranks, limits=limits)
        job.start().wait_for_pids()
        victim = ProcessId.from_dict(read_events(job.paths.rank_events(ranks // 2))[0])
        time.sleep(1.0)
        killed = time.time()
        victim.send(signal.SIGKILL)
        # What has failed is known when the supervisor begins to stop the others.
        wait_until(lambda: job.record().state == jobs.STOPPING or job.record().is_final, "the verdict")
        known = time.time()
        record = job.end()
        ended = job.paths.record.stat().st_mtime
        if f"rank {ranks // 2} failed first" not in report(record):
            raise RuntimeError(report(record))
    return min(known, ended) - killed, ended - killed


def make_attempt(root: Path, num_ranks: int, signals: StopSignals) -> Attempt:
    """An attempt that watches and has started nothing."""
    paths = JobPaths(root=root)
    job = Supervised(root=root, program="", mark="bench", ranks=num_ranks)
    attempt = Attempt(paths, job.launch(), LocalControl(paths, signals, 5.0), lambda state, states: None)
    attempt._make_folders()
    return attempt


def write_steps(root: Path, num_ranks: int, rate: float, seconds: float) -> None:
    paths = JobPaths(root=root)
    writers = [EventWriter(paths.rank_events(rank_id), rank_id) for rank_id in range(num_ranks)]
    for writer in writers:
        writer.write("begin", **dataclasses.asdict(ProcessId.current()))
        writer.write("ready")
    began = time.monotonic()
    for number in range(1, int(seconds * rate) + 1):
        for writer in writers:
            writer.write("step", step=number, loss=1.0, lr=0.1, overflow=False, grad_norm=None, step_s=1 / rate)
        time.sleep(max(0.0, began + number / rate - time.monotonic()))


if __name__ == "__main__":
    main()
