"""Many clients of ``launcher serve`` beside one, a late comer, and a client that hangs up.

    python tests/benchmarks/bench_serve.py [FOLDER] [--rounds 3] [--requests 8]

The model is the shipped base, or any FOLDER that ``launcher serve`` takes. One server of 32 slots, clients in this
process; every figure is a ratio to one of the same run. A token time is how long the tokens of a running answer are
apart, in the company that is said.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "configs" / "bases" / "tiny_cpu"
SLOTS = 32
TRIES = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=BASE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=8, help="of each client in a round")
    parser.add_argument("--max-tokens", type=int, default=24)
    asked = parser.parse_args()
    with server(asked.folder.resolve()) as port:
        clients = Clients(port, asked.max_tokens)
        clients.throughput(SLOTS, 1)  # what the first use of anything costs
        print(f"model: {asked.folder}; load {os.getloadavg()[0]:.1f}", flush=True)
        throughput(clients, asked.rounds, asked.requests)
        late_comer(clients)
        hang_up(clients)


def throughput(clients: Clients, rounds: int, requests: int) -> None:
    counts = (1, 8, 32)
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            found[count].append(clients.throughput(count, requests))
    speeds = {count: statistics.median(found[count]) for count in counts}
    print("clients  tokens/s  ratio to one")
    for count, speed in speeds.items():
        print(f"{count:7}  {speed:8.0f}  {speed / speeds[1]:.1f}{'  (goal: at least 4)' if count == 32 else ''}")


def late_comer(clients: Clients) -> None:
    alone = statistics.median(clients.stream(number)[0] for number in range(TRIES))
    for company in (7, SLOTS - 1):
        with clients.busy(company):
            firsts, gaps = zip(*(clients.stream(number) for number in range(TRIES)), strict=True)
        first, gap = statistics.median(firsts), statistics.median(gaps)
        print(
            f"late comer among {company}: first token after {1000 * first:.1f} ms, alone {1000 * alone:.1f} ms: "
            f"{(first - alone) / gap:.1f} token times of {1000 * gap:.1f} ms later (goal: at most 3)"
        )


def hang_up(clients: Clients) -> None:
    """The first token of a request that comes while all slots are taken; one of their clients hangs up 2 ms later."""
    found = []
    with clients.busy(SLOTS - 1):
        gap = statistics.median(clients.stream(number)[1] for number in range(TRIES))
        for number in range(TRIES):
            leaving = clients.open(number)
            leaving.answer.readline()
            waits = threading.Timer(0.002, leaving.close)
            waits.start()
            found.append(clients.stream(number)[0])
            waits.join()
    print(
        f"after a client hung up, all slots taken: first token {statistics.median(found) / gap:.1f} token times later"
    )


class Opened:
    """A streamed answer that has begun."""

    def __init__(self, port: int, body: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"Content-Type": "application/json"}
        self.began = time.monotonic()
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self.answer = self._connection.getresponse()
        if self.answer.status != 200:
            sys.exit(self.answer.read().decode())

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


class Clients:
    """Asks a server, in as many threads as there are clients."""

    def __init__(self, port: int, max_tokens: int) -> None:
        sys.path.insert(0, str(ROOT))
        from launcher.data.sample import sample_lines

        self._port = port
        # Short ones: the context of the shipped base is 44 tokens.
        self._prompts = [
            json.loads(line)["instruction"][: 6 + number % 6] for number, line in enumerate(sample_lines(64, 3))
        ]
        # Sampled, so that no answer ends early because it is a short one.
        self._body = {"model": "", "max_tokens": max_tokens, "temperature": 1.0}
        self._body["model"] = self._ask("GET", "/v1/models")["data"][0]["id"]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        found = json.loads(connection.getresponse().read())
        connection.close()
        if "error" in found:
            print(found["error"]["message"], file=sys.stderr, flush=True)
            os._exit(1)  # from whatever thread
        return found

    def body(self, number: int) -> dict[str, Any]:
        return {**self._body, "prompt": self._prompts[number % 64], "seed": number}

    def throughput(self, count: int, requests: int) -> float:
        """Tokens a second of ``count`` clients that ask so many times each."""
        tokens: list[int] = []

        def ask(client: int) -> None:
            for number in range(requests):
                found = self._ask("POST", "/v1/completions", self.body(client + number))
                tokens.append(found["usage"]["completion_tokens"])

        began = time.monotonic()
        self._in_threads(ask, count)
        return sum(tokens) / (time.monotonic() - began)

    def _in_threads(self, call: Callable[[int], None], count: int) -> None:
        threads = [threading.Thread(target=call, args=(client,)) for client in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def open(self, number: int) -> Opened:
        return Opened(self._port, {**self.body(number), "stream": True, "logprobs": 0})

    def stream(self, number: int) -> tuple[float, float]:
        """Seconds to the first token of a streamed answer, and between two of its tokens."""
        opened = self.open(number)
        times = [time.monotonic() for line in opened.answer if line.startswith(b"data: {")]
        opened.close()
        return times[0] - opened.began, (times[-1] - times[0]) / max(1, len(times) - 1)

    @contextmanager
    def busy(self, count: int) -> Iterator[None]:
        """So many clients that ask again and again."""
        stop = threading.Event()

        def ask(client: int) -> None:
            number = client
            while not stop.is_set():
                self._ask("POST", "/v1/completions", self.body(number))
                number += 1

        thread = threading.Thread(target=self._in_threads, args=(ask, count))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """The port of a server that answers with the model in ``folder``."""
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as scratch:
        log = Path(scratch) / "log"
        argv = [sys.executable, "-m", "launcher", "serve", str(folder), "--port", "0", "--batch-size", str(SLOTS)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        env.pop("LAUNCHER_TOKEN", None)
        with log.open("wb") as stderr:
            process = subprocess.Popen(argv, cwd=scratch, env=env, stderr=stderr, stdout=subprocess.DEVNULL)
        try:
            while not (found := re.search(r"on http://127\.0\.0\.1:(\d+)/v1", log.read_text())):
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.1)
            yield int(found[1])
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
