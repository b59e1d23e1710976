"""A merge divided among processes, or hosts that share a folder: each part writes some of the files of one result.

Nothing keeps the parts together but the folder TARGET.parts: plan.json says which merge it is, part-2-of-4.json that
a part is done, and result/ holds complete files only. Whichever part finds all others done adds the small files, the
index and merge.json last, and renames result/ to TARGET; when two do so at once, both write the same and one renames.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.checkpoint.compare import Identity
from launcher.checkpoint.huggingface import INDEX, read_json
from launcher.checkpoint.merge import (
    Clock,
    Merged,
    MergePlan,
    OnProgress,
    already_merged,
    compare_inputs,
    merged_by,
    record_of,
)
from launcher.checkpoint.record import MERGE_RECORD, differences, record_text
from launcher.checkpoint.stream import PlannedFile, write_file
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.verify import Verified, joined, verify_planned
from launcher.common.atomic import write_atomic
from launcher.common.folders import cannot_write, check_target, is_taken, only_writer, real_path, sync_file
from launcher.errors import CheckpointError, LauncherError, SpecError

_PLAN, _RESULT = "plan.json", "result"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part ``number`` of ``count``, counted from one."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def record_name(self) -> str:
        """The name of the file that says the part is done."""
        return f"part-{self.number}-of-{self.count}.json"


@dataclass(frozen=True, kw_only=True)
class PartMerged:
    """What one part did. written, kept: files it wrote now, and found written and verified. folded: tensors in them
    with LoRA folded in. missing: parts that are not done. merged: the whole result, once there is one."""

    part: Part
    target: Path
    written: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    folded: int = 0
    missing: tuple[Part, ...] = ()
    verified: Verified | None = None
    merged: Merged | None = None
    timings_s: Mapping[str, float]


def parts_folder(target: Path) -> Path:
    """Return the folder that the parts of ``target`` share until it is complete."""
    return target.with_name(f"{target.name}.parts")


def divide(files: Sequence[PlannedFile], count: int) -> list[list[PlannedFile]]:
    """Divide ``files`` among ``count`` parts of about as many bytes: the largest first, each to the smallest part.

    Raises SpecError when there are fewer files than parts.
    """
    if count > len(files):
        size = sum(file.bytes.size for file in files)
        raise SpecError(
            f"the result has {len(files)} file(s), which {count} parts cannot share",
            hint=f"--format hf --max-shard-size {max(1, size // count // 10**6)}MB makes more files, "
            "or take fewer parts",
        )
    parts: list[list[PlannedFile]] = [[] for _ in range(count)]
    sizes = [0] * count
    for file in sorted(files, key=lambda file: (-file.bytes.size, file.name)):
        least = sizes.index(min(sizes))
        parts[least].append(file)
        sizes[least] += file.bytes.size
    return parts


def merge_part(
    plan: MergePlan,
    target: Path,
    part: Part,
    *,
    on_begin: Callable[[], None] | None = None,
    on_progress: OnProgress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> PartMerged:
    """Write the files of ``part``, and complete the result in ``target`` when all other parts are done.

    Files of the part that are there already are verified and kept. Callbacks are as those of ``merge``.
    Raises CheckpointError as ``merge`` does, and when the other parts are of another merge; SpecError when there are
    fewer files than parts.
    """
    place = real_path(target)
    try:
        mine = divide(plan.files, part.count)[part.number - 1]
    except SpecError:
        if parts_folder(place).exists():
            _Work(plan, place, part, ()).agree()  # parts of another merge are why the files are not enough
        raise
    check_target(place, 0)
    with only_writer(place.with_name(f"{place.name}.part-{part.number}-of-{part.count}"), on_wait):
        work = _Work(plan, place, part, mine)
        try:
            return work.carry_out(on_begin, on_progress) if not is_taken(place) else work.found()
        except (LauncherError, OSError) as error:
            # Another part may have completed the result, and so taken away what this one was looking at.
            if is_taken(place):
                return work.found()
            raise error if isinstance(error, LauncherError) else cannot_write(place, error) from error


class _Work:
    """What one part does in the folder of all parts."""

    def __init__(self, plan: MergePlan, target: Path, part: Part, mine: Sequence[PlannedFile]) -> None:
        self._plan = plan
        self._target = target
        self._folder = parts_folder(target)
        self._part = part
        self._mine = mine
        self._identities: Mapping[TensorFile, Identity] = plan.identities()
        self._inputs = plan.inputs(self._identities)
        self._clock = Clock()

    def found(self) -> PartMerged:
        """Return the result that is there. Raises CheckpointError when it is of another merge."""
        merged = already_merged(self._plan, self._identities, self._inputs, self._target, force=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        return PartMerged(part=self._part, target=self._target, merged=merged, timings_s={})

    def carry_out(self, on_begin: Callable[[], None] | None, on_progress: OnProgress | None) -> PartMerged:
        self.agree()
        kept = self._kept()
        left = [file for file in self._mine if file.name not in kept]
        check_target(self._target, sum(file.bytes.size for file in left))
        if on_begin is not None and left:
            on_begin()
        verified = joined([*kept.values(), *self._write(left, on_progress)])
        if left or not self._record(self._part).is_file():
            said = {"files": [file.name for file in self._mine], "verified": asdict(verified)}
            write_atomic(self._record(self._part), record_text(said), parents=False)
        self._clock.lap("sync")
        missing = self._missing()
        if missing and is_taken(self._target):  # completed by another part, which took away what was looked at
            return self.found()
        return PartMerged(
            part=self._part,
            target=self._target,
            written=tuple(file.name for file in left),
            kept=tuple(kept),
            folded=sum(output.fold is not None for file in self._mine for output in file.outputs),
            missing=missing,
            verified=verified,
            merged=None if missing else self._complete(),
            timings_s=self._clock.laps_s,
        )

    def _record(self, part: Part) -> Path:
        return self._folder / part.record_name

    # -------------------------------------------------------------------------------------------- one plan for all

    def agree(self) -> None:
        """Begin the folder of all parts, or check that it is of this merge. Raises CheckpointError when it is not."""
        if not self._folder.exists():
            self._begin()
        record = self._agreed()
        found = differences(record, self._plan.recipe(), self._inputs, compared=False)
        if record.get("parts") != self._part.count:
            found = [f"{record.get('parts')} parts there, {self._part.count} here"]
        if found:
            raise CheckpointError(
                f"{self._folder} is of another merge: {'; '.join(found)}",
                hint="give every part the same options (--step N), or give another --output, "
                f"or begin anew: rm -r {self._folder}",
            )
        (self._folder / _RESULT).mkdir(exist_ok=True)

    def _begin(self) -> None:
        """Put the folder in place with its plan in it; the first of several parts wins."""
        scratch = self._folder.with_name(f".{self._folder.name}-{secrets.token_hex(4)}")
        said = {"parts": self._part.count, "recipe": self._plan.recipe(), "inputs": self._inputs}
        try:
            write_atomic(scratch / _PLAN, record_text(said))
            with suppress(OSError):  # there is one by now
                scratch.rename(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _agreed(self) -> dict[str, Any]:
        return read_json(self._folder / _PLAN, f"remove it (rm -r {self._folder}), or give another --output")

    # -------------------------------------------------------------------------------------------- own files

    def _kept(self) -> dict[str, Verified]:
        """Return the part's files that are there, as an earlier run of it left them, and are what they should be."""
        found = {}
        for file in self._mine:
            path = self._folder / _RESULT / file.name
            if path.is_file():
                with suppress(CheckpointError):  # damaged since: it is written again
                    found[file.name] = self._verified(path, file)
        return found

    def _verified(self, path: Path, file: PlannedFile) -> Verified:
        return verify_planned({path: file}, full=self._plan.options.verify_full)

    def _write(self, files: Sequence[PlannedFile], on_progress: OnProgress | None) -> list[Verified]:
        """Write ``files``, each complete before it has its name."""
        self._remove_stale()
        if files:
            outputs = [output for file in files for output in file.outputs]
            every = list(self._identities)
            # Each file's CRC is computed by one of the parts: the result needs all of them.
            compare_inputs(self._plan, outputs, self._identities, every[self._part.number - 1 :: self._part.count])
        self._clock.lap("compare")
        total = sum(output.nbytes for file in files for output in file.outputs)
        found = []
        for file in files:
            with self._named_when_whole(file.name) as path:
                write_file(path, file.bytes, lambda count: on_progress(count, total) if on_progress else None)
                found.append(self._verified(path, file))
                sync_file(path)
        self._clock.lap("write")
        return found

    @contextmanager
    def _named_when_whole(self, name: str) -> Iterator[Path]:
        # The suffix stays in front: the readers go by it.
        path = self._folder / f"{self._writing}{secrets.token_hex(4)}-{name}"
        try:
            yield path
            path.rename(self._folder / _RESULT / name)
        finally:
            path.unlink(missing_ok=True)

    @property
    def _writing(self) -> str:
        return f".part-{self._part.number}-"

    def _remove_stale(self) -> None:
        """Remove what a killed run of the same part had begun."""
        for path in self._folder.glob(f"{self._writing}*"):
            path.unlink(missing_ok=True)

    # -------------------------------------------------------------------------------------------- the whole result

    def _missing(self) -> tuple[Part, ...]:
        """Return the parts of which a file, or the record, is not there."""
        divided = divide(self._plan.files, self._part.count)
        # Listed, not looked up: of a folder on NFS, opening it brings what other hosts have put into it.
        there = {path.name for path in self._folder.iterdir()}
        sizes = {path.name: path.stat().st_size for path in (self._folder / _RESULT).iterdir()}
        return tuple(
            part
            for part, files in zip(self._parts(), divided, strict=True)
            if part.record_name not in there or any(sizes.get(file.name) != file.bytes.size for file in files)
        )

    def _parts(self) -> Iterator[Part]:
        return (Part(number=number, count=self._part.count) for number in range(1, self._part.count + 1))

    def _complete(self) -> Merged:
        """Add the small files to the files of all parts, the index and merge.json last, and put the result in place."""
        verified = joined([self._verified_by(part) for part in self._parts()])
        texts = {**self._plan.texts, MERGE_RECORD: record_of(self._plan, self._inputs, verified)}
        for name in sorted(texts, key=lambda name: (name == INDEX) + 2 * (name == MERGE_RECORD)):
            self._put_text(name, texts[name])
        sync_file(self._folder / _RESULT)
        (self._folder / _RESULT).rename(self._target)
        with suppress(LauncherError):
            sync_file(self._target.parent)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._clock.lap("complete")
        return replace(merged_by(self._plan, self._target, verified), fresh=True, size=self._plan.size)

    def _verified_by(self, part: Part) -> Verified:
        path = self._record(part)
        hint = f"rm {path}, and run that part again"
        try:
            said = read_json(path, hint)["verified"]
            return Verified(
                tensors=int(said["tensors"]),
                values=int(said["values"]),
                max_error=float(said["max_error"]),
                tolerance=float(said["tolerance"]),
                full=said["full"] is True,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}", hint=hint) from error

    def _put_text(self, name: str, content: bytes) -> None:
        # Made outside of the result: if another part renames it at this moment, nothing is left in it.
        made = self._folder / f"{self._writing}{secrets.token_hex(4)}"
        try:
            write_atomic(made, content, parents=False)
            made.replace(self._folder / _RESULT / name)
        finally:
            made.unlink(missing_ok=True)
