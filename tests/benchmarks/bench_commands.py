"""Processor time of the commands that people type all day, in a folder with 1,000 jobs, and the imports of each.

    python tests/benchmarks/bench_commands.py [--jobs 1000] [--rounds 7] [--against CHECKOUT] [--imports 8]

A whole process each, user and system time, the median of --rounds runs after one that does not count: it compiles
modules, and reads files into the page cache. The commands take turns, so that a busy machine slows all of them alike.
Where a median run reads pages from the disk nevertheless, as other work has emptied the cache, their number is printed.
With --against each is run from another checkout too, in turn with this one, and compared: its output byte by byte. Exit
code 1 when a command is over its limit; other work on the machine counts against it, up to 1.3 x.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Seconds of user and system time on an idle machine, by the words after ``launcher``.
LIMITS = {
    "--help": 0.15,
    "jobs": 0.3,
    "status PREFIX": 0.2,
    "plan llama_7b_lora --cards 8 --kind A2": 0.6,
    "plan tiny_cpu": 0.6,
    f"rank-table check {ROOT}/rank_tables/2x8.json": 0.2,
}
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s*)(\S+)")
_LETTERS = "bcdfghjkmnpqrstvwxz"
_ENDS = ("succeeded",) * 7 + ("failed",) * 2 + ("cancelled",)


def make_jobs(root: Path, count: int) -> str:
    """Make the folders of ``count`` jobs that have ended; return a prefix that names one of them."""
    from support.job_folders import Made, MadeJob, iso

    from launcher.runspec.checking import load_spec

    spec = load_spec("tiny_cpu").model_dump(mode="json")
    chance = random.Random(1)
    tokens: dict[str, None] = {}
    while len(tokens) < count:
        tokens["".join(chance.choice(_LETTERS) for _ in range(5))] = None
    for number, token in enumerate(tokens):
        cards, steps, state = chance.choice((1, 2, 2, 2, 4, 8)), chance.randint(50, 300), chance.choice(_ENDS)
        MadeJob(
            job_id=f"{token}-tiny_math",
            state=state,
            cards=cards,
            steps=steps,
            attempts=(Made(ended=30.0 + steps, steps=steps, saves=(steps,), phases=True, more=_more_of_a_step),),
            spec=spec,
            record=_record(cards, state, created=iso(900.0 * number)),
        ).write(root)
    return list(tokens)[count // 2]


def _more_of_a_step(rank_id: int, step: int) -> dict[str, Any]:
    """What a step says beside what Made makes up."""
    begun = 1767225629.25 + step + rank_id / 1000
    return {"loss_scale": 1.0, "input_s": 0.0012, "tokens": 2911, "begun": begun, "core_wait_s": 0.0003}


def _record(cards: int, state: str, created: str) -> dict[str, Any]:
    """What a job.json says beside what MadeJob makes up."""
    from launcher.common.processes import ProcessId

    def process(pid: int) -> ProcessId:
        return ProcessId(pid=pid, started=1767225600.25, ticks=33738, boot="e145b392-f57e-40d9-905d-8b0908ee4528")

    reason = {
        "reason": "error", "rank_id": 0, "step": 12, "known": None, "signature": "RuntimeError: out of memory",
        "text": "rank 0 failed at step 12: RuntimeError: device memory is exhausted", "retry": False,
        "log": "\n".join(f"  File 'train.py', line {line}, in step" for line in range(30)),
    }  # fmt: skip
    return {
        "name": "tiny_math", "created": created, "host": "elsewhere", "supervisor": process(4543),
        "guard": process(4540), "processes": {f"rank_{rank}": process(4600 + rank) for rank in range(cards)},
        "versions": {"launcher": "0.1.0", "python": "3.11.7", "mindspore": "2.9.0", "mindformers": "1.9.0"},
        "exit_code": 0 if state == "succeeded" else 1, "verdict": reason if state == "failed" else None,
        "origin": {"user": "me", "host": "elsewhere", "command": "launcher submit --cards 2", "folder": "/home/me"},
    }  # fmt: skip


@dataclass(kw_only=True)
class Measured:
    """The runs of one command from one checkout."""

    seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)  # pages that were read from the disk
    output: bytes = b""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def environment(checkout: Path, folder: Path) -> dict[str, str]:
    """Return the environment of a command of ``checkout``. Modules are compiled once, as in an installation."""
    own = {
        "PYTHONPATH": str(checkout),
        "LAUNCHER_CACHE": f"{folder}/cache",
        "PYTHONPYCACHEPREFIX": f"{folder}/compiled",
    }
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}, **own}


def command(words: str, *options: str) -> list[str]:
    return [sys.executable, *options, "-m", "launcher", *words.split()]


def run(words: str, checkout: Path, folder: Path, measured: Measured) -> None:
    """Run a command once, from ``checkout``, and note what it took and printed."""
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(
            command(words), cwd=folder, env=environment(checkout, folder), stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        measured.output = output.read()
    if process.returncode:
        sys.exit(f"launcher {words} ended with {process.returncode}:\n{measured.output.decode()}")
    measured.seconds.append(used.ru_utime + used.ru_stime)
    measured.faults.append(used.ru_majflt)


def costly_imports(words: str, folder: Path, most: int) -> list[str]:
    """Return the imports that cost most, each with all that it brings and without."""
    typed = command(words, "-X", "importtime")
    told = subprocess.run(typed, cwd=folder, env=environment(ROOT, folder), capture_output=True, text=True)
    found = [(int(m[2]), int(m[1]), m[4]) for line in told.stderr.splitlines() if (m := _IMPORT.match(line))]
    alone = sum(own for _, own, _ in found) / 1000
    costly = sorted(found, reverse=True)[:most]
    return [
        f"  {len(found)} imports, {alone:.0f} ms; with all that each brings, and alone:",
        *(f"  {total / 1000:7.1f} {own / 1000:6.1f} ms  {name}" for total, own, name in costly),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--imports", type=int, default=8, metavar="N", help="print the N costliest of each command")
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    checkouts = [ROOT, *([asked.against.resolve()] if asked.against else [])]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prefix = make_jobs(folder / "jobs", asked.jobs)
        typed = {words: words.replace("PREFIX", prefix) for words in LIMITS}
        found = {(words, checkout): Measured() for words in typed for checkout in checkouts}
        for _ in range(asked.rounds + 1):
            for (words, checkout), measured in found.items():
                run(typed[words], checkout, folder, measured)
        for measured in found.values():
            del measured.seconds[0], measured.faults[0]
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        over = [words for words in typed if not show(words, [found[words, checkout] for checkout in checkouts])]
        for words, full in typed.items():
            print("\n".join([f"\nlauncher {words}", *costly_imports(full, folder, asked.imports)]))
    sys.exit(f"over the limit: {', '.join(over)}" if over else 0)


def show(words: str, measured: list[Measured]) -> bool:
    """Print a command's line; return whether it is within its limit."""
    ours, *others = measured
    compared = "".join(
        f"  {ours.median / other.median:.2f} x {other.median:.2f} s, "
        f"{'the same output' if ours.output == other.output else 'ANOTHER OUTPUT'}"
        for other in others
    )
    faults = round(statistics.median(ours.faults))
    read = f"  {faults} pages from the disk" if faults else ""
    print(f"{ours.median:.3f} s  limit {LIMITS[words]:.2f} s  launcher {words}{read}{compared}", flush=True)
    return ours.median <= LIMITS[words]


if __name__ == "__main__":
    main()
