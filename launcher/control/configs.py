"""The run specs in configs/: making new ones, listing them, and the files generated from the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.common import resources
from launcher.common.rendering import write_atomic
from launcher.errors import HostError, LauncherError, SpecError
from launcher.models.base import Family
from launcher.models.registry import family_of
from launcher.plan import memory
from launcher.runspec import presets
from launcher.runspec.checking import load_spec, preset_model
from launcher.runspec.folders import settings_of_folder
from launcher.runspec.layers import Override
from launcher.runspec.schema import BEGIN, END, schema_text, with_reference
from launcher.runspec.sections import ModelSpec, RunSpec

SCHEMA = "run.schema.json"

# Parameters up to which a model trains on a CPU in minutes.
_FITS_A_CPU = 50_000_000

_NEW = """\
# yaml-language-server: $schema={schema}
# LoRA finetuning of {what} ({source}). All keys: launcher config show {name}
name: {name}

model:
{model}

data:
  train: data/train.mindrecord
  template: {template}
  batch_size: {batch_size}

training:
  epochs: 1
  max_grad_norm: 1.0
  lr_schedule: {{learning_rate: 1e-4, warmup_ratio: 0.03}}

lora:
  r: 16
  alpha: 16
  dropout: 0.05
  target_modules: {targets}

checkpoint:
  every_steps: 500
  keep: 3

# parallel and precision, left out, follow from the cards: launcher plan {name} --cards 8 says which.
"""


_OF_PRESET = """\
  preset: {preset}
  # seq_length: {seq_length}
  checkpoint: checkpoints/{preset}.safetensors
  tokenizer: checkpoints/{tokenizer}"""
# Weights and tokenizer are the folder's too.
_OF_FOLDER = """\
  folder: {folder}
  seq_length: {seq_length}"""


@dataclass(frozen=True, kw_only=True)
class _Described:
    """The description of its model in a new spec."""

    what: str
    source: str
    model: str
    template: str
    family: Family
    seq_length: int


def _of_preset(name: str) -> _Described:
    preset = presets.get(name)
    length = preset.model["seq_length"]
    family = family_of(preset.model)
    text = _OF_PRESET.format(preset=name, seq_length=length, tokenizer=family.tokenizer_file)
    if preset.source.startswith("made up"):  # nobody publishes weights of it
        text = text.replace(f"checkpoints/{name}.safetensors", "null")
    found = {"what": name, "source": preset.source, "template": family.template}
    return _Described(**found, model=text, family=family, seq_length=length)


def _of_folder(folder: str) -> _Described:
    """Describe a Hugging Face folder."""
    settings = settings_of_folder(folder)
    model = settings["model"]
    text = _OF_FOLDER.format(folder=json.dumps(folder, ensure_ascii=False), seq_length=model["seq_length"])
    family = family_of(model)
    found = {"what": Path(folder).name, "source": f"a {family.title}", "template": settings["data"]["template"]}
    return _Described(**found, model=text, family=family, seq_length=model["seq_length"])


def write_new(name: str, *, preset: str | None = None, folder: str | None = None, force: bool) -> Path:
    """Write configs/NAME.yaml below the working folder, and the schema its first line names.

    The model is that of ``preset`` or of the Hugging Face ``folder``. Raises SpecError for a bad name, for none or both
    of them, for a missing one, or for a file that exists already; HostError when the folder cannot be written.
    """
    if (preset is None) == (folder is None):
        raise SpecError("give one of --preset and --model", hint=f"launcher config new {name} --preset llama2_7b")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise SpecError(f"{name!r} is not a valid name for a spec", hint="letters, digits, '_', '.' and '-'")
    path = Path("configs") / f"{name}.yaml"
    if path.exists() and not force:
        raise SpecError(f"{path} exists already", hint="choose another name, or pass --force")
    described = _of_folder(folder) if folder is not None else _of_preset(str(preset))
    text = _NEW.format(
        schema=SCHEMA,
        name=name,
        what=described.what,
        source=described.source,
        model=described.model,
        template=described.template,
        targets=described.family.lora_default,
        batch_size=1 if described.seq_length > 2048 else 2,
    )
    try:
        write_atomic(path, text)
        if not (path.parent / SCHEMA).exists():
            write_atomic(path.parent / SCHEMA, schema_text())
    except OSError as error:
        raise HostError(
            f"cannot write {path.absolute()}: {error.strerror}", hint="cd to a folder that you can write to"
        ) from error
    return path


def first_plan(name: str) -> str:
    """Return the command that shows what a run of the new spec would do: on 8 cards, or here if the CPU is enough."""
    small = memory.parameter_count(load_spec(name).model) < _FITS_A_CPU
    return f"launcher plan {name}" if small else f"launcher plan {name} --cards 8 --kind A2"


def checked(name: str, overrides: Sequence[Override] = ()) -> tuple[RunSpec, tuple[str, ...]]:
    """Return the spec, and a note for each input file that is not there.

    Raises SpecError or DataError for a spec that is wrong.
    """
    from launcher.doctor.job import missing_inputs
    from launcher.plan.inputs import check_tokenizer  # jinja2 comes with it, and lists of specs need none

    spec = load_spec(name, overrides)
    check_tokenizer(spec)
    return spec, missing_inputs(spec)


@dataclass(frozen=True, kw_only=True)
class ListedSpec:
    """A run spec with a name. ``problem``: the reason why it cannot be used; the other descriptions are "" then."""

    name: str
    file: str
    preset: str | None = None
    parameters: int | None = None
    trains: str = ""
    problem: str = ""


def listed_specs() -> list[ListedSpec]:
    """Return every spec with a name: those of configs/ in the working folder, then the shipped ones."""
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
    """Yield every preset with its model and number of parameters. Raises SpecError for one that is not a model."""
    for preset in presets.all_presets():
        model = preset_model(preset)
        yield preset, model, memory.parameter_count(model)


def check_text(text: str, file: Path, command: str) -> None:
    """Raise LauncherError when ``file`` holds anything but ``text``."""
    if _read(file) != text:
        raise LauncherError(f"{file} differs from the output of `{command}`", hint=f"{command} > {file}")


def check_reference(file: Path) -> None:
    """Raise LauncherError when the reference in ``file`` is not the one of the schema."""
    if _refreshed(file) != _read(file):
        hint = f"launcher config reference --update {file}"
        raise LauncherError(f"the config reference in {file} is out of date", hint=hint)


def update_reference(file: Path) -> None:
    """Update the reference in ``file``. Raises LauncherError when it has no place for one."""
    write_atomic(file, _refreshed(file))


def _refreshed(file: Path) -> str:
    new = with_reference(_read(file))
    if new is None:
        raise LauncherError(f"{file} has no markers for the reference", hint=f"add the lines {BEGIN} and {END}")
    return new


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LauncherError(f"cannot read {file}: {error}") from error
