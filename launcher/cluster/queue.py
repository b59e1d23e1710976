"""The queue for the cards of a host: who waits for which, by priority and then by arrival.

A ticket is a file beside the locks, held with flock(2) by the process that waits, so one whose holder is gone counts no
more. Its name is its place in the order.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.locks import card_lock, check_free, hold, lock_folder, shared_folder
from launcher.errors import HostError

HIGHEST = 99
WAIT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A place in the queue, of a process that lives. ``names``: of the locks that it waits for."""

    file: Path
    holder: str
    names: tuple[str, ...]

    def before(self) -> list[str]:
        """Return who is to be served before this one: those before it in the order that want one of the same cards."""
        earlier = (other for other in tickets() if other.file.name < self.file.name)
        return [other.holder for other in earlier if set(other.names) & set(self.names)]


@contextmanager
def wait_and_hold(
    names: Iterable[str],
    *,
    holder: str,
    tell: Callable[[str], None],
    give_up: Callable[[], bool],
    priority: int = 0,
) -> Iterator[bool]:
    """Wait for our turn and for the locks, and hold them inside the block; ``tell`` is called with what is waited for.

    Yields False after giving up.
    """
    names = tuple(names)
    with contextlib.ExitStack() as held:
        with queued(names, holder=holder, priority=priority) as ticket:
            turned_up = _wait(ticket, held, tell, give_up)
        yield turned_up


def _wait(ticket: Ticket, held: contextlib.ExitStack, tell: Callable[[str], None], give_up: Callable[[], bool]) -> bool:
    told = ""
    while not give_up():
        said = _waits_for(ticket, held)
        if not said:
            return True
        if said != told:
            told = said
            tell(f"waiting: {told}")
        time.sleep(WAIT_S)
    return False


def _waits_for(ticket: Ticket, held: contextlib.ExitStack) -> str:
    """Return what keeps the ticket's holder waiting; "" when its locks are now in ``held``."""
    before = ticket.before()
    if before:
        return f"{len(before)} before it in the queue, {before[-1]} the last of them"
    try:
        held.enter_context(hold(ticket.names, holder=ticket.holder))
    except HostError as error:
        return error.message
    return ""


def _folder() -> Path:
    return lock_folder() / "queue"


@contextmanager
def queued(names: Sequence[str], *, holder: str, priority: int = 0) -> Iterator[Ticket]:
    """Stand in the queue for the locks ``names`` inside the block. Raises HostError when that is not allowed."""
    try:
        shared_folder(_folder())
        name = f"{HIGHEST - priority:02d}-{time.time_ns():020d}-{os.getpid()}"
        handle = os.open(_folder() / f".{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HostError(
            f"cannot queue for cards: {error}", hint="set LAUNCHER_LOCKS to a folder of all users"
        ) from error
    file = _folder() / f"{name}.json"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(handle, json.dumps({"holder": holder, "names": list(names)}).encode())
        (_folder() / f".{name}").rename(file)  # it is seen only when it is held and written
        yield Ticket(file=file, holder=holder, names=tuple(names))
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(handle)


def tickets() -> Iterator[Ticket]:
    """Yield the tickets of all processes that wait, the first to be served first."""
    for file in sorted(_folder().glob("[0-9]*.json")):
        ticket = _live(file)
        if ticket is not None:
            yield ticket


def _live(file: Path) -> Ticket | None:
    """Return the ticket in ``file``; None, and the file is gone, when nobody holds it."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(file, handle)
    else:
        with contextlib.suppress(OSError):  # another user's file stays, and counts for nothing
            file.unlink()
        return None
    finally:
        os.close(handle)


def _read(file: Path, handle: int) -> Ticket | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(os.pread(handle, 1 << 16, 0))
        return Ticket(file=file, holder=str(found["holder"]), names=tuple(found["names"]))
    return None


def least_wanted(blocks: Iterable[Sequence[int]]) -> Sequence[int]:
    """Return the block of cards that fewest jobs have or wait for, the first of equal ones."""
    waiting = [set(ticket.names) for ticket in tickets()]

    def wanted(block: Sequence[int]) -> int:
        names = {card_lock(card) for card in block}
        return sum(bool(names & other) for other in waiting) + sum(not is_free(name) for name in names)

    return min(blocks, key=wanted)


def is_free(name: str) -> bool:
    """Return whether no process has the lock."""
    try:
        check_free([name])
    except HostError:
        return False
    return True
