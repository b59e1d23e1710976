"""The origin of a job: enough to say why two runs of one spec differ.

Who submitted it, on which host, by which command, in which folder, at which git commit; which packages were installed,
and which base was there.
"""

from __future__ import annotations

import getpass
import hashlib
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from launcher.checkpoint.compare import weights_fingerprint

_GIT_TIMEOUT_S = 2.0
_SHOWN_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Origin:
    """``values`` go into job.json; ``packages``, one line each, beside it: their hash is among the values."""

    values: dict[str, str]
    packages: str


def origin(base: str | None = None) -> Origin:
    """Return the origin of a job that is submitted now, with ``base`` as its weights, if any.

    The values are user, host, command, folder, packages, and where they apply base, commit ("+changes" when files
    differ from it) and changes, a hash of how they differ.
    """
    program = Path(sys.argv[0]).name
    argv = [*(("python", "-m", "launcher") if program == "__main__.py" else (program,)), *sys.argv[1:]]
    packages = installed_packages()
    found = {
        "user": _user(),
        "host": socket.gethostname(),
        "command": shlex.join(argv),
        "folder": str(Path.cwd()),
        **_of_git(),
        "packages": _hash(packages.encode()),
        "base": weights_fingerprint(Path(base))[:_SHOWN_DIGITS] if base else "",
    }
    return Origin(values={name: value for name, value in found.items() if value or name == "user"}, packages=packages)


def installed_packages() -> str:
    """Return name==version of every installed package, sorted, a line each; a name that is there twice counts twice."""
    found = {f"{item.metadata['Name']}=={item.version}" for item in metadata.distributions() if item.metadata["Name"]}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def _of_git() -> dict[str, str]:
    commit = _git("rev-parse", "--short=12", "HEAD").strip()
    if not commit:
        return {}
    if not _git("status", "--porcelain", "--untracked-files=no"):
        return {"commit": commit}
    # What differs may be large, or slow to tell: then it is only known that something does.
    changes = _git("diff", "HEAD", "--no-color", "--no-ext-diff")
    return {"commit": f"{commit}+changes", "changes": _hash(changes.encode("utf-8", "replace")) if changes else ""}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_SHOWN_DIGITS]


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
            (program, *arguments), capture_output=True, timeout=_GIT_TIMEOUT_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
