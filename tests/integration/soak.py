"""``make soak``: kill a rank of a real training at a random moment, let the job restart itself, compare the weights.

usage: soak.py [--count 40] [--minutes 60] [--seed 1] [--engines msrun,direct,mpirun] [--ranks 2,4] [--out soak.jsonl]

Each kill is a job with restarts on: LoRA without dropout on a small model, a checkpoint every 4 of 12 steps. A kill is
right when the job succeeds, its final weights are those of a run in one go to 1e-6 and can be merged, the verdict on
the attempt names the rank and the signal, and no process is left. Kills are numbered, and what a number does follows
from the seed: a run goes on where the file of another with the same seed ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from support.events import read_events  # noqa: E402
from support.shop import Workshop  # noqa: E402
from support.supervised import marked  # noqa: E402

from launcher.checkpoint.api import read_file  # noqa: E402
from launcher.common.processes import ProcessId  # noqa: E402
from launcher.jobs import SUCCEEDED, JobPaths, JobRecord  # noqa: E402
from launcher.plan.resume import saved_moments  # noqa: E402

STEPS, EVERY, LIMIT_S, TOLERANCE = 12, 4, 600.0, 1e-6
# The event after which a rank is killed, and the longest wait after it, in s.
MOMENTS = {
    "before begin": ("", 0.0),
    "import": ("begin", 2.0),
    "rendezvous": ("imported", 3.0),
    "compile": ("loaded", 3.0),
    "step": ("step", 1.0),
    "save": ("save", 0.01),
    "after done": ("done", 0.0),
}


@dataclass(frozen=True, kw_only=True)
class Kill:
    number: int
    moment: str
    engine: str
    ranks: int
    rank_id: int
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a kill. ``reached``: the phase in which the rank was. ``difference``: the largest of any weight."""

    kill: Kill
    state: str
    attempts: int
    said: str
    reached: str
    difference: float | None
    left: int
    seconds: float
    merges: bool = True

    @property
    def wrong(self) -> list[str]:
        done = self.reached == "done"
        found = {
            "never killed": self.reached == "not reached",
            f"the job {self.state}": self.state != SUCCEEDED,
            f"weights differ by {self.difference}": self.difference is None or self.difference > TOLERANCE,
            f"{self.left} processes left": self.left > 0,
            "merge-ckpt refuses what is left": not self.merges,
            f"verdict: {self.said}": not done and self.said != f"rank {self.kill.rank_id}: killed by SIGKILL",
        }
        return [text for text, holds in found.items() if holds]


def kills(seed: int, engines: list[str], ranks: list[int]) -> Iterator[Kill]:
    """Kills without end: every moment with every engine comes up equally often."""
    cells = [(moment, engine, count) for count in ranks for moment in MOMENTS for engine in engines]
    number = 0
    while True:
        chooser = random.Random(f"{seed} {number // len(cells)}")
        for moment, engine, count in chooser.sample(cells, len(cells)):
            wait_s = chooser.random() * MOMENTS[moment][1]
            yield Kill(
                number=number, moment=moment, engine=engine, ranks=count, rank_id=chooser.randrange(count),
                wait_s=wait_s,
            )  # fmt: skip
            number += 1


def prepare(folder: Path) -> Workshop:
    shop = Workshop.made(folder, "train")
    path = folder / shop.write_spec("soak", lora=True, epochs=2, steps=STEPS)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["lora"]["dropout"] = 0.0
    values["checkpoint"] = {"every_steps": EVERY, "keep": 8}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return shop


def submit(shop: Workshop, engine: str, ranks: int, mark: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a job; return the command that follows it, and its folder, once it is there."""
    before = set(shop.folder.glob("jobs/*/job.json"))
    argv = (sys.executable, "-m", "launcher", "submit", "soak.yaml", "--cards", str(ranks), "--engine", engine)
    command = subprocess.Popen(
        [*argv, "--max-restarts", "3"], cwd=shop.folder, env={**os.environ, "LAUNCHER_TEST": mark},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    found = wait_until(lambda: command.poll() is not None or set(shop.folder.glob("jobs/*/job.json")) - before)
    if found is True:
        raise RuntimeError(f"submit ended with {command.returncode} and made no job")
    return command, next(iter(found)).parent


def wait_until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)
    return found


def events(paths: JobPaths, rank_id: int) -> list[dict[str, Any]]:
    file = paths.rank_events(rank_id)
    return read_events(file) if file.exists() else []


def process_of(kill: Kill, paths: JobPaths, mark: str) -> ProcessId | None:
    """The rank's process at its moment, None before it."""
    event = MOMENTS[kill.moment][0]
    seen = events(paths, kill.rank_id)
    if not event:
        return None if seen else unbegun(kill, mark)
    there = [e for e in seen if event in (e["event"], e.get("name"))]
    return ProcessId.from_dict(seen[0]) if there else None


def unbegun(kill: Kill, mark: str) -> ProcessId | None:
    variable = "OMPI_COMM_WORLD_RANK" if kill.engine == "mpirun" else "RANK_ID"
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            environment, argv = process.environ(), process.cmdline()
            is_worker = "launcher.worker" in argv and environment.get("MS_ROLE") != "MS_SCHED"
            if is_worker and environment.get(variable) == str(kill.rank_id):
                return ProcessId.of_pid(process.pid)
    return None


def victim(kill: Kill, paths: JobPaths, mark: str, command: subprocess.Popen[bytes]) -> ProcessId | None:
    """Wait for the moment and return the rank's process; None when the job ends before."""
    while command.poll() is None:
        if found := process_of(kill, paths, mark):
            return found
        time.sleep(0.002)
    return None


def carry_out(kill: Kill, shop: Workshop, expected: Path) -> Result:
    mark, began = f"launcher-soak-{os.urandom(4).hex()}", time.monotonic()
    command, root = submit(shop, kill.engine, kill.ranks, mark)
    paths = JobPaths(root=root)
    process = victim(kill, paths, mark, command)
    time.sleep(kill.wait_s)
    reached = next((e.get("name", e["event"]) for e in reversed(events(paths, kill.rank_id))), "")
    # By pid and start time: never another process, whatever has become of the rank.
    if process is None:
        reached = "not reached"
    elif not process.is_alive():
        reached = "done"
    else:
        process.send(signal.SIGKILL)
    command.wait(timeout=LIMIT_S)
    record = JobRecord.from_json(paths.record.read_text(encoding="utf-8"))
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    first = record.earlier[0] if record.earlier else (record.verdict or {})
    return Result(
        kill=kill, state=record.state, attempts=record.attempt, reached=reached, left=len(left),
        said=f"rank {first.get('rank_id')}: {first.get('reason')}",
        difference=difference(final(root), expected), seconds=round(time.monotonic() - began, 1), merges=merges(root),
    )  # fmt: skip


def merges(root: Path) -> bool:
    """Whether merge-ckpt takes what all attempts have left."""
    argv = (sys.executable, "-m", "launcher", "merge-ckpt", str(root), "--dry-run")
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def final(root: Path) -> Path:
    return root / "checkpoint" / "rank_0"


def difference(folder: Path, expected: Path) -> float | None:
    """The largest difference of any tensor of the last step; None when it is another step or has other tensors."""
    mine, theirs = saved_moments(folder), saved_moments(expected)
    if not mine or max(mine) != max(theirs):
        return None
    one, other = read_file(mine[max(mine)]), read_file(theirs[max(theirs)])
    if one.keys() != other.keys():
        return None
    return max(float(abs(one[n].astype("float64") - other[n].astype("float64")).max(initial=0)) for n in one)


def uninterrupted(shop: Workshop, ranks: int) -> Path:
    """The final weights of a run in one go, which are kept in the working folder."""
    kept = shop.folder / f"expected_{ranks}"
    if not kept.is_dir():
        command, root = submit(shop, "direct", ranks, "launcher-soak-whole")
        if command.wait(timeout=LIMIT_S):
            raise RuntimeError(f"{root} did not succeed")
        shutil.copytree(final(root), kept)
    return kept


def table(results: list[Result]) -> str:
    """Right kills of all kills, by moment and by engine and ranks."""
    cells: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        cells[result.kill.moment][f"{result.kill.engine} x {result.kill.ranks}"].append(result)
    columns = sorted({column for row in cells.values() for column in row})
    lines = ["| killed | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for moment in MOMENTS:
        shown = [cells[moment][column] for column in columns]
        texts = (f"{sum(not r.wrong for r in cell)} of {len(cell)}" if cell else "" for cell in shown)
        lines.append(f"| {moment} | " + " | ".join(texts) + " |")
    right = sum(not result.wrong for result in results)
    worst = max((result.difference or 0.0 for result in results), default=0.0)
    lines += ["", f"{right} of {len(results)} kills right; largest difference of a weight {worst:.1e}."]
    return "\n".join(lines)


def read_results(file: Path) -> list[Result]:
    if not file.is_file():
        return []
    raw = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Result(**{**entry, "kill": Kill(**entry["kill"])}) for entry in raw]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", default="msrun,direct" + (",mpirun" if shutil.which("mpirun") else ""))
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"))
    options = parser.parse_args()
    results = read_results(options.out)
    known, deadline = {result.kill.number for result in results}, time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        shop = prepare(Path(folder))
        for kill in kills(options.seed, options.engines.split(","), [int(n) for n in options.ranks.split(",")]):
            if kill.number >= options.count or time.monotonic() > deadline:
                break
            if kill.number in known:
                continue
            result = carry_out(kill, shop, uninterrupted(shop, kill.ranks))
            results.append(result)
            with options.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(result)) + "\n")
            print(f"{kill} -> {result.attempts} attempts, {result.seconds} s", *result.wrong, flush=True)
            if not result.wrong:
                shutil.rmtree(shop.folder / "jobs", ignore_errors=True)
    print(table(results))
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
