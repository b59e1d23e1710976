"""A prompt and its growing answer, and what a decoder does with many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from launcher.inference.logprobs import TokenScore, scores_of
from launcher.inference.sampling import GenerationSpec, Sampler
from launcher.inference.transcript import Transcript

if TYPE_CHECKING:
    from launcher.inference.batching import Batch

STOP, LENGTH, CANCELLED, FAILED = "stop", "length", "cancelled", "failed"

OnText = Callable[[str], None]


@dataclass(kw_only=True)
class Row:
    """One prompt and its growing answer.

    prompt: token ids. limit: new tokens at most, within the context. ends: ids that end an answer. cancelled: called
    before each token; True ends the row. on_text: called with each piece of text that will not change, and with the
    rest, even if there is none, when the row has ended. top: how many alternatives ``scores`` have; None: no scores.
    scores: of the new tokens and of the end token. error: why it FAILED.
    """

    prompt: Sequence[int]
    spec: GenerationSpec
    limit: int
    ends: frozenset[int]
    transcript: Transcript
    on_text: OnText | None = None
    cancelled: Callable[[], bool] | None = None
    finish: str | None = None
    top: int | None = None
    scores: list[TokenScore] = field(default_factory=list)
    error: Exception | None = None
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.spec)

    @property
    def new_tokens(self) -> list[int]:
        return self.transcript.tokens

    def advance(self, logits: Any) -> int:
        """Choose the next token and add it to the answer. ``logits`` (vocab,) float32."""
        token = self.sampler.pick(logits, [*self.prompt, *self.new_tokens])
        if self.top is not None:
            self.scores += scores_of(logits[None], [token], self.top)
        # An end token is not part of the text, but ``generate`` expects a token for the row.
        if token in self.ends:
            self.end(STOP)
            return token
        self.transcript.add(token)
        if self.transcript.stopped:
            self.end(STOP)
        elif len(self.new_tokens) >= self.limit:
            self.end(LENGTH)
        elif self.on_text and (news := self.transcript.news()):
            self.on_text(news)
        return token

    def end(self, reason: str) -> None:
        """End the row with ``reason`` and pass on the rest of its text."""
        self.finish = reason
        if self.on_text:
            self.on_text(self.transcript.news(final=True))

    def stop_if_cancelled(self) -> bool:
        """End the row if nobody wants it any more, and return whether that is so."""
        gone = self.cancelled is not None and self.cancelled()
        if gone:
            self.end(CANCELLED)
        return gone

    def fail(self, error: Exception) -> None:
        """End the row by ``error``, which may have come while its text was passed on."""
        self.finish, self.error = FAILED, error


class Decoder(Protocol):
    """A loaded model; not thread-safe."""

    def run(self, rows: Sequence[Row]) -> None:
        """Answer all ``rows`` as one batch; each ends with its ``finish`` set."""

    def batch(self, slots: int) -> Batch:
        """Return a batch of so many rows at most, which join and leave. On Ascend there is one at a time."""
        ...

    def all_logits(self, tokens: Any) -> Any:
        """Return logits (rows, new, vocab) float32 after each of ``tokens`` (rows, new) int32.

        On Ascend the network must be built without its own cache, and rows must be as long as its context.
        """

    def prompt_logits(self, ids: Sequence[int]) -> Iterator[Any]:
        """Yield logits (some, vocab) float32 after the tokens of one row, a few tokens at a time. On CPU only."""
        ...
