"""Packages whose __init__ does not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from launcher.upstream.bare_packages import package_folder, put_bare
folder = package_folder("big", {version!r})
if folder:
    put_bare("big", folder)
    put_bare("big.inner", folder / "inner")
from big.inner import part
print(part.VALUE, "big heavy" if "heavy" in vars(sys.modules["big"]) else "bare")
"""


@pytest.mark.parametrize(("version", "said"), [("1.5", "7 bare"), ("1.4", "7 big heavy")])
def test_only_the_version_that_was_tried_is_made_bare(tmp_path: Path, version: str, said: str) -> None:
    inner = tmp_path / "big" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "big" / "__init__.py").write_text("heavy = True\n")
    (inner / "__init__.py").write_text("")
    (inner / "part.py").write_text("VALUE = 7\n")
    (tmp_path / "big-1.5.dist-info").mkdir()
    (tmp_path / "big-1.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: big\nVersion: 1.5\n")
    root = str(Path(__file__).resolve().parents[2])
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]\n" + PROGRAM.format(version=version)

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout.strip() == said
