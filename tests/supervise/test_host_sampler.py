"""Samples of a host while a job runs: what Linux counts, what the vendor's programs tell, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.events import read_events
from support.fake_host import PROGRAMS, info_hbm

from launcher.supervise.host_sampler import HostSampler

ECC = "        NPU ID                         : 1\n        HBM Double Bit Error Count     : {count}\n"


@dataclass(kw_only=True)
class SetClock:
    """Goes on only when told to."""

    now: float = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


@pytest.fixture
def sampled(tmp_path: Path) -> Iterator[Callable[..., Sampled]]:
    """Makes samplers on the host below ``tmp_path``; each is closed at the end."""
    made: list[Sampled] = []

    def make(*cards: int) -> Sampled:
        made.append(Sampled(root=tmp_path, cards=cards))
        return made[-1]

    yield make
    for each in made:
        each.sampler.close()


@dataclass(kw_only=True)
class Sampled:
    """A sampler on a host below ``root``, whose clock is ours and whose programs are real processes."""

    root: Path
    cards: tuple[int, ...] = ()
    clock: SetClock = field(default_factory=SetClock)

    def __post_init__(self) -> None:
        self.file = self.root / "host_0.jsonl"
        self.sampler = HostSampler(self.file, "node0", self.cards, clock=self.clock, root=self.root, timeout_s=5.0)

    def look(self, *, until: Callable[[], bool] = lambda: True) -> None:
        deadline = time.monotonic() + 30
        self.sampler.look()
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.01)
            self.sampler.look()

    def after(self, seconds: float) -> list[dict[str, Any]]:
        self.clock.now += seconds
        self.sampler.look()
        return read_events(self.file) if self.file.exists() else []


def linux(root: Path, *, ticks: str, throttled: str, version: int = 2) -> None:
    own, folder = ("0::/x\n", "x") if version == 2 else ("3:cpu,cpuacct:/x\n", "cpu/x")
    for path, text in {
        "proc/stat": f"cpu  {ticks} 0 0\ncpu0 1 2\n",
        "proc/self/cgroup": own,
        f"sys/fs/cgroup/{folder}/cpu.stat": throttled,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize(
    ("version", "text"), [(2, "usage_usec 9\nthrottled_usec {}000000\n"), (1, "throttled_time {}000000000\n")]
)
def test_time_taken_away_is_measured_between_samples(
    sampled: Callable[..., Sampled], tmp_path: Path, version: int, text: str
) -> None:
    linux(tmp_path, ticks="100 0 0 800 0 0 0 100", throttled=text.format(7), version=version)
    host = sampled()
    assert host.after(9.0) == []
    linux(tmp_path, ticks="300 0 0 1300 0 0 0 400", throttled=text.format(12), version=version)
    (first,) = host.after(1.0)
    linux(tmp_path, ticks="400 0 0 1400 0 0 0 400", throttled=text.format(12), version=version)

    assert {name: first[name] for name in ("event", "host", "steal", "throttled", "cards")} == {
        "event": "host", "host": "node0", "steal": 0.3, "throttled": 0.5, "cards": [],
    }  # fmt: skip
    assert len(host.after(29.0)) == 1
    assert [(event["steal"], event["throttled"]) for event in host.after(1.0)] == [(0.3, 0.5), (0.0, 0.0)]


def test_what_linux_does_not_count_is_not_known(sampled: Callable[..., Sampled], tmp_path: Path) -> None:
    (event,) = sampled().after(10.0)

    assert (event["steal"], event["throttled"]) == (None, None)


@pytest.fixture
def npu_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what the stand-ins of npu-smi and hccn_tool print."""
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{PROGRAMS}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_NPU_SMI", str(folder))
    monkeypatch.setenv("FAKE_HCCN_BAD", "5")
    return folder


def test_the_cards_of_the_job_are_asked_one_program_at_a_time(sampled: Callable[..., Sampled], npu_smi: Path) -> None:
    (npu_smi / "info").write_text(info_hbm(4))
    (npu_smi / "info_-t_ecc_-i_1_-c_0").write_text(ECC.format(count=3))
    host = sampled(1, 2)
    host.look(until=lambda: len(host.sampler.cards) == 2)
    (event,) = host.after(10.0)

    known = {"health": "OK", "temperature_c": 36.0, "power_w": 92.1, "hbm_used_mib": 3395, "hbm_mib": 65536}
    assert event["cards"] == [{"device_id": 1, **known}, {"device_id": 2, **known}]

    host.clock.now += 30.0
    host.look(until=lambda: "link_errors" in host.sampler.cards[0])
    assert host.sampler.cards[0] == {"device_id": 1, **known, "ecc_errors": 3, "link_errors": 7}
    assert host.sampler.cards[1] == {"device_id": 2, **known}, "its turn comes"


def test_a_program_that_hangs_is_ended_and_not_started_again(
    sampled: Callable[..., Sampled], npu_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", "hang")
    host = sampled(0)
    began = time.monotonic()
    host.look()
    running = host.sampler.running
    assert running is not None
    host.after(6.0)

    assert time.monotonic() - began < 4.0, "nothing is waited for"
    host.look(until=lambda: host.sampler.running is None)
    assert running.returncode == -9
    assert [event["cards"] for event in host.after(60.0)] == [[]]
    assert host.sampler.running is None


def test_the_end_of_a_job_ends_what_it_asks(
    sampled: Callable[..., Sampled], npu_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", "hang")
    host = sampled(0)
    host.look()
    running = host.sampler.running
    host.sampler.close()

    assert running is not None
    assert running.returncode == -9


@pytest.mark.parametrize("mode", ["crash", "garbage"])
def test_a_program_that_tells_nothing_leaves_the_cards_unknown(
    sampled: Callable[..., Sampled], npu_smi: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", mode)
    host = sampled(0)
    host.look(until=lambda: host.sampler.running is None)

    assert [event["cards"] for event in host.after(10.0)] == [[]]


def test_on_cpu_no_program_is_started(sampled: Callable[..., Sampled], npu_smi: Path) -> None:
    host = sampled()
    host.look()

    assert host.sampler.running is None
