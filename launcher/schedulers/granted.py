"""The cards that a batch system gave to this process, read from the first of these sources that has them.

ASCEND_RT_VISIBLE_DEVICES where a site's plugin sets it; SLURM_STEP_GPUS where cards are declared as gres "gpu"; else
IDX of ``scontrol show job -d``: for a gres of a name that Slurm does not know, such as "npu", it sets no variable at
all (Slurm 22.05, seen).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from launcher.cluster.discover.programs import run_program
from launcher.common.ranges import numbers

_NODES = re.compile(r"^\s*Nodes=(?P<nodes>\S+) .*?GRES=(?P<gres>\S*)", re.MULTILINE)
_INDICES = re.compile(r"IDX:([0-9,-]+)")


def grant() -> None:
    """Set ASCEND_RT_VISIBLE_DEVICES to the cards that were given to this process, if a batch system gives out cards."""
    ids = granted(os.environ)
    if ids is not None:
        os.environ["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(map(str, sorted(ids)))


def granted(environment: Mapping[str, str]) -> list[int] | None:
    """Return the indices of the cards that this process was given; None when nothing limits or names them."""
    if environment.get("ASCEND_RT_VISIBLE_DEVICES"):
        return None  # which discovery reads itself
    if environment.get("SLURM_STEP_GPUS"):
        return numbers(environment["SLURM_STEP_GPUS"])
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return None
    shown = run_program("scontrol", "show", "job", "-d", job).stdout
    return indices_of(shown, environment.get("SLURMD_NODENAME") or socket.gethostname())


def indices_of(shown: str, node: str) -> list[int] | None:
    """Read the gres indices on ``node`` from ``scontrol show job -d``; None when it shows none."""
    for match in _NODES.finditer(shown):
        found = _INDICES.findall(match["gres"])
        if node in node_names(match["nodes"]) and found:
            return numbers(found[0])
    return None


def node_names(text: str) -> list[str]:
    """Return the names in Slurm's list of hosts, "node[1-2,5],login". Raises ValueError for any other text."""
    from launcher.common.ranges import expand

    parts = re.findall(r"[^,\[\]]*(?:\[[^\]]*\][^,\[\]]*)*", text)
    return [name for part in parts if part for name in expand(part)]
