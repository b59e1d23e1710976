"""What the samples of hosts say beside the times of ranks: CPU time taken away, cards unlike the others of the job.

On Ascend a card that computes slowly makes all ranks wait inside the step, where no rank's times tell; these may.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.common.clock import duration
from launcher.jobs import JobPaths
from launcher.jobs.events import HostSample, read_last_events
from launcher.observe.words import Say


@dataclass(frozen=True, kw_only=True)
class Limits:
    """From where on a figure is worth a word."""

    # The newest samples, of half a minute each, are judged together.
    samples: int = 10
    # Less than this share of the CPU time taken away is usual on shared machines, and hidden by other waiting.
    steal: float = 0.10
    # Seconds a second, over all CPUs.
    throttled: float = 0.10
    # Cards of one model in one room differ by some 10 degrees by their place in the host.
    hotter_c: float = 15.0
    hot_c: float = 80.0
    # A card that holds its clock down draws less than its equals, while they work (idle ones draw some 90 W).
    less_power: float = 0.7
    working_w: float = 150.0


LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A sentence with its values, about a host or one card of it."""

    text: str
    values: Mapping[str, str]

    def said(self, say: Say) -> str:
        return say(self.text, **self.values)


STEAL = "Host {host}: {share} % of its CPU time goes to other virtual machines (steal)."
THROTTLED = "Host {host}: the CPU limit of its container holds threads up for {seconds} s a second (cgroup cpu.stat)."
HEALTH = "Card {card} of host {host}: npu-smi says {health}."
HOT = "Card {card} of host {host}: {own} °C, the median of the cards is {others} °C."
WEAK = "Card {card} of host {host}: {own} W, the median of the cards is {others} W: it may hold its clock down."
ECC = "Card {card} of host {host}: {count} more uncorrectable memory errors in {time}."
LINK = "Card {card} of host {host}: {count} more damaged packets on its link in {time}."


def read_samples(paths: JobPaths, hosts: int) -> dict[int, list[HostSample]]:
    """Return the samples of each host of the attempt of ``paths`` that has some, oldest first."""
    files = {node_rank: paths.host_events(node_rank) for node_rank in range(max(1, hosts))}
    read = {node_rank: read_last_events(file).events for node_rank, file in files.items()}
    found = {
        node_rank: [event for event in events if isinstance(event, HostSample)] for node_rank, events in read.items()
    }
    return {node_rank: samples for node_rank, samples in found.items() if samples}


def host_signs(samples: Mapping[int, Sequence[HostSample]], wanted: Limits = LIMITS) -> tuple[Sign, ...]:
    """Return what stands out in ``samples``."""
    newest = {node_rank: found[-wanted.samples :] for node_rank, found in samples.items()}
    cards = [(found[-1].host, card) for found in newest.values() for card in _cards(found[-1])]
    return (
        *(sign for found in newest.values() for sign in _of_cpu(found, wanted)),
        *(sign for host, card in cards for sign in _unlike(host, card, [other for _, other in cards], wanted)),
        *(sign for found in samples.values() for sign in _grown(found)),
    )


def _of_cpu(samples: Sequence[HostSample], wanted: Limits) -> Iterator[Sign]:
    steal, throttled = (_mean([getattr(sample, name) for sample in samples]) for name in ("steal", "throttled"))
    host = samples[-1].host
    if steal >= wanted.steal:
        yield Sign(text=STEAL, values={"host": host, "share": f"{100 * steal:.0f}"})
    if throttled >= wanted.throttled:
        yield Sign(text=THROTTLED, values={"host": host, "seconds": f"{throttled:.2f}"})


def _unlike(host: str, card: Mapping[str, Any], cards: Sequence[Mapping[str, Any]], wanted: Limits) -> Iterator[Sign]:
    place = {"host": host, "card": str(card.get("device_id"))}
    if card.get("health") not in (None, "OK", "UNKNOWN"):
        yield Sign(text=HEALTH, values={**place, "health": str(card["health"])})
    own, others = _number(card, "temperature_c"), _median(cards, "temperature_c")
    if own >= max(wanted.hot_c, others + wanted.hotter_c):
        yield Sign(text=HOT, values={**place, "own": f"{own:.0f}", "others": f"{others:.0f}"})
    own, others = _number(card, "power_w"), _median(cards, "power_w")
    if others >= wanted.working_w and own <= wanted.less_power * others:
        yield Sign(text=WEAK, values={**place, "own": f"{own:.0f}", "others": f"{others:.0f}"})


def _grown(samples: Sequence[HostSample]) -> Iterator[Sign]:
    """Yield counters of cards that are higher in the last sample than in the first that has them."""
    for card in _cards(samples[-1]):
        for name, text in (("ecc_errors", ECC), ("link_errors", LINK)):
            told = [(sample.time, _number(one, name)) for sample in samples for one in _cards(sample)
                    if one.get("device_id") == card.get("device_id")]  # fmt: skip
            known = [(time, count) for time, count in told if not math.isnan(count)]
            if known and known[-1][1] > known[0][1]:
                (began, first), (ended, last) = known[0], known[-1]
                place = {"host": samples[-1].host, "card": str(card.get("device_id"))}
                yield Sign(text=text, values={**place, "count": f"{last - first:.0f}", "time": duration(ended - began)})


def _cards(sample: HostSample) -> list[Mapping[str, Any]]:
    return [card for card in sample.cards if isinstance(card, Mapping)]


def _number(card: Mapping[str, Any], name: str) -> float:
    value = card.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _median(cards: Sequence[Mapping[str, Any]], name: str) -> float:
    known = [value for card in cards if not math.isnan(value := _number(card, name))]
    import statistics

    return statistics.median(known) if known else math.nan


def _mean(values: Sequence[object]) -> float:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return math.fsum(known) / len(known) if known else 0.0
