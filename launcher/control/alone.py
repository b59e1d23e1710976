"""One command at a time on a job that does not run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.errors import HostError, JobError
from launcher.jobs import JobPaths


@contextmanager
def alone(paths: JobPaths) -> Iterator[None]:
    """Hold the lock on starting an attempt, labelling or removing, which the kernel releases when its holder is gone.

    Raises JobError when another process has it or the job's folder is gone, HostError when it cannot be written.
    """
    try:
        handle = os.open(paths.resume_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        raise JobError(f"{paths.root} is gone", hint="launcher jobs lists what is there") from None
    except OSError as error:
        raise HostError(f"cannot write {paths.root}: {error.strerror}", hint="check its permissions; df -h") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise JobError(
            f"another launcher resume, jobs rm or jobs tag of {paths.job_id} is running",
            hint=f"launcher status {paths.job_id}",
        ) from None
    finally:
        os.close(handle)
