"""The documentation is true: its commands exist and print what it says, and whatever exists is in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs import pages
from docs.pages import PAGES, ROOT
from launcher.cli.app import COMMANDS, main
from launcher.cli.submit import submit
from launcher.schedulers import registry

# Options of other programs that pages name.
FOREIGN = {"--join", "--nice", "--official", "--signal"}


# A changelog also speaks of what is gone.
TRUE_NOW = tuple(page for page in PAGES if page.name != "CHANGELOG.md")


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ------------------------------------------------------------------------------------------------ what is shown exists


def check(words: list[str]) -> str:
    """Say what is wrong with a launcher command line; "" when every command and option in it exists."""
    command: click.Command = main
    context = click.Context(main, info_name="launcher")
    left = [word for word in words if word not in ("...", "[...]")]
    while isinstance(command, click.Group) and left and not left[0].startswith("-"):
        name, *left = left
        found = command.get_command(context, name)
        if found is None and command.invoke_without_command:
            left = [name, *left]
            break
        if found is None:
            return "" if name.isupper() else f"no command {name!r}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    known = {text for option in command.params for text in (*option.opts, *option.secondary_opts)} | {"-h", "--help"}
    asked = [word.partition("=")[0] for word in left if re.match(r"--?[a-zA-Z]", word)]
    return next((f"{command.name} has no option {word}" for word in asked if word not in known | FOREIGN), "")


@pytest.mark.parametrize("page", TRUE_NOW, ids=names)
def test_every_command_shown_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = [*pages.commands(text), *pages.inline_commands(text)]

    wrong = [
        f"{names(page)}:{line}: launcher {' '.join(words)}: {check(words)}" for line, words in shown if check(words)
    ]

    assert wrong == []


def test_every_option_named_in_a_sentence_exists() -> None:
    known = {text for _, command in every_command() for o in command.params for text in (*o.opts, *o.secondary_opts)}
    wrong = []
    for page in TRUE_NOW:
        for number, line in pages.prose(page.read_text(encoding="utf-8")):
            for shown in re.findall(r"`(--[a-z][^`]*)`", line):
                options = re.findall(r"(?<![\w-])--[a-z][\w-]*", shown)
                wrong += [f"{names(page)}:{number}: {option}" for option in options if option not in known | FOREIGN]

    assert wrong == []


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module, what f-strings fill in as X."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value


def test_every_command_that_a_hint_names_exists() -> None:
    wrong = []
    for path in sorted((ROOT / "launcher").rglob("*.py")):
        for line, text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            for words in pages.named_commands(text):
                if check(words):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: launcher {' '.join(words)}: {check(words)}")

    assert wrong == []


# ----------------------------------------------------------------------------------------------- what exists is shown


def every_command(
    command: click.Command = main, words: tuple[str, ...] = ("launcher",)
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that does something by itself, with the words that call it."""
    if not isinstance(command, click.Group) or (command.invoke_without_command and command is not main):
        yield words, command
    if not isinstance(command, click.Group):
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from every_command(inner, (*words, name))


# What takes all the options of another command, which are explained once.
_ALIKE: dict[tuple[str, ...], str] = {("launcher", "sweep", "run"): "launcher submit"}


def test_every_command_and_option_is_in_a_page() -> None:
    texts = [page.read_text(encoding="utf-8") for page in TRUE_NOW if ".zh." not in page.name]
    missing = []
    for words, command in every_command():
        about = [text for text in texts if " ".join(words) in text or _ALIKE.get(words, "?") in text]
        if not about:
            missing.append(" ".join(words))
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and not _is_named(option, about):
                missing.append(f"{' '.join(words)}: {option.opts[-1]}")

    assert missing == []


def test_the_table_of_submit_has_all_its_options_but_those_of_schedulers() -> None:
    """A scheduler's own begin their help with its name, and are on its page."""
    text = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `--")]
    own = re.compile(rf"(?:{'|'.join(registry.names())})\b.*: ")
    options = [option for option in submit.params if isinstance(option, click.Option)]

    assert [o.opts[-1] for o in options if not own.match(o.help or "") and not _is_named(o, rows)] == []


def _is_named(option: click.Option, texts: list[str]) -> bool:
    """Whether one of ``texts`` has the option, by any of its names."""
    spellings = [re.escape(name) for name in (*option.opts, *option.secondary_opts)]
    return any(re.search(rf"(?<![\w-])(?:{'|'.join(spellings)})(?![\w-])", text) for text in texts)


def test_every_top_level_command_is_in_the_table_of_both_readmes() -> None:
    for name in ("README.md", "README.zh.md"):
        table = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        shown = {word for line in table for word in re.findall(r"`(?:launcher )?([\w-]+)`", line)}

        assert set(COMMANDS) - {"node"} - shown == set(), name


# ----------------------------------------------------------------------------------------------------------- links


def test_every_page_is_reached_and_every_link_leads_somewhere() -> None:
    seen: set[Path] = set()
    left, dead = [ROOT / "README.md"], []
    while left:
        page = left.pop()
        if page in seen:
            continue
        seen.add(page)
        for target, anchor in pages.links(page):
            if not target.exists() or (anchor and anchor not in pages.anchors(target)):
                dead.append(f"{names(page)} -> {target}#{anchor}")
            elif target.suffix == ".md":
                left.append(target)

    assert dead == []
    assert set(PAGES) - seen == set()


def test_the_readmes_are_short_and_tell_of_the_two_first_commands() -> None:
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")

        assert text.count("\n") <= 200
        assert re.findall(r"^make (\w+)", text, re.MULTILINE)[:2] == ["demo", "test"]


# ---------------------------------------------------------------------------------------------------- what it prints


def differing(page: Path, home: Path, *, slow: bool) -> list[str]:
    """Run the sessions of ``page`` in ``home`` and return what they print otherwise than it says."""
    session = pages.Session(page, home)
    return [
        found
        for block in pages.selected(page.read_text(encoding="utf-8"), slow=slow)
        for step, printed in pages.run_block(block, session)
        if (found := pages.differs(step, printed, session.exit_code))
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if pages.has_sessions(page, slow=False)], ids=names)
def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    """The cheap ones; ``make docs-check`` runs all."""
    found = differing(page, tmp_path / "me", slow=False)

    assert not found, "\n\n".join(found)


@pytest.fixture(scope="module")
def after_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which ``launcher demo`` has run."""
    home = tmp_path_factory.mktemp("demo") / "me"
    pages.Session(ROOT / "README.md", home).run("launcher demo")
    return home


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in PAGES if pages.has_sessions(page, slow=True)], ids=names)
def test_slow_commands_print_what_the_page_says(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Pages about what the demo leaves run in one home, in the order of their names."""
    text = page.read_text(encoding="utf-8")
    shared = pages.AFTER_DEMO in text or "$ launcher demo\n" in text
    home = request.getfixturevalue("after_demo") if shared else tmp_path / "me"

    found = differing(page, home, slow=True)

    assert not found, "\n\n".join(found)
