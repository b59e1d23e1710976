"""Draw terminal.svg from a real run: adapt the shipped base on two CPU ranks, and show what commands print.

`python docs/pictures/make_terminal.py`, about a minute.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 104
COMMANDS = (
    "launcher submit --cards 2",
    "launcher status last",
    "launcher merge-ckpt last",
    "launcher infer last --prompt 题目：小红有4盒铅笔，每盒3个，又买5个，一共几个？ --max-new-tokens 24",
)


def terminal_output(command: str, folder: Path) -> str:
    """Run ``command`` in a terminal of its own and return what stands in it at the end, with its colours."""
    ours, theirs = pty.openpty()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
    env["HOME"] = str(folder.parent)
    with subprocess.Popen(command.split(), cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        chunks = []
        while chunk := read(ours):
            chunks.append(chunk)
    os.close(ours)
    return last_screen(b"".join(chunks).decode())


def read(terminal: int) -> bytes:
    """Read some output; b"" when the program has ended."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def last_screen(text: str) -> str:
    """Return ``text`` without what a progress bar drew over: lines as they were left."""
    lines: list[str] = []
    for line in re.sub(r"\x1b\[\?25[lh]", "", text).replace("\r\n", "\n").split("\n"):
        while line.startswith(("\r\x1b[1A", "\x1b[1A")):
            line = line.split("\x1b[1A", 1)[1]
            lines = lines[:-1]
        lines.append(line.replace("\x1b[2K", "").split("\r")[-1])
    return "\n".join(lines)


def main() -> None:
    """Run the commands and write the picture."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "llm"
        folder.mkdir()
        for command in COMMANDS:
            console.print(Text(f"$ {command}", style="bold"))
            shown = terminal_output(command, folder).replace(made, "/home/me").replace(str(ROOT), "/home/me/launcher")
            console.print(Text.from_ansi(shown.rstrip()))
    svg = console.export_svg(title="launcher", theme=MONOKAI, unique_id="launcher")
    svg = re.sub(r"\s*@font-face \{.*?\n    \}", "", svg, flags=re.DOTALL)  # a picture loads nothing from elsewhere
    Path(__file__).with_name("terminal.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


if __name__ == "__main__":
    main()
