"""Checks of Python, packages, CANN and driver, and the programs that start ranks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher.cluster.discover.software import Software
from launcher.doctor.findings import Finding, JobNeeds, failed, passed, warned
from launcher.upstream.versions import (
    MATRIX,
    PYTHON_BELOW,
    PYTHON_FROM,
    for_cann,
    for_mindformers,
    for_mindspore,
    pip_install,
    pip_install_here,
    release_key,
    same_release,
)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Check that MindSpore has wheels for this Python."""
    text = f"Python {version[0]}.{version[1]}"
    if PYTHON_FROM <= version < PYTHON_BELOW:
        return passed("python", text)
    return failed(
        "python",
        f"{text}: MindSpore and MindFormers run on 3.10 and 3.11",
        "python3.11 -m venv .venv && . .venv/bin/activate",
    )


def check_packages(mindspore: str | None, mindformers: str | None) -> Finding:
    """Check that MindSpore and MindFormers are installed and belong together."""
    missing = [name for name, version in (("mindspore", mindspore), ("mindformers", mindformers)) if version is None]
    if mindspore is None or mindformers is None:
        return failed("packages", f"{' and '.join(missing)} not installed", pip_install(mindspore, mindformers))
    pair = f"mindspore {mindspore}, mindformers {mindformers}"
    wanted = for_mindformers(mindformers)
    if wanted is None:
        known = ", ".join(entry.mindformers for entry in MATRIX)
        return warned("packages", f"{pair}: this mindformers is in no tested set ({known})", pip_install())
    if mindspore not in wanted.mindspore:
        fix = f"pip install mindspore=={wanted.mindspore[0]}"
        return failed("packages", f"{pair}: mindformers {mindformers} goes with mindspore {wanted.mindspore[0]}", fix)
    return passed("packages", f"{pair} belong together")


def check_triple(software: Software, mindspore: str | None) -> Iterator[Finding]:
    """Check that CANN is the one this MindSpore was built for, and the driver is not too old for CANN."""
    if software.driver_complete is False:
        yield failed(
            "driver", "/etc/ascend_install.info: the driver's installation is not complete", "install the driver again"
        )
    yield _cann(software, mindspore)
    yield _driver(software)


def _cann(software: Software, mindspore: str | None) -> Finding:
    if software.cann is None:
        fix = "install CANN, then: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
        return failed("cann", "no CANN found below /usr/local/Ascend", fix)
    wanted = for_mindspore(mindspore) if mindspore else None
    if wanted is None:
        return warned(
            "cann",
            f"CANN {software.cann}; what mindspore {mindspore} wants is not known",
            "see launcher/upstream/versions.py",
        )
    if same_release(software.cann, wanted.cann):
        return passed("cann", f"CANN {software.cann}, which mindspore {mindspore} was built for")
    fits = for_cann(software.cann)
    instead = f", or pip install mindspore=={fits.mindspore[0]} mindformers=={fits.mindformers}" if fits else ""
    what = f"CANN {software.cann}, but mindspore {mindspore} was built for {wanted.cann}"
    # MindSpore itself only warns; what an older CANN lacks shows as an unknown operator after minutes of compiling.
    complain = failed if release_key(software.cann) < release_key(wanted.cann) else warned
    return complain("cann", what, f"install CANN {wanted.cann}{instead}")


def _driver(software: Software) -> Finding:
    if software.driver is None:
        return failed(
            "driver", "no driver found below /usr/local/Ascend/driver", "install driver and firmware, then reboot"
        )
    wanted = for_cann(software.cann) if software.cann else None
    firmware = f", firmware {software.firmware}" if software.firmware else ""
    what = f"driver {software.driver}{firmware}"
    if wanted is None or wanted.driver is None:
        return passed("driver", f"{what}; no driver is named for CANN {software.cann}")
    if release_key(software.driver) < release_key(wanted.driver):
        return failed(
            "driver",
            f"{what}: CANN {software.cann} wants {wanted.driver} or newer (EE1015)",
            f"install driver {wanted.driver}",
        )
    return passed("driver", f"{what}; CANN {software.cann} wants {wanted.driver} or newer")


def check_programs(needs: JobNeeds) -> Iterator[Finding]:
    """Check the programs that start ranks: those the job needs must exist, mpirun may be missing."""
    for name in dict.fromkeys((*needs.programs, "msrun", "mpirun")):
        found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
        if found:
            yield passed(name, found)
        elif name in needs.programs:
            fix = pip_install_here() if name == "msrun" else f"install {name}"
            yield failed(name, f"{name} is not beside {sys.executable} and not on PATH", fix)
        else:
            yield warned(name, f"{name} is not on PATH: only needed to start ranks with it", _mpirun_fix(name))


def _mpirun_fix(name: str) -> str:
    return "apt-get install openmpi-bin (4.1.4 is the tested one)" if name == "mpirun" else pip_install_here()
