"""Preparation of a new attempt at a job: from the newest step that all ranks saved, in a folder of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.common.ranges import spans
from launcher.errors import CheckpointError
from launcher.jobs import JobPaths

# mindformers 1.9.0, core/callback: PREFIX_rank_R-EPOCH_STEP.(safetensors|ckpt); STEP counts within the epoch.
_FILE = re.compile(r".+_rank_\d+-(?P<epoch>\d+)_(?P<step>\d+)\.(?:safetensors|ckpt)")

Moment = tuple[int, int]


def prepare_attempt(paths: JobPaths, world_size: int) -> Moment | None:
    """Make the folder of the attempt of ``paths``, with links to the checkpoints that it starts from.

    Returns the (epoch, step within the epoch) of the newest checkpoint that is complete on all ranks; None when there
    is none, and the attempt starts from the beginning. Files of later moments, which are whole on some ranks only, are
    moved into the attempt's folder: it will write them again, and MindSpore gives another name to a second one.
    """
    if _was_begun_only(paths):
        take_back(paths)
    paths.attempt_folder.mkdir(parents=True, exist_ok=False)
    saved = _saved(paths, world_size)
    newest = _newest(saved)
    for rank_id in range(world_size):
        for moment, file in _files(paths.checkpoints / f"rank_{rank_id}"):
            if newest is None or moment > newest:
                stale = paths.attempt_folder / "stale" / f"rank_{rank_id}"
                stale.mkdir(parents=True, exist_ok=True)
                file.rename(stale / file.name)
    if newest is None:
        return None
    for rank_id, files in enumerate(saved):
        folder = paths.resume / f"rank_{rank_id}"
        folder.mkdir(parents=True)
        (folder / files[newest].name).symlink_to(files[newest])
    return newest


def left_behind(paths: JobPaths, world_size: int) -> Mapping[Moment, list[int]]:
    """Return the newer moments that the attempt did not start from, each with the ranks whose file is not whole."""
    saved = [saved_moments(paths.attempt_folder / "stale" / f"rank_{rank_id}") for rank_id in range(world_size)]
    moments = sorted(set().union(*saved), reverse=True)
    return {moment: [rank for rank, files in enumerate(saved) if moment not in files] for moment in moments}


def beginning(paths: JobPaths, world_size: int) -> str:
    """Return where the attempt of ``paths``, which is prepared, begins, and why not at a newer step."""
    place = "from the beginning: no step is complete on all ranks"
    if paths.resume.is_dir():
        (moment,) = saved_moments(paths.resume / "rank_0")
        place = f"from {checkpoint_words(moment)}"
    newer = left_behind(paths, world_size).items()
    why_not = (
        f"; {checkpoint_words(moment)}, is not whole on {'rank' if len(ranks) == 1 else 'ranks'} {spans(ranks)}"
        for moment, ranks in newer
    )
    return f"Attempt {paths.attempt}, {place}{''.join(why_not)}."


def _was_begun_only(paths: JobPaths) -> bool:
    """Return True if the attempt's folder has only what is made here: an earlier preparation was killed."""
    folder = paths.attempt_folder
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {"stale", "resume"}


def take_back(paths: JobPaths) -> None:
    """Undo ``prepare_attempt``: move checkpoints back and remove its folder."""
    for file in paths.attempt_folder.glob("stale/rank_*/*"):
        file.rename(paths.checkpoints / file.parent.name / file.name)
    shutil.rmtree(paths.attempt_folder, ignore_errors=True)


def folder_in_configs(paths: JobPaths) -> Path | None:
    """Return the job's folder as its rank YAMLs name it, where ranks save; None when rank 0 has none.

    Raises OSError, ValueError, TypeError or KeyError when that file cannot be read.
    """
    import yaml  # a supervisor needs it for no first attempt

    file = paths.root / "ranks" / "rank_0.yaml"
    try:
        return Path(yaml.safe_load(file.read_text(encoding="utf-8"))["output_dir"]) if file.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def has_got_on(paths: JobPaths, world_size: int) -> bool:
    """Return True if there is a complete checkpoint newer than the one from which the attempt of ``paths`` started."""
    newest = newest_saved(paths, world_size)
    return newest is not None and newest not in saved_moments(paths.resume / "rank_0")


def checkpoint_words(moment: Moment) -> str:
    """Return a moment in words; MindFormers counts the steps of each epoch from 1."""
    epoch, step = moment
    return f"epoch {epoch}, step {step} of it"


def newest_saved(paths: JobPaths, world_size: int) -> Moment | None:
    """Return the newest moment for which all ranks have a whole checkpoint; None when there is none."""
    return _newest(_saved(paths, world_size))


def _saved(paths: JobPaths, world_size: int) -> list[Mapping[Moment, Path]]:
    return [saved_moments(paths.checkpoints / f"rank_{rank_id}") for rank_id in range(world_size)]


def _newest(saved: Sequence[Mapping[Moment, Path]]) -> Moment | None:
    """Return the newest moment common to all ranks."""
    return max(set.intersection(*(set(files) for files in saved)), default=None) if saved else None


def saved_moments(folder: Path) -> Mapping[Moment, Path]:
    """Return the whole checkpoints in a rank's folder; a file still being written has another name or no end."""
    return {moment: path for moment, path in _files(folder) if _can_be_loaded(path)}


def _files(folder: Path) -> list[tuple[Moment, Path]]:
    """Return the checkpoints in a rank's folder by name, whole or not."""
    matches = [(path, _FILE.fullmatch(path.name)) for path in folder.glob("*")]
    return [((int(m["epoch"]), int(m["step"])), path) for path, m in matches if m]


def _can_be_loaded(path: Path) -> bool:
    """Return True if a checkpoint is whole and can be read here."""
    from launcher.checkpoint.tensorfile import is_whole  # with numpy, which a supervisor needs for no first attempt

    try:
        return is_whole(path)
    except CheckpointError:
        return False
