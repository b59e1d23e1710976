"""Check of the device nodes that the runtime opens besides /dev/davinciN."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.cluster.discover.host import HostReport
from launcher.doctor.findings import Finding, failed, passed, warned

_MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
_GROUP = "HwHiAiUser"


def check_nodes(report: HostReport, root: Path, may_open: Callable[[Path, int], bool] = os.access) -> Iterator[Finding]:
    """Check that the device nodes are there and this user may read and write them."""
    cards = [f"davinci{card.device_id}" for card in report.usable]
    dev = root / "dev"
    if not any((dev / name).exists() for name in (*cards, *_MANAGERS)):
        return  # cards that only npu-smi shows: the check of the cards says so
    names = (*_MANAGERS, *cards)
    absent = [name for name in names if not (dev / name).exists()]
    closed = [name for name in names if name not in absent and not may_open(dev / name, os.R_OK | os.W_OK)]
    if absent:
        what = f"/dev/{absent[0]} is not there{_more(absent)}"
        options = " ".join(f"--device /dev/{name}" for name in absent[:4])
        fix = f"start the container with {options}, or install the driver"
        # 950 reaches its memory and host another way on some systems.
        yield (warned if report.kind == "950" else failed)("device-nodes", what, fix)
    elif closed:
        group = _group(dev / closed[0])
        what = f"/dev/{closed[0]} may not be opened{_more(closed)}: this user is not in its group {group} (EL0007)"
        yield failed("device-nodes", what, f"sudo usermod -aG {group} $USER, then log in again")
    else:
        yield passed("device-nodes", f"{', '.join(_MANAGERS)} and {len(cards)} of the cards can be opened")


def _more(names: list[str]) -> str:
    return f" ({len(names) - 1} more)" if len(names) > 1 else ""


def _group(path: Path) -> str:
    try:
        name = grp.getgrgid(path.stat().st_gid).gr_name
    except (KeyError, OSError):
        return _GROUP
    return _GROUP if name == "root" else name
