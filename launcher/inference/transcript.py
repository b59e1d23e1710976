"""The text of a growing answer: the part that may be shown already, and its end at a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.data.tokenizer import Tokenizer

# So many tokens of the prompt are decoded with those of a text that continues it: a character has 4 bytes at most.
_WINDOW = 8

# What decoders put for bytes that are not a whole character yet.
_HALF = "\ufffd"


class Transcript:
    """Tokens of one answer as text, without white space at either end."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, after: Sequence[int] | None = None) -> None:
        """``after``: the prompt that the text goes on from, with all its white space; None for an answer to it."""
        self._tokenizer = tokenizer
        self._strips = after is None
        self._before = list(after or ())[-_WINDOW:]
        self._begin = len(tokenizer.decode(self._before).rstrip(_HALF))
        self._stop = tuple(filter(None, stop))
        self._shown = 0
        self.tokens: list[int] = []
        self.stopped = False

    def add(self, token: int) -> None:
        """Add one token. ``stopped`` is True once a stop text is complete."""
        self.tokens.append(token)
        if self._stop:
            self.stopped = self._end(self._decoded()) is not None

    @property
    def text(self) -> str:
        """Return the answer so far, without the stop text that ended it."""
        decoded = self._decoded()
        text = decoded[: self._end(decoded)]
        return text.strip() if self._strips else text

    def news(self, *, final: bool = False) -> str:
        """Return the text added since the last call that will not change; with ``final``, all the rest.

        Incomplete characters, trailing white space and possible beginnings of a stop text are held back.
        """
        text = self.text if final or self.stopped else self._settled()
        news, self._shown = text[self._shown :], max(self._shown, len(text))
        return news

    def _settled(self) -> str:
        text = self._decoded().rstrip(_HALF)
        text = text.lstrip() if self._strips else text
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        text = text[: len(text) - held]
        return text.rstrip() if self._strips else text

    def _decoded(self) -> str:
        return self._tokenizer.decode([*self._before, *self.tokens])[self._begin :]

    def _end(self, text: str) -> int | None:
        return min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
