"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _child_processes_find_the_package() -> None:
    """Programs that tests start may run anywhere: they find this checkout's package all the same."""
    parts = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))


@pytest.fixture
def no_survivors() -> Iterator[str]:
    """A word to put on the command line of every process of a test; none with it may be left at the end."""
    mark = f"launcher-test-{os.urandom(6).hex()}"
    yield mark
    left = [process for process in psutil.process_iter(["cmdline"]) if mark in str(process.info["cmdline"])]
    for process in left:
        process.kill()
    assert not left
