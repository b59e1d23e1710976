"""``launcher split-ckpt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.group import option, takes
from launcher.cli.output.interruption import interruptible
from launcher.errors import SpecError

if TYPE_CHECKING:
    from launcher.checkpoint.split_layout import SplitPlan

_PATH = click.Path(path_type=Path)
_DEGREE = click.IntRange(min=1)


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """The split, and where its shards go."""

    output: Path = option(
        "-o", "--output", type=_PATH, required=True, help="Folder to write: rank_0, rank_1, ... and strategy."
    )
    dp: int = option("--dp", type=_DEGREE, default=1, show_default=True, help="Data parallel degree.")
    mp: int = option("--mp", type=_DEGREE, default=1, show_default=True, help="Tensor (model) parallel degree.")
    pp: int = option("--pp", type=_DEGREE, default=1, show_default=True, help="Pipeline stages.")
    optimizer_parallel: bool = option(
        "--optimizer-parallel",
        is_flag=True,
        help="Also shard parameters among data-parallel copies (optimizer parallel).",
    )
    optimizer_threshold: int | None = option(
        "--optimizer-threshold",
        type=click.IntRange(min=0),
        metavar="KB",
        help="Smaller parameters stay whole (parallel_optimizer_threshold).  [default: 64]",
    )
    cut_vocabulary: bool = option(
        "--cut-vocabulary", is_flag=True, help="Also shard the embedding and the output layer (vocab_emb_dp: False)."
    )
    file_format: str = option(
        "--file-format", type=click.Choice(["safetensors", "ckpt"]), default="safetensors", show_default=True
    )

    def plan(self) -> SplitPlan:
        """Return the split. Raises SpecError for a threshold that nothing is held to."""
        from launcher.checkpoint.split_layout import THRESHOLD_KIB, SplitPlan

        if self.optimizer_threshold is not None and not self.optimizer_parallel:
            raise SpecError("--optimizer-threshold means nothing without --optimizer-parallel", hint="leave it out")
        return SplitPlan(
            data_parallel=self.dp,
            model_parallel=self.mp,
            pipeline_stage=self.pp,
            optimizer_shards=-1 if self.optimizer_parallel else 1,
            optimizer_threshold_kib=THRESHOLD_KIB if self.optimizer_threshold is None else self.optimizer_threshold,
            cut_vocabulary=self.cut_vocabulary,
        )


@click.command("split-ckpt")
@click.argument("checkpoint", type=_PATH)
@takes(SplitOptions, "options")
def split_ckpt(checkpoint: Path, options: SplitOptions) -> None:
    """Split a whole CHECKPOINT into the shards of a plan, with their strategy files: the inverse of merge-ckpt.

    CHECKPOINT is a file, or a folder that merge-ckpt or convert-ckpt wrote.

    \b
    launcher split-ckpt base.safetensors --dp 2 --mp 4 -o shards
    launcher split-ckpt jobs/ID/merged --dp 2 --mp 4 -o shards
    """
    from launcher.checkpoint.merge import base_file
    from launcher.checkpoint.split import split
    from launcher.checkpoint.tensorfile import TensorFile

    plan, output = options.plan(), options.output
    with interruptible(str(output)), TensorFile(base_file(checkpoint)) as source:
        ranks = split(source, output, plan, file_format=options.file_format)
    click.echo(f"wrote {ranks} ranks to {output} (dp {options.dp}, mp {options.mp}, pp {options.pp})")
    click.echo(f"Back: launcher merge-ckpt {output}")
