"""Find the shards in a folder, their steps, and the complete steps, from file names alone; nothing is opened.

A folder holds ``rank_<R>/`` folders, or ``checkpoint/rank_<R>/`` beside ``strategy/`` and ``adapter_config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.entries import SUFFIXES
from launcher.checkpoint.strategy import METADATA
from launcher.common.nearest import path_hint
from launcher.common.ranges import spans
from launcher.errors import CheckpointError

# mindformers 1.9.0, core/callback: PREFIX_rank_R-EPOCH_STEP, STEP counting within the epoch, from 1.
_FILE = re.compile(r"(?P<prefix>.+?)(?:-(?P<epoch>\d{1,9})_(?P<step>\d{1,9}))?")
_RANK = re.compile(r"rank_(0|[1-9]\d{0,5})")
_RANK_IN_NAME = re.compile(r"(?:.*[-_.])?rank_(\d{1,6})(?!\d)")
# mindformers 1.9.0, checkpoint/utils.py: a folder a step, in it PREFIX-model-RANK-RANKS beside the optimizer's files.
_ITERATION = re.compile(r"iteration_(\d{8,9})")
_MODEL_FILE = re.compile(r"(?:.+-)?model-(\d{7})-(\d{7})\.safetensors")
_STRATEGY = re.compile(r".*rank_(\d{1,6})\.(?:ckpt|json)")

Moment = tuple[int, int]
# Files whose names say no moment, as MindSpore's own slicer writes them: older than any that do.
UNNUMBERED: Moment = (-1, -1)

FULL, TRAINABLE = "checkpoint", "checkpoint_trainable"


def moment_text(moment: Moment) -> str:
    """Return ``moment`` as in file names: EPOCH_STEP."""
    return "unnumbered" if moment == UNNUMBERED else f"{moment[0]}_{moment[1]}"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The shards of a folder. ``files``: by rank, then by moment. ``kind``: FULL, or TRAINABLE for adapters.

    listed: where every step has a folder of its own, and in it a list of slices in place of strategy files.
    """

    folder: Path
    kind: str
    files: tuple[Mapping[Moment, Path], ...]
    strategies: tuple[Path, ...]
    adapter_config: Path | None
    listed: bool = False

    def strategies_at(self, moment: Moment) -> tuple[Path, ...]:
        """Return what says how the tensors of ``moment`` are cut. Raises CheckpointError when it was not saved."""
        if not self.listed or self.num_ranks == 1:
            return self.strategies
        path = self.files[0][moment].with_name(METADATA)
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: nothing says how {self.num_ranks} ranks share the weights",
                hint="copy it from the host of rank 0, or merge another --step",
            )
        return (path,)

    @property
    def num_ranks(self) -> int:
        return len(self.files)

    def moments(self) -> list[Moment]:
        """Return the moments that any rank saved, oldest first: by number, never by name."""
        return sorted(set().union(*self.files))

    def missing(self, moment: Moment) -> list[int]:
        """Return the ranks that have no file of ``moment``."""
        return [rank for rank, files in enumerate(self.files) if moment not in files]

    def complete(self) -> list[Moment]:
        """Return the moments that all ranks saved, oldest first. Raises CheckpointError when there is none."""
        found = [moment for moment in self.moments() if not self.missing(moment)]
        if found:
            return found
        rows = [f"  rank {rank}: {_listed(files)}" for rank, files in enumerate(self.files)]
        shown = rows[:16] + ([f"  ... and {len(rows) - 16} more ranks"] if len(rows) > 16 else [])
        raise CheckpointError(
            "\n".join(
                [f"no step in {self.folder} is complete on all {self.num_ranks} ranks (saved, epoch_step):", *shown]
            ),
            hint="copy the missing ranks' files from the hosts that wrote them",
        )

    def at(self, moment: Moment) -> tuple[Path, ...]:
        """Return one file of ``moment`` per rank. Raises CheckpointError when formats are mixed or a rank has none."""
        if self.missing(moment):
            raise CheckpointError(
                f"{moment_text(moment)} is not complete: missing on {ranks_text(self.missing(moment))}",
                hint="copy those ranks' files from the hosts that wrote them, or merge another --step",
            )
        paths = tuple(files[moment] for files in self.files)
        odd = next((path for path in paths if path.suffix != paths[0].suffix), None)
        if odd:
            raise CheckpointError(f"mixed formats: {paths[0]} and {odd}", hint="move the files of one format away")
        return paths


def _listed(files: Mapping[Moment, Path]) -> str:
    return ", ".join(moment_text(moment) for moment in sorted(files)) or "nothing"


def ranks_text(ranks: Sequence[int]) -> str:
    """Return ``ranks`` for a sentence: "rank 3", "ranks 1-2, 7"."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {spans(ranks)}"


def find_shards(folder: Path, *, strategy: Path | None = None, num_ranks: int | None = None) -> Shards:
    """Find the shards in ``folder``. ``num_ranks``: the number of ranks that wrote it, when known.

    Raises CheckpointError when there are no shards, a rank is missing, or a folder holds files of two runs.
    """
    try:
        return _find_shards(folder, strategy, num_ranks)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {error.filename}: {error.strerror}", hint="check its permissions"
        ) from error


def _find_shards(folder: Path, strategy: Path | None, num_ranks: int | None) -> Shards:
    if not folder.is_dir():
        hint = path_hint(folder, "give a job, or a folder that holds rank_<R> folders")
        raise CheckpointError(f"no folder {folder}", hint=hint)
    iterations = _iterations(folder)
    if iterations:
        return _of_iterations(folder, iterations, num_ranks)
    root, kind, found = _rank_folders(folder)
    # Without num_ranks, missing last ranks do not show here; read_stages compares the count with the strategy's.
    count = num_ranks or max(found) + 1
    absent = [rank for rank in range(count) if rank not in found]
    if absent:
        raise CheckpointError(
            f"{root} has {len(found)} of {count} ranks: {ranks_text(absent)} missing",
            hint="copy their folders from the hosts that wrote them",
        )
    if max(found) >= count:
        raise CheckpointError(f"{root} has a rank {max(found)}, the job had {count}", hint="move what is not its away")
    return Shards(
        folder=folder,
        kind=kind,
        files=tuple(_saved(found[rank], rank) for rank in range(count)),
        strategies=_strategies(folder, root, strategy, count),
        adapter_config=_adapter_config(folder, root),
    )


def _iterations(folder: Path) -> dict[int, Path]:
    """Return the folders of steps as MindFormers leaves them with ``use_legacy_format: False``, by step."""
    for root in (folder / FULL, folder):
        found = {int(match[1]): path for path in _folders(root) if (match := _ITERATION.fullmatch(path.name))}
        if found:
            return found
    return {}


def _of_iterations(folder: Path, iterations: Mapping[int, Path], num_ranks: int | None) -> Shards:
    files: dict[int, dict[Moment, Path]] = {}
    for step, place in sorted(iterations.items()):
        for path in sorted(place.iterdir()):
            match = _MODEL_FILE.fullmatch(path.name)
            if match is None:
                continue
            rank, num_ranks = int(match[1]), num_ranks or int(match[2])
            if int(match[2]) != num_ranks or rank >= num_ranks or (1, step) in files.get(rank, {}):
                raise CheckpointError(
                    f"{path} is of {int(match[2])} ranks, or one of two of its rank, among those of {num_ranks}",
                    hint="move what is of another run away",
                )
            files.setdefault(rank, {})[1, step] = path
    if not files:
        raise CheckpointError(f"{folder} holds no checkpoint: its steps are empty", hint="give another folder")
    return Shards(
        folder=folder,
        kind=FULL,
        files=tuple(files.get(rank, {}) for rank in range(num_ranks or 0)),
        strategies=(),
        adapter_config=_adapter_config(folder, next(iter(iterations.values())).parent),
        listed=True,
    )


def _rank_folders(folder: Path) -> tuple[Path, str, dict[int, Path]]:
    # Full checkpoints go first: they need no base.
    for root in (folder / FULL, folder, folder / TRAINABLE):
        found = {int(match[1]): path for path in _folders(root) if (match := _RANK.fullmatch(path.name))}
        if found:
            return root, TRAINABLE if root.name == TRAINABLE else FULL, found
    is_job = (folder / "job.json").is_file()
    raise CheckpointError(
        f"{folder} holds no checkpoint: there is no rank_<R> folder in it, nor in its checkpoint/",
        hint=f"the job has saved no step yet: launcher status {folder.name}"
        if is_job
        else "give a job, or a folder that holds rank_0, rank_1, ...",
    )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _saved(folder: Path, rank: int) -> dict[Moment, Path]:
    found: dict[Moment, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.stem) if path.suffix in SUFFIXES else None
        if match is None or not path.is_file():
            continue
        _check_rank(path, rank)
        moment = (int(match["epoch"]), int(match["step"])) if match["epoch"] else UNNUMBERED
        # Two prefixes are two runs in one folder: either choice would be a guess.
        if moment in found:
            raise CheckpointError(
                f"two files of the same step: {found[moment]} and {path.name}", hint="move one of them away"
            )
        found[moment] = path
    return found


def _check_rank(path: Path, rank: int) -> None:
    """Raise CheckpointError when a file's name has another rank than its folder."""
    match = _RANK_IN_NAME.match(path.stem)
    if match and int(match[1]) != rank:
        raise CheckpointError(
            f"{path} is a file of rank {int(match[1])} in the folder of rank {rank}",
            hint="put each rank's own files into its folder",
        )


def _strategies(folder: Path, root: Path, given: Path | None, count: int) -> tuple[Path, ...]:
    """Return one strategy file per rank, or the one file of all stages, or none."""
    if given is not None and given.is_file():
        return (given,)
    places = (given,) if given else (folder / "strategy", root.parent / "strategy")
    files = next((found for place in places if (found := _strategy_files(place))), [])
    if given and not files:
        raise CheckpointError(f"no strategy file in {given}", hint="give a .ckpt or .json file, or their folder")
    numbered = {int(match[1]): path for path in files if (match := _STRATEGY.fullmatch(path.name))}
    if not numbered:
        if len(files) > 1:
            raise CheckpointError(f"which strategy file: {', '.join(map(str, files))}?", hint="give one as --strategy")
        return tuple(files)
    # Ordered by number below, because by name rank_10 precedes rank_2.
    if sorted(numbered) != list(range(count)):
        raise CheckpointError(
            f"there are strategy files of {len(numbered)} ranks (the last is {max(numbered)}), "
            f"checkpoints of {count} ranks (the last is {count - 1})",
            hint="copy what is missing from the hosts that wrote it",
        )
    return tuple(numbered[rank] for rank in range(count))


def _strategy_files(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if path.suffix in (".ckpt", ".json") and path.is_file())


def _adapter_config(folder: Path, root: Path) -> Path | None:
    places = (folder, root, root.parent)
    return next((path for place in places if (path := place / "adapter_config.json").is_file()), None)
