"""The pages of the documentation: their code blocks, the commands in them, and what those print.

A ```console block is a session: lines that begin with "$ " are run, the others are what they print, and a line "..."
stands for any lines. ```console slow is run by `make docs-check` alone; of ```console varies only exit codes count. A
block with file=NAME in its first line is written to that file first. ```sh and ```text blocks are not run; the launcher
commands in them are parsed. All blocks of a page run in one folder, in order. From tests/, `python -m docs.pages
[--slow] PAGE...` runs pages and writes what was printed into them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = tuple(
    sorted(
        [
            *ROOT.glob("README*.md"),
            *(ROOT / "docs").rglob("*.md"),
            *EXAMPLES.rglob("*.md"),
            *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "rank_tables/README.md")),
        ]
    )
)
SHOWN_ROOT, SHOWN_HOME, SHOWN_HOST = "/home/me/launcher", "/home/me", "vm"
AFTER_DEMO = "<!-- after: launcher demo -->"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: ``line`` is that of its first line of text, from 0; ``info`` the words after the backticks."""

    line: int
    info: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""

    @property
    def file(self) -> str | None:
        return next((word[5:] for word in self.info if word.startswith("file=")), None)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of a session and the lines that it is said to print, at ``line`` of the page.

    ``varies``: what it prints differs from machine to machine (a model's answers) and is not compared.
    """

    command: str
    line: int
    expected: tuple[str, ...]
    varies: bool


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    start, lines = -1, list[str]()
    info: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n")):
        if start < 0 and line.startswith("```"):
            start, info, lines = number + 1, tuple(line[3:].split()), []
        elif start >= 0 and line.rstrip() == "```":
            yield Block(line=start, info=info, lines=tuple(lines))
            start = -1
        elif start >= 0:
            lines.append(line)


def steps(block: Block) -> Iterator[Step]:
    """Yield the commands of a session, each with what it is said to print."""
    at = 0
    while at < len(block.lines):
        command = [block.lines[at][2:]]
        while command[-1].endswith("\\"):
            at += 1
            command.append(block.lines[at])
        first = at = at + 1
        while at < len(block.lines) and not block.lines[at].startswith("$ "):
            at += 1
        shown = block.lines[first:at]
        yield Step(command="\n".join(command), line=block.line + first, expected=shown, varies="varies" in block.info)


class Session:
    """Runs the blocks of ``page`` in ``home``/llm, with a home and caches of their own and an example's files."""

    def __init__(self, page: Path, home: Path) -> None:
        self.home, self.folder, self.exit_code = home, home / "llm", 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if EXAMPLES in page.resolve().parents:
            shutil.copytree(page.parent, self.folder, dirs_exist_ok=True)
        elif not (self.folder / "rank_tables").exists():
            shutil.copytree(ROOT / "rank_tables", self.folder / "rank_tables")

    def run(self, command: str) -> list[str]:
        """Run ``command`` by bash and return the lines it prints, with the folders and host that pages show."""
        if command == "echo $?":
            return [str(self.exit_code)]
        demo = self.home / "demo.log"
        if command != "launcher demo":
            return self._run(command)
        if not demo.exists():  # it takes minutes: pages share one run of it
            demo.write_text("\n".join(self._run(command)))
        return [line.rstrip() for line in self._shown(demo.read_text()).splitlines()]

    def _run(self, command: str) -> list[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAUNCHER_", "PYTEST_"))}
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        env = {**kept, "HOME": str(self.home), "PATH": path, "COLUMNS": "200", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["/bin/bash", "-c", command], cwd=self.folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        self.exit_code = done.returncode
        return [line.rstrip() for line in self._shown(done.stdout).splitlines()]

    def _shown(self, text: str) -> str:
        text = text.replace(str(self.home), SHOWN_HOME).replace(str(ROOT), SHOWN_ROOT)
        return re.sub(rf"\b{re.escape(socket.gethostname())}\b", SHOWN_HOST, text)


def plain(line: str) -> str:
    """Return ``line`` without what differs between two runs: numbers, ids of jobs, hashes, bars, widths."""
    line = re.sub(r"\b[b-df-hj-np-tv-xz]{5}-(?=\w)", "JOB-", line)
    line = re.sub(r"\b(?=\w*\d)[0-9a-f]{8,}\b", "#", line)
    line = re.sub(r"[+-]?\d[\d,.:]*(?:e[+-]?\d+)?", "#", line)
    return " ".join(re.sub(r"[█-▏─━]+", "", line).split())


def pattern(expected: tuple[str, ...]) -> re.Pattern[str]:
    """Return what the lines of an output must match, up to numbers; "..." stands for anything."""
    parts = []
    for line in expected:
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(part) for part in plain(line).split("...")) + r" *\n")
    return re.compile("".join(parts))


def differs(step: Step, printed: list[str], exit_code: int) -> str:
    """Say how what ``step`` printed differs from the page; "" when it does not."""
    text = "".join(plain(line) + "\n" for line in "\n".join(printed).strip("\n").splitlines())
    if not step.varies and not pattern(_stripped(step.expected)).fullmatch(text):
        return f"line {step.line}: $ {step.command}\n  page:\n" + "\n".join(
            [*step.expected, "  printed:", *printed, "  printed, as compared:", text]
        )
    told = step.command == "echo $?" or any(re.search(r"error:|fail|^ +E_", line) for line in step.expected)
    if exit_code and not told:
        return f"line {step.line}: $ {step.command}\n  exit code {exit_code}, which the page does not show"
    return ""


def _stripped(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in lines)


def run_block(block: Block, session: Session) -> Iterator[tuple[Step, list[str]]]:
    """Run a session's commands, or write the file that the block is; yield what each command printed."""
    if block.file:
        target = session.folder / block.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(block.lines) + "\n")
    elif block.language == "console":
        for step in steps(block):
            yield step, session.run(step.command)


def selected(text: str, *, slow: bool) -> Iterator[Block]:
    """Yield the blocks to run: all of them, or all but the slow ones."""
    return (block for block in blocks(text) if slow or "slow" not in block.info)


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield every launcher command line that a page shows in a block, as words, with its line from 1."""
    for block in blocks(text):
        if block.language in ("console", "text", ""):
            shown = [(number, line[2:]) for number, line in _joined(block) if line.startswith("$ ")]
        elif block.language in ("sh", "bash"):
            shown = [(number, line) for number, line in _joined(block) if not line.lstrip().startswith("#")]
        else:
            continue
        for number, line in shown:
            for words in launcher_words(line):
                yield number + 1, words


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside of blocks, numbered from 1."""
    inside = {block.line + number for block in blocks(text) for number in range(len(block.lines))}
    return ((number + 1, line) for number, line in enumerate(text.split("\n")) if number not in inside)


def inline_commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield every launcher command line that a page shows in a sentence, as words, with its line from 1."""
    for number, line in prose(text):
        for shown in re.findall(r"`(launcher [^`]*)`", line):
            yield from ((number, words) for words in launcher_words(shown))


def named_commands(text: str) -> Iterator[list[str]]:
    """Yield the launcher commands that a message names in its sentences, as words, as far as options go."""
    for found in re.finditer(r"\blauncher ((?:[a-z-]+)(?: [^\s;,.()'\"`]+)*)", text):
        words = found[1].split()
        if words[0] in _commands():
            yield words


def _commands() -> set[str]:
    from launcher.cli.app import COMMANDS

    return set(COMMANDS)


def has_sessions(page: Path, *, slow: bool) -> bool:
    """Return whether a page has sessions that are run in every test; or, ``slow``, others."""
    sessions = [block for block in blocks(page.read_text(encoding="utf-8")) if block.language == "console"]
    return any(("slow" in block.info) == slow for block in sessions)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files that a page links to, each with the anchor in it or ""."""
    for _, line in prose(page.read_text(encoding="utf-8")):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if not re.match(r"[a-z]+:", target):
                name, _, anchor = target.partition("#")
                yield (page.parent / name).resolve() if name else page, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _joined(block: Block) -> Iterator[tuple[int, str]]:
    """Yield the lines of a block, those that end in a backslash joined with the next."""
    held, start = "", block.line
    for number, line in enumerate(block.lines, start=block.line):
        start = start if held else number
        held += line
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        yield start, held
        held = ""


def launcher_words(line: str) -> Iterator[list[str]]:
    """Yield the words of every launcher command in a line of shell, those in $(...) too."""
    for inner in re.findall(r"\$\((launcher [^)]*)\)", line):
        yield from launcher_words(inner)
    words: list[str] = []
    for word in [*_shell_words(line), ";"]:
        if set(word) <= set(";|&<>"):
            yield from _from_launcher(words)
            words = []
        else:
            words.append(word)


def _shell_words(line: str) -> list[str]:
    """Split a line as the shell does; a line of a quoted text over several has no command in it."""
    lexer = shlex.shlex(re.sub(r"\$\([^)]*\)", "X", line), posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        return list(lexer)
    except ValueError:
        return []


def _from_launcher(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] == "time" or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    if words and words[0] == "launcher":
        yield words[1:]


def renew(page: Path, home: Path, *, slow: bool) -> None:
    """Run ``page`` and write what its commands print into it, where that differs from what it says."""
    text = page.read_text()
    lines, moved = text.split("\n"), 0
    session = Session(page, home)
    for block in selected(text, slow=slow):
        for step, printed in run_block(block, session):
            if differs(step, printed, 0):
                at = step.line + moved
                lines[at : at + len(step.expected)] = printed
                moved += len(printed) - len(step.expected)
    page.write_text("\n".join(lines))


if __name__ == "__main__":
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(description="Run pages and write what their commands print into them.")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--slow", action="store_true", help="run slow blocks too")
    parser.add_argument("--home", type=Path, help="the home to run in, where `launcher demo` has run in llm/")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for page in asked.pages:
            renew(page, asked.home or Path(folder) / page.stem / "me", slow=asked.slow)
