"""``launcher config``: make, read and check run specs."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options.common import set_option

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


@config.command()
@click.argument("name")
@click.option("--preset", required=True, metavar="P", help="The model: launcher config presets lists them.")
@click.option("--force", is_flag=True, help="Overwrite configs/NAME.yaml.")
def new(name: str, preset: str, force: bool) -> None:
    """Write configs/NAME.yaml for a model, to be edited.

    \b
    launcher config new mine --preset llama2_7b
    """
    from launcher.control import configs

    path = configs.write_new(name, preset, force=force)
    click.echo(f"Wrote {path}: fill in data.train, model.checkpoint and model.tokenizer.")
    click.echo(f"Next: launcher plan {name} --cards 8 --kind A2")


@config.command("list")
def list_configs() -> None:
    """List the specs that can be named: those of configs/ here, then the shipped ones.

    \b
    launcher config list
    """
    from launcher.cli.output.tables import print_table
    from launcher.control import configs

    print_table(("NAME", "MODEL", "TRAINS", "FILE"), configs.table())


@config.command()
def presets() -> None:
    """List the models that model.preset may name.

    \b
    launcher config presets
    """
    from launcher.cli.output.tables import print_table
    from launcher.control import configs

    print_table(
        ("PRESET", "PARAMETERS", "LAYERS", "HIDDEN", "HEADS", "VOCABULARY", "CONTEXT", "SOURCE"), configs.models()
    )


@config.command()
@click.argument("spec")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@set_option
def show(spec: str, origin: bool, sets: tuple[str, ...]) -> None:
    """Print SPEC with every value written out.

    \b
    launcher config show llama_7b_lora --origin --set lora.r=8
    """
    from launcher.runspec.checking import load_source, parse_spec
    from launcher.runspec.layers import parse_sets
    from launcher.runspec.showing import show as text_of

    source = load_source(spec, parse_sets(sets))
    click.echo(text_of(parse_spec(source), source, origins=origin))
    for change in source.changes:
        click.echo(f"# {change}")


@config.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@set_option
def check(specs: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Check run specs; exit code 2 when one is wrong.

    \b
    launcher config check mine.yaml llama_7b_lora
    """
    from launcher.errors import DataError, SpecError
    from launcher.plan.inputs import check_tokenizer
    from launcher.runspec.checking import load_spec
    from launcher.runspec.layers import parse_sets

    overrides, failed = parse_sets(sets), []
    for name in specs:
        try:
            spec = load_spec(name, overrides)
            check_tokenizer(spec)
            click.echo(f"{name}: good ({spec.name})")
        except (SpecError, DataError) as error:
            failed.append(name)
            click.echo(error.message, err=True)
            if error.hint:
                click.echo(f"  hint: {error.hint}", err=True)
    if failed:
        raise SpecError(f"{len(failed)} of {len(specs)} spec(s) wrong: {', '.join(failed)}")


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
