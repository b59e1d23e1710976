"""``launcher convert-ckpt``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import click

from launcher.cli.interruption import interruptible
from launcher.cli.merge_ckpt import parse_size, progress

_PATH = click.Path(path_type=Path)


@click.command("convert-ckpt")
@click.argument("model", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="Folder to write.")
@click.option("--config", type=_PATH, help="config.json or launcher_model.json, when not beside the weights.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Cast the weights.")
@click.option("--file-format", type=click.Choice(["safetensors", "ckpt"]), default="safetensors", show_default=True)
@click.option(
    "--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Size of one file for transformers."
)
@click.option("--verify", type=click.Choice(["sample", "full"]), default="sample", show_default=True)
def convert_ckpt(
    model: Path,
    output: Path,
    config: Path | None,
    dtype: str | None,
    file_format: str,
    max_shard_size: str,
    verify: str,
) -> None:
    """Convert a Hugging Face LLaMA into a base checkpoint for submit, or a merged model into a Hugging Face one.

    \b
    launcher convert-ckpt Llama-2-7b-hf -o base
    launcher submit --checkpoint base ...
    launcher convert-ckpt jobs/ID/merged -o my-model
    """
    from launcher.checkpoint.convert import convert, open_model, run_section

    with interruptible(str(output)), ExitStack() as stack:
        opened = open_model(model, config, stack)
        made = convert(
            opened,
            output,
            file_format=file_format,
            dtype=dtype,
            max_shard_bytes=parse_size(max_shard_size),
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
