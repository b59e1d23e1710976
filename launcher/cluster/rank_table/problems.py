"""The problems of rank tables: one rule per code, and the findings of one file.

Codes starting with E_ are errors, W_ warnings, N_ notes: facts about the file that do not matter to HCCL.
The CANN codes are those of HCCL's parser (framework/common/src/topo/topoinfo_ranktableParser.cc and error_code.cc;
cann-hccl 9aeddc05b6f9 for CANN up to 8.x, cann-hcomm b5f3e5be094a for 8.5 and later).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.common.nearest import path_hint
from launcher.errors import SpecError

# What is an error or not according to the kind of chip (a key of cluster.KINDS), once that is known.
_PROMOTED = {
    "910": {"W_UNEVEN": "E_UNEVEN", "N_910_GROUP": "E_910_GROUP", "N_NO_IP": "E_NO_IP"},
    "310P": {"N_NO_IP": "E_NO_IP"},
}
_DEMOTED = {"A2": {"N_910_GROUP", "N_NO_IP"}, "A3": {"N_910_GROUP", "N_NO_IP"}, "310P": {"N_910_GROUP"}}

# More findings of one code than anybody reads; the rest is counted, so that memory stays small whatever the file.
KEPT_PER_CODE = 1000
_SHOWN_VALUE = 80

# The first letter of a code says how bad a finding is.
LEVELS = (("E", "error"), ("W", "warning"), ("N", "note"))

_BAD_VALUE = "EI0014 (EI0004 up to CANN 8.x)"
_BAD_KEY = "EI0017 (EI0004 up to CANN 8.x)"
_NO_ERROR = "none: HCCL takes the table"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule: the condition, the CANN error that its violation causes, and the remedy."""

    rule: str
    cann: str
    fix: str


RULES: dict[str, Rule] = {
    "E_READ": Rule(rule="the file can be read", cann="EI0004", fix="check the path and its permissions"),
    "E_FILENAME": Rule(
        rule="HCCL opens only files whose name ends in .json",
        cann="EI0004",
        fix="rename the file to end in .json",
    ),
    "E_JSON": Rule(
        rule="the file is plain JSON in UTF-8: no comments, no trailing commas, no '...'",
        cann='EI0004, "The rankTable file path does not exist ... or the JSON format is incorrect"',
        fix="repair the place named, or write it anew with `launcher rank-table make`",
    ),
    "E_TYPE": Rule(rule="objects and lists stand where HCCL expects them", cann=_BAD_KEY, fix="see the value's path"),
    "E_MISSING": Rule(
        rule="every key HCCL asks for is there, and no list of servers, devices or ranks is empty",
        cann=f'{_BAD_KEY}, "Config ... is missing in the ranktable file"',
        fix="add the key",
    ),
    "E_NOT_STRING": Rule(
        rule="in versions 1.0 and 1.2 every scalar is a JSON string, numbers too",
        cann=f'{_BAD_KEY}, "json object property value of Name[...] is not string!"',
        fix='put it in quotes: "0", not 0',
    ),
    "E_NOT_INT": Rule(
        rule="in version 2.0 ids, counts and ports are JSON integers", cann=_BAD_VALUE, fix='write 0, not "0"'
    ),
    "E_VERSION": Rule(
        rule='version is "1.0" (910, A2, 300I Duo), "1.2" (A3) or "2.0" (950)',
        cann=f'{_BAD_VALUE}, "Ranktable version is not supported"',
        fix="write the version of your device",
    ),
    "E_STATUS": Rule(
        rule='status is "completed"',
        cann="none: HCCL reads the file again every second for up to 30 minutes, then fails",
        fix='write "status": "completed", or wait for the operator that fills the table in',
    ),
    "E_SERVER_COUNT": Rule(
        rule="server_count is the number of entries in server_list",
        cann=_BAD_VALUE,
        fix="correct server_count",
    ),
    "E_SERVER_ID": Rule(rule="server_id has 1 to 64 characters", cann=_BAD_VALUE, fix="shorten it, or fill it in"),
    "E_DUP_SERVER": Rule(
        rule="every server_id stands once in server_list",
        cann=_BAD_VALUE,
        fix="give each server its own server_id",
    ),
    "E_DEVICE_ID": Rule(
        rule="device_id is the physical id, N of /dev/davinciN: 0 to 15 (0 to 7 on 910, 0 to 64 on 950)",
        cann=_BAD_VALUE,
        fix="write the physical id (`launcher devices` lists them)",
    ),
    "E_DUP_DEVICE": Rule(
        rule="every device_id stands once in its server",
        cann='EI0004 / EI0014, "The ranktable config devId is inconsistent with the local devId."',
        fix="give each entry its own device_id",
    ),
    "E_RANKS": Rule(
        rule="rank ids are exactly 0 .. N-1, each once, N being the number of devices in the table",
        cann='EI0004 / EI0014, "The rank ID is used repeatedly or exceeds max" or "must start from 0"',
        fix="number the ranks 0 .. N-1; `launcher rank-table merge FILE` renumbers",
    ),
    "E_BAD_IP": Rule(
        rule="addresses are IPv4 or IPv6",
        cann=_BAD_VALUE,
        fix="device_ip is what `hccn_tool -i N -ip -g` prints, host_ip the address of the host",
    ),
    "E_NO_IP": Rule(
        rule="device_ip is there: with more than one server (A3: super pod), and on 910 and 300I Duo always",
        cann=_BAD_KEY,
        fix="add device_ip; `hccn_tool -i N -ip -g` prints it",
    ),
    "E_DUP_IP": Rule(
        rule="every device_ip stands once in the whole table",
        cann='EI0004 / EI0014, "The IP is used repeatedly."',
        fix="write each device's own address; `hccn_tool -i N -ip -g` prints it",
    ),
    "E_IP_COUNT": Rule(
        rule="every device has the same number of addresses",
        cann=_BAD_VALUE,
        fix="list as many for each device",
    ),
    "E_IP_FAMILY": Rule(
        rule="with several servers all device_ip are of one family, IPv4 or IPv6",
        cann="EI0001",
        fix="use one family throughout (HCCL_SOCKET_FAMILY)",
    ),
    "E_PORT": Rule(rule="ports are 1 to 65535", cann=_BAD_VALUE, fix="leave the key out for the default 16666"),
    "E_POD_ID": Rule(rule="super_pod_id has 1 to 64 characters", cann=_BAD_VALUE, fix="shorten it, or fill it in"),
    "E_DUP_POD": Rule(rule="every super_pod_id stands once", cann=_BAD_VALUE, fix="join the two, or rename one"),
    "E_POD_SERVER": Rule(
        rule="a super pod names only servers of server_list", cann=_BAD_VALUE, fix="correct the server_id"
    ),
    "E_POD_COVER": Rule(
        rule="the super pods together hold every server of server_list once",
        cann=_BAD_VALUE,
        fix="put each server into exactly one super pod",
    ),
    "E_SDID": Rule(
        rule="super_device_id is a decimal string, unique in its super pod",
        cann=_BAD_VALUE,
        fix="write the SDID that `npu-smi info -t spod-info -i N -c C` prints",
    ),
    "E_RANK_COUNT": Rule(
        rule="rank_count is 1 to 65536 and the number of entries in rank_list",
        cann=_BAD_VALUE,
        fix="correct rank_count",
    ),
    "E_LOCAL_ID": Rule(
        rule="local_id is 0 to 64; 64 is a backup, one at most, whose replaced_local_id is that of a device not listed",
        cann=_BAD_VALUE,
        fix="write the id of the topology file",
    ),
    "E_DETOUR": Rule(rule='detour is "true" or "false"', cann=_BAD_VALUE, fix="write it as a string, or leave it out"),
    "E_NET_LAYER": Rule(
        rule="a level has net_layer 0 to 7, ascending in level_list, at most 8 levels",
        cann=_BAD_VALUE,
        fix="write net_layer as an integer; number the levels upwards",
    ),
    "E_NET_TYPE": Rule(
        rule="net_type, if there is one, is TOPO_FILE_DESC, CLOS or a mesh or server that HCCL knows",
        cann=_BAD_VALUE,
        fix="TOPO_FILE_DESC for layer 0, CLOS above",
    ),
    "E_ADDR": Rule(
        rule="a rank address has addr_type EID, IPV4 or IPV6, an address of that kind, and 1 to 16 ports of its own; "
        "a level has at most 24, as many as every level of the same instance",
        cann=_BAD_VALUE,
        fix="write the address that `hccn_tool -g -dev_info -i N` prints",
    ),
    "E_UNEVEN": Rule(
        rule="on 910 servers have equally many devices",
        cann=_BAD_VALUE,
        fix="use as many devices on each server",
    ),
    "E_910_GROUP": Rule(
        rule="on 910 a server has 1, 2, 4 or 8 devices, and 2 or 4 do not cross between 0-3 and 4-7",
        cann=_BAD_VALUE,
        fix="choose devices of one half",
    ),
    "E_HOST_DEVICE": Rule(
        rule="the devices that the table gives this host are there",
        cann='EE1001, or EI0004 / EI0014 "The ranktable config devId is inconsistent with the local devId."',
        fix="`launcher devices` lists what is there; in a container, mount /dev/davinciN",
    ),
    "E_HOST_IP": Rule(
        rule="device_ip is the address of that device's network card",
        cann='EI0014 / EJ0004, "the IP address in the ranktable is inconsistent with the IP address of the '
        'network adapter"',
        fix="correct the table, or set the card: `hccn_tool -i N -ip -s address A netmask M`",
    ),
    "W_LEGACY": Rule(
        rule="group_list is the old form, for 910 and old CANN alone",
        cann="EI0004 / EI0014 on newer CANN",
        fix="`launcher rank-table convert FILE -o NEW` writes version 1.0",
    ),
    "W_UNEVEN": Rule(
        rule="servers have equally many devices",
        cann="EI0004 / EI0014 on 910; A2 and A3 take it",
        fix="use as many devices on each server",
    ),
    "W_INTERLEAVED": Rule(
        rule="the ranks of one server follow each other",
        cann="not checked by HCCL; its guide asks for it",
        fix="`launcher rank-table merge FILE -o NEW` renumbers server by server",
    ),
    "W_HOST_UNKNOWN": Rule(
        rule="one server of the table is this host",
        cann="the job would not start here",
        fix="run the check on a host of the table, or correct server_id, pod_ip or host_ip",
    ),
    "W_HOST_HCCN": Rule(
        rule="hccn.conf tells the address of each device",
        cann="none yet: the addresses of the table could not be compared",
        fix="run as root, or `sudo chmod 644 /etc/hccn.conf`; in a container, mount it",
    ),
    "N_POD_IP": Rule(
        rule="msrun --rank_table_file wants a pod_ip in each server that is the address its workers register with",
        cann="none: msrun ignores the table silently and numbers the ranks itself",
        fix="add pod_ip (127.0.0.1 when there is one server); `launcher rank-table make` does",
    ),
    "N_LIST_ORDER": Rule(
        rule="msrun goes by the position in the device list, not by device_id",
        cann=_NO_ERROR,
        fix="list devices in ascending device_id",
    ),
    "N_SDID": Rule(
        rule="an A3 SDID is server index << 22 | chip << 18 | die << 16 | device id",
        cann=_NO_ERROR,
        fix="compare with `npu-smi info -t spod-info -i N -c C`",
    ),
    "N_910_GROUP": Rule(
        rule="on 910 a server has 1, 2, 4 or 8 devices, and 2 or 4 do not cross between 0-3 and 4-7",
        cann="EI0004 / EI0014 on 910; A2 and A3 take it",
        fix="choose devices of one half",
    ),
    "N_NO_IP": Rule(
        rule="910 and 300I Duo want device_ip even in one server",
        cann=f"{_BAD_KEY} on these two; A2 and A3 take it",
        fix="add device_ip if this is a 910 or 300I Duo",
    ),
    "N_STATUS": Rule(
        rule="status belongs to versions 1.0 and 1.2", cann="none: version 2.0 does not read it", fix="leave it out"
    ),
    "N_SERVER_COUNT": Rule(
        rule="the guide asks for server_count", cann="none: the parser warns", fix="add server_count"
    ),
    "N_DUP_KEY": Rule(rule="a key stands once in an object", cann="none: the last one wins", fix="remove one of them"),
    "N_POD_IGNORED": Rule(
        rule="super_pod_list belongs to version 1.2",
        cann="none: it is ignored",
        fix='write "version": "1.2" on A3',
    ),
    "N_NO_PODS": Rule(
        rule="without super_pod_list a 1.2 table is read in AI server mode",
        cann=_NO_ERROR,
        fix="add super_pod_list",
    ),
    "N_POD_ORDER": Rule(
        rule="the servers of one super pod follow each other in server_list",
        cann="not checked by HCCL; its guide asks for it",
        fix="`launcher rank-table merge FILE -o NEW` sorts them",
    ),
    "N_CLUSTER_LIST": Rule(
        rule="cluster_list is MindSpore's extension for several clusters",
        cann="HCCL ignores it",
        fix="none needed",
    ),
    "N_DUP_ADDR": Rule(
        rule="two ranks of a 2.0 table have different addresses", cann=_NO_ERROR, fix="check that it is meant"
    ),
    "N_FOREIGN": Rule(rule="this is an HCCL rank table", cann="EI0004", fix="make one with `launcher rank-table make`"),
}


def show_value(value: Any) -> str:
    """Return ``value`` as JSON, shortened, safe to print on any terminal."""
    if isinstance(value, list | dict):
        size = f"{len(value)} item{'s' if len(value) != 1 else ''}"
        return f"[{size}]" if isinstance(value, list) else f"{{{size}}}"
    if isinstance(value, str):
        value = value[: _SHOWN_VALUE + 1]
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # an integer longer than Python turns into digits
        return "(a number of more than 4300 digits)"
    if not text.isprintable():
        text = json.dumps(value)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 3] + "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One finding. ``path``: a JSON path ("$" for the file); ``value``: the value there as shown, "" if none."""

    code: str
    path: str
    value: str
    detail: str

    @property
    def rule(self) -> Rule:
        return RULES[self.code]

    def to_dict(self) -> dict[str, str]:
        """Return the finding with its rule, for programs."""
        found = {"code": self.code, "path": self.path, "value": self.value, "detail": self.detail}
        return {**found, "rule": self.rule.rule, "cann": self.rule.cann, "fix": self.rule.fix}


@dataclass(kw_only=True)
class Report:
    """The findings of one file, in order. ``counts`` includes findings beyond KEPT_PER_CODE."""

    name: str
    version: str | None = None
    servers: int = 0
    ranks: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, code: str, path: str, value: Any = ..., detail: str = "") -> None:
        """Note a finding; ``value`` is the value at ``path``, left out when there is none."""
        self.counts[code] += 1
        if self.counts[code] <= KEPT_PER_CODE:
            shown = "" if value is ... else show_value(value)
            self.problems.append(Problem(code=code, path=path, value=shown, detail=detail))

    def for_kind(self, kind: str | None) -> Report:
        """Return this report for a kind of chip: with errors for what that kind refuses, without what it accepts."""
        renamed = _PROMOTED.get(kind or "", {})
        dropped = _DEMOTED.get(kind or "", set())
        counts: Counter[str] = Counter()
        for code, count in self.counts.items():
            if code not in dropped:
                counts[renamed.get(code, code)] += count
        problems = [
            replace(problem, code=renamed.get(problem.code, problem.code))
            for problem in self.problems
            if problem.code not in dropped
        ]
        return replace(self, counts=counts, problems=problems)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for programs: findings by level, each with its rule and what to do."""
        return {
            "file": self.name,
            "version": self.version,
            "servers": self.servers,
            "ranks": self.ranks,
            "verdict": self.verdict,
            "counts": dict(sorted(self.counts.items())),
            **{f"{name}s": [problem.to_dict() for problem in self.of_level(letter)] for letter, name in LEVELS},
        }

    def of_level(self, letter: str) -> list[Problem]:
        """Return the findings whose code starts with ``letter``: "E", "W" or "N"."""
        return [problem for problem in self.problems if problem.code.startswith(letter)]

    def count(self, letter: str) -> int:
        """Return the number of findings of that level, including those not kept."""
        return sum(count for code, count in self.counts.items() if code.startswith(letter))

    @property
    def verdict(self) -> list[str]:
        """Return the codes of errors and warnings, sorted."""
        return sorted(code for code in self.counts if not code.startswith("N"))


def check_read(file: Path, report: Report) -> None:
    """Raise SpecError with the reason when the file of ``report`` could not be read."""
    if "E_READ" in report.counts:
        why = next(problem.detail for problem in report.problems if problem.code == "E_READ")
        raise SpecError(f"cannot read {file}: {why}", hint=path_hint(file))
