"""MindSpore's own launcher, msrun, on one host.

Facts that decide the command, all read in mindspore 2.9.0, parallel/cluster: without ``--join=True`` msrun returns 0
at once; ``RANK_ID`` is exported on one host; the script is run as ``python`` from PATH, so our interpreter's folder
goes first there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.cluster import Cluster
from launcher.engines.base import Command
from launcher.errors import HostError
from launcher.jobs import JobPaths

# Seconds within which all ranks must have found each other: importing mindformers on a slow disk takes a minute.
CLUSTER_TIMEOUT_S = 300

# A worker learns that the cluster is complete from a heartbeat reply, by default every 3 to 5 s; at 1 s the start is
# 3 s and the end 3 s shorter (measured with 2 CPU ranks on mindspore 2.9.0). Both are documented by MindSpore.
TUNING = {"MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1"}


def find_msrun() -> str:
    """Path of msrun: beside our interpreter, else on PATH. Raises HostError when there is none."""
    folders = (str(Path(sys.executable).parent), *os.get_exec_path())
    for folder in folders:
        program = Path(folder) / "msrun"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    raise HostError(
        f"msrun not found beside {sys.executable} nor on PATH",
        hint="it comes with MindSpore: pip install mindspore==2.9.0 mindformers==1.9.0",
    )


def command(*, msrun: str, cluster: Cluster, paths: JobPaths, rank_table: Path, port: int) -> Command:
    """The command that starts all ranks of ``cluster`` (one host) for the job at ``paths``."""
    num_ranks = cluster.num_devices
    argv = (
        msrun,
        f"--worker_num={num_ranks}",
        f"--local_worker_num={num_ranks}",
        "--node_rank=0",
        f"--master_addr={cluster.hosts[0].address}",
        f"--master_port={port}",
        f"--log_dir={paths.logs}",
        "--join=True",
        f"--cluster_time_out={CLUSTER_TIMEOUT_S}",
        f"--rank_table_file={rank_table}",
        "python",
        "-m",
        "launcher.worker",
        str(paths.root),
    )
    return Command(argv=argv, env=environment(cluster))


def environment(cluster: Cluster) -> dict[str, str]:
    """Variables added to the environment of msrun and the ranks."""
    env = dict(TUNING)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if cluster.target == "Ascend":
        # msrun sets DEVICE_ID to the local index, and the runtime counts visible chips by their logic ids: this
        # makes index i the i-th device of the plan.
        ids = (device.device_id if device.logic_id is None else device.logic_id for device in cluster.hosts[0].devices)
        env["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(map(str, ids))
    return env
