"""The host that most tests of the doctor start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.doctored import ready_host
from support.fake_host import FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """An Ascend host with software that fits the installed MindSpore, no cards yet."""
    return ready_host(tmp_path)
