"""HCCL rank tables: make, check, show, merge, convert. Versions 1.0 (910, A2, 300I Duo), 1.2 (A3), 2.0 (950)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.cluster.model import Cluster
from launcher.cluster.rank_table.lint import check_file, check_text, load_table
from launcher.cluster.rank_table.problems import RULES, Problem, Report
from launcher.cluster.rank_table.table import Table, render_table, table_of, version_for
from launcher.common.rendering import RenderedFile

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "RULES",
    "Problem",
    "Report",
    "Table",
    "check_file",
    "check_text",
    "load_table",
    "render_rank_table",
    "render_table",
    "table_of",
    "version_for",
]


def render_rank_table(env: jinja2.Environment, cluster: Cluster, path: str = "rank_table.json") -> RenderedFile:
    """Return the table of ``cluster`` in its devices' version, with ``pod_ip`` for msrun and status "completed".

    Raises SpecError when the cluster lacks something that the version requires.
    """
    return render_table(env, table_of(cluster), path)
