"""Running the vendor's programs: found on PATH or in their own folders, with a time-out, never through a shell."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

from launcher.errors import HostError

# npu-smi of a 16-die server needs some 2 s; a driver that hangs answers never.
_TIMEOUT_S = 20.0
_MOST_OUTPUT = 4 << 20
_VENDOR_FOLDERS = {
    "npu-smi": ("/usr/local/bin", "/usr/local/sbin", "/usr/local/Ascend/driver/tools"),
    "hccn_tool": ("/usr/local/Ascend/driver/tools",),
}


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """The output of a program. ``fault``: "" when it ended with status 0, else the reason why it is unusable."""

    argv: tuple[str, ...]
    stdout: str = ""
    stderr: str = ""
    fault: str = ""


def default_timeout_s() -> float:
    """Return the time-out of a program: 20 s, or $LAUNCHER_PROBE_TIMEOUT_S. Raises HostError if that is no number."""
    named = os.environ.get("LAUNCHER_PROBE_TIMEOUT_S")
    if named is None:
        return _TIMEOUT_S
    try:
        seconds = float(named)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise HostError(f"LAUNCHER_PROBE_TIMEOUT_S={named!r} is no number of seconds", hint="unset it")
    return seconds


def find_program(name: str) -> str | None:
    """Return the path of ``name`` on PATH or in its vendor's folder, or None."""
    found = shutil.which(name)
    if found:
        return found
    folders = os.pathsep.join(_VENDOR_FOLDERS.get(name, ()))
    return shutil.which(name, path=folders) if folders else None


def run_program(name: str, *arguments: str, timeout_s: float | None = None) -> ProgramResult:
    """Run ``name`` to its end. ``fault`` has its failure; no process of it is left running."""
    program = find_program(name)
    argv = (program or name, *arguments)
    if program is None:
        return ProgramResult(argv=argv, fault=f"{name} is not on PATH and not in its vendor's folder")
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},  # what is parsed must not follow the user's language
        )
    except OSError as error:
        return ProgramResult(argv=argv, fault=f"{program} cannot be run: {error.strerror}")
    with process:
        reading = _Reading(process, default_timeout_s() if timeout_s is None else timeout_s)
        fault = reading.to_the_end()
        if fault:
            _kill_session(process)
    stdout, stderr = (raw.decode("utf-8", "replace") for raw in reading.output)
    if not fault and process.returncode:
        fault = _ending(process.returncode, stdout, stderr)
    return ProgramResult(argv=argv, stdout=stdout, stderr=stderr, fault=f"{name} {fault}" if fault else "")


class _Reading:
    """The reading of a process's output until it ends, the time is up, or the output is too long for any table."""

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        self.process = process
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.output = (bytearray(), bytearray())
        self.selector = selectors.DefaultSelector()

    def to_the_end(self) -> str:
        """Read until the end and return ""; return the reason when the process must be given up."""
        fault = ""
        with self.selector:
            for stream, buffer in zip((self.process.stdout, self.process.stderr), self.output, strict=True):
                self.selector.register(stream, selectors.EVENT_READ, buffer)  # type: ignore[arg-type]
            while self.selector.get_map() and not fault:
                fault = self._step()
        if not fault:
            try:
                self.process.wait(max(0.1, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                fault = f"did not end within {self.timeout_s:g} s"
        return fault

    def _step(self) -> str:
        ready = self.selector.select(min(0.2, max(0.0, self.deadline - time.monotonic())))
        for key, _ in ready:
            chunk = os.read(key.fd, 1 << 16)
            key.data.extend(chunk)
            if not chunk:
                self.selector.unregister(key.fileobj)
            elif len(key.data) > _MOST_OUTPUT:
                return "prints without end"
        if time.monotonic() > self.deadline:
            return f"did not answer within {self.timeout_s:g} s"
        if not ready and self.process.poll() is not None:  # ended, but something it started keeps its pipe open
            for key in list(self.selector.get_map().values()):
                self.selector.unregister(key.fileobj)
        return ""


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(status: int, stdout: str, stderr: str) -> str:
    said = (stderr.strip() or stdout.strip() or "nothing").splitlines()[0][:200]
    return f"ended with {f'status {status}' if status > 0 else f'signal {-status}'} and said: {said}"
