"""Parallel work in several processes, with results in input order whatever their number."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from launcher.errors import DataError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

T = TypeVar("T", contravariant=True)
R = TypeVar("R", covariant=True)


class Job(Protocol[T, R]):
    """The function of a process, called for one item after the other."""

    def __call__(self, item: T, /) -> R: ...


_job: Any = None


def ordered_map(make: Callable[[], Job[T, R]], items: Iterable[T], *, processes: int) -> Iterator[R]:
    """Yield ``make()(item)`` for every item, in order. Each process calls ``make`` once.

    With ``processes`` 1 everything runs in this process.
    At most three items per process are in flight, so that memory does not grow with the input.
    Raises what the job raises, and DataError when a process dies.
    """
    if processes == 1:
        job = make()
        yield from (job(item) for item in items)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(make, os.getpid()))
    try:
        yield from _in_order(pool, items, under_way=3 * processes)
    except BrokenProcessPool as error:
        raise DataError("a worker process died", hint="the memory may be too small; try --processes 1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, items: Iterable[Any], under_way: int) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(_run, item))
        if len(waiting) >= under_way:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start(make: Callable[[], Any], parent: int) -> None:
    global _job
    # Ctrl-C goes to the whole group; the parent decides what happens then. And no process outlives the
    # parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # Each process has a core of its own. A tokenizer that starts a thread per core in each would have them fight for
    # the cores, and says in every fork that it does not.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Records make no cycles of references, and looking for some among millions of them costs a fifth of the
    # time.
    gc.disable()
    _job = make()


_PR_SET_PDEATHSIG = 1


def _run(item: Any) -> Any:
    return _job(item)


# Starting a process costs a hundredth of a second; below this many bytes per process it does not pay.
_BYTES_WORTH_A_PROCESS = 1 << 20


def useful_processes(size: int) -> int:
    """Return how many processes pay off for ``size`` bytes of input: at most one per core, one for few bytes."""
    return max(1, min(len(os.sched_getaffinity(0)), size // _BYTES_WORTH_A_PROCESS))
