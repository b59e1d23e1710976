"""``launcher node``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.jobs import JobPaths


@click.command()
@click.option("--job", "job", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The job's folder.")
@click.option(
    "--node-rank",
    type=click.IntRange(min=0),
    help="Rank of this host; taken from the scheduler's environment if left out.",
)
@click.option("--attempt", type=click.IntRange(min=1), help="Attempt to join; the current one if left out.")
@click.option("--lead", is_flag=True, help="Lead the job's next attempt, where a scheduler starts the leader.")
@click.option("--first-leads", is_flag=True, help="Host 0 leads too, as in a pod.")
@click.option("--report", "target", type=click.Choice(["Ascend", "CPU"]), help="Only report this host, as JSON.")
@click.option("--reads", multiple=True, metavar="PATH", help="With --report: a file that the job reads; repeatable.")
@click.option(
    "--watch-stdin",
    is_flag=True,
    help="Stop everything when stdin closes, because the process that started this one is gone.",
)
def node(
    job: Path,
    node_rank: int | None,
    attempt: int | None,
    lead: bool,
    first_leads: bool,
    target: str | None,
    reads: tuple[str, ...],
    watch_stdin: bool,
) -> None:
    """Be the agent of one host of a job that runs on several; the launcher starts it itself.

    It reports this host, starts its ranks when the job's leader says so, and reports how they end, all through files in
    DIR. It ends, and leaves nothing running, when the job ends or its leader is gone.

    \b
    launcher node --job jobs/kxvqt-llama --node-rank 1
    """
    from launcher.errors import JobError
    from launcher.jobs import JobPaths
    from launcher.supervise.multinode.agent import AgentOptions, run_agent

    paths = JobPaths(root=job.absolute())
    needed = job if target else paths.launch
    if not needed.is_file():
        raise JobError(
            f"{needed} is not there on this host: is the jobs folder shared by all hosts, under the same path?",
            hint="mount it at the same place on all hosts, or pass --jobs-dir",
        )
    if target:
        from launcher.schedulers.registration import register

        click.echo(json.dumps(register(target, reads).to_dict()))
        return
    if lead:
        from launcher.supervise.multinode.leader_process import lead as lead_job

        raise SystemExit(lead_job(paths))
    node_rank = _own_rank(paths) if node_rank is None else node_rank
    if first_leads and node_rank == 0:
        from launcher.supervise.multinode.leader_process import lead_and_be_an_agent

        raise SystemExit(lead_and_be_an_agent(paths))
    options = AgentOptions(node_rank=node_rank, attempt=attempt, watch_stdin=watch_stdin)
    raise SystemExit(run_agent(paths, options))


def _own_rank(paths: JobPaths) -> int:
    """Ask the environment which host this is, as the job's scheduler counts."""
    from launcher.errors import HostError
    from launcher.plan.launch import read_launch
    from launcher.schedulers import registry

    for name in registry.get(read_launch(paths).scheduler).rank_variables:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    raise HostError("the rank of this host is not known", hint="pass --node-rank")
