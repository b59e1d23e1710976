"""The probe for slow ranks: run on this host's CPU ranks, or written out as a script for Ascend cards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from launcher.cluster.discover import local_cluster, visible_device_ids
from launcher.cluster.imagined import first_cards
from launcher.cluster.inventory import load_inventory
from launcher.cluster.model import Cluster, Device, Host
from launcher.common.folders import whole_folder
from launcher.common.rendering import environment
from launcher.doctor.findings import Finding
from launcher.doctor.probe import Measured, Pairs, Round, first_waves, probe_finding, second_waves
from launcher.errors import HostError, SpecError
from launcher.schedulers.base import package_env

# A rank needs a second; one that is stopped, or whose host swaps, must not hold the doctor up.
_TIMEOUT_S = 120.0
_LOOK = "see what else runs there: top; lscpu -e; ps -eLo psr,pcpu,pid,args --sort=-pcpu | head"


def probed_cluster(inventory: Path | None, cards: int | None) -> Cluster:
    """Return the devices to probe: the first ``cards`` of those of this host, or of the hosts of ``inventory``.

    More CPU ranks than this host would have in a job are fine here.
    """
    if inventory is not None:
        return first_cards(load_inventory(inventory), cards)
    if not visible_device_ids() and cards is not None:
        devices = tuple(Device(device_id=number) for number in range(cards))
        return Cluster(target="CPU", hosts=(Host(name=socket.gethostname(), address="127.0.0.1", devices=devices),))
    return local_cluster(cards)


def probe_cpu(ranks: int) -> Finding:
    """Probe ``ranks`` processes of this host. Raises SpecError for fewer than 2, HostError when one of them fails."""
    if ranks < 2:
        raise SpecError("the probe compares ranks: it takes 2 at least", hint="launcher doctor --probe --cards 2")
    first = _run(first_waves(range(ranks)))
    return probe_finding((first, _run(second_waves(first))), "CPU ranks", _LOOK)


def _run(waves: tuple[Pairs, ...]) -> Round:
    """Run the pairs of each wave at the same time. Of a rank in several waves the first counts."""
    measured: dict[int, Measured] = {}
    for wave in waves:
        measured = {**_wave(wave), **measured}
    return Round(waves=waves, measured=measured)


def _wave(pairs: Pairs) -> dict[int, Measured]:
    with ExitStack() as stack:
        running = []
        for pair in pairs:
            ends = socket.socketpair()
            for end in ends:
                stack.enter_context(end)
            for rank, partner, end in zip(pair, reversed(pair), ends, strict=True):
                running.append((rank, stack.enter_context(_process(rank, partner, end))))
        stack.callback(_kill, [process for _, process in running])
        return dict(_answer(rank, process) for rank, process in running)


def _process(rank: int, partner: int, end: socket.socket) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            (sys.executable, "-m", "launcher.worker.probe_rank", str(rank), str(partner), str(end.fileno())),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=(end.fileno(),), env={**os.environ, **_package()},
        )  # fmt: skip
    finally:
        end.close()  # so that the death of a rank is seen by the other one of its pair


def _kill(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()


def _package() -> dict[str, str]:
    known = os.environ.get("PYTHONPATH")
    return package_env([known] if known else [])


def _answer(rank: int, process: subprocess.Popen[str]) -> tuple[int, Measured]:
    try:
        said, wrong = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HostError(
            f"rank {rank} of the probe did not end within {_TIMEOUT_S:.0f} s", hint="top; free -g"
        ) from None
    if process.returncode:
        last = (wrong.strip().splitlines() or [f"status {process.returncode}"])[-1]
        raise HostError(f"rank {rank} of the probe failed: {last}", hint="free -g; launcher doctor")
    found = json.loads(said)
    return rank, Measured(product_s=found["product_s"], whole_s=found["whole_s"])


# ------------------------------------------------------------------------------------------------ Ascend cards

# 550 GFLOP in float16, some ms of a card; a bucket of gradients is some 10 MiB.
_CARD_SIZE, _CARD_EXCHANGED = 6500, 64 << 20
_CPU_SIZE, _CPU_EXCHANGED = 1024, 4 << 20


def write_probe(cluster: Cluster, folder: Path, port: int) -> list[str]:
    """Write the probe of ``cluster`` into the new folder ``folder``; return what to type on each host.

    Raises SpecError for a single device, HostError when there is such a folder, or it cannot be written.
    """
    if cluster.num_devices < 2:
        raise SpecError("the probe compares ranks: it takes 2 at least", hint="launcher doctor --probe --cards 2")
    if folder.exists():
        raise HostError(f"{folder} is there already", hint=f"rm -r {folder}, or pass --probe-dir DIR")
    folder = folder.absolute()
    env, names = environment(), [f"run_{number}.sh" for number in range(len(cluster.hosts))]
    texts = {"probe_rank.py": env.get_template("probe_rank.py.j2").render(_program(cluster, folder))}
    compile(texts["probe_rank.py"], "probe_rank.py", "exec")
    for number, name in enumerate(names):
        texts[name] = env.get_template("probe_run.sh.j2").render(_host(cluster, folder, number, port))
    with whole_folder(folder, replace=False) as scratch:
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")
    return [f"on {host.name}: bash {folder / name}" for host, name in zip(cluster.hosts, names, strict=True)]


def _program(cluster: Cluster, folder: Path) -> dict[str, Any]:
    on_card = cluster.target == "Ascend"
    return {
        "ranks": cluster.num_devices, "target": cluster.target, "answer": str(folder / "finding.json"),
        "size": _CARD_SIZE if on_card else _CPU_SIZE, "exchanged": _CARD_EXCHANGED if on_card else _CPU_EXCHANGED,
        "dtype": "mindspore.float16" if on_card else "mindspore.float32",
        "what": f"{cluster.target} ranks",
        "fix": "npu-smi info; launcher doctor, on its host; or leave that card out" if on_card else _LOOK,
    }  # fmt: skip


def _host(cluster: Cluster, folder: Path, number: int, port: int) -> dict[str, Any]:
    host = cluster.hosts[number]
    # The runtime takes logical ids, see the rank tables.
    ids = [device.device_id if device.logic_id is None else device.logic_id for device in host.devices]
    return {
        "host": host.name, "hosts": len(cluster.hosts), "bin": str(Path(sys.executable).parent),
        "package": package_env()["PYTHONPATH"], "ranks": cluster.num_devices, "local": len(host.devices),
        "devices": ",".join(map(str, ids)) if cluster.target == "Ascend" else "", "address": cluster.hosts[0].address,
        "port": port, "node_rank": number, "logs": str(folder / f"logs_{number}"),
        "program": str(folder / "probe_rank.py"),
    }  # fmt: skip
