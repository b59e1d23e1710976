"""Counts of a server since it began, for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from launcher.common.openmetrics import Family, Histogram, metrics_text

ANSWERED, REFUSED, LEFT, TIMED_OUT, FAILED = "answered", "refused", "client_left", "timeout", "failed"

_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Figures:
    """Counted in the thread of the HTTP server alone. A request for a model that is not known has the model ""."""

    def __init__(self, models: Iterable[str]) -> None:
        self._models = tuple(models)
        self._requests: Counter[tuple[str, str]] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._new_tokens: Counter[str] = Counter()
        self._first_s = {model: Histogram(_BOUNDS) for model in self._models}
        self._whole_s = {model: Histogram(_BOUNDS) for model in self._models}

    def refused(self, model: str) -> None:
        """Count a request that got no place in the queue."""
        self._requests[model, REFUSED] += 1

    def began(self, model: str, seconds: float) -> None:
        """Note how long after a request its answer began."""
        self._first_s[model].add(seconds)

    def ended(self, model: str, outcome: str, *, prompt_tokens: int, new_tokens: int, seconds: float) -> None:
        """Count a request that had a place in the queue, and its tokens."""
        self._requests[model, outcome] += 1
        self._prompt_tokens[model] += prompt_tokens
        self._new_tokens[model] += new_tokens
        if outcome == ANSWERED:
            self._whole_s[model].add(seconds)

    def text(self, *, running: int, waiting: int) -> str:
        """Return all of it in OpenMetrics. Requests now: ``running`` in the batches, ``waiting`` for a free slot."""
        outcomes = (ANSWERED, REFUSED, LEFT, TIMED_OUT, FAILED)
        requests = _counter("launcher_serve_requests", "Requests by their outcome.")
        for key in sorted({(model, outcome) for model in self._models for outcome in outcomes} | {*self._requests}):
            requests.add({"model": key[0], "outcome": key[1]}, self._requests[key])
        prompts = _counter("launcher_serve_prompt_tokens", "Tokens of prompts.")
        answers = _counter("launcher_serve_answer_tokens", "Tokens of answers.")
        first = _histogram("launcher_serve_first_token_seconds", "From a request to the first piece of its answer.")
        whole = _histogram("launcher_serve_answer_seconds", "From a request to the end of its answer.")
        for model in self._models:
            labels = {"model": model}
            prompts.add(labels, self._prompt_tokens[model])
            answers.add(labels, self._new_tokens[model])
            first.add_histogram(labels, self._first_s[model])
            whole.add_histogram(labels, self._whole_s[model])
        now = Family(name="launcher_serve_running_requests", kind="gauge", about="Requests that are answered now.")
        now.add({}, running)
        queue = Family(
            name="launcher_serve_waiting_requests", kind="gauge", about="Requests that wait for a free slot."
        )
        queue.add({}, waiting)
        return metrics_text([requests, prompts, answers, first, whole, now, queue])


def _counter(name: str, about: str) -> Family:
    return Family(name=name, kind="counter", about=about)


def _histogram(name: str, about: str) -> Family:
    return Family(name=name, kind="histogram", about=about)
