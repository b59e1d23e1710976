"""HCCL rank tables."""

from __future__ import annotations

import jinja2

from launcher.cluster import Cluster
from launcher.render import RenderedFile, render


def render_rank_table(env: jinja2.Environment, cluster: Cluster, path: str = "rank_table.json") -> RenderedFile:
    """The version 1.0 table of ``cluster``: every scalar a string, status "completed", ``pod_ip`` for msrun."""
    return render(env, "rank_table.json.j2", path, hosts=cluster.hosts, ranks=list(cluster.ranks()))
