"""A Slurm of two nodes on one machine: namespaces of a lab, state in one folder, no systemd, nothing below /etc.

Partition "low" is preempted by "high" and queued again. Each node has gres npu:2, which are copies of /dev/null.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from support.netlab import Lab, NetHost, need

READY_S = 30.0

CONF = """
ClusterName=lab
SlurmctldHost=node1({head})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=20
MinJobAge=300
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=npu
NodeName=node1 NodeAddr={nodes[0]} CPUs=8 RealMemory=8000 Gres=npu:2 State=UNKNOWN
NodeName=node2 NodeAddr={nodes[1]} CPUs=8 RealMemory=8000 Gres=npu:2 State=UNKNOWN
PartitionName=low Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True, kw_only=True)
class SlurmLab:
    lab: Lab
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *argv: str, check: bool = True) -> str:
        """A command on the first node."""
        result = subprocess.run(
            self.lab.hosts[0].inside(*argv), env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or result.returncode == 0, f"{argv}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))


@contextmanager
def slurm_lab(lab: Lab) -> Iterator[SlurmLab]:
    """Ready in about a second; every process of it gone afterwards."""
    need("slurmctld", "slurmd", "munged", "mungekey", "sbatch")
    folder = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    found = SlurmLab(lab=lab, folder=folder)
    try:
        _write(found)
        _start(found)
        yield found
    finally:
        _end(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _write(found: SlurmLab) -> None:
    folder, hosts = found.folder, found.lab.hosts
    folder.chmod(0o755)
    (folder / "state").mkdir()
    for host in hosts:
        (folder / f"spool.{host.name}").mkdir()
    for number in range(2):
        os.mknod(folder / f"davinci{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    addresses = [host.address for host in hosts]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, head=addresses[0], nodes=addresses))
    (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=npu File={folder}/davinci[0-1]\n")


def _start(found: SlurmLab) -> None:
    folder = found.folder
    key = folder / "munge.key"
    make_key = ("mungekey", "--create", f"--keyfile={key}")
    subprocess.run(make_key, check=True, timeout=20)
    sockets = [f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"]
    argv = ["munged", "--force", f"--key-file={key}", f"--log-file={folder}/munged.log", *sockets]
    subprocess.run(argv, check=True, timeout=20)
    _daemon(found, found.lab.hosts[0], "slurmctld", "-f", str(folder / "slurm.conf"))
    for host in found.lab.hosts:
        _daemon(found, host, "slurmd", "-N", host.name, "-f", str(folder / "slurm.conf"))
    deadline = time.monotonic() + READY_S
    while found.run("sinfo", "-h", "-N", "-o", "%T", "-p", "low", check=False).split() != ["idle", "idle"]:
        assert time.monotonic() < deadline, found.logs()
        time.sleep(0.1)


def _daemon(found: SlurmLab, host: NetHost, *argv: str) -> None:
    subprocess.run(host.inside(*argv), env=found.env, check=True, timeout=20, capture_output=True)


def _end(folder: Path) -> None:
    """Everything that has the folder in its arguments or environment was started by us."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 3
        while (left := _processes(folder)) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signum)
            time.sleep(0.1)


def _processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        shown = f"{process.info['cmdline']} {process.info['environ']}"
        if str(folder) in shown and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process)
    return found
