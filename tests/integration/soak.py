"""``make soak``: kill a rank of a real training at a random moment, let the job restart itself, compare the weights.

usage: soak.py [--count 40] [--minutes 60] [--seed 1] [--engines msrun,direct,mpirun] [--ranks 2,4] [--out soak.jsonl]

A job takes eight kills, one in each attempt: LoRA without dropout on a small model, a checkpoint every 4 of 24 steps. A
kill is right when the verdict on its attempt names the rank and the signal, and the job goes on, or stops where the
table of restarts has it stop (the same cause after the same step); then it is resumed. A job is right when it
succeeds, its final weights are those of a run in one go to 1e-6 and can be merged, and no process is left. What a job
does follows from its number and the seed: a run goes on where the file of another with the same seed ends.
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
os.environ["LAUNCHER_CPU_DEVICES"] = "4"  # more than the cores of a small machine

from support.events import read_events  # noqa: E402
from support.shop import Workshop  # noqa: E402
from support.supervised import marked  # noqa: E402

from launcher.checkpoint.api import read_file  # noqa: E402
from launcher.common.processes import ProcessId  # noqa: E402
from launcher.jobs import SUCCEEDED, JobPaths, JobRecord  # noqa: E402
from launcher.plan.resume import saved_moments  # noqa: E402

STEPS, EVERY, LIMIT_S, TOLERANCE, RESTARTS = 24, 4, 600.0, 1e-6, 20
SAME_STEP = "failed in the same way after the same step"
# The event after which a rank is killed, and the longest wait after it, in s.
MOMENTS = {
    "before begin": ("", 0.0),
    "import": ("begin", 2.0),
    "rendezvous": ("imported", 2.0),
    "compile": ("loaded", 1.0),
    "step": ("step", 0.1),
    "save": ("save", 0.01),
    "after done": ("done", 0.0),
}
BEFORE_STEPS = ("before begin", "import", "rendezvous", "compile")
# The part in which a rank is, by its last event.
PARTS = {"": "before begin", "begin": "import", "imported": "rendezvous", "joined": "compile", "ready": "compile",
         "loaded": "compile", "step": "step", "save": "save", "done": "after done"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kill:
    """``moment``: where it is meant to be; ``after``: number of such events before it, in its attempt."""

    moment: str
    rank_id: int
    after: int
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One job and its kills, in order."""

    number: int
    engine: str
    ranks: int
    kills: tuple[Kill, ...]


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What came of a kill. ``part``: in which the rank was. ``step``: the last it had done in this attempt."""

    kill: Kill
    attempt: int
    part: str
    step: int | None
    said: str
    restart: str
    again: bool
    same_step: bool

    @property
    def wrong(self) -> list[str]:
        if self.part == "after done":  # everything was saved: no failure
            return []
        found = {
            f"verdict: {self.said}": self.said != f"rank {self.kill.rank_id}: killed by SIGKILL",
            f"restart: {self.restart}": self.again == self.same_step or self.same_step != (SAME_STEP in self.restart),
        }
        return [text for text, holds in found.items() if holds]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a job. ``difference``: the largest of any weight."""

    round: Round
    killed: tuple[Killed, ...]
    state: str
    difference: float | None
    left: int
    seconds: float
    merges: bool = True

    @property
    def wrong(self) -> list[str]:
        found = {
            f"the job {self.state}": self.state != SUCCEEDED,
            f"weights differ by {self.difference}": self.difference is None or self.difference > TOLERANCE,
            f"{self.left} processes left": self.left > 0,
            "merge-ckpt refuses what is left": not self.merges,
        }
        kills = (f"attempt {one.attempt}: {text}" for one in self.killed for text in one.wrong)
        return [*kills, *(text for text, holds in found.items() if holds)]


def rounds(seed: int, engines: list[str], ranks: list[int]) -> Iterator[Round]:
    """Jobs without end: every engine and number of ranks comes up equally often."""
    cells = [(engine, count) for count in ranks for engine in engines]
    number = 0
    while True:
        chooser = random.Random(f"{seed} {number // len(cells)}")
        for engine, count in chooser.sample(cells, len(cells)):
            kills = tuple(_kill(chooser, moment, count) for moment in moments(chooser, engine))
            yield Round(number=number, engine=engine, ranks=count, kills=kills)
            number += 1


def moments(chooser: random.Random, engine: str) -> list[str]:
    """Every moment once, a step twice; not three in a row before the first step, after which pauses grow."""
    # Only the first attempt of direct has processes that have not begun: a standby one has.
    first = ["before begin"] if engine == "direct" else []
    rest = [moment for moment in (*MOMENTS, "step") if moment not in (*first, "after done")]
    while True:
        chooser.shuffle(rest)
        found = [*first, *rest]
        marks = "".join("b" if moment in BEFORE_STEPS else "s" for moment in found)
        if "bbb" not in marks:
            return [*found, "after done"]


def _kill(chooser: random.Random, moment: str, ranks: int) -> Kill:
    wait_s, after = chooser.random() * MOMENTS[moment][1], chooser.randint(1, 5) if moment == "step" else 1
    return Kill(moment=moment, rank_id=chooser.randrange(ranks), after=after, wait_s=wait_s)


def prepare(folder: Path) -> Workshop:
    shop = Workshop.made(folder, "train")
    path = folder / shop.write_spec("soak", lora=True, epochs=4, steps=STEPS)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["lora"]["dropout"] = 0.0
    values["checkpoint"] = {"every_steps": EVERY, "keep": 16}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return shop


def submit(shop: Workshop, engine: str, ranks: int, mark: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a job; return the command that follows it, and its folder, once it is there."""
    before = set(shop.folder.glob("jobs/*/job.json"))
    command = start(
        shop, mark, "submit", "soak.yaml", "--cards", str(ranks), "--engine", engine, "--max-restarts", str(RESTARTS)
    )
    found = wait_until(lambda: command.poll() is not None or set(shop.folder.glob("jobs/*/job.json")) - before)
    if found is True:
        raise RuntimeError(f"submit ended with {command.returncode} and made no job")
    return command, next(iter(found)).parent


def start(shop: Workshop, mark: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *arguments], cwd=shop.folder, env={**os.environ, "LAUNCHER_TEST": mark},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


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
    if not event and not seen:
        return unbegun(kill, mark)
    # A standby process has begun when it becomes a rank; then this is the earliest moment there is.
    there = [e for e in seen if not event or event in (e["event"], e.get("name"))]
    return ProcessId.from_dict(seen[0]) if len(there) >= kill.after else None


def unbegun(kill: Kill, mark: str) -> ProcessId | None:
    for process in marked(mark):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            environment, argv = process.environ(), process.cmdline()
            is_worker = "launcher.worker" in argv and environment.get("MS_ROLE") != "MS_SCHED"
            if is_worker and environment.get("OMPI_COMM_WORLD_RANK", environment.get("RANK_ID")) == str(kill.rank_id):
                return ProcessId.of_pid(process.pid)
    return None


def victim(kill: Kill, paths: JobPaths, mark: str) -> ProcessId | None:
    """Wait for the moment and return the rank's process; None when the job ends before."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := process_of(kill, paths, mark):
            return found
        record = read(paths)
        if record.is_final and record.attempt == paths.attempt:
            return None
        time.sleep(0.002)
    raise TimeoutError(f"{kill} in attempt {paths.attempt}")


def read(paths: JobPaths) -> JobRecord:
    return JobRecord.from_json(paths.record.read_text(encoding="utf-8"))


def strike(kill: Kill, paths: JobPaths, mark: str) -> tuple[str, int | None] | None:
    """Kill the rank at its moment. Returns the part in which it was and its last step; None if it never came there."""
    process = victim(kill, paths, mark)
    if process is None:
        return None
    time.sleep(kill.wait_s)
    # By pid and start time: never another process, whatever has become of the rank.
    alive = process.is_alive()
    process.send(signal.SIGKILL)
    seen = events(paths, kill.rank_id)
    steps = [e["step"] for e in seen if e["event"] == "step"]
    last: dict[str, Any] = next((e for e in reversed(seen) if e["event"] != "exit"), {})
    name = str(last.get("name", last.get("event", "")))
    saved = name == "save" and last.get("seconds") is not None
    part = "step" if saved else PARTS.get(name, name)
    return (part if alive else "after done"), (steps[-1] if steps else None)


def over(paths: JobPaths) -> JobRecord:
    """Wait for the end of the attempt of ``paths``, and return the job's record."""
    wait_until(lambda: (record := read(paths)).attempt > paths.attempt or record.is_final)
    return read(paths)


def resumed(paths: JobPaths, command: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: read(paths).attempt > paths.attempt or command.poll() is not None)


def carry_out(plan: Round, shop: Workshop, expected: Path) -> Result:
    mark, began = f"launcher-soak-{os.urandom(4).hex()}", time.monotonic()
    command, root = submit(shop, plan.engine, plan.ranks, mark)
    paths, killed = JobPaths(root=root), list[Killed]()
    for kill in plan.kills:
        found = strike(kill, paths, mark)
        if found is None:
            break
        part, step = found
        record = over(paths)
        entry = next((e for e in record.earlier if e["attempt"] == paths.attempt), record.verdict or {})
        killed.append(Killed(
            kill=kill, attempt=paths.attempt, part=part, step=step,
            said=f"rank {entry.get('rank_id')}: {entry.get('reason')}",
            restart=str((entry.get("restart") or {}).get("en", "")), again=record.attempt > paths.attempt,
            same_step=step is not None and any(step == one.step for one in killed),
        ))  # fmt: skip
        if record.state == SUCCEEDED:
            break
        if record.is_final:
            command.wait(timeout=LIMIT_S)
            command = start(shop, mark, "resume", root.name)
            resumed(paths, command)
        paths = paths.of_attempt(read(paths).attempt)
    command.wait(timeout=LIMIT_S)
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return Result(
        round=plan, killed=tuple(killed), state=read(paths).state, left=len(left),
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
    """Right kills of all kills, by the part in which the rank was, and by engine and ranks."""
    cells: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        column = f"{result.round.engine} x {result.round.ranks}"
        for one in result.killed:
            cells[one.part][column].append(not one.wrong)
    columns = sorted({column for row in cells.values() for column in row})
    lines = ["| killed | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for part in MOMENTS:
        shown = [cells[part][column] for column in columns]
        lines.append(f"| {part} | " + " | ".join(f"{sum(c)} of {len(c)}" if c else "" for c in shown) + " |")
    kills = [one for result in results for one in result.killed]
    right, stops = sum(not one.wrong for one in kills), sum(one.same_step for one in kills)
    worst = max((result.difference or 0.0 for result in results), default=0.0)
    lines += ["", f"{right} of {len(kills)} kills right; {stops} of them stopped the job, which was resumed."]
    whole = sum(not result.wrong for result in results)
    lines.append(f"{whole} of {len(results)} jobs right; largest difference of a weight {worst:.1e}.")
    return "\n".join(lines)


def read_results(file: Path) -> list[Result]:
    if not file.is_file():
        return []
    return [_result(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _result(raw: dict[str, Any]) -> Result:
    plan = raw["round"]
    kills = tuple(Kill(**kill) for kill in plan["kills"])
    killed = tuple(Killed(**{**one, "kill": Kill(**one["kill"])}) for one in raw["killed"])
    return Result(**{**raw, "round": Round(**{**plan, "kills": kills}), "killed": killed})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=40, help="kills at least, if the minutes last")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", default="msrun,direct" + (",mpirun" if shutil.which("mpirun") else ""))
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--out", type=Path, default=Path("soak.jsonl"))
    options = parser.parse_args()
    results = read_results(options.out)
    known, deadline = {result.round.number for result in results}, time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        shop = prepare(Path(folder))
        for plan in rounds(options.seed, options.engines.split(","), [int(n) for n in options.ranks.split(",")]):
            if sum(len(r.killed) for r in results) >= options.count or time.monotonic() > deadline:
                break
            if plan.number in known:
                continue
            result = carry_out(plan, shop, uninterrupted(shop, plan.ranks))
            results.append(result)
            with options.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(result)) + "\n")
            print(
                f"{plan.engine} x {plan.ranks}: {len(result.killed)} kills, {result.seconds} s",
                *result.wrong,
                flush=True,
            )
            if result.wrong:
                kept = options.out.with_suffix("") / str(plan.number)
                shutil.copytree(shop.folder / "jobs", kept, symlinks=True, ignore=shutil.ignore_patterns("ompi.*"))
            shutil.rmtree(shop.folder / "jobs", ignore_errors=True)
    print(table(results))
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
