"""Removal of jobs: which may go, which may not and why, and folders that go whole or not at all.

A folder is renamed first, in one step, and deleted afterwards: a job is never half there. What a killed removal left is
deleted by the next one. Links are removed as links: where they lead nothing is touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.checkpoint.record import MERGE_RECORD
from launcher.common.disk_usage import Usage, disk_usage
from launcher.common.folders import is_being_written
from launcher.common.json_files import json_or_empty
from launcher.control.alone import alone
from launcher.control.follow import ask_scheduler
from launcher.errors import HostError, JobError
from launcher.jobs import JobPaths, JobRecord, JobStore

Job = tuple[JobPaths, JobRecord]

_GOING = re.compile(r"\.removed-.+-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A job that was chosen to be removed. ``kept``: why it stays all the same; "" when it goes."""

    paths: JobPaths
    record: JobRecord
    bytes: int
    kept: str = ""


# ------------------------------------------------------------------------------------------------ which


def named(references: Sequence[str], jobs_dir: Path, *, force: bool) -> list[Candidate]:
    """Return the jobs that ``references`` name, each once. Raises JobError with every one that may not be removed."""
    found: dict[Path, Job] = {}
    for reference in references:
        job = jobs.find_job(reference, jobs_dir)
        if job is None:
            raise JobError(
                f"{reference} is not the folder of a job: nothing is removed", hint="launcher jobs lists them"
            )
        found[job[0].root] = job
    chosen = [_candidate(job) for job in found.values()]
    for folder in {paths.root.parent for paths, _ in found.values()}:
        chosen = _without_needed(JobStore(folder), chosen, force=force)
    refused = [f"{job.record.job_id}: {job.kept}" for job in chosen if job.kept]
    if refused:
        raise JobError("\n  - ".join(["nothing is removed:", *refused]), hint=_hint(chosen))
    return chosen


def _hint(chosen: Sequence[Candidate]) -> str:
    running = next((job.record.job_id for job in chosen if job.kept and not job.record.is_final), None)
    if running:
        return f"launcher stop {running}"
    return "--force removes what other jobs were trained from" if any("reads" in job.kept for job in chosen) else ""


def older_than(store: JobStore, moment: float, *, keep_merged: bool, force: bool) -> list[Candidate]:
    """Return the jobs that ended before ``moment``, in seconds since the epoch, and whether each may go."""
    found = [job for job in store.all() if jobs.ended_at(job[1]) < moment and job[1].is_final]
    chosen = [_candidate(job) for job in found]
    if keep_merged:
        chosen = [_unless_merged(job) for job in chosen]
    return _without_needed(store, chosen, force=force)


def _unless_merged(job: Candidate) -> Candidate:
    merged = any(job.paths.root.glob(f"merged*/{MERGE_RECORD}"))
    return replace(job, kept=job.kept or "it has a merged model") if merged else job


def _candidate(job: Job) -> Candidate:
    paths, record = job
    if paths.root.is_symlink():
        kept = f"its folder is a link to {os.path.realpath(paths.root)}"
        return Candidate(paths=paths, record=record, bytes=0, kept=kept)
    usage = disk_usage(paths.root)
    return Candidate(
        paths=paths, record=record, bytes=usage.bytes, kept=_in_the_way(paths, record) or _not_whole(usage)
    )


def _in_the_way(paths: JobPaths, record: JobRecord) -> str:
    """Return what still goes on in the job, or in its folder."""
    if record.state == jobs.UNREADABLE:
        return "job.json cannot be read, so whether it runs is not known"
    record = record if record.is_final else ask_scheduler(record)
    if not record.is_final:
        return f"it is {record.state}" + (f" on {record.host}" if record.host else "")
    if record.host == socket.gethostname():
        alive = [one for one in (record.supervisor, record.guard, *record.processes.values()) if one and one.is_alive()]
        if alive:
            return f"it has ended, and its process {alive[0].pid} has not"
    return "a command writes into its folder" if is_being_written(paths.root) else ""


def _not_whole(usage: Usage) -> str:
    """Return why the folder cannot be removed whole."""
    reasons = (
        (usage.foreign, "another file system is mounted there"),
        (usage.unread, "it cannot be looked into"),
        (usage.locked, "you may not remove what is in it"),
    )
    return next((f"{folders[0]}: {reason}" for folders, reason in reasons if folders), "")


# ------------------------------------------------------------------------------------------------ what others need


def _without_needed(store: JobStore, chosen: list[Candidate], *, force: bool) -> list[Candidate]:
    """Return ``chosen``, with those kept that a job which stays reads from.

    With ``force`` only jobs that have not ended count. A job that is kept for this keeps what it reads from itself.
    """
    reads = {paths.root: (record, _read_by(paths)) for paths, record in store.all()}
    while True:
        going = {job.paths.root for job in chosen if not job.kept}
        stays = [found for root, found in reads.items() if root not in going]
        counted = [found for found in stays if not (force and found[0].is_final)]
        needed = {job.paths.root: reader for job in chosen if not job.kept and (reader := _reader(job, counted))}
        if not needed:
            return chosen
        chosen = [replace(job, kept=needed.get(job.paths.root, job.kept)) for job in chosen]


def _reader(job: Candidate, others: Sequence[tuple[JobRecord, frozenset[str]]]) -> str:
    roots = _both(job.paths.root)
    for record, files in others:
        if any(file == root or file.startswith(root + os.sep) for file in files for root in roots):
            return f"{record.job_id}, which is {record.state}, reads from it"
    return ""


def _read_by(paths: JobPaths) -> frozenset[str]:
    """Return the paths of what the job was trained from: base, tokenizer, rows, and where its links lead."""
    plan, spec = json_or_empty(paths.plan), json_or_empty(paths.spec)
    record = json_or_empty(paths.record)
    folder = Path(str(_section(record, "origin").get("folder") or "."))
    named = [plan.get(key) for key in ("checkpoint", "tokenizer", "dataset", "evaluation")]
    named += [_section(spec, "model").get(key) for key in ("checkpoint", "folder", "tokenizer")]
    named += [*_data_files(_section(spec, "data").get("train")), *_section(plan, "links").values()]
    known = (folder / path for path in named if isinstance(path, str) and "\0" not in path)
    return frozenset(path for given in known for path in _both(given))


def _both(path: Path) -> set[str]:
    """Return ``path`` as it is written and with links followed: either way may lead into a job's folder."""
    return {os.path.abspath(path), os.path.realpath(path)}  # noqa: PTH100 - links stay as they are


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _data_files(train: Any) -> Iterator[Any]:
    for source in train if isinstance(train, list) else [train]:
        yield source.get("path") if isinstance(source, Mapping) else source


# ------------------------------------------------------------------------------------------------ removing


def remove(job: Candidate) -> None:
    """Remove the job's folder. Raises JobError when the job has been started meanwhile, HostError when it stays."""
    root = job.paths.root
    going = root.with_name(f".removed-{root.name}-{secrets.token_hex(4)}")
    with ExitStack() as deleting:
        # The lock of resume ends with the renaming: nobody finds the folder then, and a file server keeps what is open.
        with alone(job.paths):
            _check_again(job)
            try:
                deleting.enter_context(_held(root))
                root.rename(going)
            except OSError as error:
                raise HostError(f"cannot remove {root}: {error.strerror}", hint="check its permissions") from error
        _delete(going)


def _check_again(job: Candidate) -> None:
    record = jobs.read_record(job.paths)
    reason = _in_the_way(job.paths, record) if record else "job.json cannot be read any more"
    if reason:
        raise JobError(f"{job.record.job_id} is not removed: {reason}", hint=f"launcher status {job.record.job_id}")


def _delete(going: Path) -> None:
    """Delete a renamed folder; the record first, so that no version takes it for a job."""
    try:
        for name in ("job.json", "launch.json"):
            (going / name).unlink(missing_ok=True)
        shutil.rmtree(going)
    except OSError as error:
        raise HostError(
            f"{going} is a job no longer, and cannot be deleted: {error.strerror}: {error.filename}",
            hint="the next launcher jobs rm or prune tries again",
        ) from error


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder that is being removed. Raises OSError when another process removes it, and for a link."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def finish_earlier(jobs_dir: Path) -> int:
    """Delete what killed removals left in the jobs folder; return the bytes that this freed."""
    freed = 0
    for folder in jobs_dir.glob(".removed-*") if jobs_dir.is_dir() else ():
        if _GOING.fullmatch(folder.name) and not folder.is_symlink():
            with suppress(OSError, HostError), _held(folder):
                size = disk_usage(folder).bytes
                _delete(folder)
                freed += size
    return freed
