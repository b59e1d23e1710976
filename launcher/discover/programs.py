"""Running the vendor's programs: found on PATH or in their own folders, with a time-out, never through a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# npu-smi of a 16-die server needs some 2 s; a driver that hangs answers never.
TIMEOUT_S = 20.0
_MOST_OUTPUT = 4 << 20
_VENDOR_FOLDERS = {
    "npu-smi": ("/usr/local/bin", "/usr/local/sbin", "/usr/local/Ascend/driver/tools"),
    "hccn_tool": ("/usr/local/Ascend/driver/tools",),
}


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """What a program printed, and ``fault``: "" when it ended with status 0, else why it is no use."""

    argv: tuple[str, ...]
    stdout: str = ""
    stderr: str = ""
    fault: str = ""

    @property
    def ok(self) -> bool:
        return not self.fault


def find_program(name: str) -> str | None:
    """The path of ``name`` on PATH or in its vendor's folder, or None."""
    found = shutil.which(name)
    if found:
        return found
    folders = os.pathsep.join(_VENDOR_FOLDERS.get(name, ()))
    return shutil.which(name, path=folders) if folders else None


def run_program(name: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> ProgramResult:
    """Run ``name`` to its end. Never raises: what goes wrong stands in ``fault``."""
    program = find_program(name)
    argv = (program or name, *arguments)
    if program is None:
        return ProgramResult(argv=argv, fault=f"{name} is not on PATH and not in its vendor's folder")
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env=_plain_environment(),
        )
    except subprocess.TimeoutExpired:
        return ProgramResult(argv=argv, fault=f"{Path(program).name} did not answer within {timeout_s:g} s")
    except OSError as error:
        return ProgramResult(argv=argv, fault=f"{program} cannot be run: {error.strerror}")
    stdout, stderr = _text(done.stdout), _text(done.stderr)
    fault = "" if done.returncode == 0 else _fault(name, done.returncode, stdout, stderr)
    return ProgramResult(argv=argv, stdout=stdout, stderr=stderr, fault=fault)


def _text(raw: bytes) -> str:
    return raw[:_MOST_OUTPUT].decode("utf-8", "replace")


def _fault(name: str, status: int, stdout: str, stderr: str) -> str:
    said = (stderr.strip() or stdout.strip() or "nothing").splitlines()[0][:200]
    ending = f"status {status}" if status >= 0 else f"signal {-status}"
    return f"{name} ended with {ending} and said: {said}"


def _plain_environment() -> dict[str, str]:
    """The environment, with messages in English: what is parsed must not follow the user's language."""
    return {**os.environ, "LC_ALL": "C", "LANG": "C"}
