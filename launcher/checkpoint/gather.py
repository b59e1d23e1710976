"""Map the shards of one step to whole tensors: each part to a slice of a rank.

Only the ranks that are needed are opened: one of 128 data-parallel copies, and a few more for comparison.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from launcher.checkpoint.entries import MAX_DIMS, Entry
from launcher.checkpoint.layout import Box, LayoutError, Shape, boxes, positions, whole_shape
from launcher.checkpoint.strategy import Layout, Stages, read_strategy
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Piece, Whole
from launcher.errors import CheckpointError
from launcher.models import names


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The ranks that hold the same slice of ``name``; the first rank's copy is merged."""

    name: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The tensors of a step, its replicated slices, and the strategy files that were read."""

    tensors: Mapping[str, Whole]
    copies: tuple[Copies, ...]
    num_stages: int
    strategies: tuple[Path, ...]


class OpenShards:
    """The files of one step, opened on demand; use it in a ``with`` statement."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._stack = ExitStack()
        self._files: dict[int, TensorFile] = {}
        _allow_open_files(len(paths))

    def __enter__(self) -> OpenShards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def __getitem__(self, rank: int) -> TensorFile:
        """Return the file of ``rank``. Raises CheckpointError as TensorFile does."""
        if rank not in self._files:
            self._files[rank] = self._stack.enter_context(TensorFile(self.paths[rank]))
        return self._files[rank]

    def entries(self, rank: int) -> Mapping[str, Entry]:
        """Return the entries of the file of ``rank``, which is not kept open for that."""
        if rank in self._files:
            return self._files[rank].entries
        with TensorFile(self.paths[rank]) as file:
            return file.entries

    @property
    def opened(self) -> dict[int, TensorFile]:
        """The files opened so far, by rank."""
        return dict(sorted(self._files.items()))


def _allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One file per rank exceeds the usual soft limit of 1024; the rest is for everything else that is open.
    wanted = count + 256
    if soft < wanted:
        # Not every rank's file has to be opened: without the permission, try with the limit there is.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))


def read_stages(paths: Sequence[Path], num_ranks: int) -> Stages:
    """Read the layouts of all stages. ``paths``: one strategy file per rank, or one file of all stages.

    Raises CheckpointError when the strategies are not of ``num_ranks`` ranks.
    """
    stages = read_strategy(paths[0])
    per_stage = _devices(paths[0], stages)
    if len(paths) > 1:
        # All ranks of a stage write the same strategy, so the file of each stage's first rank is enough.
        found = {number: read_strategy(paths[rank]) for number, rank in enumerate(range(0, num_ranks, per_stage))}
        # A file names its stage only when it lists operators; which ranks it is of says it always.
        stages = {number: stage.get(number) or next(iter(stage.values())) for number, stage in found.items()}
    if len(stages) * per_stage != num_ranks or sorted(stages) != list(range(len(stages))):
        raise CheckpointError(
            f"{paths[0].parent} is of {len(stages)} stage(s) with {per_stage} rank(s) each, "
            f"the checkpoints are of {num_ranks} ranks",
            hint="give the strategy files of the run that wrote these checkpoints",
        )
    return stages


def _devices(path: Path, stages: Stages) -> int:
    found = {layout.num_devices for layouts in stages.values() for layout in layouts.values()}
    if len(found) != 1:
        raise CheckpointError(f"{path} mixes stages of {sorted(found)} devices", hint="copy it again")
    return found.pop()


def gather(shards: OpenShards, strategies: Sequence[Path]) -> Gathered:
    """Return the whole tensors of the step in ``shards``. Without ``strategies`` every rank holds everything.

    Raises CheckpointError when the strategy does not fit the files or a slice is on no rank.
    """
    num_ranks = len(shards.paths)
    stages: Stages = read_stages(strategies, num_ranks) if strategies else {0: {}}
    read = strategies[:: num_ranks // len(stages)] if len(strategies) > 1 else strategies
    per_stage = num_ranks // len(stages)
    tensors: dict[str, Whole] = {}
    copies: list[Copies] = []
    for stage, layouts in stages.items():
        for whole, same in _Stage(shards, stage * per_stage, per_stage, layouts).gather():
            # Counters and a tied embedding are in several stages: the first one is merged, the others are compared.
            known = tensors.setdefault(whole.name, whole)
            if known.shape != whole.shape or known.dtype != whole.dtype:
                raise CheckpointError(
                    f"{whole.name} is {known.dtype}{list(known.shape)} in stage 0 and "
                    f"{whole.dtype}{list(whole.shape)} in stage {stage}",
                    hint="these are not the shards of one run",
                )
            if known is not whole and len(known.pieces) == len(whole.pieces):
                copies += _across_stages(shards, known, whole)
            copies += same
    return Gathered(tensors=tensors, copies=tuple(copies), num_stages=len(stages), strategies=tuple(read))


def _across_stages(shards: OpenShards, known: Whole, other: Whole) -> list[Copies]:
    """Return the copies of a tensor that two pipeline stages hold (counters, a tied embedding), piece by piece."""
    rank_of = {id(file): rank for rank, file in shards.opened.items()}
    pairs = zip(known.pieces, other.pieces, strict=True)
    return [
        Copies(name=known.name, ranks=(rank_of[id(one.file)], rank_of[id(two.file)]))
        for one, two in pairs
        if one.box == two.box
    ]


class _Stage:
    """The ranks of one pipeline stage: ``size`` ranks starting at ``first``."""

    def __init__(self, shards: OpenShards, first: int, size: int, layouts: Mapping[str, Layout]) -> None:
        self._shards = shards
        self._first = first
        self._size = size
        self._layouts = layouts
        self._everywhere = [
            Layout(device_matrix=(size,), tensor_map=tuple(() for _ in range(axes))) for axes in range(MAX_DIMS + 1)
        ]

    def gather(self) -> list[tuple[Whole, list[Copies]]]:
        return [self._whole(name, entry) for name, entry in self._entries().items()]

    def _entries(self) -> dict[str, Entry]:
        """Return each tensor of the stage as some rank holds it: MindSpore may have kept each on one rank only."""
        found = dict(self._shards[self._first].entries)
        if not self._knows_all(found):
            for rank in range(self._first + 1, self._first + self._size):
                for name, entry in self._shards.entries(rank).items():
                    found.setdefault(name, entry)
        return found

    def _knows_all(self, found: Mapping[str, Entry]) -> bool:
        """Return whether the strategy lists every weight in ``found`` and the first rank holds all that it lists."""
        weights = {name for name in found if names.is_weight(name)}
        return bool(self._layouts) and self._layouts.keys() <= found.keys() and weights <= self._layouts.keys()

    def _whole(self, name: str, entry: Entry) -> tuple[Whole, list[Copies]]:
        # No layout (a counter, or no strategy files): every rank of the stage holds the whole tensor.
        layout = self._layouts.get(name) or self._everywhere[len(entry.shape)]
        try:
            shape = whole_shape(layout, entry.shape)
            placement = _placement(layout, shape, self._first)
        except LayoutError as error:
            raise CheckpointError(
                f"the strategy does not fit {self._shards.paths[self._first]}: {name}: {error}",
                hint="give the strategy files of the run that wrote these checkpoints",
            ) from error
        holders = [self._holder(name, part.ranks) for part in placement.parts]
        found = [self._checked(name, *pair, entry) for pair in zip(holders, placement.parts, strict=True)]
        pieces = tuple(Piece(file=found[at][0], entry=found[at][1], box=box) for at, box in placement.boxes)
        copies = [
            Copies(name=name, ranks=_from(holder, part.ranks))
            for holder, part in zip(holders, placement.parts, strict=True)
            if len(part.ranks) > 1
        ]
        return Whole(name=name, dtype=entry.dtype, shape=shape, pieces=pieces), copies

    def _holder(self, name: str, ranks: Iterable[int]) -> int:
        """Return the first of ``ranks`` that has ``name``: MindSpore may have removed redundant copies."""
        for rank in ranks:
            if name in self._shards[rank].entries:
                return rank
        raise CheckpointError(
            f"a slice of {name} is on none of the ranks {', '.join(map(str, ranks))}",
            hint="copy those ranks' files again from the hosts that wrote them",
        )

    def _checked(self, name: str, rank: int, part: _Part, like: Entry) -> tuple[TensorFile, Entry]:
        """Return the file and the entry of the slice of ``name`` that ``rank`` holds."""
        file = self._shards[rank]
        entry = file.entries[name]
        if entry.shape != part.shape or entry.dtype != like.dtype:
            raise CheckpointError(
                f"{file.path}: {name} is {entry.dtype}{list(entry.shape)}, "
                f"the other ranks and the strategy say {like.dtype}{list(part.shape)}",
                hint="give the strategy files of the run that wrote these checkpoints",
            )
        return file, entry


def _from(holder: int, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``ranks`` with ``holder`` in front."""
    return ranks if ranks[0] == holder else (holder, *(rank for rank in ranks if rank != holder))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A slice, of ``shape``, and the ranks that hold it."""

    ranks: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """The slices of a tensor, and its boxes in order of their first row: (number of the slice, box)."""

    parts: tuple[_Part, ...]
    boxes: tuple[tuple[int, Box], ...]


@functools.lru_cache(maxsize=256)
def _placement(layout: Layout, shape: Shape, first: int) -> _Placement:
    """Return where the ranks from ``first`` on have a tensor of ``shape``. Raises LayoutError as ``boxes`` does.

    Cached, because all layers have the same.
    """
    groups = _same_slice(layout, first)
    placed = [boxes(layout, ranks[0] - first, shape) for ranks in groups]
    parts = (_Part(ranks=ranks, shape=_held(some)) for ranks, some in zip(groups, placed, strict=True))
    # As Whole requires: a block then meets its pieces in the order of the new file.
    in_order = sorted(((at, box) for at, some in enumerate(placed) for box in some), key=lambda pair: pair[1].start)
    return _Placement(parts=tuple(parts), boxes=tuple(in_order))


def _held(placed: Sequence[Box]) -> Shape:
    size = placed[0].size
    # With ``field`` a slice consists of several boxes, one after another along axis 0.
    return (sum(box.size[0] for box in placed), *size[1:]) if size else ()


def _same_slice(layout: Layout, first: int) -> list[tuple[int, ...]]:
    """Return groups of ranks that hold the same slice; with ``field`` every device has its own."""
    groups: dict[object, list[int]] = {}
    for device, position in enumerate(positions(layout)):
        groups.setdefault(device if layout.field else position, []).append(first + device)
    return [tuple(ranks) for ranks in groups.values()]


def single_file(file: TensorFile) -> dict[str, Whole]:
    """Return the tensors of an unsharded file."""
    return {
        name: Whole(
            name=name,
            dtype=entry.dtype,
            shape=entry.shape,
            pieces=(Piece(file=file, entry=entry, box=Box(start=tuple(0 for _ in entry.shape), size=entry.shape)),),
        )
        for name, entry in file.entries.items()
    }
