"""Where a job comes from: who submitted it, by which command, in which folder, at which git commit."""

from __future__ import annotations

import getpass
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

_GIT_TIMEOUT_S = 2.0


def origin() -> dict[str, str]:
    """Return user, command, folder and, in a git repository, commit; "+changes" when files differ from it."""
    argv = [Path(sys.argv[0]).name, *sys.argv[1:]]
    found = {"user": _user(), "command": shlex.join(argv), "folder": str(Path.cwd())}
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return found
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {**found, "commit": commit + ("+changes" if changed else "")}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for this uid
        return ""


def _git(*arguments: str) -> str:
    """Return what git says; "" where it is missing, slow, or not in a repository."""
    program = shutil.which("git")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            (program, *arguments), capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
