"""Changing the labels of a job, whatever it is doing."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.control.alone import alone
from launcher.errors import HostError
from launcher.jobs import JobPaths, Labels, read_labels
from launcher.jobs.labels import write_labels


def label(paths: JobPaths, *, add: Sequence[str], remove: Sequence[str], note: str | None) -> Labels:
    """Change tags and note of the job and return them. Raises SpecError, JobError, and HostError when it cannot."""
    with alone(paths):
        labels = read_labels(paths).changed(add=add, remove=remove, note=note)
        try:
            write_labels(paths, labels)
        except OSError as error:
            raise HostError(f"cannot write {paths.labels}: {error.strerror}", hint="check its permissions") from error
    return labels
