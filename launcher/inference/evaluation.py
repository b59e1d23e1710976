"""Evaluate models on held-out rows: loss, perplexity, and the share of answers with the right final number."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.common.rendering import write_atomic
from launcher.data.info import read_info
from launcher.data.mindrecord import read_row
from launcher.data.options import eval_path
from launcher.data.rows import IGNORED_LABEL, unpacked
from launcher.data.tokenizer import Tokenizer
from launcher.errors import DataError, JobCancelled
from launcher.inference.decoding import Row
from launcher.inference.judging import JUDGES, USABLE
from launcher.inference.logprobs import Floats, log_sums
from launcher.inference.model import Model
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import OnPhase, Session, unheard
from launcher.inference.sources import Given, find_model, job_step
from launcher.inference.transcript import Transcript
from launcher.inference.weights import with_folds
from launcher.jobs import JobPaths, find_job_or_path
from launcher.upstream.quiet import quiet

BASE, ADAPTED, MERGED, OTHER = "base", "base + adapter", "merged", "model"

Ints = npt.NDArray[np.int32]

_ROWS_AT_ONCE = 8
_KEPT_ANSWERS = 10


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model under evaluation, and its role among the others."""

    role: str
    model: Model


@dataclass(frozen=True, kw_only=True)
class Score:
    """losses: cross entropy in nats of each token. right: for each answer, True if its final number is right.
    answers: their texts. asked: for each, the question and the reference answer."""

    role: str
    name: str
    losses: Floats
    right: tuple[bool, ...] = ()
    answers: tuple[str, ...] = ()
    asked: tuple[tuple[str, str], ...] = ()

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def to_dict(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "model": self.name,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "tokens": len(self.losses),
            "right": sum(self.right),
            "asked": len(self.right),
        }


# ------------------------------------------------------------------------------------------------ what is compared


def candidates(references: Sequence[str], jobs_dir: Path, given: Given) -> Iterator[Candidate]:
    """Return the models that ``references`` name. A model with LoRA counts three times: its base, its base with the
    adapter kept apart, and merged (folded in memory unless it is already)."""
    for reference in references:
        model = find_model(reference, jobs_dir, given)
        if given.adapter:
            yield Candidate(role=BASE, model=find_model(reference, jobs_dir, replace(given, adapter=None)))
            yield Candidate(role=ADAPTED, model=model)
            yield Candidate(role=MERGED, model=folded(model))
            continue
        apart = _apart(reference, jobs_dir, given, model)
        if apart is None:
            yield Candidate(role=OTHER, model=model)
            continue
        base, adapted = apart
        yield from (
            Candidate(role=BASE, model=base),
            Candidate(role=ADAPTED, model=adapted),
            Candidate(role=MERGED, model=model),
        )


def _apart(reference: str, jobs_dir: Path, given: Given, merged: Model) -> tuple[Model, Model] | None:
    """Return base, and base with adapter, of a job that trained LoRA and still has its checkpoints.

    If the job has not ended they are of the step that ``merged`` is of.
    """
    job = find_job_or_path(reference, jobs_dir)
    if job is None or not job[0].checkpoints.is_dir():
        return None
    adapted = job_step(*job, folded=False, adapters=True, moment=merged.moment)
    with ExitStack() as stack:
        if not adapted.open(stack).adapters:
            return None
    base = job_step(*job, folded=False, moment=merged.moment)
    tokenizer = given.tokenizer or adapted.tokenizer
    return replace(base, tokenizer=tokenizer), replace(adapted, tokenizer=tokenizer)


def folded(model: Model) -> Model:
    """Return ``model`` with its adapters folded into its weights, as merging does."""

    return replace(model, open=lambda stack: with_folds(model.open(stack)))


# ------------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows of a MindRecord. ids, labels: int32, all rows of one length, as for training."""

    path: Path
    ids: tuple[Ints, ...]
    labels: tuple[Ints, ...]


def read_rows(path: Path, limit: int | None = None) -> HeldOut:
    """Read the rows of ``path``, one for each sample of a packed row.

    Raises DataError when it is no dataset or has no tokens in the loss.
    """
    info = read_info(path)
    if info is None:
        raise DataError(f"{path} is no MindRecord file", hint="launcher data preprocess makes one")
    rows = [row for file in info.files for row in _rows(file, limit)][:limit]
    found = [row for row in rows if (row["labels"][1:] != IGNORED_LABEL).any()]
    if not found:
        raise DataError(f"{path} has no token in the loss", hint="preprocess it with its answers")
    return HeldOut(
        path=path, ids=tuple(row["input_ids"] for row in found), labels=tuple(row["labels"] for row in found)
    )


def _rows(file: Path, limit: int | None) -> Iterator[dict[str, Ints]]:
    from launcher.data.mindrecord_header import header_rows, read_header

    count = header_rows(read_header(file) or {"page": []})
    for number in range(min(count, limit or count)):
        row = read_row(file, number)
        if not {"input_ids", "labels"} <= row.keys():
            raise DataError(f"{file} has no input_ids and labels", hint="launcher data preprocess makes such rows")
        yield from unpacked(row)


def validation_split(references: Sequence[str], jobs_dir: Path) -> Path:
    """Return the validation rows (``preprocess --eval-fraction``) of the first job among ``references``.

    Raises DataError when there is no such job, or no such file.
    """
    jobs = [job for reference in references if (job := find_job_or_path(reference, jobs_dir))]
    found = [split for paths, _ in jobs if (split := _split_of(paths)) is not None]
    if not found:
        raise DataError(
            "no validation split goes with these models",
            hint="give rows: --data FILE.mindrecord; launcher data preprocess --eval-fraction 0.1 keeps some back",
        )
    return found[0]


def _split_of(paths: JobPaths) -> Path | None:
    try:
        dataset = Path(json.loads(paths.plan.read_text(encoding="utf-8"))["dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    split = eval_path(dataset)
    return split if read_info(split) else None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The first question of a row as ids, and the text of its reference answer."""

    prompt: tuple[int, ...]
    right: str

    def is_met_by(self, answer: str) -> bool:
        """Return whether the last number of ``answer`` is that of the reference answer, however it is written."""
        return JUDGES["number"](answer, self.right)


def problems(rows: HeldOut, tokenizer: Tokenizer, count: int) -> list[Problem]:
    """Return the problems of the first ``count`` rows whose answer contains a number."""
    found: list[Problem] = []
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        if len(found) >= count:
            break
        in_loss = np.flatnonzero(labels != IGNORED_LABEL)
        begin = int(in_loss[0])
        end = begin + int(np.argmin(np.append(labels[begin:] != IGNORED_LABEL, False)))
        right = tokenizer.decode([int(token) for token in ids[begin:end]])
        if begin > 0 and USABLE["number"](right):
            found.append(Problem(prompt=tuple(map(int, ids[:begin])), right=right))
    return found


# ------------------------------------------------------------------------------------------------ scoring


def score(
    candidate: Candidate,
    rows: HeldOut,
    *,
    questions: int,
    max_new_tokens: int,
    device_id: int | None = None,
    interrupted: Callable[[], bool] = bool,
    on_phase: OnPhase = unheard,
) -> Score:
    """Compute losses on all ``rows`` and answers to the first ``questions`` problems for one model.

    Raises DataError when rows or tokenizer are another model's, JobCancelled when ``interrupted`` returns True.
    """
    session = Session(candidate.model, batch_size=_ROWS_AT_ONCE, device_id=device_id, incremental=False)
    session.interrupted, session.on_phase = interrupted, phase_of(candidate, on_phase)
    _check_rows(rows, candidate.model)
    losses = np.concatenate([*_losses(session, rows)])
    asked = problems(rows, session.tokenizer, questions)
    answers = list(answers_to(session, [problem.prompt for problem in asked], max_new_tokens))
    right = [problem.is_met_by(answer) for answer, problem in zip(answers, asked, strict=True)]
    return Score(
        role=candidate.role, name=candidate.model.name, losses=losses, right=tuple(right), answers=tuple(answers),
        asked=tuple((session.tokenizer.decode(list(problem.prompt)), problem.right) for problem in asked),
    )  # fmt: skip


def phase_of(candidate: Candidate, on_phase: OnPhase) -> OnPhase:
    """Return ``on_phase``, told of which model it is; what that one says is shown once all have been asked."""
    return lambda what: on_phase(f"{candidate.role}: {what or 'asking ' + candidate.model.name}")


def _check_rows(rows: HeldOut, model: Model) -> None:
    longest, highest = max(map(len, rows.ids)) - 1, max(int(ids.max()) for ids in rows.ids)
    if longest > model.context:
        raise DataError(
            f"{rows.path} has rows of {longest} tokens, {model.name} a context of {model.context}",
            hint=f"launcher data preprocess --seq-length {model.context} makes shorter ones",
        )
    if highest >= model.spec.vocab_size:
        raise DataError(
            f"{rows.path} has a token {highest}, {model.name} knows {model.spec.vocab_size}",
            hint="preprocess the data with this model's tokenizer",
        )


def _losses(session: Session, rows: HeldOut) -> Iterator[Floats]:
    """Compute the cross entropy of the tokens in the loss, in row order, a few rows at a time."""
    for start in range(0, len(rows.ids), _ROWS_AT_ONCE):
        stop_if(session.interrupted())
        ids = np.stack(rows.ids[start : start + _ROWS_AT_ONCE])
        labels = np.stack(rows.labels[start : start + _ROWS_AT_ONCE])[:, 1:]
        width = ids.shape[1] - 1
        if session.on_cpu:  # what comes after the last token in the loss costs time and says nothing
            width = int(np.flatnonzero((labels != IGNORED_LABEL).any(axis=0))[-1]) + 1
        logits = session.all_logits(np.ascontiguousarray(ids[:, :width]))
        in_loss = labels[:, :width] != IGNORED_LABEL
        yield cross_entropy(logits[in_loss], labels[:, :width][in_loss])


def stop_if(interrupted: bool) -> None:
    """Raise JobCancelled if ``interrupted``."""
    if interrupted:
        raise JobCancelled("stopped", signum=signal.SIGINT)


def cross_entropy(logits: Any, labels: Any) -> Floats:
    """Return (N,) float64, in nats, for logits (N, vocab) float32 and labels (N,) int."""
    found: Floats = log_sums(logits) - np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=-1)[:, 0]
    return found


def answers_to(
    session: Session, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, stop: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the greedy answers to ``prompts``, token ids, in their order, each up to one of the texts ``stop``.

    Raises JobCancelled when interrupted.
    """
    spec = GenerationSpec(max_new_tokens=max_new_tokens, stop=tuple(stop))
    rows = [
        Row(
            prompt=tuple(prompt),
            spec=spec,
            limit=min(max_new_tokens, session.model.context - len(prompt)),
            ends=session.ends,
            transcript=Transcript(session.tokenizer, spec.stop),
        )
        for prompt in prompts
    ]
    order = sorted(rows, key=lambda row: -len(row.prompt))
    for start in range(0, len(order), _ROWS_AT_ONCE):
        session.run(order[start : start + _ROWS_AT_ONCE])
        stop_if(session.interrupted())
    yield from (row.transcript.text for row in rows)


# ------------------------------------------------------------------------------------------------ comparing


def difference(scores: Sequence[Score]) -> dict[str, Any] | None:
    """Return the difference between base + adapter and merged; None unless both were scored."""
    by_role = {score.role: score for score in scores}
    apart, merged = by_role.get(ADAPTED), by_role.get(MERGED)
    if apart is None or merged is None:
        return None
    return {
        "loss": abs(apart.loss - merged.loss),
        "largest_of_a_token": float(np.abs(apart.losses - merged.losses).max()),
        "same_answers": sum(one == other for one, other in zip(apart.answers, merged.answers, strict=True)),
        "answers": len(apart.answers),
    }


# ------------------------------------------------------------------------------------------------ all of it


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of all candidates on the same rows."""

    rows: HeldOut
    scores: tuple[Score, ...]

    @property
    def difference(self) -> dict[str, Any] | None:
        return difference(self.scores)

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": str(self.rows.path),
            "rows": len(self.rows.ids),
            "models": [score.to_dict() for score in self.scores],
            "difference": self.difference,
            "answers": list(self._answers()),
        }

    def _answers(self) -> Iterator[dict[str, Any]]:
        """Yield the first questions with what each model answered."""
        asked = min((len(score.answers) for score in self.scores), default=0)
        for number, (question, expected) in enumerate(self.scores[0].asked[: min(asked, _KEPT_ANSWERS)]):
            answers = [
                {"role": score.role, "model": score.name, "text": score.answers[number], "right": score.right[number]}
                for score in self.scores
            ]
            yield {"question": question, "expected": expected, "answers": answers}

    def keep(self, references: Sequence[str], jobs_dir: Path) -> None:
        """Write the comparison into the folder of each job among ``references``, for its report."""
        for reference in references:
            job = find_job_or_path(reference, jobs_dir)
            if job is not None:
                self.write(job[0].evaluation)

    def write(self, path: Path) -> None:
        """Write the comparison to ``path`` as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The models and their evaluation rows; nothing is loaded yet."""

    candidates: tuple[Candidate, ...]
    rows: HeldOut

    @classmethod
    def of(
        cls, references: Sequence[str], jobs_dir: Path, given: Given, *, data: Path | None, limit: int | None
    ) -> Evaluation:
        """Find models and rows; without ``data``, the validation split of the first job.

        Raises DataError when there are no such rows, and all that ``find_model`` raises.
        """
        if data and not read_info(data):
            raise DataError(f"{data} does not exist or is no dataset", hint="launcher data preprocess makes one")
        found = tuple(candidates(references, jobs_dir, given))
        return cls(candidates=found, rows=read_rows(data or validation_split(references, jobs_dir), limit))

    @property
    def notes(self) -> list[str]:
        """Return the distinct notes on how the models were found."""
        return list(dict.fromkeys(note for candidate in self.candidates for note in candidate.model.notes))

    def run(
        self,
        *,
        questions: int,
        max_new_tokens: int,
        device_id: int | None,
        interrupted: Callable[[], bool],
        on_phase: OnPhase = unheard,
    ) -> Comparison:
        """Score one model after the other. Raises JobCancelled when interrupted."""
        scores = []
        with quiet():
            for candidate in self.candidates:
                scored = score(
                    candidate,
                    self.rows,
                    questions=questions,
                    max_new_tokens=max_new_tokens,
                    device_id=device_id,
                    interrupted=interrupted,
                    on_phase=on_phase,
                )
                scores.append(scored)
        return Comparison(rows=self.rows, scores=tuple(scores))
