"""``launcher split-ckpt``."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.output.interruption import interruptible
from launcher.errors import SpecError

_PATH = click.Path(path_type=Path)
_DEGREE = click.IntRange(min=1)


@click.command("split-ckpt")
@click.argument("checkpoint", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="Folder to write: rank_0, rank_1, ... and strategy.")
@click.option("--dp", type=_DEGREE, default=1, show_default=True, help="Data parallel degree.")
@click.option("--mp", type=_DEGREE, default=1, show_default=True, help="Tensor (model) parallel degree.")
@click.option("--pp", type=_DEGREE, default=1, show_default=True, help="Pipeline stages.")
@click.option("--optimizer-parallel", is_flag=True, help="Cut what data-parallel copies share among them.")
@click.option(
    "--optimizer-threshold",
    type=click.IntRange(min=0),
    metavar="KB",
    help="Parameters smaller than this are not cut so (parallel_optimizer_threshold).  [default: 64]",
)
@click.option("--cut-vocabulary", is_flag=True, help="Cut the embedding and the head too (vocab_emb_dp: False).")
@click.option("--file-format", type=click.Choice(["safetensors", "ckpt"]), default="safetensors", show_default=True)
def split_ckpt(
    checkpoint: Path,
    output: Path,
    dp: int,
    mp: int,
    pp: int,
    optimizer_parallel: bool,
    optimizer_threshold: int | None,
    cut_vocabulary: bool,
    file_format: str,
) -> None:
    """Split a whole CHECKPOINT into the shards of a plan, with their strategy files: the inverse of merge-ckpt.

    CHECKPOINT is a file, or a folder that merge-ckpt or convert-ckpt wrote.

    \b
    launcher split-ckpt base.safetensors --dp 2 --mp 4 -o shards
    launcher split-ckpt jobs/ID/merged --dp 2 --mp 4 -o shards
    """
    from launcher.checkpoint.merge import base_file
    from launcher.checkpoint.split import THRESHOLD_KIB, SplitPlan, split
    from launcher.checkpoint.tensorfile import TensorFile

    if optimizer_threshold is not None and not optimizer_parallel:
        raise SpecError("--optimizer-threshold means nothing without --optimizer-parallel", hint="leave it out")
    plan = SplitPlan(
        data_parallel=dp,
        model_parallel=mp,
        pipeline_stage=pp,
        optimizer_shards=-1 if optimizer_parallel else 1,
        optimizer_threshold_kib=THRESHOLD_KIB if optimizer_threshold is None else optimizer_threshold,
        cut_vocabulary=cut_vocabulary,
    )
    with interruptible(str(output)), TensorFile(base_file(checkpoint)) as source:
        ranks = split(source, output, plan, file_format=file_format)
    click.echo(f"wrote {ranks} ranks to {output} (dp {dp}, mp {mp}, pp {pp})")
    click.echo(f"Back: launcher merge-ckpt {output}")
