"""Slurm as a scheduler: it decides when and where a job runs; the job's folder has its state, as anywhere else.

It is one batch job with one task per node. The batch script is the leader, on the first node; it starts an agent on
every node with one srun. A signal before the time limit, or Slurm's TERM when the job is preempted, makes all ranks
save after the same step; the job is queued again and goes on from there. Slurm's own exit code is the last victim's
(143), so the true end of the job is in job.json.
"""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from launcher import jobs
from launcher.cluster.discover.programs import find_program, run_program
from launcher.cluster.model import Cluster
from launcher.common.rendering import RenderedFile, environment, render
from launcher.engines.base import Command
from launcher.errors import HostError, JobError, SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.verdict import EN, ZH, Verdict
from launcher.plan.launch import Launch
from launcher.plan.placement import Placement
from launcher.plan.resume import has_got_on
from launcher.schedulers.base import (
    KIND,
    NODES,
    AgentStart,
    Option,
    Scheduler,
    Written,
    agent_argv,
    asked_to_stop,
    counted_hosts,
    leader_argv,
    package_env,
)
from launcher.schedulers.granted import node_names

if TYPE_CHECKING:
    from launcher.plan.launch_plan import LaunchPlan

SCRIPT = "slurm.sbatch"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]{0,127}")
_LIMIT = re.compile(r"[0-9]+(?:-[0-9]+)?(?::[0-9]+){0,2}")
_GRES = re.compile(r"[A-Za-z0-9_]+(?::[A-Za-z0-9_.-]+)?:([0-9]+)")
_KEY = re.compile(r"[a-z][a-z-]{0,40}")
_VALUE = re.compile(r"[A-Za-z0-9_.,:;@%+=/\[\]&|*!()<>-]{0,256}")

# Options that the launcher sets itself, or that make sbatch do something other than submit.
_OWN = (
    "job-name", "nodes", "ntasks", "ntasks-per-node", "tasks-per-node", "output", "error", "open-mode", "signal",
    "requeue", "no-requeue", "wrap", "array", "chdir", "parsable", "partition", "account", "time", "gres", "exclusive",
    "export", "input", "wait", "test-only", "help", "usage", "version",
)  # fmt: skip

# Slurm may send the signal up to this much earlier than it was told (sbatch(1), --signal).
EARLY_S = 60

# States in which Slurm will not run the job any more (squeue(1), JOB STATE CODES).
_OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT")
)


# Result of ``state_of`` when Slurm does not answer, and squeue's message for a job that it does not know.
NO_ANSWER = "NO ANSWER"
_NO_SUCH_JOB = "Invalid job id"


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """The user's options for Slurm. ``gres``: per node, as npu:8; ``sbatch``: KEY=VALUE of other options."""

    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    gres: str | None = None
    exclusive: bool = False
    requeue: bool = True
    sbatch: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SlurmOptions:
        """Return the options from the command line."""
        own = {name: values.get(name) for name in ("partition", "account", "gres")}
        return cls(
            **own,
            time_limit=values.get("time"),
            exclusive=bool(values.get("exclusive")),
            requeue=not values.get("no_requeue"),
            sbatch=tuple(values.get("sbatch", ())),
        )


class Slurm(Scheduler):
    name = "slurm"
    takes_hosts_away = True
    has_queue = True
    has_arrays = True
    rank_variables = ("SLURM_PROCID", "LAUNCHER_NODE_RANK")
    instead = MappingProxyType({
        "--spare-hosts": "Slurm has the spare nodes: it queues a job whose node fails again, on others (sbatch "
        "--requeue, unless --no-requeue); --sbatch exclude=NODE keeps a bad one out",
    })  # fmt: skip
    options = (
        NODES,
        KIND,
        Option(flag="--partition", metavar="NAME", help="partition."),
        Option(flag="--account", metavar="NAME", help="account."),
        Option(flag="--time", metavar="LIMIT", help="time limit, as 2:00:00 or 1-12."),
        Option(flag="--gres", metavar="NAME:N", help="cards of each node, as npu:8; --exclusive if left out."),
        Option(flag="--exclusive", is_flag=True, help="whole nodes."),
        Option(flag="--no-requeue", is_flag=True, help="end at the time limit or when preempted, and do not requeue."),
        Option(flag="--sbatch", multiple=True, metavar="KEY=VALUE", help="any other option of sbatch."),
    )

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        return placement(counted_hosts(values, cards), SlurmOptions.of(values), grace_s=grace_s)

    def files(self, plan: LaunchPlan) -> Sequence[RenderedFile]:
        return [render_script(plan.launch, plan.paths, plan.spec.name)]

    def steps(self, plan: LaunchPlan) -> Sequence[str]:
        return [f"sbatch --parsable {SCRIPT}, and in it"]

    def ready(self, launch: Launch) -> None:
        if find_program("sbatch") is None:
            raise HostError("sbatch is not on PATH: this host submits no Slurm jobs", hint="log in to one that does")

    def submit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        submit(launch, paths, record)
        return ()

    def submit_array(self, written: Sequence[Written], folder: Path, *, name: str, most: int) -> None:
        submit_array(written, folder, name=name, most=most)

    def resubmit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        self.ready(launch)
        submit(launch, paths, record)
        return ["Queued again; it goes on from the newest step that is complete on all ranks."]

    def query(self, record: JobRecord) -> JobRecord:
        return ask(record)

    def cancel(self, paths: JobPaths, record: JobRecord, wait_s: float | None) -> None:
        if wait_s is None:
            request_stop(paths, record)
        else:
            stop(paths, record, wait_s=wait_s)

    def signal_meaning(self, signum: int) -> str:
        return "which Slurm sends before its time limit" if signum == signal.SIGUSR1 else ""

    def name_hosts(self, launch: Launch) -> Launch:
        return name_hosts(launch)

    def agents(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        return agent_starts(launch, paths)

    def in_vain(self, launch: Launch, paths: JobPaths) -> Verdict | None:
        return in_vain(launch, paths)

    def requeue_note(self, launch: Launch, paths: JobPaths) -> str | None:
        return requeue_note(launch, paths)

    def requeue(self) -> bool:
        return requeue()


SCHEDULER = Slurm()


def placement(cluster: Cluster, options: SlurmOptions, *, grace_s: float = 0.0) -> Placement:
    """Return the placement for ``options``.

    Raises SpecError with every value that sbatch could misread, or that leaves no time to train.
    """
    problems = [*_bad_values(options), *_bad_extra(options.sbatch)]
    # The time limit can be calculated with only if it has the right form.
    problems += [] if problems else _too_short(options, warning_s(grace_s))
    if options.gres and (match := _GRES.fullmatch(options.gres)) and int(match[1]) < len(cluster.hosts[0].devices):
        problems.append(f"--gres {options.gres}: the job needs {len(cluster.hosts[0].devices)} on each node")
    if problems:
        raise SpecError("these cannot be passed to sbatch", problems=problems)
    return Placement(cluster=cluster, scheduler=Slurm.name, settings={"options": asdict(options)}, agents=True)


def _bad_values(options: SlurmOptions) -> list[str]:
    checks = (
        ("partition", options.partition, _NAME, "a name without blanks and quotes"),
        ("account", options.account, _NAME, "a name without blanks and quotes"),
        ("time", options.time_limit, _LIMIT, "minutes, 2:00:00 or 1-12"),
        ("gres", options.gres, _GRES, "NAME:N, such as npu:8"),
    )
    return [
        f"--{name} {value!r}: write {form}"
        for name, value, pattern, form in checks
        if value is not None and not pattern.fullmatch(value)
    ]


def _too_short(options: SlurmOptions, warning: int) -> list[str]:
    limit = limit_s(options.time_limit) if options.time_limit else None
    least = warning + EARLY_S
    if limit is None or limit > least:
        return []
    return [
        (
            f"--time {options.time_limit} is {limit} s, and ranks are asked to save up to {least} s before it ends: "
            f"pass {least // 60 + 1} minutes at the least, much more to get on"
        )
    ]


def limit_s(text: str) -> int | None:
    """Return a time limit in seconds as sbatch reads it, in whole minutes; None for 0, no limit (sbatch(1))."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    seconds = int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))
    return -(-seconds // 60) * 60 or None


def _bad_extra(pairs: Sequence[str]) -> list[str]:
    problems = []
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            problems.append(f"--sbatch {pair!r}: write KEY=VALUE without blanks and quotes")
        elif meant := _own_option(key):
            problems.append(f"--sbatch {pair}: the launcher sets --{meant} itself")
    return problems


def _own_option(key: str) -> str | None:
    """Return the option of _OWN that sbatch may read for ``key``: it accepts the beginning of a name too."""
    return key if key in _OWN else next((name for name in _OWN if name.startswith(key)), None)


# ------------------------------------------------------------------------------------------------ the script


def render_script(launch: Launch, paths: JobPaths, name: str) -> RenderedFile:
    """Return the batch script of the job at ``paths``. Every value in it is quoted, or checked to need no quotes."""
    return render(
        environment(),
        "slurm.sbatch.j2",
        SCRIPT,
        job_id=paths.job_id if paths.job_id.isprintable() else "?",
        options=_directives(launch, name),
        log=str(paths.supervisor_log),
        package=package_env()["PYTHONPATH"],
        command=leader_argv(paths),
    )


def _directives(launch: Launch, name: str) -> list[str]:
    options = SlurmOptions(**{**launch.settings["options"], "sbatch": tuple(launch.settings["options"]["sbatch"])})
    found = [
        f"--job-name={name}",
        f"--nodes={len(launch.nodes)}",
        "--ntasks-per-node=1",
        "--output=/dev/null",  # the script has its own log, whose path may hold anything
        # "B:": to the batch script alone, the leader, which decides on the step that all ranks save after.
        f"--signal=B:USR1@{warning_s(launch.limits.grace_s)}",
        "--requeue" if options.requeue else "--no-requeue",
        # A job that is queued again runs the same script; its log must keep the runs before.
        "--open-mode=append",
    ]
    for key, value in (("partition", options.partition), ("account", options.account), ("time", options.time_limit)):
        found += [f"--{key}={value}"] if value else []
    if options.gres:
        found.append(f"--gres={options.gres}")
    if options.exclusive or not options.gres:
        found.append("--exclusive")
    for pair in options.sbatch:
        key, separator, value = pair.partition("=")
        found.append(f"--{key}={value}" if separator and value else f"--{key}")
    return found


def warning_s(grace_s: float) -> int:
    """Return the seconds before the time limit at which ranks are asked to save: time for a step and a checkpoint."""
    return int(min(max(2 * grace_s + 30, 60), 3600))


# slurm 23.11, src/common: slurm_errno.c and fetch_config.c.
_UNREACHABLE = re.compile(r"contact slurm controller|Could not establish a configuration source", re.IGNORECASE)


def submit(launch: Launch, paths: JobPaths, record: JobRecord) -> JobRecord:
    """Write the script, pass it to sbatch, and note the job's number in job.json. Raises HostError if Slurm refuses."""
    script = render_script(launch, paths, record.name)
    return _noted(paths, record, launch, _sbatch(script, paths.root))


def submit_array(written: Sequence[Written], folder: Path, *, name: str, most: int) -> None:
    """Write one script for all jobs, pass it to sbatch as an array, and note each task in its job.json.

    Raises SpecError for jobs that ask Slurm for different things, HostError if Slurm refuses.
    """
    number = _sbatch(render_array(written, name=name, most=most), folder)
    for place, job in enumerate(written, 1):
        _noted(job.paths, job.record, job.launch, f"{number}_{place}")


def render_array(written: Sequence[Written], *, name: str, most: int) -> RenderedFile:
    """Return the script of an array whose task N, from 1, leads the N-th job. Raises SpecError as ``submit_array``."""
    asked = [_directives(job.launch, name) for job in written]
    if different := next((one for one in asked if one != asked[0]), None):
        raise SpecError(
            f"trials ask Slurm for different things: {' '.join(sorted(set(asked[0]) ^ set(different)))}",
            hint="an array asks for the same for each task: vary it in sweeps of their own",
        )
    tasks = [
        {"number": place, "log": str(job.paths.supervisor_log), "command": leader_argv(job.paths)}
        for place, job in enumerate(written, 1)
    ]
    options = [*asked[0], f"--array=1-{len(tasks)}%{most}"]
    return render(
        environment(), "slurm_array.sbatch.j2", SCRIPT, sweep=name if name.isprintable() else "?", most=most,
        options=options, tasks=tasks, package=package_env()["PYTHONPATH"],
    )  # fmt: skip


def _sbatch(script: RenderedFile, folder: Path) -> str:
    """Write ``script`` into ``folder`` and pass it to sbatch; return the job's number. Raises HostError."""
    (folder / script.path).write_text(script.text, encoding="utf-8")
    result = run_program("sbatch", "--parsable", str(folder / script.path))
    # With several clusters --parsable gives "NUMBER;CLUSTER".
    number = result.stdout.strip().split(";")[0]
    if not number.isdecimal():
        said = (result.stderr or result.fault).strip()
        if _UNREACHABLE.search(said):
            raise HostError(f"Slurm cannot be reached: {said}", hint="sinfo says when it can; then submit anew")
        raise HostError(
            f"sbatch refused the job: {said}",
            hint=f"correct the option and submit anew; what sbatch was given is {folder / script.path}",
        )
    return number


def _noted(paths: JobPaths, record: JobRecord, launch: Launch, number: str) -> JobRecord:
    queued = f"Slurm job {number}: queued"
    record = replace(record, scheduler=launch.scheduler, scheduler_job=number, note=queued)
    jobs.write_record(paths, record)
    return record


# ------------------------------------------------------------------------------------------------ inside


def name_hosts(launch: Launch) -> Launch:
    """Return ``launch`` with the nodes of this allocation. Raises HostError outside of one."""
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if listed is None:
        raise HostError("SLURM_JOB_NODELIST is not set: this is no Slurm job", hint="launcher resume JOB")
    names = node_names(listed)
    # More nodes are harmless: the first ones are used.
    if len(names) < len(launch.nodes):
        raise HostError(f"the allocation has {len(names)} node(s), the job needs {len(launch.nodes)}")
    places = zip(launch.nodes, names, strict=False)
    return replace(launch, nodes=tuple(replace(node, name=name, address=node_address(name)) for node, name in places))


def node_address(name: str) -> str:
    """Return the address by which Slurm itself reaches a node; "" when it is a name that does not resolve."""
    match = re.search(r"NodeAddr=(\S+)", run_program("scontrol", "show", "node", name).stdout)
    found = match[1] if match else name
    try:
        return str(ipaddress.ip_address(found))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(found, None)[0][4][0])
    except OSError:
        return ""


def agent_starts(launch: Launch, paths: JobPaths) -> list[AgentStart]:
    """Return one srun for all nodes; an agent that ends does not end the others."""
    count = str(len(launch.nodes))
    argv = (
        "srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--distribution=block",
        "--kill-on-bad-exit=0", "--wait=0", "--label", "--unbuffered", "--input=none", *agent_argv(paths, None),
    )  # fmt: skip
    env = {**os.environ, **package_env()}
    ranks = tuple(node.node_rank for node in launch.nodes)
    return [AgentStart(name="srun", command=Command(argv=argv, env=env), node_ranks=ranks)]


def requeue_note(launch: Launch, paths: JobPaths) -> str | None:
    """Return the reason why the job, stopped by a signal, goes on later; None when a user ended it.

    The job's folder shows a stop by ``launcher stop``, Slurm one by scancel.
    """
    number = _number_to_requeue(launch, paths)
    if number is None:
        return None
    if state_of(number) == "RUNNING":
        return f"Slurm job {number}: queued again at its time limit"
    return f"Slurm job {number}: preempted, queued again" if _queued_again(number) else None


def _number_to_requeue(launch: Launch, paths: JobPaths) -> str | None:
    return None if asked_to_stop(paths) or not launch.settings["options"]["requeue"] else os.environ.get("SLURM_JOB_ID")


def in_vain(launch: Launch, paths: JobPaths) -> Verdict | None:
    """Return the verdict on an attempt that reached the time limit before it saved anything new; None for others.

    The next attempt would end the same way, and so on for ever.
    """
    number = _number_to_requeue(launch, paths)
    # Slurm ends a run that it preempts itself; only the time limit finds the job still running.
    if number is None or state_of(number) != "RUNNING" or has_got_on(paths, len(launch.ranks)):
        return None
    en = "Slurm's time limit came before a step was saved that was not saved before; queued again it would end the same"
    zh = "在保存新的 step 之前已到 Slurm 时限；再次排队结果相同"
    text = {
        EN: f"{en}\n  next: launcher submit with a longer --time, or without --time",
        ZH: f"{zh}\n  下一步：launcher submit，加大 --time 或不设 --time",
    }
    return Verdict(rank_id=None, reason=en, step=None, kind="time_limit", text=text)


def _queued_again(number: str) -> bool:
    """Return True if Slurm, which ends this run of the job, has counted the next one: after scancel it has not.

    In both cases the state is COMPLETING (Slurm 22.05, seen).
    """
    match = re.search(r"\bRestarts=(\d+)", run_program("scontrol", "show", "job", number).stdout)
    return match is not None and int(match[1]) > int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def requeue() -> bool:
    """Make Slurm run this job again. It ends this process with the job, usually before this function returns."""
    number = os.environ["SLURM_JOB_ID"]
    # A running job has reached its time limit; any other state here is Slurm's own end of the run.
    if state_of(number) != "RUNNING":
        return True  # Slurm does it itself
    return not run_program("scontrol", "requeue", number).fault


# ------------------------------------------------------------------------------------------------ outside


def state_of(number: str) -> str | None:
    """Return Slurm's name of the job's state; None for an unknown job, NO_ANSWER when Slurm cannot be asked."""
    asked = run_program("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", number)
    shown = asked.stdout.split()
    if shown:
        return shown[0]
    if asked.fault and _NO_SUCH_JOB not in asked.stderr:
        return NO_ANSWER
    # squeue forgets a job some minutes after its end (MinJobAge); the accounting, where there is one, does not.
    told = run_program("sacct", "--noheader", "--parsable2", "--allocations", "--format=State", "--jobs", number)
    words = told.stdout.split()
    return words[0] if words else None


def reason_of(number: str) -> str:
    """Return squeue's reason why the job waits."""
    return run_program("squeue", "--noheader", "--format=%r", "--jobs", number).stdout.strip()


def ask(record: JobRecord) -> JobRecord:
    """Return ``record`` with Slurm's knowledge added: why the job waits, or that it is over without a recorded end."""
    number = record.scheduler_job
    if record.is_final or not number:
        return record
    state = state_of(number)
    if state in ("PENDING", "CONFIGURING"):
        # The note of a job that was queued again says what was saved; that part stays.
        _, saved, step = (record.note or "").partition("; saved at ")
        return replace(record, note=f"Slurm job {number}: {state.lower()} ({reason_of(number)}){saved}{step}")
    if state == NO_ANSWER:
        return replace(record, note=f"Slurm job {number}: Slurm does not answer")
    if state is None or state in _OVER:
        text = f"Slurm job {number} is {'gone' if state is None else state}, and the job left no end of its own"
        nodes = f"scontrol show job {number}; sacct -j {number}"
        verdict = {"rank_id": None, "reason": text, "text": {"en": f"{text}\n  next: {nodes}; launcher resume JOB"}}
        return replace(record, state=jobs.LOST, verdict=verdict)
    return record


def request_stop(paths: JobPaths, record: JobRecord) -> bool:
    """Cancel a waiting job and return False; ask a running one to stop and return True: its leader writes the end.

    Where Slurm does not answer, the file in the job's folder asks the leader. Raises JobError when Slurm does not know
    the job.
    """
    number = record.scheduler_job
    state = state_of(number) if number else None
    if state is None:
        raise JobError(f"Slurm knows no job {number}", hint=f"launcher status {record.job_id}")
    if state == "RUNNING":
        # To the leader alone: a signal to every step would end ranks before they have saved.
        run_program("scancel", "--batch", "--signal=TERM", number)
    if state in ("RUNNING", "COMPLETING", NO_ANSWER):
        return True
    run_program("scancel", number)
    current = jobs.read_record(paths) or record
    # It has no leader while it waits, so its end is written here.
    if not current.is_final:
        note = "before it ran" if current.started is None else "before it ran again"
        ended = replace(current, state=jobs.CANCELLED, ended=jobs.now(), exit_code=143, note=note)
        jobs.write_record(paths, ended)
    return False


def stop(paths: JobPaths, record: JobRecord, *, wait_s: float) -> None:
    """Stop a waiting or running job. A running one is asked first, and cancelled if it has not ended in ``wait_s``.

    Raises JobError when Slurm does not know it, or does not answer and the job has not ended.
    """
    if not request_stop(paths, record):
        return
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        current = jobs.read_record(paths) or record
        if current.is_final:
            return
        time.sleep(0.2)
    if run_program("scancel", record.scheduler_job).fault:
        raise JobError(
            f"job {record.job_id} has not ended, and Slurm does not answer", hint=f"scancel {record.scheduler_job}"
        )
