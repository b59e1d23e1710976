"""The counts of preprocessing, as numbers for stats.json and as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launcher.data.mindrecord import Ints

_LONGEST = 1 << 16
_BAR_WIDTH = 40
_BINS = 12
# Above these a tokenizer does not fit the language.
_MOST_UNKNOWN = 0.001
_MOST_BYTES = 0.1
_MOST_TOKENS_PER_CHARACTER = 1.25
_FEW_CHARACTERS = 1000
_MOST_TOO_LONG = 0.01


@dataclass(kw_only=True)
class Tally:
    """Counts of one output. ``lengths[n]`` samples are n tokens long; the last counts all longer ones."""

    counts: Counter[str] = field(default_factory=Counter)
    lengths: Ints = field(default_factory=lambda: np.zeros(_LONGEST + 1, dtype=np.int32))
    longest: int = 0

    def add(self, counts: Counter[str], lengths: Ints) -> None:
        self.counts.update(counts)
        if len(lengths):
            self.longest = max(self.longest, int(lengths.max()))
            new = np.bincount(np.minimum(lengths, _LONGEST), minlength=_LONGEST + 1)
            self.lengths += new.astype(np.int32)

    def state(self) -> dict[str, Any]:
        """Return the tally as JSON, for ``restored``."""
        (seen,) = np.nonzero(self.lengths)
        return {
            "counts": dict(self.counts),
            "lengths": [[int(length), int(self.lengths[length])] for length in seen],
            "longest": self.longest,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Tally:
        tally = cls(counts=Counter(state["counts"]), longest=state["longest"])
        for length, count in state["lengths"]:
            tally.lengths[length] = count
        return tally

    def percentile(self, share: float) -> int:
        """Return the length in tokens that ``share`` of the samples do not exceed."""
        total = np.cumsum(self.lengths)
        return int(np.searchsorted(total, share * total[-1])) if total[-1] else 0

    def length_stats(self) -> dict[str, Any]:
        """Return median, 95th and 99th percentile and maximum of the lengths in tokens, and their histogram."""
        return {
            "median": self.percentile(0.5),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
            "max": self.longest,
            "histogram": [list(part) for part in self.histogram()],
        }

    def histogram(self) -> list[tuple[int, int, int]]:
        """Return up to twelve bins of equal width, a power of two: first and last length, and number of samples."""
        (seen,) = np.nonzero(self.lengths)
        if not len(seen):
            return []
        shortest, longest = int(seen[0]), int(seen[-1])
        width = 1
        while longest // width - shortest // width >= _BINS:
            width *= 2
        bins = range(shortest // width * width, longest + 1, width)
        return [(at, at + width - 1, int(self.lengths[at : at + width].sum())) for at in bins]

    def warnings(self) -> Iterator[str]:
        """Yield warnings about an unsuitable tokenizer."""
        tokens, characters = self.counts["text_tokens"], self.counts["characters"]
        if characters < _FEW_CHARACTERS:
            return
        unknown, single = self.counts["unknown"] / max(tokens, 1), self.counts["bytes"] / max(tokens, 1)
        if unknown > _MOST_UNKNOWN:
            yield f"{unknown:.1%} of the tokens are unknown to the tokenizer: what they stood for is lost"
        if single > _MOST_BYTES or tokens / characters > _MOST_TOKENS_PER_CHARACTER:
            yield (
                f"the tokenizer does not know this language: {tokens / characters:.2f} tokens a character,"
                f" {single:.0%} of them single bytes. Rows fill early, and answers take long"
            )

    def cut_warnings(self, seq_length: int) -> Iterator[str]:
        """Yield a warning when more than one sample in a hundred is too long for a row."""
        too_long = self.counts["truncated"] + self.counts["dropped"]
        samples = self.counts["conversations"]
        if too_long <= _MOST_TOO_LONG * samples:
            return
        needed = self.percentile(0.99) - 1
        whole = f"seq_length {needed:,} keeps" if needed < _LONGEST else f"not even seq_length {_LONGEST:,} keeps"
        yield f"{too_long / samples:.1%} of the samples are longer than seq_length {seq_length:,}; {whole} 99 % whole"


def bars(histogram: Sequence[Sequence[int]]) -> Iterator[str]:
    """Yield the histogram as lines of text."""
    most = max((count for _, _, count in histogram), default=0) or 1
    for start, end, count in histogram:
        bar = "█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "")
        yield f"{start:>7} - {end:<7} {count:>9,}  {bar}".rstrip()
