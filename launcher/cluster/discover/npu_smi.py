"""Parser of the output of ``npu-smi`` in its four layouts.

The layouts (hicann/driver ef377e950a32, npucli/src/npu_info_print.c) are told apart by their second header line:
910 and A2 (cell "Chip"), A3 ("Chip  Phy-ID"), 310 family ("Chip    Device"), 950 (two empty cells). Rows are split
at "|" and never at columns: the frame is wider or narrower from release to release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_VERSION = re.compile(r"npu-smi\s+(\S+)\s+Version:\s+(\S+)")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")
# Errors that npu-smi prints, some with exit status 0.
_FAULTS = (
    (re.compile(r"no NPU card", re.I), "there is no NPU card on this server"),
    (
        re.compile(r"-8005"),
        "the driver is not loaded, not permitted, or wants a reboot after an upgrade (-8005)",
    ),
    (re.compile(r"-8020"), "the device is in use by another container or process (-8020)"),
    (re.compile(r"dcmi \w+ initiali[sz]e\w* failed", re.I), "the device management interface does not start"),
)
_PARTIAL_DRIVER = re.compile(r"driver package may not be completely installed")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip (A3: one die) as npu-smi shows it. Memory is in MiB; A2 and later print 0/0 in ``memory``. A3 shows the
    power of both dies with the first."""

    npu_id: int
    chip_id: int
    physical_id: int
    name: str
    health: str = "UNKNOWN"
    bus_id: str = ""
    logic_id: int | None = None
    memory_used_mib: int = 0
    memory_mib: int = 0
    hbm_used_mib: int = 0
    hbm_mib: int = 0
    power_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class NpuProcess:
    """A process on a chip."""

    npu_id: int
    chip_id: int
    pid: int
    name: str
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class NpuInfo:
    """Everything in the output of ``npu-smi info``. ``layout`` is "HBM", "A3", "310" or "950", or "" if unknown."""

    layout: str = ""
    driver: str = ""
    chips: tuple[Chip, ...] = ()
    processes: tuple[NpuProcess, ...] = ()
    warning: str = ""


def known_fault(text: str) -> str:
    """Return the meaning of a known error message in ``text``, or ""."""
    return next((meaning for pattern, meaning in _FAULTS if pattern.search(text)), "")


def parse_info(text: str) -> NpuInfo:
    """Parse the output of ``npu-smi info``. Unreadable rows are left out; garbage gives an empty NpuInfo."""
    rows = list(_rows(text))
    split = next((index for index, row in enumerate(rows) if "Process id" in row), len(rows))
    layout = _layout(rows[:split])
    version = _VERSION.search(text)
    chips = _chips(layout, rows[:split]) if layout else []
    warning = "the driver package may not be completely installed" if _PARTIAL_DRIVER.search(text) else ""
    return NpuInfo(
        layout=layout,
        driver=version[2] if version else "",
        chips=tuple(chips),
        processes=tuple(_processes(rows[split:])),
        warning=warning,
    )


def _rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("|") and line.endswith("|") and len(line) > 1:
            yield [cell.strip() for cell in line[1:-1].split("|")]


def _layout(rows: list[list[str]]) -> str:
    for row in rows:
        if "Bus-Id" not in row:
            continue
        words = row[0].split()
        if words[:1] != ["Chip"]:
            return "950"
        return {"Phy-ID": "A3", "Device": "310"}.get(words[1] if len(words) > 1 else "", "HBM")
    return ""


def _chips(layout: str, rows: list[list[str]]) -> list[Chip]:
    start = next(index for index, row in enumerate(rows) if "Bus-Id" in row) + 1
    read = _pair_950 if layout == "950" else _pair
    found = []
    pending: list[str] | None = None
    for row in rows[start:]:
        if pending is None or _is_first(layout, row):
            pending = row
        else:
            chip = read(layout, pending, row)
            found += [chip] if chip else []
            pending = None
    return found


def _is_first(layout: str, row: list[str]) -> bool:
    """Return True if ``row`` is the upper one of a chip: its second cell is a health word, not a bus id."""
    cell = row[2] if layout == "950" and len(row) > 2 else row[1] if len(row) > 1 else ""
    return cell.isalpha() and cell != "NA"


def _pair(layout: str, upper: list[str], lower: list[str]) -> Chip | None:
    head, ids = upper[0].split(None, 1), lower[0].split()
    if len(upper) < 3 or len(lower) < 3 or len(head) < 2 or not head[0].isdecimal() or not _all_decimal(ids):
        return None
    npu_id, chip_id = int(head[0]), int(ids[0])
    physical = int(ids[1]) if len(ids) > 1 else npu_id
    chip = Chip(npu_id=npu_id, chip_id=chip_id, physical_id=physical, name=head[1], health=upper[1], bus_id=lower[1])
    return _with_usage(layout, _with_heat(chip, upper[2]), lower[2])


def _pair_950(layout: str, upper: list[str], lower: list[str]) -> Chip | None:
    if len(upper) < 4 or len(lower) < 4 or not upper[0].isdecimal():
        return None
    npu_id = int(upper[0])
    chip = Chip(npu_id=npu_id, chip_id=0, physical_id=npu_id, name=upper[1], health=upper[2], bus_id=lower[2])
    return _with_usage(layout, _with_heat(chip, upper[3]), lower[3])


def _with_heat(chip: Chip, cell: str) -> Chip:
    """Return ``chip`` with power and temperature, the first two words of ``cell``: numbers, or "NA" and "-"."""
    power, temperature = (float(word) if _NUMBER.fullmatch(word) else None for word in [*cell.split(), "", ""][:2])
    return replace(chip, power_w=power, temperature_c=temperature)


def _all_decimal(words: list[str]) -> bool:
    return bool(words) and all(word.isdecimal() for word in words)


def _with_usage(layout: str, chip: Chip, cell: str) -> Chip:
    usage = [(int(used), int(total)) for used, total in _USAGE.findall(cell)]
    if not usage:
        return chip
    memory = usage[0]
    hbm = usage[1] if len(usage) > 1 else (0, 0)
    if layout == "310":  # no HBM: what there is, is the memory
        hbm = memory
    return replace(chip, memory_used_mib=memory[0], memory_mib=memory[1], hbm_used_mib=hbm[0], hbm_mib=hbm[1])


def _processes(rows: list[list[str]]) -> Iterator[NpuProcess]:
    for row in rows:
        ids = row[0].split()
        if len(row) < 4 or not _all_decimal(ids) or not row[1].isdecimal():
            continue
        memory = int(row[3]) if row[3].isdecimal() else 0
        chip_id = int(ids[1]) if len(ids) > 1 else 0
        yield NpuProcess(npu_id=int(ids[0]), chip_id=chip_id, pid=int(row[1]), name=row[2], memory_mib=memory)


# ------------------------------------------------------------------------------------- info -m, info -l


def parse_mapping(text: str) -> NpuInfo:
    """Parse the output of ``npu-smi info -m``: 4 columns, or 5 with "Chip Phy-ID" (A3) and "Slot ID" (950).

    Rows of the Mcu are left out. Health and memory are not in it.
    """
    lines = [line.strip() for line in text.splitlines()]
    start = next((index for index, line in enumerate(lines) if line.startswith("NPU ID") and "Chip Name" in line), None)
    if start is None:
        return NpuInfo()
    columns = re.split(r"\s{2,}", lines[start])
    layout = "950" if "Slot ID" in columns else "A3" if "Chip Phy-ID" in columns else "HBM"
    chips = tuple(chip for line in lines[start + 1 :] if (chip := _mapped(columns, line)))
    if chips and all("310" in chip.name for chip in chips):
        layout = "310"
    return NpuInfo(layout=layout, chips=chips)


def _mapped(columns: list[str], line: str) -> Chip | None:
    values = line.split(None, len(columns) - 1)  # the name comes last and may hold a blank
    if len(values) != len(columns):
        return None
    row = dict(zip(columns, values, strict=True))
    name = row["Chip Name"].strip()
    logic = row.get("Chip Logic ID", "")
    # The NPU ids of 310 cards are no indices; there, and on boards of several chips, the logic id is the device.
    by_logic = "310" in name or row.get("Chip ID") != "0"
    physical = row.get("Chip Phy-ID") or (logic if by_logic else row["NPU ID"])
    if logic == "-" or not _all_decimal([row["NPU ID"], row.get("Chip ID", ""), physical]):
        return None
    return Chip(
        npu_id=int(row["NPU ID"]),
        chip_id=int(row["Chip ID"]),
        physical_id=int(physical),
        logic_id=int(logic) if logic.isdecimal() else None,
        name=name,
    )


def parse_list(text: str) -> dict[int, int]:
    """Parse the output of ``npu-smi info -l``: NPU id to number of chips (1 where it is missing, as on 950)."""
    found: dict[int, int] = {}
    npu_id: int | None = None
    for key, value in _pairs(text):
        if key == "NPU ID" and value.isdecimal():
            npu_id = int(value)
            found[npu_id] = 1
        elif key == "Chip Count" and value.isdecimal() and npu_id is not None:
            found[npu_id] = int(value)
    return found


def parse_fields(text: str) -> dict[str, str]:
    """Parse lines ``key : value`` of ``-t board``, ``health`` and ``spod-info``; the first of a key wins."""
    found: dict[str, str] = {}
    for key, value in _pairs(text):
        found.setdefault(key, value)
    return found


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip():
            yield key.strip(), value.strip()
