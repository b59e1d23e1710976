"""Where a job runs: on this host, on hosts reached by ssh, under Slurm, or on Kubernetes. Schedulers are theirs.

``Where`` is what a submission is told; its ``settings`` go into launch.json and are all that leader and agents know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.cluster.model import Cluster

# Kinds where something else gives hosts, and takes them away.
SCHEDULED = ("slurm", "kubernetes")


@dataclass(frozen=True, kw_only=True)
class Where:
    """``cluster``: the hosts, with made-up names where only the scheduler will know. ``named``: they are real."""

    kind: str
    cluster: Cluster
    settings: Mapping[str, Any] = field(default_factory=dict)
    named: bool = False
