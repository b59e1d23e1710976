"""A scheduler that a package adds: jobs in the background of this host, at a low priority."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.cluster.discover import local_cluster
from launcher.common.rendering import RenderedFile
from launcher.errors import SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.plan.launch import Launch
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Placement
from launcher.schedulers.base import AgentStart, Option, Scheduler, agents_here, leader_argv

SCRIPT = """#!/bin/sh
echo $$ > {pid}
export LAUNCHER_ADDRESS=127.0.0.1
exec nice -n {nice} {leader} >> {log} 2>&1
"""


class Background(Scheduler):
    name = "background"
    has_queue = True
    options = (Option(flag="--nice", metavar="N", help="priority, 0 to 19; 10 if left out."),)

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        nice = values.get("nice", "10")
        if not nice.isdecimal():
            raise SpecError(f"--nice {nice!r} is no number", hint="--nice 10")
        return Placement(cluster=local_cluster(cards), scheduler=self.name, settings={"nice": nice}, agents=True)

    def files(self, plan: LaunchPlan) -> Sequence[RenderedFile]:
        words = {"pid": str(_pid_file(plan.paths)), "log": str(plan.paths.supervisor_log)}
        quoted = {name: shlex.quote(word) for name, word in words.items()}
        text = SCRIPT.format(**quoted, leader=shlex.join(leader_argv(plan.paths)), nice=plan.launch.settings["nice"])
        return [RenderedFile(path="background.sh", text=text)]

    def submit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        jobs.write_record(paths, replace(record, scheduler_job=paths.job_id, note="in the background"))
        argv = ("/bin/sh", str(paths.root / "background.sh"))
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        return ["It runs in the background."]

    def query(self, record: JobRecord) -> JobRecord:
        return replace(record, note="in the background") if record.state == jobs.PLANNED else record

    def cancel(self, paths: JobPaths, record: JobRecord, wait_s: float | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(_pid_file(paths).read_text()), signal.SIGTERM)

    def agents(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        return agents_here(launch, paths)


def _pid_file(paths: JobPaths) -> Path:
    return paths.root / "background.pid"


SCHEDULER = Background()
