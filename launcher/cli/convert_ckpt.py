"""``launcher convert-ckpt``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import click

from launcher.cli.merge_ckpt import DEFAULT_SHARD_SIZE, parse_size, progress
from launcher.cli.output.interruption import interruptible
from launcher.errors import SpecError

_PATH = click.Path(path_type=Path)


@click.command("convert-ckpt")
@click.argument("model", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="Folder to write.")
@click.option("--config", type=_PATH, help="config.json or launcher_model.json, when not beside the weights.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Cast the weights.")
@click.option(
    "--file-format",
    type=click.Choice(["safetensors", "ckpt"]),
    help="Kind of the base checkpoint.  [default: safetensors]",
)
@click.option("--max-shard-size", metavar="SIZE", help="Size of one file for transformers.  [default: 5GB]")
@click.option("--verify", type=click.Choice(["sample", "full"]), default="sample", show_default=True)
def convert_ckpt(
    model: Path,
    output: Path,
    config: Path | None,
    dtype: str | None,
    file_format: str | None,
    max_shard_size: str | None,
    verify: str,
) -> None:
    """Convert a Hugging Face model into a base checkpoint for submit, or a merged model into a Hugging Face one.

    \b
    launcher convert-ckpt Llama-2-7b-hf -o base
    launcher submit --checkpoint base ...
    launcher convert-ckpt jobs/ID/merged -o my-model
    """
    from launcher.checkpoint.convert import convert, open_model, run_section

    max_shard_bytes = parse_size(max_shard_size or DEFAULT_SHARD_SIZE)
    with interruptible(str(output)), ExitStack() as stack:
        opened = open_model(model, config, stack)
        _refuse_idle(opened.layout, file_format, max_shard_size)
        made = convert(
            opened,
            output,
            file_format=file_format or "safetensors",
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            verify_full=verify == "full",
            on_progress=progress(stack, "convert"),
        )
    for note in made.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {made.folder}: {made.num_weights} weights, {made.size / 1e6:,.1f} MB, for {made.layout}")
    if made.layout == "mindspore":
        click.echo("For the run spec:")
        click.echo("model:")
        for key, value in run_section(made.model, made.folder).items():
            click.echo(f"  {key}: {json.dumps(value, ensure_ascii=False)}")


def _refuse_idle(layout: str, file_format: str | None, max_shard_size: str | None) -> None:
    """Raises SpecError for an option that means nothing when a model of ``layout`` is converted."""
    if layout == "hf" and max_shard_size:
        raise SpecError("--max-shard-size: a base checkpoint is one file", hint="leave it out")
    if layout == "mindspore" and file_format == "ckpt":
        raise SpecError("--file-format ckpt: transformers takes safetensors", hint="leave it out")
