"""Open MPI's mpirun, on one host.

On Ascend, MindSpore finds its ranks through MPI itself and moves data by HCCL; there is no scheduler, and
RANK_TABLE_FILE must be unset (tutorials, parallel/mpirun.md). On CPU there is no device collective under MPI ("Failed
to initialize communication library on device side"): there mpirun only spawns, and the worker maps Open MPI's rank
variables to MindSpore's dynamic cluster (see ``launcher.worker.main``), whose scheduler runs beside it.
"""

from __future__ import annotations

import os
import re
import sys

from launcher.engines.base import Command, EngineJob, Program, Told, find

# Open MPI 4.1 (mpirun) and 5 (prterun): help-orterun.txt, non-zero-exit and jobid:proc-aborted-signal.
_EXITED = re.compile(
    r"first process to do so was:\s+Process name: \[.+[,@]\d+\]?,(?P<rank>\d+)\]\s+Exit code:\s+(?P<code>\d+)"
)
_SIGNALLED = re.compile(
    r"noticed that process rank (?P<rank>\d+) with PID \d+ on node \S+ exited on\s+signal (?P<code>\d+)"
)


class Mpirun:
    name = "mpirun"
    nests_ranks = True

    def find_program(self) -> str:
        return find("mpirun", "apt-get install --no-install-recommends openmpi-bin, or --engine direct")

    def programs(self, job: EngineJob) -> tuple[Program, ...]:
        dynamic = job.target == "CPU" and job.world_size > 1
        env = {**job.base_env(self.name), **(job.cluster_env() if dynamic else {})}
        # Session files of Open MPI, which it leaves behind when it is killed: in the attempt's folder nobody minds.
        env["OMPI_MCA_orte_tmpdir_base"] = str(job.paths.work)
        env["PRTE_MCA_prte_tmpdir_base"] = str(job.paths.work)
        argv = (
            job.program,
            *(("--allow-run-as-root",) if os.geteuid() == 0 else ()),
            # The plan sets the number of ranks, not Open MPI's slots; "isolated" keeps it from using ssh or Slurm.
            *("--oversubscribe", "--bind-to", "none", "--mca", "plm", "isolated"),
            *("-n", str(job.world_size)),
            sys.executable,
            *job.worker_argv,
        )
        mpirun = Program(name=self.name, command=Command(argv=argv, env=env))
        return (*(job.scheduler(self.name) if dynamic else ()), mpirun)

    def told(self, said: str) -> Told | None:
        if match := _SIGNALLED.search(said):
            return Told(rank_id=int(match["rank"]), code=-int(match["code"]))
        match = _EXITED.search(said)
        return Told(rank_id=int(match["rank"]), code=int(match["code"])) if match else None
