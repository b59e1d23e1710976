"""The leader process where a scheduler starts it: on a batch script's node, or in the first pod."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from dataclasses import replace

from launcher import jobs
from launcher.common.processes import ProcessId, die_with_parent
from launcher.errors import JobError, JobFailed
from launcher.jobs import REQUEUED, JobPaths, JobRecord
from launcher.plan.launch import read_launch, write_launch
from launcher.plan.resume import prepare_attempt
from launcher.schedulers import registry
from launcher.supervise.guard import guard


def lead(paths: JobPaths) -> int:
    """Lead the job's next attempt to its end and return its exit code. A job that has ended is not started again.

    Raises JobError when the job cannot be read.
    """
    record = jobs.read_record_as_written(paths)
    if record is None:
        raise JobError(f"cannot read {paths.record}", hint="submit it again: launcher submit")
    code = _exit_code_if_over(record)
    if code is not None:
        return code
    launch = read_launch(paths)
    # Each run of a batch job may get other hosts than the last one.
    named = registry.get(launch.scheduler).name_hosts(launch)
    if named != launch:
        write_launch(paths, named)
    # The scheduler ran the job before: this is its next attempt, which is no restart of ours.
    if record.started is not None:
        record = jobs.next_attempt(record, restarted=False)
        prepare_attempt(paths.of_attempt(record.attempt), record.cards)
    host = socket.gethostname()
    jobs.write_record(paths, replace(record, host=host, note=None, supervisor=ProcessId.current(), guard=None))
    return guard(paths)


def lead_and_be_an_agent(paths: JobPaths) -> int:
    """Run the leader and the agent of host 0 as two children, as the first pod does. Returns the leader's exit code.

    After a fault of the machine the exit code is REQUEUED, which tells a scheduler to run the job again. TERM goes to
    the agent, which passes it on as the agents of all hosts do.
    """
    leader, agent = (_child(paths, *options) for options in (("--lead",), ("--node-rank", "0")))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: agent.send_signal(signum))
    agent.wait()
    code = leader.wait()
    record = jobs.read_record_as_written(paths)
    again = record is not None and record.state == jobs.FAILED and bool((record.verdict or {}).get("retry"))
    return REQUEUED if again else code if code >= 0 else 1


def _child(paths: JobPaths, *options: str) -> subprocess.Popen[bytes]:
    argv = (sys.executable, "-m", "launcher", "node", *options, "--job", str(paths.root))
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)


def _exit_code_if_over(record: JobRecord) -> int | None:
    """Return the exit code of a job that is over, else None: a scheduler may start a job again that failed for good."""
    if record.state == jobs.SUCCEEDED:
        return 0
    verdict = record.verdict or {}
    if record.state == jobs.FAILED and not verdict.get("retry"):
        return JobFailed.exit_code
    return (record.exit_code or 143) if record.state == jobs.CANCELLED else None
