"""``launcher merge-ckpt``."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options import job_argument, jobs_dir_option


@click.command("merge-ckpt")
@job_argument
@jobs_dir_option
def merge_ckpt(job: str, jobs_dir: Path) -> None:
    """Merge the checkpoints of JOB into one model, LoRA folded in.

    \b
    launcher merge-ckpt last
    """
    from launcher.jobs import JobStore
    from launcher.merging import merge_job

    paths, record = JobStore(jobs_dir).get(job)
    merged = merge_job(paths, record)
    if not merged.fresh:
        click.echo(f"already merged: {merged.folder} (step {merged.step})")
        return
    click.echo(
        f"merged step {merged.step} of {record.job_id}: {merged.num_weights} weights, {merged.num_folded} with LoRA"
    )
    click.echo(f"wrote {merged.folder}")
    click.echo(f'Next: launcher infer {record.job_id} --prompt "..."')
