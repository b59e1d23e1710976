"""The run specs in configs/: new ones, a list of them, and the files that follow from the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.common import resources
from launcher.common.rendering import write_atomic
from launcher.errors import HostError, LauncherError, SpecError
from launcher.plan import memory
from launcher.runspec import presets
from launcher.runspec.checking import load_spec, preset_model
from launcher.runspec.schema import BEGIN, END, schema_text, with_reference
from launcher.runspec.sections import ModelSpec

SCHEMA = "run.schema.json"

_NEW = """\
# yaml-language-server: $schema={schema}
# LoRA finetuning of {preset} ({source}). All keys: launcher config show {name}
name: {name}

model:
  preset: {preset}
  # seq_length: {seq_length}
  checkpoint: checkpoints/{preset}.safetensors
  tokenizer: checkpoints/tokenizer.model

data:
  train: data/train.mindrecord
  template: vicuna
  batch_size: {batch_size}

training:
  epochs: 1
  max_grad_norm: 1.0
  lr_schedule: {{learning_rate: 1e-4, warmup_ratio: 0.03}}

lora:
  r: 16
  alpha: 16
  dropout: 0.05
  target_modules: wq|wk|wv|wo

checkpoint:
  every_steps: 500
  keep: 3

# parallel and precision, left out, follow from the cards: launcher plan {name} --cards 8 says which.
"""


def write_new(name: str, preset: str, *, force: bool) -> Path:
    """Write configs/NAME.yaml below the working folder, and the schema its first line names.

    Raises SpecError for a bad name, a preset there is not, or a file that is there already; HostError when the folder
    cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise SpecError(f"{name!r} is no name for a spec", hint="letters, digits, '_', '.' and '-'")
    path = Path("configs") / f"{name}.yaml"
    if path.exists() and not force:
        raise SpecError(f"{path} exists already", hint="take another name, or pass --force")
    model = presets.get(preset)
    text = _NEW.format(
        schema=SCHEMA,
        name=name,
        preset=preset,
        source=model.source,
        seq_length=model.model["seq_length"],
        batch_size=1 if model.model["seq_length"] > 2048 else 2,
    )
    try:
        write_atomic(path, text)
        if not (path.parent / SCHEMA).exists():
            write_atomic(path.parent / SCHEMA, schema_text())
    except OSError as error:
        raise HostError(f"cannot write {path.absolute()}: {error.strerror}", hint="cd to a folder of yours") from error
    return path


@dataclass(frozen=True, kw_only=True)
class ListedSpec:
    """A run spec that can be named. ``problem``: why it cannot be used; its model and what it trains are "" then."""

    name: str
    file: str
    preset: str | None = None
    parameters: int | None = None
    trains: str = ""
    problem: str = ""


def listed_specs() -> list[ListedSpec]:
    """Every spec that can be named: those of configs/ in the working folder, then the shipped ones."""
    return [_listed(name) for name in resources.names("configs", ".yaml")]


def _listed(name: str) -> ListedSpec:
    file = str(resources.find("configs", f"{name}.yaml"))
    try:
        spec = load_spec(name)
    except SpecError as error:
        return ListedSpec(name=name, file=file, problem=error.message.splitlines()[0])
    return ListedSpec(
        name=name,
        file=file,
        preset=spec.model.preset,
        parameters=memory.parameter_count(spec.model),
        trains="LoRA" if spec.lora else "all parameters",
    )


def preset_models() -> Iterator[tuple[presets.Preset, ModelSpec, int]]:
    """Every preset with its model and the number of parameters. Raises SpecError for one that is no model."""
    for preset in presets.all_presets():
        model = preset_model(preset)
        yield preset, model, memory.parameter_count(model)


def check_text(text: str, file: Path, command: str) -> None:
    """Raise LauncherError when ``file`` holds anything but ``text``."""
    if _read(file) != text:
        raise LauncherError(f"{file} is not what `{command}` prints now", hint=f"{command} > {file}")


def check_reference(file: Path) -> None:
    """Raise LauncherError when the reference in ``file`` is not the one of the schema."""
    if _refreshed(file) != _read(file):
        hint = f"launcher config reference --update {file}"
        raise LauncherError(f"the config reference in {file} is out of date", hint=hint)


def update_reference(file: Path) -> None:
    """Bring the reference in ``file`` up to date. Raises LauncherError when it has no place for one."""
    write_atomic(file, _refreshed(file))


def _refreshed(file: Path) -> str:
    new = with_reference(_read(file))
    if new is None:
        raise LauncherError(f"{file} has no place for the reference", hint=f"add the lines {BEGIN} and {END}")
    return new


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LauncherError(f"cannot read {file}: {error}") from error
