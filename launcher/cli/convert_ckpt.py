"""``launcher convert-ckpt``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import Size
from launcher.cli.options.group import option, takes
from launcher.cli.output.interruption import interruptible
from launcher.cli.output.progress import progress
from launcher.errors import SpecError

if TYPE_CHECKING:
    from launcher.checkpoint.convert import Converted, Model

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What to write, and where."""

    output: Path = option("-o", "--output", type=_PATH, required=True, help="Folder to write.")
    config: Path | None = option(
        "--config", type=_PATH, help="config.json or launcher_model.json, when not beside the weights."
    )
    dtype: str | None = option(
        "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Cast the weights."
    )
    file_format: str | None = option(
        "--file-format",
        type=click.Choice(["safetensors", "ckpt"]),
        help="Kind of the base checkpoint.  [default: safetensors]",
    )
    max_shard_bytes: int | None = option(
        "--max-shard-size", type=Size(), metavar="SIZE", help="Size of one file for transformers.  [default: 5GB]"
    )
    verify: str = option("--verify", type=click.Choice(["sample", "full"]), default="sample", show_default=True)

    def converted(self, model: Model, stack: ExitStack) -> Converted:
        """Return what ``model`` became. Raises SpecError for an option that means nothing for its layout."""
        from launcher.checkpoint.convert import convert
        from launcher.checkpoint.huggingface import SHARD_BYTES

        self._refuse_idle(model.layout)
        return convert(
            model,
            self.output,
            file_format=self.file_format or "safetensors",
            dtype=self.dtype,
            max_shard_bytes=self.max_shard_bytes or SHARD_BYTES,
            verify_full=self.verify == "full",
            on_progress=progress(stack, "convert"),
        )

    def _refuse_idle(self, layout: str) -> None:
        if layout == "hf" and self.max_shard_bytes:
            raise SpecError("--max-shard-size: a base checkpoint is one file", hint="leave it out")
        if layout == "mindspore" and self.file_format == "ckpt":
            raise SpecError("--file-format ckpt: transformers takes safetensors", hint="leave it out")


@click.command("convert-ckpt")
@click.argument("model", type=_PATH)
@takes(ConvertOptions, "options")
def convert_ckpt(model: Path, options: ConvertOptions) -> None:
    """Convert a Hugging Face model into a base checkpoint for submit, or a merged model into a Hugging Face one.

    \b
    launcher convert-ckpt Llama-2-7b-hf -o base
    launcher submit --checkpoint base ...
    launcher convert-ckpt jobs/ID/merged -o my-model
    """
    from launcher.checkpoint.convert import open_model

    with interruptible(str(options.output)), ExitStack() as stack:
        made = options.converted(open_model(model, options.config, stack), stack)
    _print(made)


def _print(made: Converted) -> None:
    from launcher.checkpoint.convert import run_section

    for note in made.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {made.folder}: {made.num_weights} weights, {made.size / 1e6:,.1f} MB, for {made.layout}")
    if made.layout == "mindspore":
        click.echo("For the run spec:")
        click.echo("model:")
        for key, value in run_section(made.model, made.folder).items():
            click.echo(f"  {key}: {json.dumps(value, ensure_ascii=False)}")
