"""``launcher plan --sim``: MindSpore compiles rank 0 without cards and reports the memory it would take.

MS_SIMULATION_LEVEL=1 compiles the graph of one rank of many (mindspore 2.9.0, environment variables). The compiler is
CANN's, so there must be one. Not yet run on a host with CANN.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.cluster.discover import host_root
from launcher.cluster.discover.software import read_software
from launcher.common.rendering import write_atomic
from launcher.errors import HostError
from launcher.jobs import JobPaths
from launcher.plan.launch_plan import LaunchPlan, with_inputs

TIMEOUT_S = 3600

# The line that MindSpore's Ascend memory manager logs at its end.
_PEAK = re.compile(r"Actual peak memory usage[^:\n]*:\s*(?P<mib>\d+)\s*M")


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """The result of a simulation. ``peak_mib`` is None when its log has no such line."""

    peak_mib: int | None
    estimate_mib: int | None

    def describe(self) -> str:
        if self.peak_mib is None:
            return "simulation: compiled; MindSpore's log names no peak memory"
        beside = "" if self.estimate_mib is None else f" (estimate above: {self.estimate_mib:,} MiB)"
        return f"simulation: MindSpore takes {self.peak_mib:,} MiB at most{beside}"


def run(plan: LaunchPlan, *, root: Path | None = None, python: str = sys.executable) -> Simulated:
    """Compile rank 0 of ``plan``. Raises HostError when CANN is missing, or when compiling fails."""
    if read_software(root or host_root()).cann is None:
        raise HostError(
            "--sim: there is no CANN on this host, and its compiler is what simulates",
            hint="run it on a host with CANN; the estimate above needs nothing",
        )
    with tempfile.TemporaryDirectory(prefix="launcher-sim-") as folder:
        log = _compile(plan, Path(folder), python)
    found = [int(match["mib"]) for match in _PEAK.finditer(log)]
    estimate = plan.memory.pool >> 20 if plan.memory else None
    return Simulated(peak_mib=max(found, default=None), estimate_mib=estimate)


def _compile(plan: LaunchPlan, folder: Path, python: str) -> str:
    """Return the log of rank 0's worker in a folder of its own."""
    paths = JobPaths(root=folder)
    made = with_inputs(replace(plan, paths=paths), plan.inputs)
    for file in made.files:
        write_atomic(folder / file.path, file.text)
    write_atomic(paths.plan, json.dumps(made.to_dict()))
    paths.work.mkdir(parents=True, exist_ok=True)
    simulated = {"MS_SIMULATION_LEVEL": "1", "RANK_ID": "0", "RANK_SIZE": str(plan.cluster.num_devices)}
    try:
        result = subprocess.run(
            [python, "-m", "launcher.worker", str(folder)],
            cwd=paths.work,
            env={**os.environ, **plan.spec.env, "GLOG_v": "1", **simulated},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"--sim: {error}", hint="the estimate above needs no simulation") from error
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-12:])
        raise HostError(f"--sim: compiling rank 0 failed:\n{tail}", hint="leave --sim out for the estimate alone")
    return result.stdout
