"""Hosts that are not there: a folder in place of "/", and programs in place of the vendor's.

The tables are written as npu_info_print.c does (hicann/driver ef377e950a32), one function a layout.
"""

# ruff: noqa: E501 - the tables are as wide as npu-smi prints them

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PROGRAMS = HERE / "programs"
TOOLKIT = "usr/local/Ascend/ascend-toolkit/latest"
KERNELS = "opp/built-in/op_impl/ai_core/tbe/kernel"


def corpus(*parts: str) -> Path:
    """A path in the shared corpus; skips the test where there is none."""
    root = Path(os.environ.get("LAUNCHER_CORPUS") or CHECKOUT.parent / "shared" / "corpus")
    if not root.is_dir():
        pytest.skip(f"no corpus at {root}; export LAUNCHER_CORPUS")
    return root.joinpath(*parts)


@dataclass(kw_only=True)
class FakeHost:
    """A host below ``root``. ``run`` starts the real launcher on it, in a process of its own."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def devices(self, ids: list[int]) -> FakeHost:
        """Make /dev/davinciN."""
        for device_id in ids:
            self.write(f"dev/davinci{device_id}", "")
        for name in ("davinci_manager", "devmm_svm", "hisi_hdc"):
            self.write(f"dev/{name}", "")
        return self

    def write(self, path: str, text: str) -> FakeHost:
        """Write a file of the host."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return self

    def software(self, *, driver: str = "26.0.rc1", cann: str = "9.0.0", firmware: str = "7.8.0.2.212") -> FakeHost:
        """The version files of driver, firmware and CANN, its kernels, and its environment as set_env.sh makes it."""
        self.write(
            "usr/local/Ascend/driver/version.info",
            f"Version={driver}\nascendhal_version=7.35.23\ncompatible_version_fw=[7.0.0,8.9.9]\n"
            f"package_version={driver}\n",
        )
        self.write("usr/local/Ascend/firmware/version.info", f"Version={firmware}\n")
        home = self.root / TOOLKIT
        self.write(f"{TOOLKIT}/runtime/version.info", "Version=7.7.0.1.238\nrequired_driver_ascendhal_version=4.0.0\n")
        for soc in ("ascend910", "ascend910b", "ascend910_93", "ascend310p", "ascend950"):
            self.write(f"{TOOLKIT}/{KERNELS}/{soc}/ops_nn/relu/Relu_1.o", "")
        self.env |= {"ASCEND_HOME_PATH": str(home), "ASCEND_OPP_PATH": str(home / "opp")}
        return self.write(
            "usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info",
            f"package_name=Ascend-cann-toolkit\nversion={cann}\n",
        )

    def npu_smi(self, *, info: str = "", mapping: str = "", listing: str = "", **more: str) -> FakeHost:
        """What npu-smi prints for ``info``, ``info -m``, ``info -l``; ``more`` by file name."""
        for name, text in {"info": info, "info_-m": mapping, "info_-l": listing, **more}.items():
            if text:
                self.write(f"npu-smi.out/{name}", text)
        return self

    def variables(self, *, path: str | None = None) -> dict[str, str]:
        """The environment of a process on this host."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ASCEND", "HCCL", "LAUNCHER"))}
        return {
            **kept,
            "PATH": path if path is not None else f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "LAUNCHER_HOST_ROOT": str(self.root),
            "FAKE_NPU_SMI": str(self.root / "npu-smi.out"),
            "COLUMNS": "200",
            **self.env,
        }

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """``launcher ARGUMENTS`` in this host's folder, with its programs on PATH."""
        return run_launcher(*arguments, cwd=self.root, env={**self.variables(), **(env or {})})


def run_launcher(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """``python -m launcher ARGUMENTS`` as a user would; output as text."""
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT)} if env is None else dict(env)
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


# ---------------------------------------------------------------------------- what npu-smi prints, by layout

_HEAD = "| npu-smi {version:<25}Version: {version:<45}|"
_THIN = "+---------------------------+---------------+----------------------------------------------------+"
_THICK = "+===========================+===============+====================================================+"


def info_hbm(count: int = 8, *, name: str = "910B3", health: Mapping[int, str] | None = None,
             memory: str = "0    / 0    ", hbm: str = "3395 / 65536", processes: Mapping[int, int] | None = None) -> str:  # fmt: skip
    """910 and A2: one chip an NPU."""
    rows = []
    for npu in range(count):
        state = (health or {}).get(npu, "OK")
        rows.append(f"| {npu:<5} {name:<19} | {state:<13} | 92.1        36                0    / 0             |")
        rows.append(f"| 0                         | 0000:C{npu}:00.0  | 0           {memory}      {hbm}         |")
        rows.append(_THICK)
    header = [
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
    ]
    return _frame(header, rows, count, processes or {})


def info_a3(
    count: int = 8, *, health: Mapping[int, str] | None = None, processes: Mapping[int, int] | None = None
) -> str:
    """A3: two dies an NPU, physical ids in the lower row, power only with the first die."""
    rows = []
    for npu in range(count):
        for die in (0, 1):
            physical = 2 * npu + die
            state, power = (health or {}).get(physical, "OK"), "165.3" if die == 0 else "-"
            rows.append(
                f"| {npu:<5} Ascend910           | {state:<13} | {power:<11} 36                0    / 0             |"
            )
            rows.append(
                f"| {die:<5} {physical:<19} | 0000:9D:00.0  | 0           0    / 0          3143 / 65536         |"
            )
            rows.append(_THICK if die else f"+{'-' * 96}+")
    header = [
        "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|",
        "| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |",
    ]
    return _frame(header, rows, count, processes or {})


def info_310p(npu_ids: tuple[int, ...] = (2144, 32768)) -> str:
    """310P: NPU ids are no indices, two chips a card (300I Duo), no HBM, power NA."""
    thin = "+-------------------------------+-----------------+------------------------------------------------------+"
    thick = thin.replace("-", "=")
    lines = [
        f"+{'-' * 104}+",
        f"| npu-smi {'25.2.0':<41}Version: {'25.2.0':<45}|",
        thin,
        "| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |",
        "| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |",
        thick,
    ]
    for index, npu in enumerate(npu_ids):
        for chip in (0, 1):
            device = 2 * index + chip
            lines.append(
                f"| {npu:<7} 310P3                 | OK              | NA           45                0     / 0             |"
            )
            lines.append(
                f"| {chip:<7} {device:<21} | NA              | 0            1529 / 44280                            |"
            )
            lines.append(thin if chip == 0 else thick)
    return "\n".join(lines) + "\n"


def info_950(count: int = 8) -> str:
    """950: the name in a column of its own, no chip number."""
    thick = "+========+==================+===============+=====================================================+"
    lines = [
        f"+{'-' * 97}+",
        f"| npu-smi {'26.1.0':<32}Version: {'26.1.0':<47}|",
        "+---------------------------+---------------+-----------------------------------------------------+",
        "| NPU ID | Name             | Health        | Power(W)    Temp(C)           Hugepages-Usage(page) |",
        "|        |                  | Bus-Id        | NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)         |",
        thick,
    ]
    for npu in range(count):
        lines.append(
            f"| {npu:<6} | Ascend950        | OK            | 204.4       56                0     / 0             |"
        )
        lines.append(
            "|        |                  | 0000:91:00.0  | 0           0    / 0          4439  / 86016         |"
        )
        lines.append(thick)
    return "\n".join(lines) + "\n"


def _frame(header: list[str], rows: list[str], count: int, processes: Mapping[int, int]) -> str:
    lines = [f"+{'-' * 96}+", _HEAD.format(version="25.5.0"), _THIN, *header, _THICK, *rows, _THIN]
    lines += [
        "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |",
        _THICK,
    ]
    for npu in range(count):
        if npu in processes:
            lines.append(
                f"| {npu:<7} 0                 | {processes[npu]:<13} | python3.10               | 28754                   |"
            )
        else:
            lines.append(f"| No running processes found in NPU {npu:<60} |")
        lines.append(_THICK)
    return "\n".join(lines) + "\n"


def mapping_a3(count: int = 8) -> str:
    """``npu-smi info -m`` of A3, the Mcu of each NPU included."""
    columns = "\t{:<30} {:<30} {:<30} {:<30} {:<30}"
    lines = [columns.format("NPU ID", "Chip ID", "Chip Logic ID", "Chip Phy-ID", "Chip Name")]
    for npu in range(count):
        for die in (0, 1):
            lines.append(columns.format(npu, die, 2 * npu + die, 2 * npu + die, "Ascend910"))
        lines.append(columns.format(npu, 2, "-", "-", "Mcu"))
    return "\n".join(lines) + "\n"
