"""The inventory: a user's YAML file of hosts with their addresses and devices.

Groups of hosts are written with ranges: ``10.0.[1-4].[1-16]`` is 64 addresses, the last range varying fastest, and
``0-7`` or ``0-3,6`` is a list of numbers. A range keeps leading zeros: ``node[01-12]``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from launcher.cluster.addresses import packed_ip
from launcher.cluster.model import KINDS, Cluster, Device, Host, NetAddress, NetLevel
from launcher.cluster.sdid import SERVER_INDEX_MAX, sdid
from launcher.common import resources
from launcher.common.nearest import path_hint
from launcher.common.ranges import MOST_RANKS, expand, numbers
from launcher.common.yaml_lines import YamlDocument, parse_text
from launcher.errors import SpecError

_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
# What can only be meant as an address: numbers with dots, or anything with colons.
_ADDRESS_LIKE = re.compile(r"[0-9.]+|.*:.*")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LevelSpec(_Section):
    """One network layer of every device of a group (950). ``addr`` gives one address per device, host by host."""

    net_layer: Annotated[int, Field(ge=0, le=7)]
    net_instance_id: Annotated[str, Field(min_length=1, max_length=1024)]
    net_type: Literal["TOPO_FILE_DESC", "CLOS"]
    addr: str
    addr_type: Literal["EID", "IPV4", "IPV6"] = "IPV4"
    ports: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    plane_id: str | None = None


class HostGroup(_Section):
    """One host, or many that are alike. Values per device are listed host by host, device by device."""

    address: str
    name: str | None = None
    devices: str | int | None = None
    device_ips: str | tuple[str, ...] | None = None
    super_pod: str | int | None = None
    server_index: str | int | None = None
    super_device_ids: str | tuple[int | str, ...] | None = None
    levels: tuple[LevelSpec, ...] = ()


def _kind(value: object) -> str:
    """Return the name of a kind: YAML makes 910 a number, and people write a2."""
    return str(value).upper()


class Inventory(_Section):
    """The inventory of a cluster: its hosts, of one ``kind`` of chip; with "CPU" the ``devices`` are ranks."""

    kind: Annotated[Literal["910", "A2", "A3", "950", "310P", "CPU"], BeforeValidator(_kind)]
    hosts: Annotated[tuple[HostGroup, ...], Field(min_length=1)]


def load_inventory(path: Path) -> Cluster:
    """Return the cluster that the inventory at ``path`` describes. Raises SpecError with every problem in it.

    A sample that ships with the package is found from any folder as rank_tables/NAME.yaml.
    """
    try:
        text = _file(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        hint = path_hint(path, "give the path of an inventory, such as rank_tables/2x8.yaml")
        why = getattr(error, "strerror", None) or error
        raise SpecError(f"cannot read the inventory {path}: {why}", hint=hint) from error
    return parse_inventory(text, name=str(path))


def _file(path: Path) -> Path:
    if path.parent != Path("rank_tables") or path.exists():
        return path
    return resources.find("rank_tables", path.name) or path


def parse_inventory(text: str, *, name: str) -> Cluster:
    """Return the cluster that ``text`` describes; messages have ``name``. Raises SpecError with every problem in it."""
    source = _source(text, name)
    try:
        inventory = Inventory.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        # An item that is wrong also makes its list too short, says pydantic; nobody wants to hear that.
        items = [item for item in error.errors() if item["type"] != "too_short" or len(error.errors()) == 1]
        # Of a value that may be of several types, one complaint is enough.
        problems = list({_place(item): _problem(source, item) for item in reversed(items)}.values())[::-1]
        raise SpecError(f"{name}: {len(problems)} problem(s)", problems=problems, hint=_HINT) from error
    builder = _Builder(source)
    hosts = tuple(
        host for index, group in enumerate(inventory.hosts) for host in builder.hosts(inventory, index, group)
    )
    builder.unique(hosts)
    if builder.problems:
        raise SpecError(f"{name}: {len(builder.problems)} problem(s)", problems=builder.problems, hint=_HINT)
    if inventory.kind == "CPU":
        return Cluster(target="CPU", hosts=hosts)
    return Cluster(target="Ascend", kind=inventory.kind, hosts=hosts)


_HINT = "rank_tables/ holds inventories to start from"


# What a key may hold, where that is more than one type.
_EXPECTED = {
    "devices": 'ids such as 0-7 or "0,2"',
    "device_ips": "addresses such as 192.168.1.[1-8], or a list of them",
    "super_pod": 'a name, or several such as "pod[0-1]"',
    "server_index": "a number, or several such as 0-3",
    "super_device_ids": "numbers such as 0-7, or a list of them",
}


def _source(text: str, name: str) -> YamlDocument:
    try:
        # Nested aliases make a few lines expand to more than any memory holds.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise SpecError(f"{name}: YAML aliases (*name) are not taken", hint="write it out, or use ranges")
    except yaml.YAMLError:
        pass  # which parse_text explains
    try:
        return parse_text(text, name=name, what="an inventory")
    except SpecError as error:
        raise SpecError(error.message, hint=_HINT) from error


def _place(item: Any) -> tuple[int | str, ...]:
    """Return the place of ``item`` without the member of a union, which pydantic appends and no user wrote."""
    loc: tuple[int | str, ...] = item["loc"]
    if len(loc) > 2 and loc[2] in _EXPECTED:
        return loc[:3]
    return loc


def _problem(source: YamlDocument, item: Any) -> str:
    loc = _place(item)
    key = ".".join(map(str, loc))
    if item["type"] == "missing":
        return f"{source.place(loc)}: missing key {key}"
    if item["type"] == "extra_forbidden":
        return f"{source.place(loc)}: unknown key {key}"
    value = source.value(loc)
    message = item["msg"].replace("Tuple should have at least 1 item after validation, not 0", "It is empty")
    message = f"expected {_EXPECTED[str(loc[-1])]}" if loc[-1] in _EXPECTED else message[:1].lower() + message[1:]
    if isinstance(value, list) and item["type"] in ("string_type", "int_type"):
        message += '; YAML reads [1-4] as a list, put it in quotes: "[1-4]"'
    return f"{source.place(loc)}: {key}: {message}, got {value!r}"


# --------------------------------------------------------------------------------------------------- ranges


# --------------------------------------------------------------------------------------- groups to hosts


class _Builder:
    """The conversion of groups to hosts, which collects every problem on the way."""

    def __init__(self, source: YamlDocument) -> None:
        self.source = source
        self.problems: list[str] = []

    def hosts(self, inventory: Inventory, index: int, group: HostGroup) -> list[Host]:
        """Return the hosts of ``group``; none when something in it is wrong, which is then in ``problems``."""
        before = len(self.problems)
        at = ("hosts", index)
        addresses = self._names(at, "address", group.address)
        names = self._names(at, "name", group.name) if group.name else addresses
        ids = self._device_ids(at, inventory, group)
        if len(names) != len(addresses):
            self._add((*at, "name"), f"{len(names)} names for {len(addresses)} addresses")
        if len(addresses) * len(ids) > MOST_RANKS:
            self._add(at, f"{len(addresses) * len(ids)} devices; HCCL takes {MOST_RANKS} at the most")
        if len(self.problems) > before:
            return []
        devices = self._devices(at, group, len(addresses), ids)
        pods = self._pods(at, group, len(addresses))
        if len(self.problems) > before:
            return []
        return [
            Host(name=name, address=address, devices=own, super_pod_id=pod)
            for name, address, own, pod in zip(names, addresses, devices, pods, strict=True)
        ]

    def unique(self, hosts: tuple[Host, ...]) -> None:
        """Note names, addresses and device addresses that occur twice."""
        for what, values in (
            ("name", [host.name for host in hosts]),
            ("address", [host.address for host in hosts]),
            (
                "device IP",
                [device.device_ip for host in hosts for device in host.devices if device.device_ip],
            ),
        ):
            seen: set[str] = set()
            for value in values:
                if value in seen:
                    self._add(("hosts",), f"{what} {value} stands twice")
                seen.add(value)
        total = sum(len(host.devices) for host in hosts)
        if total > MOST_RANKS:
            self._add(("hosts",), f"{total} devices; HCCL takes {MOST_RANKS} at the most")

    def _add(self, loc: tuple[int | str, ...], text: str) -> None:
        self.problems.append(f"{self.source.place(loc)}: {'.'.join(map(str, loc))}: {text}")

    def _expand(self, loc: tuple[int | str, ...], texts: tuple[str, ...]) -> list[str]:
        try:
            return [entry for text in texts for entry in expand(text)]
        except ValueError as error:
            self._add(loc, str(error))
            return []

    def _names(self, at: tuple[int | str, ...], key: str, text: str) -> list[str]:
        found = self._expand((*at, key), (text,))
        bad = next((name for name in found if not _is_host(name)), None)
        if bad is not None:
            self._add((*at, key), f"{bad!r} is no host name and no address")
        return found

    def _device_ids(self, at: tuple[int | str, ...], inventory: Inventory, group: HostGroup) -> list[int]:
        kind = KINDS.get(inventory.kind)
        if group.devices is None:
            return list(range(kind.per_server if kind else 1))
        try:
            ids = numbers(group.devices)
        except ValueError as error:
            self._add((*at, "devices"), str(error))
            return []
        if len(set(ids)) < len(ids):
            self._add((*at, "devices"), f"{group.devices!r} names a device twice")
        if kind and max(ids) > kind.max_device_id:
            self._add((*at, "devices"), f"device {max(ids)}: ids of {kind.name} end at {kind.max_device_id}")
        return ids

    def _devices(
        self, at: tuple[int | str, ...], group: HostGroup, hosts: int, ids: list[int]
    ) -> list[tuple[Device, ...]]:
        total = hosts * len(ids)
        ips = self._device_ips(at, group, hosts, len(ids))
        sdids = self._sdids(at, group, hosts, ids)
        levels = list(self._levels(at, group, total)) if group.levels else [()] * total
        if len(ips) != total or len(sdids) != total or len(levels) != total:
            return []
        flat = [
            Device(
                device_id=ids[index % len(ids)],
                device_ip=ips[index],
                super_device_id=sdids[index],
                levels=levels[index],
            )
            for index in range(total)
        ]
        return [tuple(flat[start : start + len(ids)]) for start in range(0, total, len(ids))]

    def _device_ips(
        self, at: tuple[int | str, ...], group: HostGroup, hosts: int, per_host: int
    ) -> list[str] | list[None]:
        if group.device_ips is None:
            return [None] * (hosts * per_host)
        texts = (group.device_ips,) if isinstance(group.device_ips, str) else group.device_ips
        found = self._expand((*at, "device_ips"), texts)
        if found and len(found) != hosts * per_host:
            self._add((*at, "device_ips"), f"{len(found)} addresses for {hosts} host(s) of {per_host} devices")
        bad = next((ip for ip in found if packed_ip(ip) is None), None)
        if bad is not None:
            self._add((*at, "device_ips"), f"{bad!r} is no IPv4 or IPv6 address")
        return found

    def _sdids(self, at: tuple[int | str, ...], group: HostGroup, hosts: int, ids: list[int]) -> list[int] | list[None]:
        if group.server_index is None and group.super_device_ids is None:
            return [None] * (hosts * len(ids))
        if group.super_device_ids is not None:
            return self._given_sdids(at, group, hosts * len(ids))
        indices = self._numbers((*at, "server_index"), str(group.server_index))
        if indices and (len(indices) != hosts or max(indices) > SERVER_INDEX_MAX):
            self._add((*at, "server_index"), f"{len(indices)} for {hosts} host(s); each is 0 to {SERVER_INDEX_MAX}")
        return [sdid(server, device_id) for server in indices for device_id in ids]

    def _given_sdids(self, at: tuple[int | str, ...], group: HostGroup, total: int) -> list[int]:
        given = group.super_device_ids
        texts = [given] if isinstance(given, str) else [str(item) for item in given or ()]
        found = [number for text in texts for number in self._numbers((*at, "super_device_ids"), text)]
        if found and len(found) != total:
            self._add((*at, "super_device_ids"), f"{len(found)} ids for {total} devices")
        return found

    def _numbers(self, loc: tuple[int | str, ...], text: str) -> list[int]:
        try:
            return numbers(text)
        except ValueError as error:
            self._add(loc, str(error))
            return []

    def _pods(self, at: tuple[int | str, ...], group: HostGroup, hosts: int) -> list[str] | list[None]:
        if group.super_pod is None:
            return [None] * hosts
        found = self._expand((*at, "super_pod"), (str(group.super_pod),))
        if "" in found:
            self._add((*at, "super_pod"), "it is empty; leave the key out where there is no super pod")
        if len(found) == 1:
            return found * hosts
        if found and len(found) != hosts:
            self._add((*at, "super_pod"), f"{len(found)} super pods for {hosts} host(s)")
        return found

    def _levels(self, at: tuple[int | str, ...], group: HostGroup, total: int) -> Iterator[tuple[NetLevel, ...]]:
        columns = []
        for index, level in enumerate(group.levels):
            loc = (*at, "levels", index, "addr")
            addresses = self._expand(loc, (level.addr,))
            if addresses and len(addresses) != total:
                self._add(loc, f"{len(addresses)} addresses for {total} devices")
            columns.append([_net_level(level, address) for address in addresses])
        for row in zip(*columns, strict=False):
            yield _joined(row)


def _is_host(name: str) -> bool:
    """Return True if ``name`` is an IPv4 or IPv6 address, or a host name: 10.0.0.256 is neither."""
    if _ADDRESS_LIKE.fullmatch(name):
        return packed_ip(name) is not None
    return _HOST_NAME.fullmatch(name) is not None


def _net_level(level: LevelSpec, address: str) -> NetLevel:
    own = NetAddress(kind=level.addr_type, address=address, ports=level.ports, plane_id=level.plane_id)
    return NetLevel(
        net_layer=level.net_layer,
        net_instance_id=level.net_instance_id,
        net_type=level.net_type,
        addresses=(own,),
    )


def _joined(levels: tuple[NetLevel, ...]) -> tuple[NetLevel, ...]:
    """Join levels of the same layer, each written with one address, to one level with several addresses."""
    layers: dict[tuple[int, str], NetLevel] = {}
    for level in levels:
        key = (level.net_layer, level.net_instance_id)
        before = layers[key].addresses if key in layers else ()
        layers[key] = NetLevel(
            net_layer=level.net_layer,
            net_instance_id=level.net_instance_id,
            net_type=level.net_type,
            addresses=before + level.addresses,
        )
    return tuple(sorted(layers.values(), key=lambda level: level.net_layer))
