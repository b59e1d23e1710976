"""Who is slow before a run: each rank multiplies matrices and exchanges with one other, in two rounds of pairs.

In the second round the slowest of the first are paired with the fastest: of a slow pair only the slow one is in a slow
pair again. (DLRover, docs/design/straggler-detection.md, does the same.)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.common.ranges import spans
from launcher.doctor.findings import Finding, failed, passed

# A matrix product, or a pair, is slow when it takes this many times what those of the faster quarter take. Pairs differ
# more by chance: either half may be stopped.
SLOW_PRODUCT, SLOW_PAIR = 1.5, 2.0
# Of three, one is in every pair.
FOR_PAIRS = 4

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The mean times of one rank in a round: of its matrix product, and of that with the exchange in its pair."""

    product_s: float
    whole_s: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: who exchanged with whom, in waves that ran one after another, and what each rank measured."""

    waves: tuple[Pairs, ...]
    measured: Mapping[int, Measured]

    def partner(self, rank: int) -> int:
        """Return with whom ``rank`` exchanged first."""
        return next(a + b - rank for wave in self.waves for a, b in wave if rank in (a, b))


def first_waves(ranks: Sequence[int]) -> tuple[Pairs, ...]:
    """Return pairs of neighbours."""
    return _waves(ranks)


def second_waves(first: Round) -> tuple[Pairs, ...]:
    """Return pairs of the fastest with the slowest of ``first``."""
    ordered = sorted(first.measured, key=lambda rank: (first.measured[rank].whole_s, rank))
    half = len(ordered) // 2
    mixed = [rank for pair in zip(ordered[:half], reversed(ordered[-half:]), strict=True) for rank in pair]
    return _waves(mixed + ordered[half : len(ordered) - half])


def _waves(ranks: Sequence[int]) -> tuple[Pairs, ...]:
    """Return pairs of neighbours; of an odd number the last is paired with the first, after the others."""
    pairs = tuple(zip(ranks[::2], ranks[1::2], strict=False))
    return (pairs, ((ranks[-1], ranks[0]),)) if len(ranks) % 2 and len(ranks) > 1 else (pairs,)


def slow_ranks(rounds: Sequence[Round]) -> tuple[int, ...]:
    """Return the ranks that are slow in both rounds: in their own products, or, of four and more, in their pairs."""
    products = [_slow({rank: own.product_s for rank, own in one.measured.items()}, SLOW_PRODUCT) for one in rounds]
    pairs = [_slow({rank: own.whole_s for rank, own in one.measured.items()}, SLOW_PAIR) for one in rounds]
    in_pairs = set.intersection(*pairs) if len(rounds[0].measured) >= FOR_PAIRS else set()
    return tuple(sorted(set.intersection(*products) or in_pairs))


def _slow(times: Mapping[int, float], factor: float) -> set[int]:
    """Return what is slow against the faster quarter: half of the ranks are in a pair with a slow one, or more."""
    usual = sorted(times.values())[(len(times) - 1) // 4]
    return {rank for rank, seconds in times.items() if seconds >= factor * usual}


def probe_finding(rounds: Sequence[Round], what: str, fix: str) -> Finding:
    """Return the finding on ``rounds``, with a table of all ranks when one is slow. ``what``: kind of ranks."""
    slow = slow_ranks(rounds)
    products = {rank: statistics.fmean(one.measured[rank].product_s for one in rounds) for rank in rounds[0].measured}
    usual = statistics.median_low(products.values())
    if not slow:
        whole = statistics.median(own.whole_s for one in rounds for own in one.measured.values())
        told = f"matrix product {_ms(usual)}, with the exchange {_ms(whole)}"
        return passed("probe", f"none of {len(products)} {what} is slow in both rounds: {told}")
    why = "; ".join(_why(products[rank], usual) for rank in slow)
    return failed("probe", f"rank {spans(slow)} is slow in both rounds: {why}", fix, tuple(_table(rounds, slow)))


def _why(product_s: float, usual_s: float) -> str:
    if product_s >= SLOW_PRODUCT * usual_s:
        return f"its matrix product takes {_ms(product_s)}, that of others {_ms(usual_s)}"
    return f"its matrix product is as fast as that of others ({_ms(product_s)}), its exchange is not"


def _table(rounds: Sequence[Round], slow: Sequence[int]) -> list[str]:
    heads = [f"{'with':>9} {'product':>9} {'pair':>9}" for _ in rounds]
    lines = [f"{'rank':<6}" + "".join(heads)]
    for rank in sorted(rounds[0].measured):
        cells = [f"{one.partner(rank):>9} {_ms(one.measured[rank].product_s):>9} {_ms(one.measured[rank].whole_s):>9}"
                 for one in rounds]  # fmt: skip
        lines.append(f"{rank:<6}" + "".join(cells) + ("  slow" if rank in slow else ""))
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
