"""Choose the step to merge: the newest by number that every rank saved, or the requested one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.checkpoint.entries import DamagedFile, damaged
from launcher.checkpoint.shards import TRAINABLE, UNNUMBERED, Moment, Shards, moment_text, ranks_text
from launcher.checkpoint.tensorfile import TensorFile, is_whole
from launcher.errors import CheckpointError
from launcher.models.names import GLOBAL_STEP

# Up to this many ranks are all asked for their step; of more as many, spread evenly, unless all are to be read.
_MAX_ASKED = 128
BY_TENSOR, BY_NAME, BY_FOLDER = GLOBAL_STEP, "file name", "folder name"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A newer moment that was skipped because ranks lack it or its files are damaged."""

    moment: Moment
    missing: tuple[int, ...] = ()
    damage: str = ""

    def __str__(self) -> str:
        if self.damage:
            return f"{moment_text(self.moment)}: {self.damage}"
        lack = "lacks" if len(self.missing) == 1 else "lack"
        return f"{moment_text(self.moment)}: {ranks_text(self.missing)} {lack} it"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A moment that all ranks saved.

    number: its step. said_by: BY_TENSOR or BY_FOLDER (counted over the whole run) or BY_NAME (counted within
    ``epoch``, for files without that tensor); None when nothing says. skipped: newer moments that are not complete,
    newest first.
    """

    moment: Moment
    number: int | None
    said_by: str | None
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        if self.number is None:
            return "an unnumbered step"
        if self.said_by in (BY_TENSOR, BY_FOLDER):
            return f"step {self.number}"
        epoch = f" of epoch {self.moment[0]}" if self.moment[0] > 1 else ""
        return f"step {self.number}{epoch} (by the file name: there is no {GLOBAL_STEP} in it)"


def choose_step(shards: Shards, wanted: int | Moment | None) -> Step:
    """Return the newest moment complete on all ranks, or the ``wanted`` one: a step, or a moment.

    Raises CheckpointError when there is none, or when file names leave open which epoch's step is meant.
    """
    complete = shards.complete()
    if wanted is None:
        return _described(shards, complete[-1], _incomplete(shards, complete[-1]))
    steps = [_described(shards, moment) for moment in complete]
    found = [step for step in steps if wanted in (step.number, step.moment)]
    if len(found) == 1:
        return found[0]
    text = moment_text(wanted) if isinstance(wanted, tuple) else wanted
    if found:
        moments = ", ".join(moment_text(step.moment) for step in found)
        raise CheckpointError(
            f"step {text} is in several epochs: {moments}", hint=f"give the epoch too: --step {moments.split(',')[0]}"
        )
    known = ", ".join(f"{'?' if step.number is None else step.number}" for step in steps)
    raise CheckpointError(
        f"step {text} is not complete in {shards.folder}; complete are {known}",
        hint="--list in place of --step shows them",
    )


def step_before(shards: Shards, step: Step, damage: str) -> Step | None:
    """Return the newest complete step before ``step``, skipped for its ``damage``; None when there is none."""
    older = [moment for moment in shards.complete() if moment < step.moment]
    if not older:
        return None
    between = (skipped for skipped in _incomplete(shards, older[-1]) if skipped.moment < step.moment)
    return _described(shards, older[-1], (*step.skipped, Skipped(moment=step.moment, damage=damage), *between))


def _incomplete(shards: Shards, oldest: Moment) -> tuple[Skipped, ...]:
    """Return the moments after ``oldest`` that some ranks lack, newest first."""
    found = (Skipped(moment=moment, missing=tuple(shards.missing(moment))) for moment in reversed(shards.moments()))
    return tuple(skipped for skipped in found if skipped.missing and skipped.moment > oldest)


def damaged_ranks(shards: Shards, moment: Moment) -> list[int]:
    """Return the ranks whose file of ``moment`` exists and is damaged."""
    return [rank for rank, files in enumerate(shards.files) if moment in files and not is_whole(files[moment])]


def list_steps(shards: Shards) -> list[Step]:
    """Return the moments that any rank saved, oldest first."""
    return [_described(shards, moment) for moment in shards.moments()]


def _described(shards: Shards, moment: Moment, skipped: tuple[Skipped, ...] = ()) -> Step:
    """Return ``moment`` with the step number from the first rank that stores it."""
    paths = [files[moment] for files in shards.files if moment in files]
    asked = paths[:1] if shards.kind == TRAINABLE else paths  # adapters alone have no such tensor on any rank
    number = next((number for path in asked if (number := _step_said(path)) is not None), None)
    if number is not None:
        return Step(moment=moment, number=number, said_by=BY_TENSOR, skipped=skipped)
    if moment == UNNUMBERED:
        return Step(moment=moment, number=None, said_by=None, skipped=skipped)
    return Step(moment=moment, number=moment[1], said_by=BY_FOLDER if shards.listed else BY_NAME, skipped=skipped)


def _step_said(path: Path) -> int | None:
    """Return the step number in ``path``; None for a damaged file."""
    try:
        return _step_at(path)
    except DamagedFile:
        return None


def _step_in(file: TensorFile) -> int | None:
    entry = file.entries.get(GLOBAL_STEP)
    if entry is None or not 0 < entry.nbytes <= 64:
        return None
    number = float(file.array(GLOBAL_STEP).reshape(-1)[0])
    if not math.isfinite(number):
        raise damaged(file.path, f"its {GLOBAL_STEP} is {number}")
    return int(number)


def _step_at(path: Path) -> int | None:
    with TensorFile(path) as file:
        return _step_in(file)


def check_steps(step: Step, paths: Sequence[Path], opened: Mapping[int, TensorFile], *, full: bool) -> Step:
    """Check that the ranks' files agree on the step; return ``step`` with their number.

    paths: one file per rank; a file without the step tensor does not count (redundancy may be removed). opened: files
    that are open already, all of which are asked. Raises CheckpointError when they disagree, DamagedFile when any is
    not whole.
    """
    count = len(paths)
    spread = range(count) if full or count <= _MAX_ASKED else range(0, count, -(-count // _MAX_ASKED))
    asked = sorted({*spread, *opened})
    # A resume takes no step of which any rank's file is damaged, so neither does a merge that needs only some of them.
    _check_whole(paths[rank] for rank in sorted({*range(count)}.difference(asked)))
    said = {rank: _step_in(opened[rank]) if rank in opened else _step_at(paths[rank]) for rank in asked}
    steps = {rank: number for rank, number in said.items() if number is not None}
    if len(set(steps.values())) > 1:
        raise CheckpointError(
            f"mixed steps in files of the same name: {_by_step(steps)}",
            hint="copy each rank's files again from its host",
        )
    return replace(step, number=next(iter(steps.values())), said_by=BY_TENSOR) if steps else step


def _check_whole(paths: Iterable[Path]) -> None:
    for path in paths:
        TensorFile(path).close()  # raises for what is_whole calls damaged


def _by_step(steps: Mapping[int, int]) -> str:
    groups: dict[int, list[int]] = {}
    for rank, step in steps.items():
        groups.setdefault(step, []).append(rank)
    return "; ".join(f"step {step} on {ranks_text(ranks)}" for step, ranks in groups.items())
