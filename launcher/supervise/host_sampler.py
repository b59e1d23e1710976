"""What slows the ranks of a host down while a job runs: CPU time taken away, cards that are hot, worn or cut off.

The supervisor of the host looks now and then, at bounded cost: two small files of Linux, and one program of the vendor
at a time, whose end is not waited for. A program that does not answer is ended and never started again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from launcher.cluster.discover.npu_smi import Chip, parse_fields, parse_info
from launcher.cluster.discover.programs import find_program
from launcher.common.cgroups import own_cgroups
from launcher.common.clock import Clock
from launcher.jobs.events import EventWriter, HostSample

# A sample of eight cards is some 800 bytes: 2 MB a day.
EVERY_S = 30.0
_FIRST_S = 10.0
# npu-smi of a 16-die server needs some 2 s; a driver that hangs answers never.
_TIMEOUT_S = 20.0
_KILLED_S = 1.0
_MOST_OUTPUT = 1 << 20
_TICKS_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class CpuReading:
    """Seconds since Linux, or our cgroup, started to count. ``total_s``: of all CPUs; None: not counted."""

    total_s: float | None = None
    steal_s: float | None = None
    throttled_s: float | None = None


def read_cpu(root: Path = Path("/")) -> CpuReading:
    """Read what all CPUs did, what was taken from them, and how long our cgroup was held up."""
    total = steal = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        # man 5 proc: user, nice, system, idle, iowait, irq, softirq, steal; guest is in user already.
        ticks = [int(word) for word in (root / "proc/stat").read_text().splitlines()[0].split()[1:9]]
        total, steal = sum(ticks) * _TICKS_S, ticks[7] * _TICKS_S
    throttled = [s for folder in own_cgroups("cpu", root) if (s := _throttled_s(folder)) is not None]
    return CpuReading(total_s=total, steal_s=steal, throttled_s=max(throttled, default=None))


def _throttled_s(folder: Path) -> float | None:
    """Return the seconds in cpu.stat: throttled_usec in cgroup v2, throttled_time (nanoseconds) in v1."""
    with contextlib.suppress(OSError, ValueError):
        values = dict(line.split(None, 1) for line in (folder / "cpu.stat").read_text().splitlines())
        if "throttled_usec" in values:
            return int(values["throttled_usec"]) / 1e6
        if "throttled_time" in values:
            return int(values["throttled_time"]) / 1e9
    return None


@dataclass(kw_only=True)
class _Program:
    """A program of the vendor that runs; what it prints goes into a file that has no name."""

    popen: subprocess.Popen[bytes]
    output: IO[bytes]
    deadline: float

    def kill(self) -> None:
        """Kill it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)


@dataclass(kw_only=True)
class _Cards:
    """The cards of the job, asked one program after the other: the table of all, then the counters of one in turn."""

    wanted: frozenset[int]
    clock: Clock
    timeout_s: float
    chips: dict[int, Chip] = field(default_factory=dict)
    counters: dict[int, dict[str, int]] = field(default_factory=dict)
    given_up: bool = False
    _turn: int = 0
    _left: list[tuple[str, ...]] = field(default_factory=list)
    _asked: tuple[str, ...] = ()
    _running: _Program | None = None

    def ask(self) -> None:
        """Begin another round, unless one is still under way."""
        if self._running is None and not self._left and not self.given_up:
            self._left = [("npu-smi", "info"), *self._counters_of_one()]

    def _counters_of_one(self) -> list[tuple[str, ...]]:
        known = sorted(self.chips)
        if not known:
            return []
        chip = self.chips[known[self._turn % len(known)]]
        self._turn += 1
        return [("npu-smi", "info", "-t", "ecc", "-i", str(chip.npu_id), "-c", str(chip.chip_id)),
                ("hccn_tool", "-i", str(chip.physical_id), "-stat", "-g")]  # fmt: skip

    def look(self) -> None:
        """Take what a program has printed by now, and start the next."""
        if self._running is not None:
            self._look_at(self._running)
        while self._running is None and self._left and not self.given_up:
            self._start(self._left.pop(0))

    def _look_at(self, program: _Program) -> None:
        if program.popen.poll() is None:
            if self.clock.monotonic() >= program.deadline and not self.given_up:
                self.given_up = True
                program.kill()
            return
        if not self.given_up:
            program.output.seek(0)
            self._note(program.output.read(_MOST_OUTPUT).decode("utf-8", "replace"))
        program.output.close()
        self._running = None

    def _start(self, asked: tuple[str, ...]) -> None:
        path = find_program(asked[0])
        if path is None:
            return
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the program has ended
        try:
            popen = subprocess.Popen(
                (path, *asked[1:]), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except OSError:
            output.close()
            return
        self._asked = asked
        self._running = _Program(popen=popen, output=output, deadline=self.clock.monotonic() + self.timeout_s)

    def _note(self, text: str) -> None:
        if self._asked[1:] == ("info",):
            self.chips = {chip.physical_id: chip for chip in parse_info(text).chips if chip.physical_id in self.wanted}
            return
        fields = {key.strip(): int(value) for key, value in parse_fields(text).items() if value.isdecimal()}
        if self._asked[0] == "hccn_tool":
            told = {"link_errors": _sum(fields, "bad_pkt_num", "err_pkt_num")}
            device_id = int(self._asked[2])
        else:
            told = {"ecc_errors": _sum(fields, "Double Bit Error Count")}
            device_id = next((d for d, chip in self.chips.items() if _ids(chip) == self._asked[5::2]), -1)
        if fields:
            self.counters.setdefault(device_id, {}).update(told)

    @property
    def running(self) -> subprocess.Popen[bytes] | None:
        """Return the program that is being waited for."""
        return self._running.popen if self._running else None

    def told(self) -> tuple[dict[str, Any], ...]:
        """Return what is known of each card."""
        kept = ("health", "temperature_c", "power_w", "hbm_used_mib", "hbm_mib")
        return tuple(
            {"device_id": device_id, **{k: v for k, v in asdict(chip).items() if k in kept},
             **self.counters.get(device_id, {})}
            for device_id, chip in sorted(self.chips.items())
        )  # fmt: skip

    def close(self) -> None:
        """End a program that still runs."""
        if self._running is not None:
            self._running.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.popen.wait(_KILLED_S)
            self._running.output.close()
            self._running = None


def _ids(chip: Chip) -> tuple[str, str]:
    return str(chip.npu_id), str(chip.chip_id)


def _sum(fields: dict[str, int], *ends: str) -> int:
    return sum(value for key, value in fields.items() if key.endswith(ends))


class HostSampler:
    """Writes a sample of this host into ``file`` every ``EVERY_S`` seconds. ``cards``: device ids; none on CPU."""

    def __init__(
        self, file: Path, host: str, cards: Sequence[int] = (), *, clock: Clock = time, root: Path = Path("/"),
        timeout_s: float = _TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._file, self._host, self._clock, self._root = file, host, clock, root
        self._cards = _Cards(wanted=frozenset(cards), clock=clock, timeout_s=timeout_s, given_up=not cards)
        self._before, self._at = read_cpu(root), clock.monotonic()
        self._next_ask, self._next = self._at, self._at + _FIRST_S

    @property
    def cards(self) -> tuple[dict[str, Any], ...]:
        """Return what is known of each card."""
        return self._cards.told()

    @property
    def running(self) -> subprocess.Popen[bytes] | None:
        """Return the vendor's program that is being waited for."""
        return self._cards.running

    def look(self) -> None:
        """Do what is due, without waiting for anything."""
        now = self._clock.monotonic()
        if now >= self._next_ask:
            self._next_ask = now + EVERY_S
            self._cards.ask()
        self._cards.look()
        if now >= self._next:
            self._next = now + EVERY_S
            self._write(now)

    def _write(self, now: float) -> None:
        before, self._before, seconds, self._at = self._before, read_cpu(self._root), now - self._at, now
        sample = HostSample(
            host=self._host, steal=_share(_since(before.steal_s, self._before.steal_s),
                                          _since(before.total_s, self._before.total_s)),
            throttled=_share(_since(before.throttled_s, self._before.throttled_s), seconds),
            cards=self._cards.told(),
        )  # fmt: skip
        with EventWriter(self._file, None) as events:
            events.report(sample)

    def close(self) -> None:
        """End looking."""
        self._cards.close()


def _since(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else max(0.0, now - before)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else round(part / whole, 4)
