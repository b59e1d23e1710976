"""Faults of whole hosts with real MindSpore over ssh; only with $LAUNCHER_FAULTS=all, as `make faults` sets it.

The same faults with small programs for ranks are always run: tests/supervise/test_nodes.py and
tests/schedulers/test_ssh.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import HOST_FAULTS, run_host_cell
from support.netlab import lab
from support.sshlab import SshLab, ssh_lab, wait_for_ssh

pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.skipif(os.environ.get("LAUNCHER_FAULTS") != "all", reason="part of `make faults`"),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    with lab(2) as made, ssh_lab(made, tmp_path_factory.mktemp("ssh")) as found:
        wait_for_ssh(found)
        yield found


@pytest.mark.parametrize("name", HOST_FAULTS)
def test_the_verdict_is_right_and_nothing_is_left(
    servers: SshLab, tmp_path: Path, no_survivors: str, name: str
) -> None:
    cell = run_host_cell(HOST_FAULTS[name], servers, tmp_path, no_survivors)

    assert cell.right, cell
    assert cell.survivors == 0
