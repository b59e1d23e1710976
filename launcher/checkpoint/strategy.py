"""Strategy files: the layout of each parameter over the devices of its pipeline stage. Protobuf and JSON.

node_strategy.proto and parallel/_parallel_serialization.py of mindspore 2.9.0. A file describes one stage (one file
per rank), or all stages (``merge_pipeline_strategys``; names begin with the stage: "1-model.norm_out.weight").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoint.wire import BYTES, WireError, fields, read_varint, signed, tag, varint
from launcher.errors import CheckpointError

# Strategy files end in .ckpt too: weights that were given by mistake are refused before they are read into memory.
# A layout takes some 120 bytes: the state of a 70B model with its optimizer half a megabyte.
_MAX_FILE_BYTES = 4 << 20
# A metadata.json begins with the layouts; what follows may be long, as it says of every slice which ranks have it.
METADATA = "metadata.json"
_METADATA_BYTES = 16 << 20
_METADATA_HEAD = re.compile(r'\s*\{\s*"state_dict_metadata"\s*:\s*')
_MAX_DEVICES = 1 << 20
_STAGED = re.compile(r"(\d+)-(.+)")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of one parameter on the devices of a stage.

    device_matrix: device counts, outermost first; a rank's coordinates in it are its mixed-radix digits.
    tensor_map: for each axis of the tensor the device axes that cut it, outer cut first, counted from the innermost
    (0 is the last of device_matrix); empty when the axis is whole.
    opt_step, opt_size: axis 0 of what the tensor map leaves is cut again among opt_size of the ranks that hold the
    same slice (optimizer parallel); opt_size -1 means all of these ranks; opt_step 0 means no such cut.
    split_rows: rows of each slice along axis 0 when they are uneven (``param_split_shape``). ``field``: rows are cut
    within each of ``field`` equal groups (wide embedding tables).
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    opt_step: int = 0
    opt_size: int = 0
    split_rows: tuple[int, ...] = ()
    indices_offset: tuple[int, ...] = ()
    field: int = 0

    @property
    def num_devices(self) -> int:
        return math.prod(self.device_matrix)

    def cuts(self) -> tuple[int, ...]:
        """Return the number of parts that the tensor map cuts each axis into."""
        return tuple(math.prod(self.device_matrix[-1 - dim] for dim in dims) for dims in self.tensor_map)


Stages = dict[int, dict[str, Layout]]


def read_strategy(path: Path) -> Stages:
    """Read layouts by stage and parameter. Raises CheckpointError when ``path`` is not a strategy file."""
    try:
        if path.name == METADATA:
            return _by_stage(0, dict(_listed(_read_head(path))))
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        raw = path.read_bytes()
        stage, named = _read_json(raw) if path.suffix == ".json" else _read_protobuf(raw)
        return _by_stage(stage, named)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    # A damaged file or one of another kind fails anywhere in parsing, with any of these.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no strategy file: {error}", hint="copy it again from the run that trained"
        ) from error


def _by_stage(stage: int, named: Mapping[str, Layout]) -> Stages:
    found: Stages = {}
    for name, layout in named.items():
        staged = _STAGED.fullmatch(name)
        number, parameter = (int(staged[1]), staged[2]) if staged else (stage, name)
        found.setdefault(number, {})[parameter] = _checked(parameter, layout)
    if not found:
        raise ValueError("it holds no layouts")
    return found


def _checked(name: str, layout: Layout) -> Layout:
    # Checked once here, so that the arithmetic of layout.py can index without bounds checks.
    axes = len(layout.device_matrix)
    if not axes or min(layout.device_matrix) < 1 or layout.num_devices > _MAX_DEVICES:
        raise ValueError(f"{name}: device matrix {list(layout.device_matrix)}")
    used = [dim for dims in layout.tensor_map for dim in dims]
    # A device axis cuts at most one axis of a tensor.
    if any(not 0 <= dim < axes for dim in used) or len(used) != len(set(used)):
        raise ValueError(f"{name}: tensor map {layout.tensor_map} over {axes} device axes")
    slices = layout.cuts()[0] if layout.tensor_map else 1
    if layout.split_rows and (len(layout.split_rows) != slices or min(layout.split_rows) < 1):
        raise ValueError(f"{name}: param_split_shape {list(layout.split_rows)} for {slices} slices")
    if layout.opt_size < -1 or layout.opt_step < 0 or layout.field < 0:
        raise ValueError(f"{name}: opt_weight_shard_size {layout.opt_size}, field {layout.field}")
    return layout


# ------------------------------------------------------------------------------------------------ protobuf


def _read_protobuf(raw: bytes) -> tuple[int, dict[str, Layout]]:
    stage, named = 0, {}
    for number, value in fields(raw):
        if number == 2:
            stage = _stage(_message(value))
        elif number == 3:
            item = dict(fields(_message(value)))
            named[_message(item[1]).decode("utf-8")] = _layout(_message(item[2]))
    return stage, named


def _stage(item: bytes) -> int:
    """Return ParallelStrategyItem.parallel_strategys.stage, the stage that the operators of this file run in."""
    strategies = dict(fields(item)).get(2, b"")
    stage = dict(fields(_message(strategies))).get(1, 0)
    if not isinstance(stage, int):
        raise WireError("a stage that is no number")
    return stage


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise WireError("a number where a message is due")
    return value


def _layout(raw: bytes) -> Layout:
    lists: dict[int, list[list[int]]] = {1: [], 2: [], 3: [], 4: []}
    numbers = {5: 0, 6: 0, 7: 0}
    for number, value in fields(raw):
        if number in lists:
            lists[number].append(_dims(_message(value)))
        elif number in numbers and isinstance(value, int):
            numbers[number] = signed(value)
    maps = lists[2]
    # One message lists one device axis per tensor axis; several list the device axes of one tensor axis each.
    nested: list[Any] = maps if len(maps) > 1 else (maps[0] if maps else [])
    return Layout(
        device_matrix=tuple(_first(lists[1])),
        tensor_map=_tensor_map(nested),
        split_rows=tuple(_first(lists[3])),
        indices_offset=tuple(_first(lists[4])),
        field=numbers[5],
        opt_step=numbers[6],
        opt_size=numbers[7],
    )


def _first(lists: list[list[int]]) -> list[int]:
    return lists[0] if lists else []


def _dims(message: bytes) -> list[int]:
    return list(_numbers(message))


def _numbers(message: bytes) -> Iterator[int]:
    for number, value in fields(message):
        # Protobuf writers may pack repeated numbers or write them one by one; readers have to take both.
        if number == 1 and isinstance(value, int):
            yield signed(value)
        elif number == 1 and isinstance(value, bytes):
            yield from _packed(value)


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = read_varint(data, at)
        yield signed(value)


def _tensor_map(dims: list[Any]) -> tuple[tuple[int, ...], ...]:
    each = (dim if isinstance(dim, list) else [dim] for dim in dims)
    # MindSpore writes -1 for an axis that no device axis cuts.
    return tuple(tuple(number for number in axis if number != -1) for axis in each)


def write_strategy(stage: int, layouts: Mapping[str, Layout]) -> bytes:
    """Return the bytes of a protobuf strategy file of one stage, as a semi-auto run writes it."""
    strategies = _varint_field(1, stage) + _message_field(2, _list_message((1,)))
    # MindSpore's merge_pipeline_strategys and ``_stage`` take the stage from the first operator: one is needed.
    operator = _message_field(1, b"Default/launcher") + _message_field(2, strategies)
    items = [_varint_field(1, stage), _message_field(2, operator)]
    for name, layout in layouts.items():
        items.append(_message_field(3, _message_field(1, name.encode()) + _message_field(2, _layout_message(layout))))
    return b"".join(items)


def _layout_message(layout: Layout) -> bytes:
    # One message unless an axis is cut by several device axes, as ``_layout`` reads it.
    flat = all(len(axis) < 2 for axis in layout.tensor_map)
    maps = [[axis[0] if axis else -1 for axis in layout.tensor_map]] if flat else []
    nested = [list(axis) or [-1] for axis in layout.tensor_map] if not flat else []
    return b"".join(
        (
            _message_field(1, _list_message(layout.device_matrix)),
            *(_message_field(2, _list_message(dims)) for dims in (*maps, *nested)),
            _message_field(3, _list_message(layout.split_rows)),
            _message_field(4, _list_message(layout.indices_offset)),
            _varint_field(5, layout.field),
            _varint_field(6, layout.opt_step),
            _varint_field(7, layout.opt_size),
        )
    )


def _list_message(numbers: tuple[int, ...] | list[int]) -> bytes:
    return b"".join(_varint_field(1, number) for number in numbers)


def _varint_field(number: int, value: int) -> bytes:
    return varint(tag(number, 0)) + varint(value)


def _message_field(number: int, content: bytes) -> bytes:
    return varint(tag(number, BYTES)) + varint(len(content)) + content


# ------------------------------------------------------------------------------------------------ JSON


def _read_json(raw: bytes) -> tuple[int, dict[str, Layout]]:
    document = json.loads(raw)
    operators = document.get("parallel_strategy_item") or {}
    stage = next((int(item.get("stage", 0)) for item in operators.values()), 0)
    items = document.get("parallel_layout_item") or {}
    return stage, {name: _json_layout(item) for name, item in items.items()}


def _read_head(path: Path) -> Any:
    """Read the first value of a metadata.json, and nothing after it."""
    with path.open("rb") as file:
        text = file.read(_METADATA_BYTES).decode("utf-8", "ignore")  # it may end within a character
    begins = _METADATA_HEAD.match(text)
    if begins is None:
        raise ValueError("it does not begin with state_dict_metadata")
    return json.JSONDecoder().raw_decode(text, begins.end())[0]


def _listed(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Layout]]:
    """Yield the layouts in a metadata.json of MindFormers (use_legacy_format: False), names with their stage in front.

    mindformers 1.9.0, checkpoint/metadata.py (save_metadata); a layout's tensor_map counts as that of a strategy file.
    """
    for name, item in parameters.items():
        layout = item["layout"]
        if layout["interleaved_parallel"]:
            raise ValueError(f"{name} is cut for interleaved parallel")
        ranks = _ints(layout["rank_list"])
        made = Layout(
            device_matrix=_ints(layout["device_matrix"]),
            tensor_map=tuple(_ints(axis) for axis in _tensor_map(layout["tensor_map"])),
        )
        if not ranks or ranks != tuple(range(ranks[0], ranks[0] + made.num_devices)) or ranks[0] % len(ranks):
            raise ValueError(f"{name} is on ranks {list(ranks)[:8]}, which are no pipeline stage")
        yield f"{ranks[0] // len(ranks)}-{name}", made


def _json_layout(item: Mapping[str, Any]) -> Layout:
    return Layout(
        device_matrix=_ints(item["dev_matrix"]),
        tensor_map=tuple(_ints(axis) for axis in _tensor_map(item["tensor_map"])),
        split_rows=_ints(item.get("param_split_shape", [])),
        indices_offset=_ints(item.get("indices_offset", [])),
        field=int(item.get("field", 0)),
        opt_step=int(item.get("opt_weight_shard_step", 0)),
        opt_size=int(item.get("opt_weight_shard_size", 0)),
    )


def _ints(values: Any) -> tuple[int, ...]:
    # Not isinstance: a bool is an int too, but no number of this format.
    if not all(type(value) is int for value in values):
        raise TypeError(f"{values!r} are not whole numbers")
    return tuple(values)
