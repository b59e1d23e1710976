"""Mix sources: how often each record occurs in one epoch, and in which order chunks of the sources come.

A source of size n (records, or tokens in rows) and weight w has the share w / (sum of weights) of an epoch. With
s = max(n / w) over all sources (``until`` "all") every record occurs at least once, and with s = min(n / w)
(``until`` "first") none occurs twice. A source then gives s * w: each of its records floor(s * w / n) times, and for
the rest once more those that come first in an order drawn from the seed, the source's number and the record's.

The draw depends on nothing else: not on processes, cards, or the other sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from launcher.data.mindrecord import Ints
from launcher.data.options import Mix
from launcher.errors import DataError

Sizes = npt.NDArray[np.int64]
_U64 = np.uint64


def parsed_weights(text: str) -> list[float]:
    """Return the numbers in ``text``, separated by commas. Raises DataError when one is no positive number."""
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [0.0]
    if not all(0 < weight < math.inf for weight in found):
        raise DataError(f"--weights {text}: no list of positive numbers", hint="one for each source: --weights 5,3,1")
    return found


def times(sizes: Sequence[Sizes], weights: Sequence[float], mix: Mix) -> list[Ints]:
    """Return how often each record occurs in an epoch. ``sizes``: of each source, the size of each of its records.

    A source of size 0 gives nothing.
    """
    totals = [int(size.sum()) for size in sizes]
    parts = [Fraction(weight) for weight in weights]
    ratios = [total / part for total, part in zip(totals, parts, strict=True) if total]
    scale = (max if mix.until == "all" else min)(ratios, default=Fraction(0))
    return [
        _times(size, scale * part, mix.seed, source)
        for source, (size, part) in enumerate(zip(sizes, parts, strict=True))
    ]


def passes(sizes: Sequence[int], weights: Sequence[float], mix: Mix) -> list[float]:
    """Return how often each record of each source occurs in an epoch on average; ``sizes``: of whole sources."""
    ratios = [size / weight for size, weight in zip(sizes, weights, strict=True) if size]
    scale = (max if mix.until == "all" else min)(ratios, default=0.0)
    return [scale * weight / size if size else 0.0 for size, weight in zip(sizes, weights, strict=True)]


def _times(sizes: Sizes, wanted: Fraction, seed: int, source: int) -> Ints:
    """Return how often each record occurs, so that their sizes make up ``wanted`` as nearly as whole records can."""
    total = int(sizes.sum())
    if not total:
        return np.zeros(len(sizes), dtype=np.int32)
    whole, rest = divmod(wanted, total)
    found = np.full(len(sizes), int(whole), dtype=np.int32)
    order = np.argsort(_draw(len(sizes), seed, source), kind="stable")
    ends = np.cumsum(sizes[order])
    # A record more when more than half of it is wanted.
    middle = ends - sizes[order] / 2
    found[order[: int(np.searchsorted(middle, float(rest), side="right" if rest else "left"))]] += 1
    return found


def _draw(count: int, seed: int, source: int) -> npt.NDArray[np.uint64]:
    """Return a number for each record, by splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        start = _U64((seed * 0x9E3779B97F4A7C15 + (source + 1) * 0xD1B54A32D192ED03) % 2**64)
        mixed = start + np.arange(1, count + 1, dtype=np.uint64) * _U64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> _U64(27))) * _U64(0x94D049BB133111EB)
        return mixed ^ (mixed >> _U64(31))


def interleaved(streams: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield which stream gives its next chunk, until all are at their ends.

    ``streams``: of each stream, how many samples each of its chunks gives. The next is always that whose samples so
    far, with half of its next chunk, are the smallest part of all its samples, so that streams advance together.
    """
    totals = [sum(stream) or 1 for stream in streams]
    done, places = [0] * len(streams), [0] * len(streams)
    for _ in range(sum(map(len, streams))):
        left = [number for number, stream in enumerate(streams) if places[number] < len(stream)]
        chosen = min(left, key=lambda number: (done[number] + streams[number][places[number]] / 2) / totals[number])
        done[chosen] += streams[chosen][places[chosen]]
        places[chosen] += 1
        yield chosen
