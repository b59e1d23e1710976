"""The folder with one folder per job: making new ones, listing them, and finding the job of a reference."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.common.nearest import name_hint, nearest, nearest_path, path_hint
from launcher.errors import JobError, Note, SpecError
from launcher.jobs.labels import read_labels
from launcher.jobs.paths import JobPaths, is_job_folder
from launcher.jobs.record import STATES, UNREADABLE, JobRecord, ended_at, read_record, unreadable_record

# No vowels and no digits that look like letters: ids are typed and read aloud, and spell nothing.
_ID_ALPHABET = "bcdfghjkmnpqrstvwxz"
_ID_LENGTH = 5


def new_token(folder: Path) -> str:
    """Return the random part of a new id, with which no name in ``folder`` begins: it is what people type."""
    import secrets  # most commands make no job

    while True:
        token = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
        if not any(folder.glob(f"{token}-*")):
            return token


class NoJobError(JobError):
    """No job has this id, prefix or name."""


class JobStore:
    """The folder with one folder per job."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def new_paths(self, name: str) -> JobPaths:
        """Return paths for a new job; nothing is made. The random part comes first, so a short prefix names a job."""
        return JobPaths(root=self.root.absolute() / f"{new_token(self.root)}-{name}")

    def all(self) -> list[tuple[JobPaths, JobRecord]]:
        """Return every job, oldest first, its state checked against the process table; damaged ones as UNREADABLE."""
        root = self.root.absolute()
        found = [job for name in self._names() if (job := self._of_folder(root / name))]
        return sorted(found, key=lambda item: (item[1].created, item[1].job_id))

    @staticmethod
    def _of_folder(folder: Path) -> tuple[JobPaths, JobRecord] | None:
        paths = JobPaths(root=folder)
        record = read_record(paths) or unreadable_record(paths)
        return (paths.of_attempt(record.attempt), record) if record else None

    def _names(self) -> list[str]:
        """Return the names of folders that may be of jobs. Those with a dot are on their way out (control.removal)."""
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []

    def get(self, reference: str) -> tuple[JobPaths, JobRecord]:
        """Return the job that ``reference`` names: an id, a unique prefix of one, "last", the name of a run, a folder.

        Of jobs of one name the newest is meant, and a Note says which. Raises JobError when there is none, when a
        prefix fits several, or when its job.json cannot be read.
        """
        if os.sep in reference and is_job_folder(Path(reference)):
            return _in_folder(reference)
        paths, record = self._find(reference)
        if record.state == UNREADABLE:
            raise JobError(
                f"{paths.record} cannot be read: {record.note}",
                hint=f"what the job left is in {paths.root}: launcher merge-ckpt {paths.checkpoints}",
            )
        return paths, record

    def _find(self, reference: str) -> tuple[JobPaths, JobRecord]:
        if job := self._by_folder(reference):
            return job
        jobs = self.all()
        # No job is called that: an id is five letters, a hyphen and a name.
        if reference == "last" and jobs:
            return jobs[-1]
        exact = [job for job in jobs if job[1].job_id == reference]
        begun = [job for job in jobs if reference and job[1].job_id.startswith(reference)]
        named = [job for job in jobs if job[1].name == reference]
        if named and not exact and all(job in named for job in begun):
            return _newest(reference, named)
        fits = exact or begun + [job for job in named if job not in begun]
        if len(fits) == 1:
            return fits[0]
        every = [record.job_id for _, record in jobs]
        raise self._not_one(reference, [record.job_id for _, record in fits], every)

    def _by_folder(self, reference: str) -> tuple[JobPaths, JobRecord] | None:
        """Return the one job whose folder has the name ``reference``, or alone begins with it, as folders have ids for
        names: no other record needs to be read. None where names of folders do not tell, and for "last".
        """
        names = self._names()
        begun = [name for name in names if name.startswith(reference)]
        named = [name for name in names if name.partition("-")[2] == reference]
        fits = [reference] if reference in names else begun
        if reference in ("", "last") or named or len(fits) != 1:
            return None
        job = self._of_folder(self.root.absolute() / fits[0])
        return job if job and job[1].job_id == fits[0] and job[1].name != reference else None

    def _not_one(self, reference: str, fits: list[str], every: list[str]) -> JobError:
        if fits:
            return JobError(f"{reference!r} fits {len(fits)} jobs: {', '.join(fits)}", hint="type a letter more")
        if not every:
            return NoJobError(
                f"no job {reference!r}: there are no jobs in {self.root}", hint="launcher submit --cards 2"
            )
        near = _near(reference, every)
        hint = f"did you mean {near}? launcher jobs lists them" if near else "launcher jobs lists them"
        return NoJobError(f"no job {reference!r} in {self.root}", hint=hint)


def select_jobs(
    jobs: list[tuple[JobPaths, JobRecord]], *, states: str | None, name: str | None, tags: Sequence[str] = ()
) -> list[tuple[JobPaths, JobRecord]]:
    """Return the jobs in one of ``states`` ("running,failed") whose id contains ``name`` and that have all ``tags``.

    Raises SpecError for an unknown state.
    """
    wanted = [state.strip() for state in (states or "").split(",") if state.strip()]
    unknown = [state for state in wanted if state not in STATES]
    if unknown:
        hint = name_hint(unknown[0], STATES, f"states: {', '.join(STATES)}")
        raise SpecError(f"--state {states}: there is no state {unknown[0]!r}", hint=hint)
    fits = [job for job in jobs if (not wanted or job[1].state in wanted) and (name or "") in job[1].job_id]
    return [job for job in fits if set(tags) <= set(read_labels(job[0]).tags)] if tags else fits


def sort_jobs(
    jobs: list[tuple[JobPaths, JobRecord]], by: str, sizes: Mapping[Path, int]
) -> list[tuple[JobPaths, JobRecord]]:
    """Return ``jobs``, which are the oldest first, sorted by "created", "ended", "name", "state" or "size".

    Jobs that are equal in it keep their order, and those that have not ended are last of all by "ended". ``sizes``:
    bytes by the job's folder.
    """
    keys: dict[str, Callable[[tuple[JobPaths, JobRecord]], Any]] = {
        "created": lambda job: job[1].created,
        "ended": lambda job: ended_at(job[1]) if job[1].is_final else math.inf,
        "name": lambda job: job[1].name,
        "state": lambda job: STATES.index(job[1].state),
        "size": lambda job: sizes[job[0].root],
    }
    return sorted(jobs, key=keys[by])


def _newest(name: str, named: list[tuple[JobPaths, JobRecord]]) -> tuple[JobPaths, JobRecord]:
    """Return the newest of the jobs called ``name``, which are the oldest first, and say which it is."""
    of = f", the newest of {len(named)} jobs of that name" if len(named) > 1 else ""
    warnings.warn(f"{name} is {named[-1][1].job_id}{of}", Note, stacklevel=2)
    return named[-1]


def _near(reference: str, job_ids: list[str]) -> str | None:
    """Return the job whose id, or the random part or the name in it, is nearest to ``reference``; or "last"."""
    parts = {part: job_id for job_id in job_ids for part in (job_id, *job_id.split("-", 1))} | {"last": "last"}
    close = nearest(reference, parts)
    return parts[close] if close else None


def exists(path: Path) -> bool:
    """Return whether there is such a path; a name that no file system takes is the name of none."""
    try:
        return path.exists()
    except OSError:
        return False


def _in_folder(reference: str) -> tuple[JobPaths, JobRecord]:
    """Return the job whose folder has this path, wherever it is."""
    folder = Path(os.path.abspath(reference))  # noqa: PTH100 - links keep their names
    return JobStore(folder.parent).get(folder.name)


def find_job(reference: str, jobs_dir: Path) -> tuple[JobPaths, JobRecord] | None:
    """Return the job that JOB or MODEL on the command line names; None when it is the path of something else.

    A text that exists or has a separator is a path; the path of a job's folder names that job, wherever it is. Raises
    JobError when ``reference`` is not a path and no job fits.
    """
    path = Path(reference)
    if is_job_folder(path):
        return _in_folder(reference)
    return None if os.sep in reference or exists(path) else JobStore(jobs_dir).get(reference)


_WEIGHT_SUFFIXES = (".safetensors", ".ckpt")


def find_job_or_path(reference: str, jobs_dir: Path) -> tuple[JobPaths, JobRecord] | None:
    """Return what ``find_job`` does, for a command that takes any folder or file of weights in place of a job.

    Raises JobError when ``reference`` is none of them, with the nearest name of a folder or file.
    """
    path = Path(reference)
    if not exists(path) and (os.sep in reference or path.suffix in _WEIGHT_SUFFIXES):
        hint = path_hint(path, "give a job, a folder or a .safetensors or .ckpt file")
        raise JobError(f"no file or folder {reference}", hint=hint)
    try:
        return find_job(reference, jobs_dir)
    except NoJobError as error:
        near = nearest_path(path) if reference else None
        if near is None:
            raise
        hint = f"did you mean {near}? or a job: {error.hint}"
        raise JobError(f"{error.message}, and no file or folder {reference}", hint=hint) from error
