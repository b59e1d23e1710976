"""Option groups: a dataclass declares the options and reaches the command as one argument."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import click
from click.testing import CliRunner

import launcher.cli
from launcher.cli.options.common import AnyCase
from launcher.cli.options.group import declared, option, takes


@dataclass(frozen=True, kw_only=True)
class Colours:
    front: str = option("--front", default="red")
    strong: bool = option("--strong", is_flag=True)
    many: tuple[str, ...] = declared(click.option("--many", multiple=True))


@click.command()
@takes(Colours, "colours")
@click.option("--last")
def paint(colours: Colours, last: str | None) -> None:
    click.echo(repr((colours, last)))


def test_a_group_reaches_the_command_as_one_argument() -> None:
    result = CliRunner().invoke(paint, ["--strong", "--many", "a", "--many", "b", "--last", "x"])
    assert result.output.strip() == repr((Colours(front="red", strong=True, many=("a", "b")), "x"))


def test_names_of_kinds_are_taken_in_small_letters_and_shown_as_they_are() -> None:
    @click.command()
    @click.option("--kind", type=AnyCase(["A2", "310P"]))
    def planned(kind: str) -> None:
        click.echo(kind)

    runner = CliRunner()
    assert [runner.invoke(planned, ["--kind", kind]).output for kind in ("a2", "310p", "A2")] == [
        "A2\n",
        "310P\n",
        "A2\n",
    ]
    assert "[A2|310P]" in runner.invoke(planned, ["--help"]).output
    assert "'a4' is not one of 'A2', '310P'" in runner.invoke(planned, ["--kind", "a4"]).output


def test_help_lists_the_options_in_the_order_of_the_fields() -> None:
    text = CliRunner().invoke(paint, ["--help"]).output
    places = [text.index(flag) for flag in ("--front", "--strong", "--many", "--last")]
    assert places == sorted(places)


def test_no_command_takes_untyped_options() -> None:
    """A command names what it takes: ``**options`` would bring back look-ups by string."""
    folder = Path(launcher.cli.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                is_command = any("command" in ast.dump(decorator) for decorator in node.decorator_list)
                assert not (is_command and node.args.kwarg), f"{path.name}: {node.name}"
