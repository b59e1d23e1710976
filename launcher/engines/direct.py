"""Direct start: scheduler and ranks are children of the supervisor itself, for the fastest start and end.

The variables are those of MindSpore's dynamic cluster (tutorials, parallel/dynamic_cluster.md), which msrun sets too.
msrun spends 2 s on importing mindspore before it starts anything, and looks at its ranks once a second.
"""

from __future__ import annotations

import sys

from launcher.engines.base import Command, EngineJob, Program, Told


class Direct:
    name = "direct"
    nests_ranks = False

    def find_program(self) -> str:
        return ""

    def programs(self, job: EngineJob) -> tuple[Program, ...]:
        ranks = (self._rank(job, local_rank) for local_rank in range(job.local_count))
        return (*job.scheduler(self.name), *ranks)

    def told(self, said: str) -> Told | None:
        return None

    def _rank(self, job: EngineJob, local_rank: int) -> Program:
        rank_id = job.first_rank + local_rank
        env = {**job.base_env(self.name), "RANK_ID": str(rank_id), "RANK_SIZE": str(job.world_size)}
        env["DEVICE_ID"] = str(local_rank)
        # A single rank needs no cluster; with MS_ROLE it would wait for a scheduler that is not there.
        if job.world_size > 1:
            env |= {**job.cluster_env(), "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank_id)}
        if job.rank_table:
            env["RANK_TABLE_FILE"] = job.rank_table
        command = Command(argv=(sys.executable, *job.worker_argv), env=env)
        return Program(name=f"rank_{rank_id}", command=command, rank_id=rank_id)
