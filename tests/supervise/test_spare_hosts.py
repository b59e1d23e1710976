"""Spare hosts: who is to blame, when a spare takes a place, and what the next attempt is then told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_rendezvous import host

from launcher import api
from launcher.cli.app import main
from launcher.cluster.imagined import hold_back
from launcher.cluster.inventory import load_inventory
from launcher.cluster.rank_table import check_text, render_rank_table
from launcher.common.rendering import environment
from launcher.control import prepare
from launcher.errors import HostError, SpecError
from launcher.jobs import JobPaths
from launcher.jobs.verdict import Verdict
from launcher.plan.launch import Launch, Limits, ranks_by_node
from launcher.plan.placement import Placement, RunOptions, make_launch
from launcher.schedulers import registry
from launcher.schedulers.registration import problems
from launcher.supervise.multinode.rendezvous import bind_hosts, cluster_of
from launcher.supervise.restarts import decide
from launcher.supervise.spare_hosts import suspect_of

LOST = Verdict(rank_id=None, reason="host b: it is lost", step=None, kind="host_lost", suspect="b", retry=True)
KILLED = Verdict(rank_id=1, reason="killed by SIGKILL", step=4, kind="exit", suspect="b", retry=True)


def entry(attempt: int, **values: Any) -> dict[str, Any]:
    return {"attempt": attempt, "reason": "killed by SIGKILL", "step": 2, "restarted": True, "suspect": "b", **values}


def inventory(folder: Path, text: str) -> Path:
    file = folder / "hosts.yaml"
    file.write_text(text)
    return file


THREE = "kind: A2\nhosts:\n  - {name: 'node[1-3]', address: '10.0.0.[1-3]', devices: '0-1'}\n"
CPU = THREE.replace("A2", "CPU").replace("'0-1'", "1")
SPARE_HAS_OTHERS = """kind: A2
hosts:
  - {name: 'node[1-2]', address: '10.0.0.[1-2]', devices: '0-1'}
  - {name: node3, address: 10.0.0.3, devices: '4-7'}
"""


def launch(folder: Path, text: str, cards: int | None = None) -> Launch:
    used, spares = hold_back(load_inventory(inventory(folder, text)), 1, cards)
    placement = Placement(cluster=used, scheduler="ssh", agents=True, named=True, spares=spares)
    return make_launch(placement, JobPaths(root=folder), env={}, options=RunOptions(program="python"))


# ------------------------------------------------------------------------------------------------ the policy


def test_a_host_is_left_out_when_it_fails_again() -> None:
    assert decide(LOST, [], 5, spares=1).leave_out is None
    assert decide(LOST, [entry(1, suspect="a")], 5, spares=1).leave_out is None
    found = decide(LOST, [entry(1), entry(2, suspect="a")], 5, spares=1)
    assert (found.again, found.leave_out, found.failed_in) == (True, "b", (1,))
    assert decide(LOST, [entry(1)], 5).leave_out is None


def test_a_host_that_cannot_be_reached_ends_a_job_only_without_a_spare() -> None:
    off = replace(LOST, retry=False)
    assert not decide(off, [entry(1)], 5).again
    assert decide(off, [entry(1)], 5, spares=1).leave_out == "b"


def test_the_same_step_twice_may_be_the_hosts_fault_and_a_spare_tells() -> None:
    same = [entry(1, step=4)]
    assert not decide(KILLED, same, 5).again
    assert decide(KILLED, same, 5, spares=1).leave_out == "b"
    # Where another host met it before, it is not.
    assert not decide(KILLED, [entry(1, step=4, suspect="a"), entry(2)], 5, spares=1).again


@pytest.mark.parametrize(
    ("verdict", "earlier", "restarts"),
    [
        (replace(KILLED, retry=False), [entry(1)], 5),  # a fault of the program
        (replace(KILLED, signature="E: x"), [entry(1, signature="E: x")], 5),
        (KILLED, [entry(1)], 1),  # used up
    ],
)
def test_a_spare_changes_nothing_about_the_other_reasons_to_stop(
    verdict: Verdict, earlier: list[dict[str, Any]], restarts: int
) -> None:
    found = decide(verdict, earlier, restarts, spares=1)
    assert (found.again, found.leave_out) == (False, None)


def test_the_suspect_is_named_as_planned_whatever_it_calls_itself(tmp_path: Path) -> None:
    planned = launch(tmp_path, THREE)
    found = replace(planned, nodes=tuple(replace(node, name=f"host-{node.node_rank}") for node in planned.nodes))

    assert suspect_of(replace(LOST, host="host-1"), planned, found) == "node2"
    assert suspect_of(replace(LOST, host="node2"), planned, found) == "node2"  # before it had been asked
    assert suspect_of(replace(LOST, host=None), planned, found) is None
    assert suspect_of(replace(LOST, host="host-1", known="EI0002"), planned, found) is None  # a victim


# ------------------------------------------------------------------------------------------------ the launch


def test_a_spare_gets_the_ranks_of_the_host_on_cards_of_its_own(tmp_path: Path) -> None:
    before = launch(tmp_path, SPARE_HAS_OTHERS)
    after = Launch.from_json(before.with_spare(before.spares[0], "node1").to_json())

    assert [(n.node_rank, n.name, n.address, n.visible) for n in after.nodes] == [
        (0, "node3", "10.0.0.3", (4, 5)), (1, "node2", "10.0.0.2", (0, 1)),
    ]  # fmt: skip
    assert [(r.rank_id, r.host, r.device_id) for r in after.ranks] == [
        (0, "node3", 4), (1, "node3", 5), (2, "node2", 0), (3, "node2", 1),
    ]  # fmt: skip
    assert (after.spares, after.left_out, after.address) == ((), ("node1",), "10.0.0.3")
    assert all(share.spares == () for share in after.for_nodes())


def test_the_rank_table_of_the_next_attempt_has_the_spare_and_no_errors(tmp_path: Path) -> None:
    before = launch(tmp_path, THREE)
    found = [host(1), host(3)]
    after = bind_hosts(before.with_spare(before.spares[0], "node2"), found)
    file = render_rank_table(environment(), cluster_of(after, found))

    assert not check_text(file.text, file.path).for_kind("A2").of_level("E")
    assert "192.168.3.1" in file.text
    assert "192.168.2.1" not in file.text


def test_spares_are_checked_with_the_hosts_before_the_job(tmp_path: Path) -> None:
    all_hosts = launch(tmp_path, THREE).with_spares_in_use()
    assert [len(ranks) for ranks in ranks_by_node(all_hosts.ranks).values()] == [2, 2, 2]
    said = problems(all_hosts.nodes, all_hosts.ranks, [host(1), host(2), host(3, cards=1)])
    assert said == ["node3: 1 card(s) can be used, the job needs 2"]


@pytest.mark.parametrize(
    ("text", "count", "cards", "said"),
    [
        (THREE, 3, None, "the inventory has 3 host(s), and the job needs one at least"),
        (THREE, 1, 6, "without its 1 spare host(s) the inventory has 4"),
        (SPARE_HAS_OTHERS.replace("4-7", "4"), 1, None, "node3 has 1 card(s), and the job has 2 on node1"),
    ],
)
def test_spares_that_cannot_stand_in_are_refused(
    tmp_path: Path, text: str, count: int, cards: int | None, said: str
) -> None:
    with pytest.raises((SpecError, HostError), match=said.replace("(", r"\(").replace(")", r"\)")):
        hold_back(load_inventory(inventory(tmp_path, text)), count, cards)


# ------------------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize(
    ("scheduler", "own_way"),
    [("slurm", "sbatch exclude=NODE"), ("kubernetes", "Volcano runs the pods again"), ("local", "--scheduler ssh")],
)
def test_other_schedulers_name_their_own_way(tmp_path: Path, scheduler: str, own_way: str) -> None:
    argv = ["submit", "--scheduler", scheduler, "--spare-hosts", "1", "--jobs-dir", str(tmp_path)]
    result = CliRunner().invoke(main, argv)
    assert result.exit_code == 2
    assert f"--spare-hosts has no effect with --scheduler {scheduler}" in result.stderr
    assert own_way in result.stderr
    with pytest.raises(SpecError) as refused:
        api.submit(scheduler=scheduler, spare_hosts=1, jobs_dir=tmp_path)
    assert refused.value.hint == registry.get(scheduler).instead["--spare-hosts"]


def test_spares_need_restarts_and_a_plan_shows_them(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "cards": None, "checkpoint": None, "port": None, "jobs_dir": tmp_path, "scheduler": "ssh",
        "values": {"inventory": inventory(tmp_path, CPU), "spare_hosts": 1},
    }  # fmt: skip
    with pytest.raises(SpecError, match="a spare takes its place at a restart"):
        prepare.prepare("tiny_cpu", **asked)
    made = prepare.prepare("tiny_cpu", **asked, options=RunOptions(limits=Limits(max_restarts=2))).plan
    assert [node.name for node in made.launch.nodes] == ["node1", "node2"]
    assert [node.name for node in made.launch.spares] == ["node3"]


def test_plan_takes_the_same_option(tmp_path: Path) -> None:
    file = str(inventory(tmp_path, THREE.replace("'0-1'", "'0-7', device_ips: '10.1.0.[1-24]'")))
    argv = ["plan", "llama_7b_lora", "--spare-hosts", "1", "--jobs-dir", str(tmp_path)]
    assert "16 on Ascend A2, 2 host(s)" in CliRunner().invoke(main, [*argv, "--inventory", file]).stdout
    assert CliRunner().invoke(main, argv).exit_code == 2


def test_files_that_the_job_reads_are_looked_for_on_the_host(tmp_path: Path) -> None:
    token, there = tmp_path / "token", tmp_path / "rows.mindrecord"
    token.touch()
    there.touch()
    argv = ["node", "--report", "CPU", "--job", str(token), "--reads", str(there)]
    assert json.loads(CliRunner().invoke(main, argv).stdout)["fault"] == ""
    said = json.loads(CliRunner().invoke(main, [*argv, "--reads", "/nowhere/base"]).stdout)["fault"]
    assert said == "/nowhere/base is not there; the job reads it on every host"
