"""Sessions from questions to answers, shared by the command line, the server and the evaluation."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launcher.cluster.discover import ascend_device_ids
from launcher.data.messages import Message
from launcher.data.templates import Template, template_names
from launcher.data.tokenizer import Tokenizer, check_special_ids, load_tokenizer
from launcher.errors import DataError, HostError, JobCancelled, SpecError
from launcher.inference.batching import Batch
from launcher.inference.decoding import CANCELLED, Decoder, OnText, Row
from launcher.inference.logprobs import TokenScore, scores_of
from launcher.inference.model import Model, is_for_cpu
from launcher.inference.sampling import GenerationSpec
from launcher.inference.transcript import Transcript

DEFAULT_BATCH = 8

# Told what takes seconds before there is an answer, and "" when there is one.
OnPhase = Callable[[str], None]


def unheard(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question. ``messages`` end with the user's turn; ``text`` or ``ids``, if set, goes to the model unchanged."""

    id: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    ids: tuple[int, ...] | None = None

    @property
    def shown(self) -> str:
        """Return the question as the user wrote it."""
        if self.ids is not None:
            return f"token ids {', '.join(map(str, self.ids[:8]))}"
        return self.text if self.text is not None else self.messages[-1].content


@dataclass(frozen=True, kw_only=True)
class Answer:
    """``finish``: "stop" when the model or a stop text ended it, "length" when the limit or the context did,
    "cancelled". ``seconds``: wall time of its batch, from the first token's computation on."""

    id: str
    prompt: str
    text: str
    prompt_tokens: int
    new_tokens: int
    finish: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A question as token ids that fit into the context."""

    question: Question
    ids: tuple[int, ...]


def _check_device(device_id: int | None) -> None:
    """Raise HostError for a missing card: MindSpore ignores the number on CPU and fails obscurely on Ascend."""
    cards = 0 if device_id is None else len(ascend_device_ids())
    if device_id is None or device_id < cards:
        return
    if not cards:
        raise HostError(
            f"--device {device_id}: this host has no Ascend card", hint="leave --device out: the CPU answers"
        )
    raise HostError(
        f"--device {device_id}: this host has {cards} Ascend card{'s' * (cards > 1)}", hint=f"--device {cards - 1}"
    )


def computed_on_cpu(model: Model) -> bool:
    """Return whether this host's CPU computes ``model``."""
    from launcher.inference import network

    return is_for_cpu(model) or network.target() == "CPU"


class Session:
    """A model on one device. It is loaded on first use, which takes seconds: create one session and reuse it."""

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = DEFAULT_BATCH,
        device_id: int | None = None,
        incremental: bool = True,
    ) -> None:
        """Load the tokenizer. ``incremental`` False: no MindFormers cache, so ``all_logits`` works on Ascend too.

        Raises DataError when there is no tokenizer, or it is another model's, HostError when there is no such card.
        Loads nothing else.
        """
        _check_device(device_id)
        if device_id is not None and is_for_cpu(model):
            raise HostError(
                f"--device {device_id}: a {model.spec.architecture.title} is asked on the host's processor",
                hint="leave --device out, or merge-ckpt --format hf and ask it with another program",
            )
        self.model = model
        self.batch_size = batch_size
        self._device_id = device_id
        self._incremental = incremental
        self.interrupted: Callable[[], bool] = bool  # bool() is False: nobody interrupts
        self.on_phase: OnPhase = unheard
        # Loaded first: a wrong tokenizer should fail in milliseconds, not after the weights.
        self.tokenizer = _tokenizer(model)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Return the ids that end an answer: the model's, and those that the template puts after one."""
        ends = {self.model.spec.eos_token_id, *self.model.ends}
        if self.model.template:
            ends |= set(_template_ends(self.model.template, self.tokenizer))
        return frozenset(ends)

    # ---------------------------------------------------------------------------------------- before it is loaded

    def prepare(self, questions: Iterable[Question], *, room: int = 1) -> list[Prepared]:
        """Encode questions. Raises DataError, naming each question that leaves no ``room`` (tokens) for an answer."""
        prepared = [Prepared(question=question, ids=tuple(self.encode(question))) for question in questions]
        context = self.model.context
        long = [item for item in prepared if len(item.ids) + room > context]
        if long:
            shown = "; ".join(f"{_shortened(item.question.shown)} has {len(item.ids)}" for item in long[:3])
            more = f"; and {len(long) - 3} more" if len(long) > 3 else ""
            raise DataError(
                f"{len(long)} prompt{'s' * (len(long) > 1)} longer than the context of {context} tokens allows: "
                f"{shown}{more}",
                hint="ask something shorter"
                + (", or give --context" if context < (self.model.spec.max_position_embedding or 0) else ""),
            )
        return prepared

    def encode(self, question: Question) -> list[int]:
        """Return the token ids of a question in the template of training, or of its bare text, a bos token first.

        Raises DataError when there is no template, a prompt is empty, or an id is none of the model's.
        """
        if question.ids is not None:
            return self._checked(question.ids)
        if not question.shown.strip():
            raise DataError(f"prompt {question.id} is empty", hint="ask something")
        if question.text is not None:
            return [self.model.spec.bos_token_id, *self.tokenizer.encode(question.text, start=True)]
        return self.template.encode_prompt(self.tokenizer, question.messages)

    def _checked(self, ids: Sequence[int]) -> list[int]:
        vocab_size = self.model.spec.vocab_size
        if wrong := [token for token in ids if not 0 <= token < vocab_size]:
            raise DataError(f"{wrong[0]} is no token id of {self.model.name}", hint=f"ids are below {vocab_size}")
        return list(ids)

    @property
    def template(self) -> Template:
        """Return the chat template. Raises SpecError when it is not known."""
        if self.model.template is None:
            raise SpecError(
                f"{self.model.name} does not say which prompt template it was trained with",
                hint=f"give --template NAME ({', '.join(template_names())}), or --raw",
            )
        return self.model.template

    # ---------------------------------------------------------------------------------------- asking

    @cached_property
    def _decoder(self) -> Decoder:
        self.on_phase(f"loading {self.model.name}")
        loaded = self._loaded()
        self.on_phase("computing the first token" if self.on_cpu else f"compiling {self.model.name}")
        return loaded

    def _loaded(self) -> Decoder:
        if self.on_cpu:
            from launcher.inference import numpy_network
            from launcher.inference.cached import CachedDecoder

            return CachedDecoder(numpy_network.load(self.model))
        from launcher.inference import network
        from launcher.inference.paged import PagedDecoder

        built = network.build(
            self.model, batch_size=self.batch_size, device_id=self._device_id, incremental=self._incremental
        )
        return PagedDecoder(built, pad_id=self.model.spec.pad_token_id)

    @cached_property
    def on_cpu(self) -> bool:
        """Return whether the model runs on this host's CPU."""
        return computed_on_cpu(self.model)

    def load(self) -> None:
        """Load the model now and run it once, because on Ascend the first run compiles it.

        Raises CheckpointError when it does not fit, HostError when MindSpore is missing.
        """
        question = Question(id="-", text="?")
        self.batch([Prepared(question=question, ids=(self.model.spec.bos_token_id,))], GenerationSpec(max_new_tokens=1))

    def batches(self, prepared: Sequence[Prepared], spec: GenerationSpec) -> Iterator[list[tuple[int, Answer]]]:
        """Yield answers with the index of each question, batch by batch: rows of similar length together, longest
        first, so that a lack of memory shows at once. Raises JobCancelled when interrupted."""
        order = sorted(range(len(prepared)), key=lambda place: -len(prepared[place].ids))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            answers = self.batch([prepared[place] for place in places], spec, cancelled=self._interrupted_once())
            # Partial answers of a cancelled batch would look like short complete ones.
            if any(answer.finish == CANCELLED for answer in answers):
                raise JobCancelled("stopped", signum=signal.SIGINT)
            yield list(zip(places, answers, strict=True))

    def _interrupted_once(self) -> Callable[[], bool]:
        """Return a latch of ``interrupted`` that stays True, because every row asks."""
        found: list[bool] = []

        def cancelled() -> bool:
            if not found and self.interrupted():
                found.append(True)
            return bool(found)

        return cancelled

    def answers(self, prepared: Sequence[Prepared], spec: GenerationSpec) -> Iterator[tuple[int, Answer]]:
        """Yield answers with the index of each question, as they come."""
        for answers in self.batches(prepared, spec):
            yield from answers

    def batch(
        self,
        prepared: Sequence[Prepared],
        spec: GenerationSpec,
        *,
        on_text: OnText | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Answer one batch. ``on_text``: called with the text of the first row piece by piece."""
        _ = self._decoder  # loaded first: ``seconds`` measures answers only
        rows = [self.row(item, spec, cancelled) for item in prepared]
        rows[0].on_text = on_text
        began = time.monotonic()
        self.run(rows)
        seconds = round(time.monotonic() - began, 3)
        return [_answer(item, row, seconds) for item, row in zip(prepared, rows, strict=True)]

    def row(
        self,
        item: Prepared,
        spec: GenerationSpec,
        cancelled: Callable[[], bool] | None = None,
        *,
        continued: bool = False,
        top: int | None = None,
    ) -> Row:
        """Return ``item`` as a row for the decoder. continued: its text goes on from the prompt's, white space kept."""
        return Row(
            prompt=item.ids,
            spec=spec,
            limit=min(spec.max_new_tokens, self.model.context - len(item.ids)),
            ends=self.ends,
            transcript=Transcript(self.tokenizer, spec.stop, after=item.ids if continued else None),
            top=top,
            cancelled=cancelled,
        )

    def run(self, rows: Sequence[Row]) -> None:
        """Answer rows with different settings as one batch."""
        from launcher.inference.network import mindspore_errors

        decoder = self._decoder
        self._await_text(rows[0])
        with mindspore_errors():
            decoder.run(rows)
        self.on_phase("")

    def batching(self) -> Batch:
        """Return a batch that rows join and leave between two tokens; there is one at a time."""
        return self._decoder.batch(self.batch_size)

    def _await_text(self, row: Row) -> None:
        """Have the first text of ``row`` say that the waiting is over, before anybody else is told of it."""
        on_text = row.on_text

        def first(text: str) -> None:
            self.on_phase("")
            row.on_text = on_text
            if on_text is not None:
                on_text(text)

        row.on_text = first

    def score_prompt(self, row: Row) -> list[TokenScore]:
        """Return the scores of the tokens of the row's prompt; the first has none, as nothing stands before it.

        A row that wants one new token is answered on the way. Works on CPU alone.
        """
        from launcher.inference.network import mindspore_errors

        scores, rest = [TokenScore(token=row.prompt[0])], list(row.prompt[1:])
        with mindspore_errors():
            for logits in self._decoder.prompt_logits(row.prompt):
                now, rest = rest[: len(logits)], rest[len(logits) :]
                scores += scores_of(logits[: len(now)], now, row.top or 0)
        if row.limit == 1:
            row.advance(logits[-1])
        return scores

    def all_logits(self, tokens: Any) -> Any:
        """Return logits (rows, new, vocab) float32 after each of ``tokens`` (rows, new) int32."""
        from launcher.inference.network import mindspore_errors

        with mindspore_errors():
            logits = self._decoder.all_logits(tokens)
        self.on_phase("")
        return logits

    def answer(self, prompts: Sequence[str], spec: GenerationSpec, *, raw: bool = False) -> list[Answer]:
        """Return answers to ``prompts``, in their order. ``raw``: without the chat template."""
        questions = [
            Question(id=str(number), text=text if raw else None, messages=(Message("user", text),))
            for number, text in enumerate(prompts)
        ]
        found = dict(self.answers(self.prepare(questions), spec))
        return [found[place] for place in range(len(prompts))]


def _answer(item: Prepared, row: Row, seconds: float) -> Answer:
    return Answer(
        id=item.question.id,
        prompt=item.question.shown,
        text=row.transcript.text,
        prompt_tokens=len(item.ids),
        new_tokens=len(row.new_tokens),
        finish=str(row.finish),
        seconds=seconds,
    )


def _tokenizer(model: Model) -> Tokenizer:
    if model.tokenizer is None:
        raise DataError(f"no tokenizer goes with {model.name}", hint="give it: --tokenizer tokenizer.model")
    tokenizer = load_tokenizer(model.tokenizer)
    # Fewer pieces than the model knows are normal: vocabularies are often padded to a round number.
    if tokenizer.info.vocab_size > model.spec.vocab_size:
        raise DataError(
            f"{model.tokenizer} has {tokenizer.info.vocab_size} pieces, {model.name} knows {model.spec.vocab_size}",
            hint="give the tokenizer that the model was trained with: --tokenizer FILE",
        )
    check_special_ids(model.spec, tokenizer, hint="give the tokenizer of the model: --tokenizer FILE")
    return tokenizer


def _template_ends(template: Template, tokenizer: Tokenizer) -> Iterator[int]:
    """Yield the control token that the template has in the loss after an answer, if there is one."""
    segments = template.segments((Message("user", "?"), Message("assistant", "?")))
    in_loss = [segment for segment in segments if segment.in_loss]
    # The control token that closes an answer in training is how the model ends one.
    if in_loss and in_loss[-1].control:
        name = in_loss[-1].text
        token = tokenizer.eos_id if name == "</s>" else tokenizer.token_id(name)
        if token is not None:
            yield token


def _shortened(text: Any) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
