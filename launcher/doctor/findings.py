"""The finding of a check, and the needs of a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.cluster.model import Cluster
from launcher.runspec.sections import ModelSpec, RunSpec

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check: ``what`` was found, and ``fix``, the next thing to type ("" for a pass).

    ``table``: lines that show more, as of a matrix."""

    id: str
    status: Status
    what: str
    fix: str = ""
    table: tuple[str, ...] = ()


def passed(ident: str, what: str) -> Finding:
    return Finding(id=ident, status="pass", what=what)


def warned(ident: str, what: str, fix: str) -> Finding:
    return Finding(id=ident, status="warn", what=what, fix=fix)


def failed(ident: str, what: str, fix: str, table: tuple[str, ...] = ()) -> Finding:
    return Finding(id=ident, status="fail", what=what, fix=fix, table=table)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of ``findings``; "pass" for none."""
    statuses = {finding.status for finding in findings}
    return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"


@dataclass(frozen=True, kw_only=True)
class NeededFile:
    """A file or folder that a job reads. ``what`` is for people: "dataset", "tokenizer", "base checkpoint"."""

    what: str
    path: Path
    fix: str


@dataclass(frozen=True, kw_only=True)
class JobNeeds:
    """The needs of a job of ``spec``; those that are None or empty are not checked.

    ``checkpoint_bytes``: the most that one data-parallel copy of the model has on disk at one time, in ``folder``:
    ``keep`` checkpoints and the one being written.
    ``hosts``: an inventory's cluster; ``inventory_fault``: the reason why it could not be read. ``model``: the model
    that its base checkpoint must match. ``among_others``: this host is one of several, whatever ``hosts`` says.
    """

    cards: int | None = None
    data_parallel: int | None = None
    model_parallel: int = 1
    pipeline_stage: int = 1
    bfloat16: bool = False
    files: tuple[NeededFile, ...] = ()
    folder: Path | None = None
    checkpoint_bytes: int = 0
    scheduler_port: int | None = None
    hosts: Cluster | None = None
    inventory_fault: str = ""
    model: ModelSpec | None = None
    spec: RunSpec | None = None
    keep: int = 1
    among_others: bool = False
    programs: tuple[str, ...] = ("msrun",)

    @property
    def several(self) -> bool:
        """Return True if the job runs on several hosts."""
        return self.among_others or (self.hosts is not None and len(self.hosts.hosts) > 1)

    @property
    def split(self) -> int:
        """Return the number of cards that share one copy of the model."""
        return self.model_parallel * self.pipeline_stage

    def copies(self, cards: int) -> int:
        """Return the number of data-parallel copies on ``cards`` devices; each writes its own checkpoints."""
        return self.data_parallel or max(1, cards // self.split)
