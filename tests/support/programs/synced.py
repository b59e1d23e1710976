"""A rank that waits for others as in training, without MindSpore: input, arithmetic, an all-reduce by sockets, saves.

usage: as rank.py. $SYNCED is JSON: ``steps``, ``save_every``, and, for the rank ``slow``, one of ``input_s`` (seconds
more for each batch), ``core`` (that core alone, which others keep busy) and ``disk`` (bytes
a second that its disk takes). Steps, waits and saves are timed by what times those of a real rank.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launcher.jobs import JobPaths
from launcher.jobs.events import EventWriter, Position
from launcher.worker import main
from launcher.worker.steps import StepWatch

ASKED: dict[str, Any] = json.loads(os.environ["SYNCED"])
# The arithmetic of a step takes some 15 ms of one core; a batch is some 100 kB.
ROUNDS, BATCH, CHECKPOINT = 120_000, 100_000, 200_000


class Hub:
    """An all-reduce: rank 0 gathers a number from every rank and sends back the sum."""

    def __init__(self, rank_id: int, ranks: int, folder: Path) -> None:
        address = folder / "hub"
        self._peers: list[socket.socket] = []
        if rank_id == 0:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "hub.new"))
                listener.listen(ranks)
                (folder / "hub.new").rename(address)
                self._peers = [listener.accept()[0] for _ in range(ranks - 1)]
            return
        while not address.exists():
            time.sleep(0.005)
        self._hub = socket.socket(socket.AF_UNIX)
        self._hub.connect(str(address))

    def sum(self, value: float) -> float:
        if not self._peers:
            self._hub.sendall(struct.pack("d", value))
            return float(struct.unpack("d", self._hub.recv(8))[0])
        total = value + sum(float(struct.unpack("d", peer.recv(8))[0]) for peer in self._peers)
        for peer in self._peers:
            peer.sendall(struct.pack("d", total))
        return total


class Saver:
    """A callback as MindFormers' own: ``report_saves`` times it."""

    def __init__(self, file: Path, bytes_a_second: float) -> None:
        self._file, self._rate = file, bytes_a_second

    def save_checkpoint(self, params: Any) -> None:
        with self._file.open("wb") as file:
            for _ in range(10):
                file.write(bytes(CHECKPOINT // 10))
                time.sleep(CHECKPOINT / 10 / self._rate)
            file.flush()
            os.fsync(file.fileno())


def work() -> float:
    total = 0.0
    for number in range(ROUNDS):
        total += number * 0.5
    return total


def train(paths: JobPaths, rank_id: int, events: EventWriter) -> None:
    is_slow = rank_id == ASKED.get("slow")
    if "core" in ASKED:  # the others keep away from it, as on a host with more cores they would
        os.sched_setaffinity(0, {ASKED["core"]} if is_slow else os.sched_getaffinity(0) - {ASKED["core"]})
    hub = Hub(rank_id, int(os.environ["RANK_SIZE"]), paths.root)
    saver = Saver(paths.root / f"saved_{rank_id}", ASKED["disk"] if is_slow and "disk" in ASKED else 1e12)
    params = SimpleNamespace(list_callback=[saver], cur_step_num=0)
    watch = StepWatch(Position(paths.rank_position(rank_id)))
    main.report_saves(params, events, watch.clock)
    events.write("ready", mindspore="0", mindformers="0")
    for step in range(1, ASKED["steps"] + 1):
        batch = (paths.root / "batch").read_bytes()
        time.sleep(ASKED["input_s"] if is_slow and "input_s" in ASKED else 0)
        params.cur_step_num = step
        watch.enter(step)
        loss = hub.sum(work() + len(batch))
        if step % ASKED["save_every"] == 0:
            saver.save_checkpoint(params)
        events.write("step", step=step, loss=loss, lr=0.1, overflow=False, grad_norm=None, **watch.leave())


if __name__ == "__main__":
    main.main(sys.argv[1], train)
