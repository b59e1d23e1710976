"""Ranks are laid on hosts as listed, devices as listed."""

from __future__ import annotations

from launcher.cluster.model import KINDS, Cluster, Device, Host


def test_ranks_count_over_the_job_and_local_ranks_on_the_host() -> None:
    hosts = (
        Host(name="b", address="b", devices=(Device(device_id=7), Device(device_id=2))),
        Host(name="a", address="a", devices=(Device(device_id=0),)),
    )
    cluster = Cluster(target="Ascend", hosts=hosts)
    assert cluster.num_devices == 3
    assert [(r.rank_id, r.node_rank, r.local_rank, r.host.name, r.device.device_id) for r in cluster.ranks()] == [
        (0, 0, 0, "b", 7),
        (1, 0, 1, "b", 2),
        (2, 1, 0, "a", 0),
    ]


def test_only_first_generation_and_310p_lack_bfloat16() -> None:
    assert {name for name, kind in KINDS.items() if not kind.bfloat16} == {"910", "310P"}
    assert all(kind.per_server <= kind.max_device_id + 1 for kind in KINDS.values())
