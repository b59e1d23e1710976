"""The report of discovery on this host, from all its sources: ``look_around``."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.cluster.discover.hccn import HccnConf, Port, read_address, read_hccn_conf
from launcher.cluster.discover.kinds import kind_of
from launcher.cluster.discover.npu_smi import (
    Chip,
    NpuInfo,
    NpuProcess,
    known_fault,
    parse_fields,
    parse_info,
    parse_list,
    parse_mapping,
)
from launcher.cluster.discover.pci import pci_kind
from launcher.cluster.discover.programs import run_program
from launcher.cluster.discover.software import Software, read_software
from launcher.cluster.discover.visible import Visible, container_visible, runtime_visible
from launcher.cluster.model import KINDS, Cluster, Device, Host
from launcher.errors import HostError

_DAVINCI = re.compile(r"davinci(\d{1,3})")


def host_root() -> Path:
    """Return the folder of /dev, /etc and /usr/local: "/", or $LAUNCHER_HOST_ROOT (a host mounted in a container)."""
    return Path(os.environ.get("LAUNCHER_HOST_ROOT") or "/")


def ascend_device_ids(dev: Path | None = None) -> list[int]:
    """Return the physical ids of the Ascend chips that are visible here: N of every /dev/davinciN, ascending."""
    matches = (_DAVINCI.fullmatch(entry.name) for entry in (dev or host_root() / "dev").glob("davinci*"))
    return sorted(int(match[1]) for match in matches if match)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One chip of this host. ``device_id``: the physical id; ``logic_id``: the id for ASCEND_RT_VISIBLE_DEVICES.

    ``usable`` is false when ASCEND_RT_VISIBLE_DEVICES hides it or /dev lacks it."""

    device_id: int
    logic_id: int | None = None
    kind: str | None = None
    chip: Chip | None = None
    address: str | None = None
    usable: bool = True
    processes: tuple[NpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """The devices and software of this host. ``faults``: reasons why something is unknown, for people."""

    name: str
    cards: tuple[Card, ...] = ()
    layout: str = ""
    software: Software = field(default_factory=Software)
    hccn: HccnConf = field(default_factory=HccnConf)
    runtime_visible: Visible | None = None
    container_visible: Visible | None = None
    npu_smi_fault: str = ""
    npu_smi_warning: str = ""

    @property
    def kind(self) -> str | None:
        """Return the kind of the cards; None unless all are of one kind."""
        kinds = {card.kind for card in self.cards}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def usable(self) -> tuple[Card, ...]:
        return tuple(card for card in self.cards if card.usable)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is wrong with the sources themselves."""
        return tuple(text for text in (self.npu_smi_fault, self.npu_smi_warning, self.hccn.fault) if text)


def look_around(root: Path | None = None, *, ask_hccn_tool: bool = True) -> HostReport:
    """Ask every source on this host. It takes as long as npu-smi: some seconds on a full server. Never raises."""
    root = root or host_root()
    info, fault = ask_npu_smi()
    hccn = read_hccn_conf(root / "etc/hccn.conf")
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    container = os.environ.get("ASCEND_VISIBLE_DEVICES")
    ids = ascend_device_ids(root / "dev")
    cards = _cards(ids, info, runtime_visible(visible) if visible is not None else None)
    by_pci = pci_kind(root)
    cards = [replace(card, kind=card.kind or by_pci) for card in cards]
    if ask_hccn_tool:
        hccn = _completed(hccn, [card.device_id for card in cards])
    return HostReport(
        name=socket.gethostname(),
        cards=tuple(replace(card, address=hccn.addresses.get(card.device_id)) for card in cards),
        layout=info.layout,
        software=read_software(root),
        hccn=hccn,
        runtime_visible=runtime_visible(visible) if visible is not None else None,
        container_visible=container_visible(container) if container is not None else None,
        npu_smi_fault=fault,
        npu_smi_warning=info.warning,
    )


def ask_npu_smi() -> tuple[NpuInfo, str]:
    """Return the output of ``npu-smi info``, completed by ``-m`` and ``-l``, and the fault that it has ("" if none)."""
    result = run_program("npu-smi", "info")
    fault = known_fault(result.stdout + result.stderr) or result.fault
    info = parse_info(result.stdout)
    if fault and not info.chips:
        return info, fault
    info = _with_mapping(info, parse_mapping(run_program("npu-smi", "info", "-m").stdout))
    return _counted(info), "" if info.chips else "npu-smi printed nothing that can be read"


def _with_mapping(info: NpuInfo, mapping: NpuInfo) -> NpuInfo:
    """Return ``info`` with physical and logic ids from ``-m`` where it has them; all of ``-m`` if ``info`` is empty."""
    if not info.chips:
        return replace(mapping, driver=info.driver, warning=info.warning)
    known = {(chip.npu_id, chip.chip_id): chip for chip in mapping.chips}
    chips = [_with_ids(chip, known.get((chip.npu_id, chip.chip_id), chip)) for chip in info.chips]
    return replace(info, chips=tuple(chips))


def _counted(info: NpuInfo) -> NpuInfo:
    """Return ``info`` with a warning if ``-l`` counts more chips: one that dropped off the bus is only counted."""
    counted = sum(parse_list(run_program("npu-smi", "info", "-l").stdout).values())
    if counted <= len(info.chips) or info.warning:
        return info
    return replace(info, warning=f"npu-smi info -l counts {counted} chips, and npu-smi info shows {len(info.chips)}")


def _with_ids(chip: Chip, mapped: Chip) -> Chip:
    return replace(chip, physical_id=mapped.physical_id, logic_id=mapped.logic_id)


def _cards(ids: list[int], info: NpuInfo, visible: Visible | None) -> list[Card]:
    """Return one card for each chip of npu-smi and each /dev/davinciN, by physical id."""
    chips = {chip.physical_id: chip for chip in info.chips}
    found = [_card(device_id, chips.get(device_id), info) for device_id in sorted({*ids, *chips})]
    return [_placed(card, ids, visible, position) for position, card in enumerate(found)]


def _placed(card: Card, ids: list[int], visible: Visible | None, position: int) -> Card:
    """Return ``card`` with its logic id, npu-smi's or else its position; usable if /dev has it and nothing hides it."""
    logic = card.chip.logic_id if card.chip and card.chip.logic_id is not None else position
    there = not ids or card.device_id in ids
    return replace(card, logic_id=logic, usable=there and (visible is None or logic in visible.ids))


def _card(device_id: int, chip: Chip | None, info: NpuInfo) -> Card:
    if chip is None:
        return Card(device_id=device_id)
    held = tuple(p for p in info.processes if (p.npu_id, p.chip_id) == (chip.npu_id, chip.chip_id))
    return Card(device_id=device_id, chip=chip, kind=kind_of(chip, info.layout), processes=held)


def _completed(hccn: HccnConf, ids: list[int]) -> HccnConf:
    """Return ``hccn`` with addresses from hccn_tool for missing ``ids``; calls take 0.3 s, so they run in parallel."""
    missing = [device_id for device_id in ids if device_id not in hccn.addresses]
    if not missing:
        return hccn
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=4) as pool:
        ports: list[Port] = list(pool.map(read_address, missing))
    asked = {port.device_id: port.address for port in ports if port.address}
    if not asked:
        return hccn
    return replace(hccn, addresses=dict(sorted({**hccn.addresses, **asked}.items())), fault="")


# ------------------------------------------------------------------------------------------- as a cluster


def host_cluster(report: HostReport, *, address: str = "127.0.0.1") -> Cluster:
    """Return the usable cards of this host as a cluster of one host. Raises HostError when there are none."""
    if not report.usable:
        raise HostError(
            f"{report.name} has no Ascend card that can be used: {report.npu_smi_fault or 'none is visible'}",
            hint="run `launcher doctor`, or describe the hosts in an inventory: --inventory FILE",
        )
    if report.kind is None and len({card.kind for card in report.usable}) > 1:
        raise HostError(f"{report.name} has cards of different kinds", hint="name them in an inventory, one kind each")
    sdids, pod = _super_pod(report) if report.kind == "A3" else ({}, None)
    devices = tuple(
        Device(
            device_id=card.device_id,
            logic_id=card.logic_id,
            device_ip=card.address,
            super_device_id=sdids.get(card.device_id),
        )
        for card in report.usable
    )
    kind = report.kind if report.kind in KINDS else None
    host = Host(name=report.name, address=address, devices=devices, super_pod_id=pod)
    return Cluster(target="Ascend", kind=kind, hosts=(host,))


def _super_pod(report: HostReport) -> tuple[dict[int, int], str | None]:
    """Return SDIDs by physical id and the super pod's id, from ``npu-smi info -t spod-info``; empty if unknown."""
    sdids: dict[int, int] = {}
    pod = None
    for card in report.usable:
        if card.chip is None:
            continue
        ids = ("-i", str(card.chip.npu_id), "-c", str(card.chip.chip_id))
        fields = parse_fields(run_program("npu-smi", "info", "-t", "spod-info", *ids).stdout)
        if fields.get("SDID", "").isdecimal():
            sdids[card.device_id] = int(fields["SDID"])
            pod = fields.get("Super Pod ID", pod)
    return sdids, pod if len(sdids) == len(report.usable) else None
