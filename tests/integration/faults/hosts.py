"""Faults of whole hosts, with real MindSpore on two hosts reached by ssh, as a Markdown table.

usage: hosts.py [--out FILE] [--only NAME,...]

The leader is on a third host. A host is a network namespace with its own sshd; see tests/netlab.py, tests/sshlab.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[2])]

from support.hosted import Hosted  # noqa: E402
from support.netlab import lab  # noqa: E402
from support.sshlab import SshLab, ssh_lab, wait_for_ssh  # noqa: E402
from support.supervised import LIMITS, marked, wait_until  # noqa: E402

from launcher import jobs  # noqa: E402
from launcher.jobs import JobRecord  # noqa: E402
from launcher.jobs.events import read_position  # noqa: E402
from launcher.plan.launch import Launch  # noqa: E402

TRAIN = HERE / "train.py"

HOST_CELL_LIMITS = replace(LIMITS, start_timeout_s=240.0, lost_s=8.0, register_s=60.0, grace_s=10.0)

# Runs on every host before anything else of Python; what it does depends on the host.
_HOOK = """
import os, time
if os.uname().nodename == "node2":
    if os.environ.get("FAULT") == "clock" or os.path.exists({clock!r}):
        real = time.time
        time.time = lambda: real() + 60
    if os.path.exists({versions!r}):
        from importlib import metadata
        known = metadata.version
        metadata.version = lambda name: "2.7.0" if name == "mindspore" else known(name)
"""


@dataclass(kw_only=True)
class HostJob(Hosted):
    """A job with real MindSpore on two hosts."""

    def launch(self) -> Launch:
        return replace(super().launch(), worker=(str(TRAIN),))

    def _all_entered(self) -> bool:
        return all(read_position(self.paths.rank_position(rank)) > 3 for rank in range(self.ranks))


@dataclass(frozen=True, kw_only=True)
class HostFault:
    """``fault``: of train.py, in rank 1; "follower" trains for ever. ``act``: from outside, once all ranks train."""

    name: str
    text: str
    state: str = jobs.FAILED
    fault: str = "follower"
    act: Callable[[HostJob, SshLab], None] | None = None
    hook: str | None = None
    seconds: float = 20.0


def _power_off(job: HostJob, servers: SshLab) -> None:
    servers.lab.cut(servers.lab.hosts[1])
    for pid in job.on_host(1):
        os.kill(pid, signal.SIGKILL)


def _cut(job: HostJob, servers: SshLab) -> None:
    servers.lab.cut(servers.lab.hosts[1])


def _kill_agent(job: HostJob, servers: SshLab) -> None:
    own = set(job.on_host(1))
    agents = [p.pid for p in marked(job.root.name) if p.pid in own and "--watch-stdin" in p.info["cmdline"]]
    assert agents
    for pid in agents:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _be_slow(job: HostJob, servers: SshLab) -> None:
    """The whole host stands still for 4 s of the 8 after which it would be lost; then the job is stopped."""
    pids = job.on_host(1)
    for signum, pause_s in ((signal.SIGSTOP, 4.0), (signal.SIGCONT, 0.0)):
        for pid in pids:
            os.kill(pid, signum)
        time.sleep(pause_s)
    before = read_position(job.paths.rank_position(1))
    wait_until(lambda: read_position(job.paths.rank_position(1)) > before + 5, "steps after the pause")
    _stop(job, servers)


def _stop(job: HostJob, servers: SshLab) -> None:
    supervisor = job.record().supervisor
    assert supervisor is not None
    supervisor.send(signal.SIGTERM)


def _kill_leader(job: HostJob, servers: SshLab) -> None:
    record = job.record()
    for process in (record.guard, record.supervisor):
        assert process is not None
        process.send(signal.SIGKILL)


HOST_FAULTS = {
    fault.name: fault
    for fault in (
        HostFault(name="exception", fault="exception", text="rank 1 failed first, after step 3: ValueError: no luck"),
        HostFault(name="SIGKILL", fault="SIGKILL", text="rank 1 failed first, after step 3: killed by SIGKILL"),
        HostFault(name="host_off", text="host node2 (10.77.0.2) failed first: it", act=_power_off),
        HostFault(name="link_cut", text="host node2 (10.77.0.2) failed first: it cannot be reached", act=_cut),
        HostFault(name="agent_SIGKILL", text="host node2 (10.77.0.2) failed first: its agent", act=_kill_agent),
        HostFault(name="leader_SIGKILL", text="from which the job was led, failed first", act=_kill_leader),
        HostFault(name="slow_host", text="", state=jobs.CANCELLED, act=_be_slow, seconds=60.0),
        HostFault(name="clock", fault="exception", text="rank 1 failed first, after step 3", hook="clock"),
        HostFault(name="versions", text="node2 has mindspore 2.7.0, node1 has 2.9.0", hook="versions"),
    )
}


@dataclass(frozen=True, kw_only=True)
class HostCell:
    fault: HostFault
    record: JobRecord
    seconds: float
    survivors: int

    @property
    def said(self) -> str:
        verdict = self.record.verdict
        if verdict is None:
            return self.record.state
        lines = str(verdict["text"]["en"]).splitlines()
        return " ".join(lines[:2]) if self.fault.hook == "versions" else lines[0]

    @property
    def right(self) -> bool:
        verdict = self.record.verdict or {"text": {"en": ""}}
        return self.record.state == self.fault.state and self.fault.text in verdict["text"]["en"]


def run_host_cell(fault: HostFault, servers: SshLab, folder: Path, mark: str) -> HostCell:
    """Make a job, let the fault happen, mend the network, and see what is left."""
    folder.mkdir(parents=True, exist_ok=True)
    hook = _HOOK.format(clock=str(folder / "clock"), versions=str(folder / "versions"))
    (folder / "sitecustomize.py").write_text(hook)
    if fault.hook:
        (folder / fault.hook).touch()
    job = HostJob(
        root=folder / f"{mark[-6:]}-{fault.name}", program="", mark=mark, hosts=servers.lab.hosts,
        limits=HOST_CELL_LIMITS, env={"FAULT": fault.fault, "FAULT_RANK": "1", "GLOG_v": "3"},
        scheduler="ssh",
        settings={"ssh_config": str(servers.config), "python_path": [str(folder)],
                  "env": {"PATH": os.environ["PATH"], "LAUNCHER_TEST": mark}},
        entered=servers.lab.client,
    )  # fmt: skip
    try:
        job.start()
        began = time.time()
        if fault.act:
            job.wait_for_pids()
            began = time.time()
            fault.act(job, servers)
        assert job.guard is not None
        job.guard.wait(timeout=300)
        wait_until(lambda: job.record().verdict or job.record().state == fault.state, "the verdict")
        ended = time.time()
        wait_until(lambda: not marked(mark), "end of everything, also on a host that is cut off")
    finally:
        servers.lab.mend()
    if not fault.act:
        at = job.root / "fault_at"
        began = float(at.read_text()) if at.is_file() else began
        began -= 60.0 if fault.hook == "clock" else 0.0
    return HostCell(fault=fault, record=job.record(), seconds=ended - began, survivors=len(marked(mark)))


HEADER = """| fault on host node2 | verdict | right | seconds | survivors |
|---|---|---|---|---|"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(HOST_FAULTS))
    options = parser.parse_args()
    lines = [f"Load when begun: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.", "", HEADER]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, lab(2) as made, ssh_lab(made, Path(folder)) as servers:
        wait_for_ssh(servers)
        for name in options.only.split(","):
            mark = f"launcher-hosts-{os.urandom(4).hex()}"
            cell = run_host_cell(HOST_FAULTS[name], servers, Path(folder) / name, mark)
            said = cell.said.replace("|", "/")
            ok = "yes" if cell.right else "NO"
            lines.append(f"| {name} | {said} | {ok} | {cell.seconds:.2f} | {cell.survivors} |")
            wrong += not cell.right or cell.survivors > 0
            print(lines[-1], flush=True)
    lines += ["", f"{len(options.only.split(','))} cells, {wrong} wrong."]
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
