"""How often a slow rank is named, and a healthy one is not: ``.venv/bin/python tests/benchmarks/bench_slow_ranks.py``.

Jobs of four ranks that wait for each other (``support.synced``), 20 judged steps each: healthy ones, and ones whose
rank 2 gets its rows late, shares its core, or saves to a slow disk. Prints a table in Markdown. At most --minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SLOW = 2
ABOUT = {
    "none": "healthy",
    "input": "rows 50 ms late",
    "core": "12 programs on its core",
    "save": "a disk of 0.4 MB/s",
}


def main() -> None:
    sys.path.insert(0, str(TESTS))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--faulty", type=int, default=10, help="runs of each fault")
    parser.add_argument("--minutes", type=float, default=10.0)
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    print("| rank 2 | runs | named, with the cause | named, another cause | another rank named | nobody named |")
    print("|---|---|---|---|---|---|")
    for fault, about in ABOUT.items():
        counts = dict.fromkeys(("right", "cause", "wrong", "nobody"), 0)
        for said in outcomes(fault, asked.healthy if fault == "none" else asked.faulty, deadline):
            counts[said] += 1
        print(f"| {about} | {sum(counts.values())} | {' | '.join(map(str, counts.values()))} |", flush=True)


def outcomes(fault: str, runs: int, deadline: float) -> Iterator[str]:
    """Yield the outcome of each run until the time is up."""
    from support import synced

    from launcher.observe.words import words

    for number in range(runs):
        if time.monotonic() > deadline:
            return
        with tempfile.TemporaryDirectory() as folder:
            found = synced.judged(synced.run(Path(folder) / f"{fault}{number}", fault, SLOW))
        print(f"{fault}: {' '.join(found.sentences(words('en')))}", file=sys.stderr, flush=True)
        first = found.suspects[0] if found.suspects else None
        if first is None:
            yield "nobody"
        elif first.rank_ids != (SLOW,) or fault == "none":
            yield "wrong"
        else:
            yield "right" if first.cause == fault else "cause"


if __name__ == "__main__":
    main()
