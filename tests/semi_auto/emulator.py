"""Semi-auto parallel for real on CPU ranks: a copy of MindSpore with one library patched, and a hook in every rank.

MindSpore's CPU build compiles model-parallel graphs, but looks for Ascend's communicator first. The instrument that
changes this in a copy lies beside the project; without it, or with another build of MindSpore, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
_LIBRARY = Path("lib") / "libmindspore_frontend.so"


def find_instrument() -> Path:
    """Return the folder of the instrument. Skips the test where there is none."""
    root = Path(os.environ.get("LAUNCHER_EMULATOR") or HERE.parents[2] / "shared" / "emulator")
    if not (root / "patch.py").is_file():
        pytest.skip(f"no emulator of semi-auto parallel at {root}")
    return root


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """A folder to be first on PYTHONPATH, and the instrument whose groups the ranks make."""

    site: Path
    instrument: Path

    def env(self, cards: int) -> dict[str, str]:
        """Variables for a launcher command whose job has ``cards`` ranks that split the model."""
        return {
            "PYTHONPATH": os.pathsep.join(map(str, (HERE / "hook", self.site, self.instrument))),
            "EMULATOR_GROUPS": str(self.instrument / ("g2.json" if cards == 2 else "g4.json")),
        }


def make_emulator(folder: Path) -> Emulator:
    """Link the installed MindSpore into ``folder`` and patch its one library there.

    Skips the test where the instrument is missing or was made for another build.
    """
    instrument = find_instrument()
    found = importlib.util.find_spec("mindspore")
    if found is None or not found.submodule_search_locations:
        pytest.skip("mindspore is not installed")
    source, site = Path(found.submodule_search_locations[0]), folder / "site"
    shutil.copytree(source, site / "mindspore", copy_function=os.symlink)
    library = site / "mindspore" / _LIBRARY
    library.unlink()
    shutil.copyfile(source / _LIBRARY, library)
    patched = subprocess.run(
        [sys.executable, str(instrument / "patch.py"), str(library)], capture_output=True, text=True, timeout=120
    )
    if patched.returncode:
        pytest.skip(f"the emulator was made for another build of mindspore: {patched.stderr.strip()[-200:]}")
    return Emulator(site=site, instrument=instrument)


@contextmanager
def emulator_in(folder: Path) -> Iterator[Emulator]:
    """Make an emulator, and remove its 50 MB of library at the end."""
    try:
        yield make_emulator(folder)
    finally:
        shutil.rmtree(folder / "site", ignore_errors=True)
