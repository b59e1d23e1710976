"""The least share of lines and branches that tests must reach, room by room; ``make test`` holds it.

``python tests/coverage_floors.py build/coverage.json`` prints the table and exits with 1 where a room is below its
floor. Only what runs in the tests' own processes counts: guards, agents and ranks run in processes of their own, which
are not measured, so rooms that start them stand lower than they are tested.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from architecture import FLOORS as ROOMS
from architecture import room_of

# Measured, less two or three points for what depends on the machine; raise a floor when a room has grown above it.
FLOORS: dict[str, float] = {
    "supervise": 88.0,
    "plan": 94.0,
    "engines": 97.0,
    "checkpoint": 92.0,
    "data": 89.0,
    "jobs": 91.0,
    "cluster": 90.0,
    "cluster.rank_table": 95.0,
    "runspec": 94.0,
    "models": 95.0,
    "observe": 94.0,
    "common": 88.0,
}
# The rest is tested by commands and ranks in processes of their own, which are not measured.
LEAST = 0.0
# Programs without which, and without root, tests of a room are skipped: then its floor is only shown.
NEEDS = {"supervise": ("ip", "mpirun")}


def room(path: str) -> str:
    """Return the room of a file of the package, "other" for the package's own few modules."""
    parts = Path(path).with_suffix("").parts
    name = ".".join(parts[parts.index("launcher") + 1 :])
    if name.startswith("cluster.rank_table"):
        return "cluster.rank_table"
    return room_of(name.removesuffix(".__init__")) or "other"


def shares(report: dict[str, Any]) -> dict[str, float]:
    """Return the percentage of lines and branches that each room's tests reached."""
    covered: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for path, file in report["files"].items():
        summary = file["summary"]
        covered[room(path)] += summary["covered_lines"] + summary["covered_branches"]
        total[room(path)] += summary["num_statements"] + summary["num_branches"]
    return {name: 100 * covered[name] / total[name] for name in total if total[name]}


def _is_skipped(name: str) -> bool:
    """Return whether this machine lacks what tests of a room need."""
    return name in NEEDS and (os.geteuid() != 0 or not all(map(shutil.which, NEEDS[name])))


def main(path: Path) -> int:
    found = shares(json.loads(path.read_text(encoding="utf-8")))
    order = {name: place for place, name in enumerate(ROOMS)}
    low = []
    for name in sorted(found, key=lambda name: order.get(name, len(order))):
        floor, skipped = FLOORS.get(name, LEAST), _is_skipped(name)
        print(
            f"{name:20} {found[name]:6.1f} %   floor {floor:g} %{', not held: tests were skipped' if skipped else ''}"
        )
        if found[name] < floor and not skipped:
            low.append(name)
    if low:
        print(f"below the floor: {', '.join(low)}; build/coverage.json names the lines", file=sys.stderr)
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
