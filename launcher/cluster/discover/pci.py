"""The kind of the cards by their PCI device ids: read in a millisecond, without the driver.

Ids: 0xd801 and 0xd806 as npu-smi shows them on 910A and 950 boards; 0xd500, 0xd802 and 0xd803 as the driver's own
log collector names them (310P, 910B, 910_93).
"""

from __future__ import annotations

from pathlib import Path

_HUAWEI = "0x19e5"
_KINDS = {"0xd500": "310P", "0xd801": "910", "0xd802": "A2", "0xd803": "A3", "0xd806": "950"}


def pci_kind(root: Path) -> str | None:
    """Return the key in cluster.KINDS of all Ascend cards below ``root``/sys; None for no cards or several kinds."""
    found = set()
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        if _line(vendor) == _HUAWEI:
            found.add(_KINDS.get(_line(vendor.with_name("device"))))
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""
