"""Versions of driver, firmware and CANN, from the files their installers leave."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_CANN_FILES = (
    # CANN 8.5 and later, then the older place, whose "latest" may stay behind as a stale link.
    "usr/local/Ascend/cann/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/cann-*/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/ascend-toolkit/latest/*-linux/ascend_toolkit_install.info",
    "usr/local/Ascend/nnae/latest/ascend_nnae_install.info",
)


@dataclass(frozen=True, kw_only=True)
class Software:
    """Version strings in the vendor's form ("25.3.rc1", "8.5.0"), or None where no file has one."""

    driver: str | None = None
    firmware: str | None = None
    cann: str | None = None
    driver_complete: bool | None = None


def read_software(root: Path = Path("/")) -> Software:
    """Return the versions installed below ``root``."""
    installed = read_text(root / "etc/ascend_install.info")
    return Software(
        driver=_package_version(root / "usr/local/Ascend/driver/version.info"),
        firmware=_package_version(root / "usr/local/Ascend/firmware/version.info"),
        cann=_cann(root),
        driver_complete=None if installed is None else "Driver_Install_Status=complete" in installed,
    )


def read_text(path: Path) -> str | None:
    """Return the text of a small file, or None when it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return None


def key_values(text: str) -> dict[str, str]:
    """Return the lines ``key=value`` of a text as a dictionary."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _package_version(path: Path) -> str | None:
    fields = key_values(read_text(path) or "")
    return fields.get("package_version") or fields.get("Version")


def cann_home(root: Path = Path("/")) -> Path | None:
    """Return the folder of the CANN whose version ``read_software`` reports; None if there is none."""
    path = next((path for path in _cann_files(root) if _cann_version(path)), None)
    if path is None:
        return None
    return path.parent.parent if path.parent.name.endswith("-linux") else path.parent


def _cann(root: Path) -> str | None:
    return next((version for path in _cann_files(root) if (version := _cann_version(path))), None)


def _cann_version(path: Path) -> str | None:
    return key_values(read_text(path) or "").get("version")


def _cann_files(root: Path) -> list[Path]:
    """Return the version files of CANN: the one chosen by set_env.sh, then the usual places, the newest first."""
    chosen = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    found = sorted(Path(chosen).glob("*-linux/ascend_toolkit_install.info")) if chosen else []
    for pattern in _CANN_FILES:
        found += sorted(root.glob(pattern), reverse=True)
    return found
