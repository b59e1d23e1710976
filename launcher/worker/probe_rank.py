"""One rank of the probe on CPU: ``python -m launcher.worker.probe_rank RANK PARTNER FD``, an end of a pair of sockets.

Prints what it measured as one line of JSON. Its matrix product runs on one core, as that of a CPU rank beside others.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable

from launcher.common.processes import die_with_parent

# 0.3 GFLOP: some 10 ms of one core. A bucket of gradients is some MiB.
SIZE, EXCHANGED = 512, 4 << 20
TIMES, WARM = 20, 2


def main(rank: int, partner: int, handle: int) -> None:
    die_with_parent()
    # Before numpy is imported, which makes its threads then.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import numpy as np

    left = np.ones((SIZE, SIZE), np.float32)
    with socket.socket(fileno=handle) as other:
        exchange = _exchange(other, first=rank < partner)
        exchange()
        products, wholes = [], []
        for _ in range(WARM + TIMES):
            began = time.perf_counter()
            left @ left
            products.append(time.perf_counter() - began)
            exchange()
            wholes.append(time.perf_counter() - began)
    times = {"product_s": _usual(products[WARM:]), "whole_s": _usual(wholes[WARM:])}
    print(json.dumps({"rank": rank, **times}), flush=True)


def _usual(seconds: list[float]) -> float:
    """Return the mean without the longest. A median would miss a busy core, which stops one product in three."""
    return statistics.fmean(sorted(seconds)[:-1])


def _exchange(other: socket.socket, *, first: bool) -> Callable[[], None]:
    """Return the all-reduce of two: each sends its part and gets the other's."""
    import numpy as np

    mine, theirs = np.ones(EXCHANGED // 4, np.float32), np.empty(EXCHANGED // 4, np.float32)
    out, into = mine.data.cast("B"), theirs.data.cast("B")

    def receive() -> None:
        at = 0
        while at < len(into):
            got = other.recv_into(into[at:])
            if not got:
                raise ConnectionError("the other rank of the pair is gone")
            at += got

    def exchange() -> None:
        if first:
            other.sendall(out)
        receive()
        if not first:
            other.sendall(out)
        theirs[:] += mine

    return exchange


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
