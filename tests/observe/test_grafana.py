"""The dashboard in docs/grafana: every name in it is one that is exported, and its panels lie beside each other."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from support.job_folders import Made, MadeJob

from launcher import jobs
from launcher.jobs import JobStore
from launcher.observe.openmetrics import metrics_text

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana" / "launcher.json").read_text(encoding="utf-8"))
# npu-exporter 7.3 (MindCluster, "Prometheus Metrics API"): per chip, with the labels id and, by Prometheus, instance.
NPU_EXPORTER = {f"npu_chip_info_{name}" for name in (
    "utilization", "overall_utilization", "hbm_used_memory", "hbm_total_memory", "hbm_utilization", "temperature",
    "power", "health_status", "link_status", "network_status", "error_code", "bandwidth_rx", "bandwidth_tx",
)}  # fmt: skip
# What PromQL itself has, as far as it is used here.
WORDS = {"on", "by", "max", "rate", "group_left", "label_replace"}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every metric of a running and an ended job, with its labels."""
    root = tmp_path_factory.mktemp("jobs")
    waits = lambda rank_id, step: {"input_s": 0.5}  # noqa: E731
    running = Made(steps=2, held_out=(2,), more=waits)
    MadeJob(state=jobs.RUNNING, steps=4, attempts=(running,), record={"host": "another"}).write(root)
    found: dict[str, set[str]] = {}
    for line in metrics_text(JobStore(root)).splitlines():
        if match := re.match(r"(\w+)\{(.*)\} ", line):
            found.setdefault(match[1], set()).update(re.findall(r'(\w+)="', match[2]))
    return found


def words(expression: str) -> set[str]:
    """Names in a query, without texts, ranges and variables."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    return set(re.findall(r"[A-Za-z_]\w*", bare))


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_query_names_only_what_is_exported(title: str, target: dict[str, Any], exported: dict[str, set[str]]) -> None:
    expression = target["expr"]
    used = words(expression)
    metrics = {word for word in used if word.startswith(("launcher_", "npu_"))}
    own = metrics & set(exported)
    assert metrics <= set(exported) | NPU_EXPORTER
    assert own, "every panel is of a job"
    labels = set.union(*(exported[name] for name in own))
    assert used - metrics - WORDS <= labels
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
    assert expression.count("(") == expression.count(")")


def test_cards_are_joined_by_host_and_device(exported: dict[str, set[str]]) -> None:
    joined = [target["expr"] for _, target in QUERIES if "npu_chip_info" in target["expr"]]
    assert len(joined) == 6
    assert {"job", "rank", "host", "device"} <= exported["launcher_rank_step"]
    for expression in joined:
        assert " * on (host, device) group_left () max by (host, device) (label_replace(label_replace(" in expression
        # What Prometheus calls the host of an exporter, without its port.
        text = re.search(r'"host", "\$1", "\$host_label", "([^"]*)"', expression)
        assert text is not None
        hosts = [re.fullmatch(text[1], name) for name in ("node1:8082", "node1", "10.0.0.7:8082")]
        assert [match and match[1] for match in hosts] == ["node1", "node1", "10.0.0.7"]
        assert '"device", "$1", "id", "(.+)"' in expression


def test_variables_are_declared_and_panels_do_not_overlap() -> None:
    declared = {one["name"] for one in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD)
    used = set(re.findall(r"\$\{?([A-Za-z]\w*)", text)) - {"__rate_interval"}
    assert used == declared
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in PANELS)

    def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
        return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))

    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert not any(overlap(one, other) for one, other in combinations(places, 2))
