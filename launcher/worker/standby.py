"""A process that has imported what a rank imports and waits: ``python -m launcher.worker.standby SOCKET``.

Importing MindSpore and MindFormers is most of a restart. A standby has done it before it is needed, and nothing else:
no device, no cluster, no thread of its own. It then becomes the rank: it takes over the environment, the folder and the
arguments of the program that would have been started. It is not forked from a loaded process, whose threads would be
missing in the child.

The supervisor gives it its part with engine "direct". Where the engine starts the ranks, the process that it starts
hands over, and stays as what the engine knows of the rank: see ``hand_over``.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.common.processes import ProcessId, die_with_parent
from launcher.upstream.light_imports import light_imports

# The name under which the standby processes of a job listen, in the environment of an engine; see ``address``.
VARIABLE = "LAUNCHER_STANDBY"
_DONE = b"done"

_taken_over = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a standby becomes. ``argv``: arguments of the interpreter. ``held``: it ends when who gave it is gone."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    held: bool = False


def address(name: str, rank_id: int) -> str:
    """Return the address of the standby for ``rank_id``: in Linux's abstract namespace, so that no file is left."""
    return f"\0{name}-{rank_id}"


def give_part(name: str, rank_id: int, part: Part) -> socket.socket | None:
    """Give the standby for ``rank_id`` its part; return the connection. None when there is no such process (any more).

    One that is still importing takes it when it is ready.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address(name, rank_id))
        if not is_from_this_user(connection, os.getuid()):
            raise OSError("somebody else listens there")
        connection.sendall(json.dumps(asdict(part)).encode() + b"\n")
    except OSError:
        connection.close()
        return None
    return connection


def is_taken_over() -> bool:
    """Return True if this process was a standby: nothing then needs to report its exit but the kernel."""
    return _taken_over


def hand_over(rank_id: int, root: str) -> None:
    """Let the standby for ``rank_id`` be the rank, if there is one, and end when it does; else return.

    This process only shows the engine that the rank lives. It ends with code 0 after a good end. After any other it
    waits to be killed: the supervisor, whose child the standby is, has its exit code, and the engine would know less.
    """
    name = os.environ.get(VARIABLE)
    if name is None or is_taken_over():
        return
    argv = [*_module_or_file(), root]
    part = Part(argv=argv, env={**os.environ}, cwd=str(Path.cwd()), held=True)
    connection = give_part(name, rank_id, part)
    process = _taker(connection) if connection else None
    if connection is None or process is None:
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda signum, _frame: process.send(signum))
    # Without exit handlers: this process has nothing of its own to end.
    if _answer(connection) == _DONE:
        _answer(connection)  # it ends only now
        os._exit(0)
    while True:
        signal.pause()


def _module_or_file() -> list[str]:
    """Return the arguments with which this interpreter was told its program."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]


def _answer(connection: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return connection.recv(64)
    return b""


def _taker(connection: socket.socket) -> ProcessId | None:
    """Return the process that has taken its part; None when it ended before."""
    said = _answer(connection)
    try:
        return ProcessId.of_pid(int(said)) if said.isdigit() else None
    except ProcessLookupError:
        return None


def main(handle: int, imports: Sequence[str]) -> None:
    """Import, wait for the part on the listening socket ``handle``, and become it."""
    die_with_parent()
    # MindSpore takes kept graphs only for the same entry script, which it looks up here while it is imported
    # (mindspore 2.9.0, graph/api.py, entry_script_path).
    sys.argv[0] = str(Path(__file__).with_name("__main__.py"))
    with socket.socket(fileno=handle) as listening:
        try:
            with light_imports():
                for name in imports:
                    __import__(name)
        except Exception:
            # It is the rank's to report, in its own log, from an interpreter that has nothing half imported.
            traceback.print_exc()
            os.execv(sys.executable, (sys.executable, "-m", "launcher.worker.standby", str(handle)))  # noqa: S606
        part, holder = _part(listening)
    _become(part, holder)


def _part(listening: socket.socket) -> tuple[Part, socket.socket]:
    """Return the first part that arrives whole from a process of this user, and the connection to that."""
    while True:
        connection, _ = listening.accept()
        if is_from_this_user(connection, os.getuid()) and (text := connection.makefile("rb").readline()).endswith(
            b"\n"
        ):
            return Part(**json.loads(text)), connection
        connection.close()


def is_from_this_user(connection: socket.socket, user: int) -> bool:
    """Return True if the other side may tell us what to run: addresses without a file have no permissions."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(raw[4:8], sys.byteorder) == user


def _become(part: Part, holder: socket.socket) -> None:
    global _taken_over
    _taken_over = True
    for name in [name for name in os.environ if name not in part.env]:
        del os.environ[name]
    os.environ.update(part.env)
    os.environ.pop(VARIABLE, None)
    os.chdir(part.cwd)
    if part.held:
        _say(holder, str(os.getpid()).encode())
        threading.Thread(target=_end_with, args=(holder,), daemon=True).start()
    _run(list(part.argv))
    if part.held:
        _say(holder, _DONE)


def _say(holder: socket.socket, said: bytes) -> None:
    with contextlib.suppress(OSError):
        holder.sendall(said)


def _end_with(holder: socket.socket) -> None:
    """Die as a rank dies with its parent: the engine has ended the process that holds this one."""
    _answer(holder)
    os.kill(os.getpid(), signal.SIGKILL)


def _run(argv: list[str]) -> None:
    if argv[0] == "-m":
        sys.argv = ["-m", *argv[2:]]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    # Under its own name, not as __main__: the rank's program asks this module whether it was a standby.
    from launcher.worker import standby

    arguments: Any = sys.argv
    standby.main(int(arguments[1]), arguments[2:])
