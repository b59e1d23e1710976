"""The linter: every verdict of the corpus, code by code, and no bytes that upset it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_host import CHECKOUT, corpus, run_launcher

from launcher.cluster.model import Cluster, Device, Host
from launcher.cluster.rank_table import RULES, Report, check_file, check_text, render_rank_table
from launcher.cluster.rank_table.lint import lint
from launcher.cluster.rank_table.problems import KEPT_PER_CODE, show_value
from launcher.cluster.sdid import sdid, sdid_fits
from launcher.common.rendering import environment


def table(hosts: int = 2, per_host: int = 2, **changes: Any) -> dict[str, Any]:
    """A good 1.0 table as a document."""
    made = Cluster(
        target="Ascend",
        hosts=tuple(
            Host(
                name=f"node{host}",
                address=f"10.0.0.{host + 1}",
                devices=tuple(Device(device_id=d, device_ip=f"10.1.{host}.{d + 1}") for d in range(per_host)),
            )
            for host in range(hosts)
        ),
    )
    document: dict[str, Any] = json.loads(render_rank_table(environment(), made).text)
    return {**document, **changes}


def pods_table() -> dict[str, Any]:
    """A good 1.2 table of two servers in two pods."""
    document = table()
    document["version"] = "1.2"
    for index, server in enumerate(document["server_list"]):
        for device in server["device"]:
            device["super_device_id"] = str(sdid(index, int(device["device_id"])))
    document["super_pod_list"] = [
        {"super_pod_id": str(index), "server_list": [{"server_id": server["server_id"]}]}
        for index, server in enumerate(document["server_list"])
    ]
    return document


def v2_table() -> dict[str, Any]:
    """A good 2.0 table of two ranks."""
    ranks = [
        {
            "rank_id": rank,
            "local_id": rank,
            "device_id": rank,
            "level_list": [
                {
                    "net_layer": 0,
                    "net_instance_id": "az0-rack0",
                    "net_type": "TOPO_FILE_DESC",
                    "net_attr": "",
                    "rank_addr_list": [{"addr_type": "IPV4", "addr": f"10.0.0.{rank}", "ports": ["0/0"]}],
                }
            ],
        }
        for rank in range(2)
    ]
    return {"version": "2.0", "rank_count": 2, "rank_list": ranks}


def verdict(document: Any) -> list[str]:
    report = Report(name="t")
    lint(document, report)
    return report.verdict


def changed(document: dict[str, Any], path: list[Any], value: Any = ...) -> dict[str, Any]:
    """``document`` with ``value`` at ``path``, or without that key."""
    result = copy.deepcopy(document)
    holder: Any = result
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return result


# ------------------------------------------------------------------------------------------------ corpus


def corpus_cases() -> list[str]:
    try:
        text = corpus("rank_tables", "expected.json").read_text(encoding="utf-8")
    except pytest.skip.Exception:
        return ["(no corpus)"]
    return sorted(json.loads(text))


@pytest.mark.parametrize("name", corpus_cases())
def test_verdict_of_the_corpus(name: str) -> None:
    expected = json.loads(corpus("rank_tables", "expected.json").read_text(encoding="utf-8"))
    report = check_file(corpus("rank_tables", name))
    assert report.verdict == expected[name]
    assert all(problem.path.startswith("$") for problem in report.problems)


def test_what_only_msrun_minds_is_a_note() -> None:
    report = check_file(corpus("rank_tables", "broken", "msrun_4p_wrong_pod_ip.json"))
    assert [(problem.code, problem.value) for problem in report.problems] == [("N_POD_IP", '"reserve"')]


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("tfzoo_densedepth_1p.json", "line 12, column 19: a comma before a closing bracket"),
        ("xllm_v1.2_32p_elided.json", "line 18, column 17: '...' in place of the entries left out"),
        ("mindcluster_doc_v1.0_comments.json", "line 2, column 29: a comment"),
        ("mindspore_fake_rank_table_file.json", "line 1, column 1: expecting value"),
    ],
)
def test_json_errors_say_where_and_why(name: str, where: str) -> None:
    (problem,) = check_file(corpus("rank_tables", "broken", name)).problems
    assert problem.detail.startswith(where)


# ------------------------------------------------------------------------------- one fault, one code

_SERVER = ["server_list", 0]
_DEVICE = ["server_list", 1, "device", 1]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["status"], ..., ["E_MISSING"]),
        (["status"], "initializing", ["E_STATUS"]),
        (["status"], True, ["E_NOT_STRING"]),
        (["version"], "1.1", ["E_VERSION"]),
        (["version"], 1.0, ["E_NOT_STRING"]),
        (["server_count"], "3", ["E_SERVER_COUNT"]),
        (["server_count"], 2, ["E_NOT_STRING"]),
        (["server_list"], ..., ["E_MISSING", "E_SERVER_COUNT"]),
        (["server_list"], [], ["E_MISSING", "E_SERVER_COUNT"]),
        (["server_list"], "all", ["E_SERVER_COUNT", "E_TYPE"]),
        ([*_SERVER], 7, ["E_RANKS", "E_SERVER_COUNT", "E_TYPE"]),
        ([*_SERVER, "server_id"], ..., ["E_MISSING"]),
        ([*_SERVER, "server_id"], "", ["E_SERVER_ID"]),
        ([*_SERVER, "server_id"], "x" * 65, ["E_SERVER_ID"]),
        ([*_SERVER, "server_id"], "10.0.0.2", ["E_DUP_SERVER"]),
        ([*_SERVER, "host_ip"], "node0", ["E_BAD_IP"]),
        ([*_SERVER, "device"], ..., ["E_MISSING", "E_RANKS", "W_UNEVEN"]),
        ([*_DEVICE, "device_id"], ..., ["E_MISSING"]),
        ([*_DEVICE, "device_id"], "16", ["E_DEVICE_ID"]),
        ([*_DEVICE, "device_id"], "one", ["E_DEVICE_ID"]),
        ([*_DEVICE, "device_id"], "\u0663", ["E_DEVICE_ID"]),
        ([*_DEVICE, "device_id"], "0", ["E_DUP_DEVICE"]),
        ([*_DEVICE, "rank_id"], ..., ["E_MISSING", "E_RANKS"]),
        ([*_DEVICE, "rank_id"], "2", ["E_RANKS"]),
        ([*_DEVICE, "rank_id"], "4", ["E_RANKS"]),
        ([*_DEVICE, "rank_id"], "-1", ["E_RANKS"]),
        ([*_DEVICE, "rank_id"], "9" * 30, ["E_RANKS"]),
        ([*_DEVICE, "device_ip"], ..., ["E_NO_IP"]),
        ([*_DEVICE, "device_ip"], "", ["E_NO_IP"]),
        ([*_DEVICE, "device_ip"], 7, ["E_NOT_STRING"]),
        ([*_DEVICE, "device_ip"], "10.1.1.256", ["E_BAD_IP"]),
        ([*_DEVICE, "device_ip"], "10.1.1.1 ", ["E_BAD_IP"]),
        ([*_DEVICE, "device_ip"], "10.1.0.1", ["E_DUP_IP"]),
        ([*_DEVICE, "device_ip"], "2001:db8::1", ["E_IP_FAMILY"]),
        ([*_DEVICE, "device_ip"], "10.1.1.2,10.2.1.2", ["E_IP_COUNT"]),
        ([*_DEVICE, "device_port"], "0", ["E_PORT"]),
        ([*_DEVICE, "device_port"], 16666, ["E_NOT_STRING"]),
        ([*_DEVICE, "host_port"], "65536", ["E_PORT"]),
        ([*_DEVICE, "backup_device_ip"], "no", ["E_BAD_IP"]),
        ([*_DEVICE, "super_device_id"], "x", ["E_SDID"]),
        (["nobody_reads_this"], {"a": 1}, []),
    ],
)  # fmt: skip
def test_one_fault_in_a_1_0_table(path: list[Any], value: Any, expected: list[str]) -> None:
    assert verdict(table()) == []
    assert verdict(changed(table(), path, value)) == expected


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["super_pod_list"], [], ["E_MISSING", "E_POD_COVER"]),
        (["super_pod_list", 0, "super_pod_id"], ..., ["E_MISSING"]),
        (["super_pod_list", 0, "super_pod_id"], "1", ["E_DUP_POD"]),
        (["super_pod_list", 0, "super_pod_id"], ["1"], ["E_NOT_STRING"]),
        (["super_pod_list", 0, "super_pod_id"], "", ["E_POD_ID"]),
        (["super_pod_list", 0, "server_list", 0, "server_id"], "10.0.0.2", ["E_POD_COVER"]),
        (["super_pod_list", 0, "server_list", 0, "server_id"], "10.0.0.9", ["E_POD_COVER", "E_POD_SERVER"]),
        (["super_pod_list", 0, "server_list"], 7, ["E_POD_COVER", "E_TYPE"]),
        ([*_DEVICE, "super_device_id"], ..., ["E_MISSING"]),
        ([*_DEVICE, "super_device_id"], 5, ["E_NOT_STRING"]),
        ([*_DEVICE, "super_device_id"], str(sdid(1, 0)), ["E_SDID"]),
        ([*_DEVICE, "device_ip"], ..., ["E_NO_IP"]),
    ],
)
def test_one_fault_in_a_1_2_table(path: list[Any], value: Any, expected: list[str]) -> None:
    assert verdict(pods_table()) == []
    assert verdict(changed(pods_table(), path, value)) == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("device_port", "0", "E_PORT"),
        ("host_port", 16666, "E_NOT_STRING"),
        ("backup_device_port", "x", "E_PORT"),
        ("backup_device_ip", "no", "E_BAD_IP"),
    ],
)
def test_ports_and_backups_are_checked_where_there_is_no_device_ip(key: str, value: Any, expected: str) -> None:
    document = changed(table(), [*_DEVICE, "device_ip"], ...)
    document = changed(document, [*_DEVICE, key], value)

    assert verdict(document) == sorted(["E_NO_IP", expected])


def test_inside_one_super_pod_addresses_may_be_left_out() -> None:
    document = pods_table()
    document["super_pod_list"] = [
        {"super_pod_id": "0", "server_list": [{"server_id": "10.0.0.1"}, {"server_id": "10.0.0.2"}]}
    ]
    for server in document["server_list"]:
        for device in server["device"]:
            del device["device_ip"]
    assert verdict(document) == []


_RANK = ["rank_list", 1]
_LEVEL = [*_RANK, "level_list", 0]
_ADDRESS = [*_LEVEL, "rank_addr_list", 0]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["rank_count"], "2", ["E_NOT_INT"]),
        (["rank_count"], 3, ["E_RANK_COUNT"]),
        (["rank_count"], ..., ["E_MISSING"]),
        (["rank_list"], [], ["E_MISSING", "E_RANK_COUNT"]),
        (["status"], "initializing", []),  # HCCL's parser of 2.0 does not read it
        (["detour"], True, ["E_DETOUR"]),
        (["detour"], "true", []),
        ([*_RANK, "rank_id"], "1", ["E_NOT_INT", "E_RANKS"]),
        ([*_RANK, "rank_id"], True, ["E_NOT_INT", "E_RANKS"]),
        ([*_RANK, "rank_id"], -1, ["E_RANKS"]),
        ([*_RANK, "local_id"], 65, ["E_LOCAL_ID"]),
        ([*_RANK, "device_id"], ..., ["E_MISSING"]),
        ([*_RANK, "local_id"], 64, ["E_MISSING"]),  # a backup, and nothing says for which
        ([*_RANK, "device_id"], 513, ["E_DEVICE_ID"]),
        ([*_RANK, "device_port"], 0, ["E_PORT"]),
        ([*_RANK, "control_plane"], {"addr_type": "IPV4", "addr": "10.0.0.1", "listen_port": 0}, ["E_PORT"]),
        ([*_RANK, "control_plane"], {"addr_type": "IPV4", "addr": "10.0.0.1", "listen_port": 8000}, []),
        ([*_RANK, "control_plane"], [], ["E_TYPE"]),
        ([*_LEVEL, "net_layer"], 8, ["E_NET_LAYER"]),
        ([*_LEVEL, "net_layer"], "0", ["E_NET_LAYER"]),
        ([*_LEVEL, "net_type"], ["CLOS"], ["E_NET_TYPE"]),
        ([*_LEVEL, "net_type"], "MESH", ["E_NET_TYPE"]),
        ([*_LEVEL, "net_type"], ..., []),
        ([*_LEVEL, "net_type"], "1DMESH", []),
        ([*_LEVEL, "net_attr"], 1, ["E_NOT_STRING"]),
        ([*_LEVEL, "net_instance_id"], "x" * 1025, ["E_SERVER_ID"]),
        ([*_LEVEL, "net_instance_id"], "", ["E_SERVER_ID"]),
        ([*_LEVEL, "rank_addr_list"], [], ["E_ADDR"]),  # the other rank of the instance has one
        ([*_LEVEL, "rank_addr_list"], [{"addr_type": "IPV4", "addr": f"1.1.1.{i}"} for i in range(25)], ["E_ADDR"]),
        ([*_ADDRESS, "addr_type"], "MAC", ["E_ADDR"]),
        ([*_ADDRESS, "addr"], "::1", ["E_ADDR"]),
        ([*_ADDRESS, "ports"], [1], ["E_ADDR"]),
        ([*_ADDRESS, "ports"], ..., ["E_ADDR"]),
        ([*_ADDRESS, "ports"], [], ["E_ADDR"]),
        ([*_ADDRESS, "ports"], [""], ["E_ADDR"]),
        ([*_ADDRESS, "ports"], ["x" * 33], ["E_ADDR"]),
        ([*_ADDRESS, "plane_id"], "x" * 1025, ["E_ADDR"]),
        ([*_ADDRESS, "plane_id"], 0, ["E_NOT_STRING"]),
        ([*_ADDRESS, "backup_addr"], "10.0.0.9", ["E_ADDR"]),
        ([*_ADDRESS, "backup_addr"], ["::1"], ["E_ADDR"]),
        ([*_ADDRESS, "backup_addr"], ["10.0.0.9"], []),
    ],
)
def test_one_fault_in_a_2_0_table(path: list[Any], value: Any, expected: list[str]) -> None:
    assert verdict(v2_table()) == []
    assert verdict(changed(v2_table(), path, value)) == expected


def test_a_backup_device_stands_in_for_one_that_is_not_listed() -> None:
    def backup(rank: int, local_id: int) -> dict[str, Any]:
        document = changed(v2_table(), ["rank_list", rank, "local_id"], 64)
        return changed(document, ["rank_list", rank, "replaced_local_id"], local_id)

    assert verdict(backup(1, 7)) == []
    assert verdict(backup(1, 0)) == ["E_LOCAL_ID"]  # rank 0 is that device
    assert verdict(backup(1, 64)) == ["E_LOCAL_ID"]
    both = changed(backup(1, 7), ["rank_list", 0, "local_id"], 64)
    assert verdict(changed(both, ["rank_list", 0, "replaced_local_id"], 6)) == ["E_LOCAL_ID"]


def test_a_port_has_one_address() -> None:
    document = v2_table()
    for rank in document["rank_list"]:
        addresses = rank["level_list"][0]["rank_addr_list"]
        addresses.append({**addresses[0], "addr": f"10.9.9.{rank['rank_id']}"})

    assert verdict(document) == ["E_ADDR"]


def test_fifty_thousand_doubled_keys_are_counted() -> None:
    """Each is looked at once: comparing each with all others takes many minutes."""
    doubled = ",".join(f'"k{number}":1,"k{number}":2' for number in range(50_000))

    assert check_text('{"version":"1.0",' + doubled + "}").counts["N_DUP_KEY"] == 50_000


def test_levels_go_upwards_and_are_few() -> None:
    document = v2_table()
    level = document["rank_list"][0]["level_list"][0]
    document["rank_list"][0]["level_list"] = [{**level, "net_layer": layer} for layer in (1, 0)]
    assert verdict(document) == ["E_NET_LAYER"]
    document["rank_list"][0]["level_list"] = [{**level, "net_layer": layer} for layer in range(9)]
    assert verdict(document) == ["E_NET_LAYER"]


def test_ranks_that_interleave_and_servers_of_different_size_are_warned_about() -> None:
    document = table()
    for rank, (server, device) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        document["server_list"][server]["device"][device]["rank_id"] = str(rank)
    assert verdict(document) == ["W_INTERLEAVED"]
    assert verdict(table(server_list=table(1, 2)["server_list"] + table(2, 3)["server_list"][1:])) == [
        "E_RANKS",
        "W_UNEVEN",
    ]


def test_all_problems_come_at_once_with_place_and_value() -> None:
    document = table(status="no", server_count="9")
    document["server_list"][0]["device"][1].update(device_ip="x", device_id="99", rank_id=7)
    report = Report(name="t")
    lint(document, report)
    found = {(problem.code, problem.path, problem.value) for problem in report.of_level("E")}
    assert found == {
        ("E_STATUS", "$.status", '"no"'),
        ("E_SERVER_COUNT", "$.server_count", '"9"'),
        ("E_BAD_IP", "$.server_list[0].device[1].device_ip", '"x"'),
        ("E_DEVICE_ID", "$.server_list[0].device[1].device_id", '"99"'),
        ("E_NOT_STRING", "$.server_list[0].device[1].rank_id", "7"),
        ("E_RANKS", "$.server_list", ""),
    }


def test_what_910_minds_is_an_error_there_alone() -> None:
    crossing = table(1, 4)
    for device, device_id in zip(crossing["server_list"][0]["device"], ("2", "3", "4", "5"), strict=True):
        device["device_id"] = device_id
        del device["device_ip"]
    report = check_text(json.dumps(crossing))
    assert report.verdict == []
    assert report.for_kind("910").verdict == ["E_910_GROUP", "E_NO_IP"]
    assert report.for_kind("310P").verdict == ["E_NO_IP"]
    assert report.for_kind("A2").counts == {}


def test_every_rule_says_what_to_do() -> None:
    for code, rule in RULES.items():
        assert code[:2] in ("E_", "W_", "N_")
        assert rule.rule
        assert rule.cann
        assert rule.fix


def test_sdid_formula_gives_published_ids() -> None:
    # xLLM's table (servers 24 and 28) and MindCluster's samples (servers 27 and 40).
    published = {(24, 0): 100663296, (24, 15): 102563855, (28, 0): 117440512, (28, 15): 119341071,
                 (27, 0): 113246208, (27, 15): 115146767, (40, 0): 167772160, (40, 12): 169345036}  # fmt: skip
    for (server, device), value in published.items():
        assert sdid(server, device) == value
        assert sdid_fits(value, device)


# ------------------------------------------------------------------------------------------- whatever bytes

_KEYS = st.sampled_from(
    [
        "version",
        "status",
        "server_count",
        "server_list",
        "server_id",
        "device",
        "device_id",
        "device_ip",
        "rank_id",
        "super_pod_list",
        "super_pod_id",
        "super_device_id",
        "pod_ip",
        "host_ip",
        "host_port",
        "group_list",
        "instance_list",
        "devices",
        "rank_list",
        "rank_count",
        "level_list",
        "net_layer",
        "net_type",
        "net_instance_id",
        "rank_addr_list",
        "addr",
        "addr_type",
        "ports",
        "local_id",
    ]
)
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["1.0", "1.2", "2.0", "completed", "0", "10.0.0.1", "::1", "CLOS", "IPV4", "\ud800"])
)  # fmt: skip
_NAMES = _KEYS | st.text(max_size=3)
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=6))


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_no_bytes_upset_the_linter(data: bytes) -> None:
    from launcher.cluster.rank_table.reading import parse_document

    report = Report(name="t")
    document = parse_document(data, report)
    if document is not None:
        lint(document, report)
    assert report.count("E") or report.count("W")  # no 400 random bytes are a table


@given(_JSON)
@settings(max_examples=150)
def test_no_document_upsets_the_linter(document: Any) -> None:
    report = check_text(json.dumps(document))
    assert set(report.counts) <= set(RULES)
    for problem in report.problems:
        assert (problem.path + problem.value + problem.detail).isprintable() or "\ud800" in problem.path


@given(st.sampled_from([table(), pods_table(), v2_table()]), st.data())
@settings(max_examples=150)
def test_no_change_to_a_good_table_upsets_the_linter(good: dict[str, Any], data: st.DataObject) -> None:
    path: list[Any] = []
    here: Any = good
    while isinstance(here, dict | list) and here and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        path.append(key)
        here = here[key]
    value = data.draw(_JSON)
    document = changed(good, path, value)
    report = check_text(json.dumps(document))
    assert set(report.counts) <= set(RULES)
    if isinstance(value, dict) and path[-1] not in ("pod_ip", "net_attr"):  # which HCCL does not read
        assert report.count("E"), (path, value)


@pytest.mark.parametrize("depth", [10, 2000, 200_000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    file = tmp_path / "deep.json"
    for opening, closing in (("[", "]"), ('{"server_list":', "}")):
        file.write_text(opening * depth + "1" + closing * depth)
        report = check_file(file)
        assert report.count("E") >= 1
        # In between, the interpreter's recursion limit decides, and other libraries raise it.
        assert depth < 200_000 or report.verdict == ["E_JSON"]


def test_ten_deep_at_every_place_of_a_table() -> None:
    nested: Any = "x"
    for _ in range(10):
        nested = [{"server_list": nested}]
    for good in (table(), pods_table(), v2_table()):
        for key in good:
            assert verdict(changed(good, [key], nested))
    assert verdict(changed(table(), [*_DEVICE, "device_ip"], nested)) == ["E_NOT_STRING"]


@pytest.mark.parametrize("fill", [b" ", b"\x00", b"\xff", b'"', b"[]"], ids=["blank", "nul", "ff", "quotes", "lists"])
def test_a_hundred_megabytes(tmp_path: Path, fill: bytes) -> None:
    file = tmp_path / "large.json"
    with file.open("wb") as out:
        block = fill * ((1 << 20) // len(fill))
        for _ in range(100):
            out.write(block)
    assert check_file(file).verdict == ["E_JSON"]


def test_a_hundred_megabytes_in_one_value(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    document = json.dumps(changed(table(), [*_DEVICE, "device_ip"], "@"))
    file.write_text(document.replace("@", "1." * (50 << 20)))
    report = check_file(file)
    assert "E_BAD_IP" in report.verdict
    assert max(len(problem.value) for problem in report.problems) <= 80


def test_many_problems_stay_few_in_memory() -> None:
    document = table(1, 1)
    document["server_list"] = ["x"] * (KEPT_PER_CODE * 3)
    report = check_text(json.dumps(document))
    assert report.counts["E_TYPE"] == KEPT_PER_CODE * 3
    assert len(report.problems) <= KEPT_PER_CODE + 10


def test_values_are_short_and_printable() -> None:
    assert show_value("a" * 1000) == '"' + "a" * 76 + "..."
    assert show_value("\x1b[31m\u202e") == '"\\u001b[31m\\u202e"'
    assert show_value([1, 2]) == "[2 items]"
    assert show_value(10**5000) == "(a number of more than 4300 digits)"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the file is empty"),
        (b"null", "nothing but null"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b"{}{}", "extra data"),
        (b'{"status": "\xe9"}', "is not UTF-8"),
    ],
)
def test_files_that_are_no_json(tmp_path: Path, raw: bytes, said: str) -> None:
    file = tmp_path / "t.json"
    file.write_bytes(raw)
    (problem,) = check_file(file).problems
    assert problem.code == "E_JSON"
    assert said in problem.detail


def test_a_byte_order_mark_and_doubled_keys_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    text = json.dumps(table()).replace('"status"', '"status": "no", "status"')
    file.write_text(text, encoding="utf-8-sig")
    assert [(p.code, p.detail) for p in check_file(file).problems] == [
        ("N_DUP_KEY", 'key "status" stands twice in one object')
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert check_file(tmp_path / "none.json").verdict == ["E_READ"]
    assert check_file(tmp_path).verdict == ["E_READ"]
    assert check_file(Path("/dev/zero")).verdict == ["E_READ"]
    assert check_file(Path("a\x00b.json")).verdict == ["E_READ"]
    other = tmp_path / "t.txt"
    other.write_text(json.dumps(table()))
    assert check_file(other).verdict == ["E_FILENAME"]


# --------------------------------------------------------------------------------------------- command line


def test_check_command(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(table()))
    bad.write_text(json.dumps(changed(table(), [*_DEVICE, "rank_id"], "\x1b[31m")))
    done = run_launcher("rank-table", "check", str(good), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{good}: version 1.0, 4 ranks; 0 errors, 0 warnings, 0 notes\n")
    done = run_launcher("rank-table", "check", str(good), str(bad), cwd=tmp_path)
    assert done.returncode == 1
    assert '$.server_list[1].device[1].rank_id = "\\u001b[31m"' in done.stdout
    assert "CANN: " in done.stdout
    assert "fix:  " in done.stdout
    done = run_launcher("rank-table", "check", "--format", "json", str(good), str(bad), "none.json", cwd=tmp_path)
    found = json.loads(done.stdout)["files"]
    assert [entry["verdict"] for entry in found] == [[], ["E_RANKS"], ["E_READ"]]
    assert set(found[1]["errors"][0]) == {"code", "path", "value", "detail", "rule", "cann", "fix"}


def test_check_command_with_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    file = tmp_path / "表.json"
    file.write_text(json.dumps(changed(table(), ["status"], "完成"), ensure_ascii=False), encoding="utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(CHECKOUT)}
    done = run_launcher("rank-table", "check", str(file), cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "\\u5b8c\\u6210" in done.stdout
