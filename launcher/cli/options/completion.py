"""What the shell completes beside options: job ids, run specs, presets, steps. Errors complete nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from launcher.errors import LauncherError


def job_ids(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Jobs of the jobs folder, each with its state; files where no job fits, as MODEL may be one."""
    from launcher.jobs import JobStore

    records = [record for _, record in reversed(JobStore(_jobs_dir(context)).all())]
    found = [*((record.job_id, record.state) for record in records), ("last", "the newest")]
    # Every name is part of an id: names are offered to who begins to type one.
    names = dict.fromkeys((record.name, "the newest of that name") for record in records if incomplete)
    return _fitting([*found, *names], incomplete)


def tags(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tags that jobs have."""
    from launcher.jobs import JobStore, read_labels

    found = dict.fromkeys(tag for paths, _ in JobStore(_jobs_dir(context)).all() for tag in read_labels(paths).tags)
    return _fitting(((tag, "") for tag in found), incomplete)


def spec_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Run specs of configs/; files where none fits."""
    from launcher.common import resources

    return _fitting(((name, "") for name in resources.names("configs", ".yaml")), incomplete)


def preset_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets, each with its source."""
    from launcher.runspec.presets import all_presets

    try:
        return _fitting(((preset.name, preset.source) for preset in all_presets()), incomplete)
    except LauncherError:
        return []


def step_numbers(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Steps that every rank of the job saved whole."""
    from launcher.checkpoint import list_steps
    from launcher.jobs import JobStore

    # Before an option that still has no value click leaves arguments unparsed.
    reference = str(next(iter(context.args), context.params.get("job") or "last"))
    try:
        folder = Path(reference)
        if not folder.is_dir():
            folder = JobStore(_jobs_dir(context)).get(reference)[0].root
        steps = list_steps(folder)
    except LauncherError:
        return []
    return _fitting(((str(step.number), "") for step in reversed(steps) if step.number is not None), incomplete)


def _jobs_dir(context: click.Context) -> Path:
    return Path(context.params.get("jobs_dir") or os.environ.get("LAUNCHER_JOBS") or "jobs")


def _fitting(found: Iterable[tuple[str, Any]], incomplete: str) -> list[CompletionItem]:
    items = [CompletionItem(name, help=told or None) for name, told in found if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]
