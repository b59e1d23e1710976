"""``launcher config``: make, read and check run specs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import format_option, set_option
from launcher.cli.options.completion import preset_names, spec_names
from launcher.cli.options.group import option, takes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.common.yaml_lines import YamlDocument
    from launcher.control.configs import ListedSpec
    from launcher.runspec.layers import Override
    from launcher.runspec.presets import Preset
    from launcher.runspec.sections import ModelSpec, RunSpec

_FILE = click.Path(path_type=Path)
_check_option = click.option("--check", type=_FILE, metavar="FILE", help="Fail when FILE is not up to date.")


@click.group()
def config() -> None:
    """Make, read and check run specs.

    \b
    launcher config new mine --preset llama2_7b
    launcher config check mine
    launcher config show mine --origin
    """


@dataclass(frozen=True, kw_only=True)
class NewOptions:
    """The model of a new spec."""

    preset: str | None = option(
        "--preset", metavar="P", shell_complete=preset_names, help="The model: launcher config presets lists them."
    )
    folder: str | None = option("--model", metavar="FOLDER", help="The model: a Hugging Face folder, weights and all.")
    force: bool = option("--force", is_flag=True, help="Overwrite configs/NAME.yaml.")


@config.command()
@click.argument("name")
@takes(NewOptions, "options")
def new(name: str, options: NewOptions) -> None:
    """Write configs/NAME.yaml for a model, to be edited.

    \b
    launcher config new mine --preset llama2_7b
    launcher config new mine --model ./Qwen2.5-7B-Instruct
    """
    from launcher.control import configs

    path = configs.write_new(name, preset=options.preset, folder=options.folder, force=options.force)
    rest = "data.train" if options.folder else "data.train, model.checkpoint and model.tokenizer"
    click.echo(f"Wrote {path}: fill in {rest}.")
    click.echo(f"Next: {configs.first_plan(name)}")


@config.command("list")
@format_option
def list_configs(form: str) -> None:
    """List the specs that can be named: those of configs/ here, then the shipped ones.

    \b
    launcher config list
    """
    from launcher.cli.output.tables import print_json, table
    from launcher.control.configs import listed_specs

    found = listed_specs()
    if form == "json":
        print_json([asdict(spec) for spec in found])
        return
    rows = ((spec.name, _model_of(spec), spec.problem or spec.trains, spec.file) for spec in found)
    click.echo(table(("NAME", "MODEL", "TRAINS", "FILE"), rows))


def _model_of(spec: ListedSpec) -> str:
    return "" if spec.parameters is None else f"{spec.preset or 'its own'}, {_count(spec.parameters)}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


@config.command()
@format_option
def presets(form: str) -> None:
    """List the models that model.preset may name. A file in configs/presets/ adds one.

    \b
    launcher config presets
    """
    from launcher.cli.output.tables import print_json, table
    from launcher.control.configs import preset_models

    found = list(preset_models())
    if form == "json":
        print_json([_preset_values(*item) for item in found])
        return
    header = ("PRESET", "PARAMETERS", "LAYERS", "HIDDEN", "HEADS", "VOCABULARY", "CONTEXT", "SOURCE")
    click.echo(table(header, (_preset_row(*item) for item in found)))


def _preset_values(preset: Preset, model: ModelSpec, parameters: int) -> dict[str, Any]:
    file, values = preset.document.name, model.model_dump(mode="json", exclude={"preset"})
    return {"name": preset.name, "source": preset.source, "file": file, "parameters": parameters, "model": values}


def _preset_row(preset: Preset, model: ModelSpec, parameters: int) -> tuple[str, ...]:
    heads = f"{model.num_heads}" if model.kv_heads == model.num_heads else f"{model.num_heads}/{model.kv_heads}"
    shape = (model.num_layers, model.hidden_size, heads, model.vocab_size, model.seq_length)
    return (preset.name, _count(parameters), *map(str, shape), preset.source)


@config.command()
@click.argument("spec", shell_complete=spec_names)
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@format_option
@set_option
def show(spec: str, origin: bool, form: str, sets: tuple[str, ...]) -> None:
    """Print SPEC with every value written out.

    \b
    launcher config show llama_7b_lora --origin --set lora.r=8
    """
    from launcher.cli.output.tables import print_json
    from launcher.runspec.checking import load_source, parse_spec
    from launcher.runspec.layers import parse_sets
    from launcher.runspec.showing import show as text_of

    source = load_source(spec, parse_sets(sets))
    parsed = parse_spec(source)
    if form == "json":
        print_json(_shown(parsed, source))
        return
    click.echo(text_of(parsed, source, origins=origin))
    for change in source.changes:
        click.echo(f"# {change}")


def _shown(spec: RunSpec, source: YamlDocument) -> dict[str, Any]:
    """The spec with where each value that somebody gave came from, and what was translated on the way in."""
    given = [*source.lines, *source.origins]
    origins = {".".join(map(str, loc)): source.place(loc) for loc in given if not isinstance(source.value(loc), dict)}
    return {"spec": spec.model_dump(mode="json"), "origins": origins, "changes": list(source.changes)}


@config.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", shell_complete=spec_names)
@set_option
def check(specs: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Check run specs; exit code 2 when one is wrong. Input files that are not there yet are named in notes.

    \b
    launcher config check mine.yaml llama_7b_lora
    """
    from launcher.errors import SpecError
    from launcher.runspec.layers import parse_sets

    overrides = parse_sets(sets)
    failed = [name for name in specs if not _is_good(name, overrides)]
    if failed:
        raise SpecError(f"{len(failed)} of {len(specs)} spec(s) wrong: {', '.join(failed)}")


def _is_good(name: str, overrides: Sequence[Override]) -> bool:
    """Check one spec and print what was found."""
    from launcher.control import configs
    from launcher.errors import DataError, SpecError

    try:
        spec, missing = configs.checked(name, overrides)
    except (SpecError, DataError) as error:
        click.echo(error.message, err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
        return False
    click.echo(f"{name}: good ({spec.name})")
    for note in missing:
        click.echo(f"  note: {note}")
    return True


@config.command()
@_check_option
def schema(check: Path | None) -> None:
    """Print the JSON Schema of run specs, which editors use for completion.

    \b
    launcher config schema > configs/run.schema.json
    """
    from launcher.control import configs
    from launcher.runspec.schema import schema_text

    if check:
        configs.check_text(schema_text(), check, "launcher config schema")
    else:
        click.echo(schema_text(), nl=False)


@config.command()
@_check_option
@click.option("--update", type=_FILE, metavar="FILE", help="Write it between FILE's markers.")
def reference(check: Path | None, update: Path | None) -> None:
    """Print the reference of all keys as Markdown.

    \b
    launcher config reference --update docs/configuration.md
    """
    from launcher.control import configs
    from launcher.runspec.schema import reference as text

    if update:
        configs.update_reference(update)
    elif check:
        configs.check_reference(check)
    else:
        click.echo(text())
