"""``make faults``: every fault with every engine, and plain msrun beside it, as a Markdown table.

usage: table.py [--out FILE] [--ranks 2,4] [--engines msrun,direct,mpirun] [--only NAME,...] [--no-plain]
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
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[2])]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")])

from faults import FAULTS, Cell, Fault, RealJob, run_cell  # noqa: E402
from support.supervised import marked  # noqa: E402

from launcher.engines import ENGINES  # noqa: E402
from launcher.jobs import JobPaths  # noqa: E402

PLAIN_WATCH_S = 60.0

HEADER = """| fault | engine | ranks | verdict | right | seconds | survivors | newest whole step | plain msrun |
|---|---|---|---|---|---|---|---|---|"""


def plain_msrun(fault: Fault, folder: Path) -> str:
    """What msrun alone makes of the fault: seconds until it is back, and what is left of the job then."""
    mark = f"launcher-plain-{os.urandom(4).hex()}"
    job = RealJob(root=folder, program="", mark=mark, engine="msrun", env={"FAULT": fault.name, "FAULT_RANK": "1"})
    paths = JobPaths(root=job.root)
    (program,) = job.launch().programs(paths)
    for path in (paths.logs, paths.events, paths.work):
        path.mkdir(parents=True)
    env = {key: value for key, value in program.command.env.items() if not key.startswith("MS_RETRY")}
    process = subprocess.Popen(
        program.command.argv, env={**os.environ, **env}, cwd=paths.work, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    at = job.root / "fault_at"
    while not at.is_file() and process.poll() is None:
        time.sleep(0.05)
    began = float(at.read_text()) if at.is_file() else time.time()
    try:
        process.wait(timeout=PLAIN_WATCH_S)
        said = f"{time.time() - began:.1f} s, exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        said = f"not back in {PLAIN_WATCH_S:.0f} s"
    left = [p for p in marked(mark) if p.pid != process.pid]
    for survivor in marked(mark):
        survivor.send_signal(signal.SIGKILL)
    process.wait()
    return f"{said}, {len(left)} left" if left else said


def right(cell: Cell) -> bool:
    """State, rank and text are those that the fault must give."""
    verdict = cell.record.verdict or {"rank_id": None, "text": {"en": ""}}
    state_right = cell.record.state == cell.fault.state
    return state_right and verdict["rank_id"] == cell.fault.rank and cell.fault.text in verdict["text"]["en"]


def cells(options: argparse.Namespace) -> Iterator[tuple[Fault, str, int]]:
    for name in options.only.split(","):
        for ranks in map(int, options.ranks.split(",")):
            for engine in options.engines.split(","):
                if engine in FAULTS[name].engines:
                    yield FAULTS[name], engine, ranks


def row(fault: Fault, engine: str, ranks: int, *, with_plain: bool) -> tuple[str, Cell]:
    """One line of the table, and what it was made of."""
    plain = ""
    with tempfile.TemporaryDirectory() as folder:
        cell = run_cell(fault, engine, ranks, Path(folder), f"launcher-faults-{os.urandom(4).hex()}")
        if with_plain and fault.plain and engine == "msrun" and ranks == 2:
            plain = plain_msrun(fault, Path(folder) / "plain")
    saved = "-" if cell.newest_saved is None else str(cell.newest_saved[1])
    said = cell.said.replace("|", "/")
    ok = "yes" if right(cell) else "NO"
    line = f"| {fault.name} | {engine} | {ranks} | {said} | {ok} | {cell.seconds:.2f} | {cell.survivors} | {saved} "
    return f"{line}| {plain} |", cell


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--no-plain", action="store_true")
    options = parser.parse_args()
    lines = [f"Load when begun: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.", "", HEADER]
    seen = []
    for fault, engine, ranks in cells(options):
        line, cell = row(fault, engine, ranks, with_plain=not options.no_plain)
        lines.append(line)
        seen.append(cell)
        print(line, flush=True)
    wrong = sum(not right(cell) or cell.survivors > 0 for cell in seen)
    median = statistics.median(cell.seconds for cell in seen)
    lines += ["", f"{len(seen)} cells, {wrong} wrong, median {median:.2f} s from fault to all gone."]
    print(lines[-1])
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
