"""Checks of the cards: visible, healthy, free, and able to run the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from launcher.cluster.discover import cpu_device_count
from launcher.cluster.discover.host import Card, HostReport
from launcher.cluster.discover.visible import Visible
from launcher.cluster.model import KINDS
from launcher.common.ranges import spans
from launcher.doctor.ecc import check_ecc
from launcher.doctor.findings import Finding, JobNeeds, failed, passed, warned
from launcher.doctor.nodes import check_nodes

_DOCTOR_CARDS = "launcher devices"
# Containers often have no npu-smi, and a new release may print another table: neither says that a card is broken.
_NOT_BROKEN = ("is not on PATH", "nothing that can be read")
# A card that does nothing shows 3 to 4 GiB of its HBM in use (the driver's own), on 950 somewhat more.
_IDLE_SHARE = 8
_IDLE_MIB = 4096


def check_cards(report: HostReport, needs: JobNeeds, root: Path) -> Iterator[Finding]:
    """Run every check of this host's cards that needs npu-smi."""
    yield visible_finding(len(report.usable), len(report.cards), report.npu_smi_fault, needs, root)
    if not report.cards:
        return
    yield from check_visibility(report)
    cards = chosen(report.usable, needs)
    yield check_health(cards, report.npu_smi_fault, report.npu_smi_warning)
    yield check_busy(cards)
    yield from check_memory(cards)
    yield from check_nodes(report, root)
    if not report.npu_smi_fault:
        yield from check_ecc(cards)
    yield from check_bfloat16(needs, {card.kind for card in cards})


def chosen(cards: tuple[Card, ...], needs: JobNeeds) -> tuple[Card, ...]:
    """Return the cards that the job would get: the first ones."""
    return cards[: needs.cards] if needs.cards else cards


def visible_finding(usable: int, present: int, fault: str, needs: JobNeeds, root: Path) -> Finding:
    """Check that there are as many cards as the job needs; none at all is fine on a host without a trace of Ascend."""
    if present == 0:
        if not fault or not (root / "usr/local/Ascend").exists():
            return _cpu_finding(needs)
        return failed("cards", f"no card is visible: {fault}", _visible_fix(fault))
    if needs.cards is not None and usable < needs.cards:
        what = f"{usable} of {present} cards can be used, and the job asks for {needs.cards}"
        return failed("cards", what, f"pass --cards {usable}, or unset ASCEND_RT_VISIBLE_DEVICES")
    if usable == 0:
        return failed("cards", f"{present} cards, none of which may be used", "unset ASCEND_RT_VISIBLE_DEVICES")
    return passed("cards", f"{usable} of {present} cards can be used")


def _cpu_finding(needs: JobNeeds) -> Finding:
    ranks = cpu_device_count()
    what = f"no Ascend card and no Ascend software: jobs run on this host's CPU, up to {ranks} ranks"
    if needs.cards is not None and needs.cards > ranks:
        return failed("cards", what, f"pass --cards {ranks}, or export LAUNCHER_CPU_DEVICES={needs.cards}")
    return passed("cards", what)


def _visible_fix(fault: str) -> str:
    if "-8020" in fault:
        return "end the container that holds the cards, then: npu-smi info"
    if "PATH" in fault:
        return (
            "mount /usr/local/bin/npu-smi, /usr/local/dcmi and /dev/davinci* into the container, or install the driver"
        )
    if "-8005" in fault:
        return "reboot, if the driver was upgraded; else as root: npu-smi info; lsmod | grep drv_"
    if "did not" in fault or "without end" in fault:
        return "dmesg | tail; ps -eo pid,stat,wchan:30,cmd | grep -i npu-smi: in state D a card hangs: reboot the host"
    return "dmesg | grep -i davinci; as root: npu-smi info; after an upgrade: reboot"


def check_visibility(report: HostReport) -> Iterator[Finding]:
    """Check that the runtime can read ASCEND_RT_VISIBLE_DEVICES and ASCEND_VISIBLE_DEVICES."""
    value = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    logic = [card.logic_id for card in report.cards if card.logic_id is not None]
    if report.runtime_visible is not None:
        yield _runtime(value, report.runtime_visible, logic)
    if report.container_visible is not None:
        absent = sorted(set(report.container_visible.ids) - {card.device_id for card in report.cards})
        if report.container_visible.fault or absent:
            why = report.container_visible.fault or f"device {spans(absent)} is not in this container"
            yield warned(
                "visible", f"ASCEND_VISIBLE_DEVICES: {why}", "start the container again with ascend-docker-runtime"
            )


def _runtime(value: str, visible: Visible, logic: list[int]) -> Finding:
    beyond = [ident for ident in visible.ids if ident not in logic]
    fault = visible.fault or (f"there is no logic id {beyond[0]}" if beyond else "")
    if fault:
        good = ",".join(str(ident) for ident in sorted(logic))
        return failed(
            "visible", f"ASCEND_RT_VISIBLE_DEVICES={value!r}: {fault}", f"export ASCEND_RT_VISIBLE_DEVICES={good}"
        )
    return passed("visible", f"ASCEND_RT_VISIBLE_DEVICES={value}")


def check_health(cards: tuple[Card, ...], fault: str = "", warning: str = "") -> Finding:
    """Check that npu-smi shows every card as OK."""
    if fault:
        what = f"the cards' health is not known: {fault}"
        if any(words in fault for words in _NOT_BROKEN):
            return warned("health", what, "npu-smi info")
        return failed("health", what, _visible_fix(fault))
    bad = [card for card in cards if card.chip is None or card.chip.health not in ("OK", "Warning")]
    if bad:
        states = ", ".join(f"{card.device_id} {card.chip.health if card.chip else 'not shown'}" for card in bad)
        ids = f"-i {bad[0].chip.npu_id} -c {bad[0].chip.chip_id}" if bad[0].chip else "-i N -c 0"
        return failed("health", f"card {states}", f"npu-smi info -t health {ids}")
    slight = [card.device_id for card in cards if card.chip and card.chip.health == "Warning"]
    if slight:
        chip = next(card.chip for card in cards if card.chip and card.chip.health == "Warning")
        fix = f"npu-smi info -t health -i {chip.npu_id} -c {chip.chip_id}"
        return warned("health", f"card {spans(slight)}: npu-smi says Warning", fix)
    if warning:
        return warned("health", warning, "install the driver again, then reboot")
    return passed("health", f"{len(cards)} card{'s' if len(cards) != 1 else ''} OK")


def check_busy(cards: tuple[Card, ...]) -> Finding:
    """Check that no process holds a card."""
    held = [f"card {card.device_id}: pid {process.pid} ({process.name}, {process.memory_mib} MiB)"
            for card in cards for process in card.processes]  # fmt: skip
    if not held:
        return passed("busy", "no process on the cards")
    pids = list(dict.fromkeys(process.pid for card in cards for process in card.processes))
    shown = "; ".join(held[:4]) + (f"; and {len(held) - 4} more" if len(held) > 4 else "")
    return failed(
        "busy", shown, f"end the old job, e.g. kill {' '.join(map(str, pids[:8]))}, and wait 10 s; or use other cards"
    )


def check_memory(cards: tuple[Card, ...]) -> Iterator[Finding]:
    """Check that no HBM is in use on a card without a listed process: npu-smi hides those of other containers."""
    chips = [card.chip for card in cards if card.chip is not None and card.chip.hbm_mib and not card.processes]
    if not chips:
        return
    full = [chip for chip in chips if chip.hbm_used_mib > max(_IDLE_MIB, chip.hbm_mib // _IDLE_SHARE)]
    if not full:
        yield passed("hbm", f"at most {max(chip.hbm_used_mib for chip in chips)} MiB in use on free cards")
        return
    first = full[0]
    ids = spans([chip.physical_id for chip in full])
    what = f"card {ids}: {first.hbm_used_mib} of {first.hbm_mib} MiB are in use, and npu-smi lists no process"
    fix = (
        f"on the host, outside containers: sudo fuser -v /dev/davinci{first.physical_id}, and end what it shows; "
        f"if nothing: sudo npu-smi set -t reset -i {first.npu_id} -c {first.chip_id}"
    )
    yield failed("hbm", what, fix)


def check_bfloat16(needs: JobNeeds, kinds: set[str | None]) -> Iterator[Finding]:
    """Check that the cards have bfloat16 if the job uses it."""
    if not needs.bfloat16 or not kinds:
        return
    lacking = [kind for kind in kinds if kind in KINDS and not KINDS[kind].bfloat16]
    if lacking:
        what = f"the spec asks for bfloat16, which {KINDS[lacking[0]].products} lack"
        yield failed("bfloat16", what, "set precision.params and precision.compute to float16 or float32")
    elif None in kinds:
        yield warned("bfloat16", "the spec asks for bfloat16, and the kind of the cards is not known", _DOCTOR_CARDS)
    else:
        yield passed("bfloat16", "the cards have it")
