"""Hosts that see each other's new files late, as by NFS: what a job does is the same, and said as soon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.events import read_events
from support.netlab import Lab, lab
from support.slow_share import Shared, slow_share
from support.supervised import report

from launcher import jobs

# The leader calls a host lost after 3 s here, sooner than a name shows.
DELAY_S = 8.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    with lab(2) as made:
        yield made


def test_names_that_show_late_lose_no_host_and_no_event(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    program = "ready()\nfor n in range(1, 41):\n    step(n, seconds=0.05)\n"
    with slow_share(tmp_path, hosts.hosts, DELAY_S) as (shared, seen):
        job = Shared(root=shared / "job", program=program, mark=no_survivors, hosts=seen, per_host=2)
        record = job.start().end()
        steps = [e for rank in range(4) for e in read_events(job.paths.rank_events(rank)) if e["event"] == "step"]

    assert (record.state, record.warnings) == (jobs.SUCCEEDED, ())
    assert len(steps) == 160


def test_the_rank_that_failed_is_named_with_its_error(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    program = "step(1)\nif rank == 3:\n    raise ValueError('no luck')\ntime.sleep(600)"
    with slow_share(tmp_path, hosts.hosts, DELAY_S) as (shared, seen):
        job = Shared(root=shared / "job", program=program, mark=no_survivors, hosts=seen, per_host=2)
        record = job.start().end()

    assert (record.state, record.exit_code) == (jobs.FAILED, 7)
    assert report(record).startswith("rank 3 failed first, after step 1: ValueError: no luck\n")
    assert "on host node2" in report(record)
