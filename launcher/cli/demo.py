"""``launcher demo``."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options.common import jobs_dir_option


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for its files; each run makes a numbered folder in it.",
)
@jobs_dir_option
def demo(folder: Path, jobs_dir: Path) -> None:
    """Run the whole path for real on this machine's CPU: data, train, finetune on two ranks, merge, ask.

    \b
    launcher demo
    """
    from launcher.control.demo import Demo, next_folder

    Demo(folder=next_folder(folder), jobs_dir=jobs_dir, echo=click.echo).run()
