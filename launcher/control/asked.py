"""What a run was asked for, kept in its job's folder, so that it can be asked for again.

It is the spec before presets, folders of models and defaults fill it: on other cards those are decided anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.cluster.model import Cluster
from launcher.common.json_files import json_or_empty
from launcher.common.rendering import RenderedFile
from launcher.common.yaml_lines import YamlDocument
from launcher.errors import JobError
from launcher.jobs import JobPaths, JobRecord
from launcher.runspec import layers
from launcher.runspec.checking import filled, load_asked

# What follows from the cards, in the spec that earlier versions kept alone; and what follows from their kind.
_OF_CARDS, _OF_THEIR_KIND = ("parallel",), ("precision", "runtime")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A spec by name with the values asked for. ``earlier``: the job that it is taken from; ``notes``: for the user."""

    spec_name: str
    source: YamlDocument
    earlier: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def filled(self) -> YamlDocument:
        """Return the values with those of preset and folder. Raises SpecError."""
        return filled(self.source)

    def file(self, paths: JobPaths) -> RenderedFile:
        """Return the file of the plan that keeps this."""
        kept = {"spec": self.spec_name, "folder": str(Path.cwd()), "from": self.earlier, "values": self.source.values}
        text = json.dumps(kept, ensure_ascii=False, indent=2) + "\n"
        return RenderedFile(path=paths.asked.name, text=text)


def asked_for(name: str, changes: Sequence[layers.Override]) -> Asked:
    """Return what the spec ``name`` asks for, with ``changes``. Raises SpecError."""
    return Asked(spec_name=name, source=load_asked(name, changes))


def asked_in(values: Mapping[str, Any], changes: Sequence[layers.Override]) -> Asked:
    """Return what ``values``, in the form of a spec, ask for, with ``changes``. Raises SpecError."""
    name = str(values.get("name") or "spec")
    return Asked(spec_name=name, source=load_asked(YamlDocument(name=name, values=dict(values), lines={}), changes))


def asked_again(
    paths: JobPaths, record: JobRecord, cluster: Cluster, changes: Sequence[layers.Override]
) -> Asked:  # fmt: skip
    """Return what the job was asked for, with ``changes``; $LAUNCHER_* do not count again.

    Relative paths are those of the folder in which it was submitted. Raises JobError when its files cannot be read.
    """
    kept, notes = json_or_empty(paths.asked), tuple[str, ...]()
    values = kept.get("values")
    if not isinstance(values, dict):
        values, notes = _of_earlier_version(paths, record, cluster)
    folder = Path(str(kept.get("folder") or record.origin.get("folder") or "."))
    source = YamlDocument(name=f"job {record.job_id}", values=_below(values, folder), lines={})
    name = str(kept.get("spec") or json_or_empty(paths.plan).get("spec") or record.name)
    return Asked(spec_name=name, source=layers.apply(source, changes), earlier=record.job_id, notes=notes)


def _of_earlier_version(
    paths: JobPaths, record: JobRecord, cluster: Cluster
) -> tuple[dict[str, Any], tuple[str, ...]]:  # fmt: skip
    """Return the job's spec as used, without what other cards decide anew, and a note on that."""
    spec = json_or_empty(paths.spec)
    if not spec:
        raise JobError(f"{paths.spec} is missing or damaged", hint="launcher submit SPEC")
    other_kind = cluster.target != record.target
    anew = [*(_OF_CARDS if other_kind or cluster.num_devices != record.cards else ()), *(_OF_THEIR_KIND * other_kind)]
    if not anew:
        return spec, ()
    said = f"{record.job_id} kept no more than its spec as used, so these are decided anew: {', '.join(anew)}"
    return {key: value for key, value in spec.items() if key not in anew}, (said,)


def _below(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``values`` with the relative paths of input files below ``folder``."""
    if folder.resolve() == Path.cwd().resolve():
        return values
    found = dict(values)
    for section, keys in (("model", ("checkpoint", "folder", "tokenizer")), ("evaluation", ("data",))):
        given = values.get(section)
        if isinstance(given, Mapping):
            found[section] = {key: _joined(folder, one) if key in keys else one for key, one in given.items()}
    data = values.get("data")
    if isinstance(data, Mapping) and "train" in data:
        found["data"] = {**data, "train": _sources(folder, data["train"])}
    return found


def _sources(folder: Path, train: Any) -> Any:
    if isinstance(train, list):
        return [_sources(folder, source) for source in train]
    if isinstance(train, Mapping) and "path" in train:
        return {**train, "path": _joined(folder, train["path"])}
    return _joined(folder, train)


def _joined(folder: Path, path: Any) -> Any:
    return str(folder / path) if isinstance(path, str) else path
