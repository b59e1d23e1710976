"""``launcher docs``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from launcher.common.nearest import nearest


@click.command()
@click.argument("topic", required=False)
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", help="zh where there is a Chinese page.")
def docs(topic: str | None, lang: str) -> None:
    """Print the documentation on TOPIC, a page or a command, as the installed version has it; without one, list the
    topics.

    \b
    launcher docs
    launcher docs checkpoints
    launcher docs ascend-quickstart --lang zh
    """
    pages = _pages()
    if topic is None:
        from launcher.cli.output.tables import table

        rows = ((name, _title(page)) for name, page in pages.items() if "." not in name)
        click.echo(table(("TOPIC", "PAGE"), rows))
        click.echo("Next: launcher docs TOPIC")
        return
    text = _found(pages, topic, lang).read_text(encoding="utf-8")
    if sys.stdout.isatty():
        click.echo_via_pager(_rendered(text), color=True)
    else:
        click.echo(text, nl=False)


def _pages() -> dict[str, Path]:
    from launcher.common.resources import shipped

    return {page.stem: page for page in sorted(shipped("docs").glob("*.md"))}


def _found(pages: dict[str, Path], topic: str, lang: str) -> Path:
    from launcher.errors import SpecError

    name = topic.removesuffix(".md").rpartition("/")[2]
    if lang == "zh" and f"{name}.zh" in pages:
        return pages[f"{name}.zh"]
    if name in pages:
        if lang == "zh":
            click.echo(f"note: there is no Chinese page on {name}", err=True)
        return pages[name]
    if page := _page_of_command(name):
        return pages[page]
    near = nearest(name, [*pages, *_commands()])
    raise SpecError(f"no page on {topic}", hint=f"launcher docs {near}" if near else "launcher docs lists the topics")


# Commands whose page is not of their name.
_PAGES = {
    "quickstart": ("demo",),
    "configuration": ("config",),
    "jobs": ("submit", "resume", "stop", "attach", "status", "logs", "completion"),
    "models": ("plan",),
    "sweeps": ("sweep",),
    "checkpoints": ("merge-ckpt", "convert-ckpt", "split-ckpt"),
    "inference": ("infer", "chat", "eval", "serve"),
    "rank-tables": ("rank-table", "devices"),
    "observability": ("top", "board", "report", "compare", "plot", "track", "metrics"),
    "faq": ("docs",),
}


def _commands() -> list[str]:
    return [command for commands in _PAGES.values() for command in commands]


def _page_of_command(name: str) -> str | None:
    return next((page for page, commands in _PAGES.items() if name in commands), None)


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _rendered(text: str) -> str:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(force_terminal=True, width=min(110, Console().width))
    with console.capture() as captured:
        console.print(Markdown(text))
    return captured.get()
