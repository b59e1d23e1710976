"""MindSpore's own launcher, msrun: one process on each host of a job.

Facts behind the command, all read in mindspore 2.9.0, parallel/cluster: without ``--join=True`` msrun returns 0 at
once; with it one ``tail -f`` per rank copies the rank's log into msrun's own and outlives a killed msrun, unless
``--tail_worker_log`` names only ranks that do not exist; ``RANK_ID`` is exported on one host; the script is run as
``python`` from PATH, so our interpreter's folder goes first there.
"""

from __future__ import annotations

import re

from launcher.engines.base import CLUSTER_TIMEOUT_S, Command, EngineJob, Program, Told, find
from launcher.upstream.versions import pip_install_here

# mindspore 2.9.0, parallel/cluster/process_entity/_api.py, join_processes.
_WORDS = re.compile(r"Worker process (?P<pid>\d+) exit with exception\. Error code: (?P<code>-?\d+)\.")


class Msrun:
    name = "msrun"
    nests_ranks = True

    def find_program(self) -> str:
        return find("msrun", f"it comes with MindSpore: {pip_install_here()}")

    def programs(self, job: EngineJob) -> tuple[Program, ...]:
        argv = (
            job.program,
            f"--worker_num={job.world_size}",
            f"--local_worker_num={job.local_count}",
            f"--node_rank={job.node_rank}",
            f"--master_addr={job.address}",
            f"--master_port={job.port}",
            f"--log_dir={job.paths.logs}",
            "--join=True",
            f"--tail_worker_log={job.world_size}",
            f"--cluster_time_out={CLUSTER_TIMEOUT_S}",
            *((f"--rank_table_file={job.rank_table}",) if job.rank_table else ()),
            "python",
            *job.worker_argv,
        )
        return (Program(name=self.name, command=Command(argv=argv, env=job.base_env(self.name))),)

    def told(self, said: str) -> Told | None:
        match = _WORDS.search(said)
        return Told(pid=int(match["pid"]), code=int(match["code"])) if match else None
