"""Map the slices of a parameter to boxes of the whole tensor, and back: pure arithmetic, no files."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from launcher.checkpoint.strategy import Layout

Shape = tuple[int, ...]


class LayoutError(ValueError):
    """A layout that does not fit the shape of a tensor or of a slice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """``size`` elements along each axis of the whole tensor from ``start`` on; begins at row ``row`` of the slice."""

    start: Shape
    size: Shape
    row: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """The part of a tensor that a device holds: its index along each axis, and among the optimizer's cuts of axis 0."""

    index: Shape
    opt_index: int


@functools.lru_cache(maxsize=1024)
def positions(layout: Layout) -> tuple[Position, ...]:
    """Return the position of every device of the stage, by device number. Raises LayoutError for impossible cuts."""
    opt_size = optimizer_cuts(layout)
    # tensor_map counts device axes from the innermost: reversed, its numbers are indexes.
    cut = {dim for dims in layout.tensor_map for dim in dims}
    radix = layout.device_matrix[::-1]
    found = []
    for device in range(layout.num_devices):
        digits = _digits(device, radix)
        index = tuple(_compose(dims, digits, radix) for dims in layout.tensor_map)
        # Outermost axis first: opt_size consecutive replicas then hold all of the optimizer's cuts.
        replicas = tuple(dim for dim in reversed(range(len(radix))) if dim not in cut)
        found.append(Position(index=index, opt_index=_compose(replicas, digits, radix) % opt_size))
    return tuple(found)


def _digits(device: int, radix: Shape) -> Shape:
    digits = []
    for size in radix:
        device, digit = divmod(device, size)
        digits.append(digit)
    return tuple(digits)


def _compose(dims: Shape, digits: Shape, radix: Shape) -> int:
    index = 0
    for dim in dims:
        index = index * radix[dim] + digits[dim]
    return index


def optimizer_cuts(layout: Layout) -> int:
    """Return how many parts optimizer parallel cuts axis 0 of a slice into; 1 for none. Raises LayoutError."""
    if layout.opt_step == 0 or layout.opt_size == 0:
        return 1
    replicas = layout.num_devices // math.prod(layout.cuts())
    size = replicas if layout.opt_size == -1 else layout.opt_size
    if size < 1 or replicas % size:
        raise LayoutError(f"opt_weight_shard_size {size} among {replicas} replicas")
    _check_step(layout)
    return size


def _check_step(layout: Layout) -> None:
    """Check opt_step: with one replicated device axis it is the distance of neighbours on it (parallel/_tensor.py)."""
    cut = {dim for dims in layout.tensor_map for dim in dims}
    radix = layout.device_matrix[::-1]
    repeated = [dim for dim, size in enumerate(radix) if dim not in cut and size > 1]
    if len(repeated) == 1 and math.prod(radix[: repeated[0]]) != layout.opt_step:
        raise LayoutError(
            f"opt_weight_shard_step {layout.opt_step}: neighbours are {math.prod(radix[: repeated[0]])} apart"
        )


def whole_shape(layout: Layout, slice_shape: Shape) -> Shape:
    """Return the shape of the tensor whose slices have ``slice_shape``. Raises LayoutError when they do not fit."""
    if len(layout.tensor_map) != len(slice_shape):
        raise LayoutError(f"{len(layout.tensor_map)} axes in the strategy, {len(slice_shape)} in the file")
    if not slice_shape:
        return ()
    cuts = list(layout.cuts())
    cuts[0] *= optimizer_cuts(layout)
    shape = [size * cut for size, cut in zip(slice_shape, cuts, strict=True)]
    if layout.field:
        shape[0] = slice_shape[0] * layout.num_devices
    elif layout.split_rows:
        shape[0] = sum(layout.split_rows)
    return tuple(shape)


def slice_shape(layout: Layout, shape: Shape, device: int) -> Shape:
    """Return the shape of ``device``'s slice of a tensor of ``shape``. Raises LayoutError for an impossible cut."""
    if len(layout.tensor_map) != len(shape):
        raise LayoutError(f"{len(layout.tensor_map)} axes in the strategy, {len(shape)} in the tensor")
    if not shape:
        return ()
    cuts = list(layout.cuts())
    cuts[0] *= optimizer_cuts(layout)
    if layout.split_rows:
        return layout.split_rows[positions(layout)[device].index[0]], *shape[1:]
    # With ``field`` all devices share the rows, whatever the tensor map says.
    if layout.field:
        cuts = [layout.num_devices, *[1] * (len(shape) - 1)]
    if any(size % cut for size, cut in zip(shape, cuts, strict=True)):
        raise LayoutError(f"shape {list(shape)} cannot be cut into {cuts}")
    return tuple(size // cut for size, cut in zip(shape, cuts, strict=True))


@functools.lru_cache(maxsize=1 << 16)
def boxes(layout: Layout, device: int, shape: Shape) -> tuple[Box, ...]:
    """Return the boxes of ``device``'s slice in the whole tensor of ``shape``. Raises LayoutError as slice_shape does.

    Cached, because all layers have the same boxes.
    """
    size = slice_shape(layout, shape, device)
    if not shape:
        return (Box(start=(), size=()),)
    if layout.field:
        return _field_boxes(layout, device, size)
    position = positions(layout)[device]
    start = [index * extent for index, extent in zip(position.index, size, strict=True)]
    # The optimizer cuts what the tensor map has left: its index is the inner one.
    start[0] = (position.index[0] * optimizer_cuts(layout) + position.opt_index) * size[0]
    if layout.split_rows:
        start[0] = sum(layout.split_rows[: position.index[0]])
    return (Box(start=tuple(start), size=size),)


def _field_boxes(layout: Layout, device: int, size: Shape) -> tuple[Box, ...]:
    """Return a box per group: each of ``field`` groups of rows holds the devices' shares one after another.

    As in MindSpore's _reshape_param_data_with_weight.
    """
    share = size[0] // layout.field
    if share * layout.field != size[0]:
        raise LayoutError(f"{size[0]} rows in {layout.field} fields")
    tail = tuple(0 for _ in size[1:])
    return tuple(
        Box(
            start=((group * layout.num_devices + device) * share, *tail),
            size=(share, *size[1:]),
            row=group * share,
        )
        for group in range(layout.field)
    )
