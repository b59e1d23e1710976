"""Checks of CANN as a process finds it: its environment, its operators' kernels, and driver and firmware beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.cluster.discover.software import cann_home, key_values, read_text
from launcher.doctor.findings import Finding, failed, passed, warned

# What set_env.sh exports and the runtime reads; one of the first three says where CANN is.
_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_OPP = "ASCEND_OPP_PATH"
_KERNELS = "built-in/op_impl/ai_core/tbe/kernel"
# The folder of the kernels by kind of card; 950's has had two names.
_SOC = {
    "910": ("ascend910",),
    "A2": ("ascend910b",),
    "A3": ("ascend910_93",),
    "310P": ("ascend310p",),
    "950": ("ascend950", "ascend910_95"),
}
_PACKAGES = {"910": "910", "A2": "910b", "A3": "A3 (atlas-a3)", "310P": "310p", "950": "950"}
# A toolkit image without the kernels' package still has these few.
_ALWAYS_THERE = ("ops_oam", "config")
_FW_RANGE = re.compile(r"\[([^\[\],]+),([^\[\],]+)\]")


def check_sourced(root: Path, env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check that the environment of CANN's set_env.sh is set, and what it names is there."""
    home = cann_home(root)
    named = [name for name in (*_HOMES, _OPP) if env.get(name)]
    if home is None and not named:
        return  # another check says that there is no CANN
    fix = f"source {_set_env(home)}"
    absent = [name for name in named if not Path(env[name]).is_dir()]
    if not named and "Ascend" not in env.get("LD_LIBRARY_PATH", ""):
        yield failed(
            "cann-env", f"CANN is in {home}, but its environment is not set: {', '.join((*_HOMES, _OPP))}", fix
        )
    elif absent:
        yield failed("cann-env", f"{absent[0]}={env[absent[0]]} is not a folder", fix)
    elif _OPP not in named:
        yield warned("cann-env", f"{_OPP} is not set, so operators may not be found", fix)
    else:
        yield passed("cann-env", f"{_OPP}={env[_OPP]}")


def _set_env(home: Path | None) -> Path:
    """Return the set_env.sh of the CANN in ``home``: in it (CANN 8.5 and later), or beside its version's folder."""
    if home is None:
        return Path("/usr/local/Ascend/ascend-toolkit/set_env.sh")
    return next(
        (path for path in (home / "set_env.sh", home.parent / "set_env.sh") if path.is_file()),
        home.parent / "set_env.sh",
    )


def check_kernels(root: Path, kind: str | None, env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check that the operators' kernels for this kind of card are installed: they are a package of their own."""
    home = cann_home(root)
    opp = Path(env[_OPP]) if env.get(_OPP) else home / "opp" if home else None
    if opp is None or (env.get(_OPP) and not opp.is_dir()):
        return  # another check says so
    folder = opp / _KERNELS
    names = _SOC.get(kind or "", ())
    places = [folder / name for name in names] if names else _folders(folder)
    if any(_has_kernels(place) for place in places):
        yield passed("kernels", f"those of {kind or 'some card'} are in {opp}")
        return
    what = f'no operator kernels for {kind or "any card"} in {opp}: operators fail with 561103 or "not supported"'
    package = f"Ascend-cann-kernels-{_PACKAGES.get(kind or '', '910b')}, from 8.5 on Ascend-cann-*-ops"
    fix = f"install the kernels' package of the same CANN ({package})"
    yield (warned if kind in (None, "950") else failed)("kernels", what, fix)


def _has_kernels(place: Path) -> bool:
    return any(entry.name not in _ALWAYS_THERE for entry in _folders(place))


def _folders(place: Path) -> list[Path]:
    try:
        return [entry for entry in place.iterdir() if entry.is_dir()]
    except OSError:
        return []


def check_firmware(root: Path) -> Iterator[Finding]:
    """Check that the driver takes this firmware, and CANN this driver, by the ranges that their own files state."""
    driver = _fields(root / "usr/local/Ascend/driver/version.info")
    firmware = _fields(root / "usr/local/Ascend/firmware/version.info")
    version, ranges = firmware.get("Version", ""), _FW_RANGE.findall(driver.get("compatible_version_fw", ""))
    name = driver.get("package_version") or driver.get("Version", "")
    if version and ranges and not any(_numbers(low) <= _numbers(version) <= _numbers(high) for low, high in ranges):
        span = ", ".join(f"{low} to {high}" for low, high in ranges)
        yield failed(
            "firmware",
            f"firmware {version}: driver {name} wants {span}",
            "install the firmware of the driver's release, then reboot",
        )
    elif version and ranges:
        yield passed("firmware", f"firmware {version} belongs to driver {name}")
    yield from _hal(root, driver)


def _hal(root: Path, driver: Mapping[str, str]) -> Iterator[Finding]:
    """Check the interface version that CANN's runtime wants of the driver."""
    home = cann_home(root)
    have = driver.get("ascendhal_version", "")
    wanted = (
        _fields(home / "runtime/version.info").get("required_driver_ascendhal_version", "").strip('"') if home else ""
    )
    if have and wanted[:1].isdigit() and _numbers(have) < _numbers(wanted):
        what = f"CANN's runtime wants ascendhal {wanted} or newer, the driver has {have} (EE1015)"
        yield failed("firmware", what, "install the driver of the CANN's release, then reboot")


def _fields(path: Path) -> dict[str, str]:
    return key_values(read_text(path) or "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
