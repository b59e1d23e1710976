"""A model that a server answers with, under its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.common.http.access import RequestError
from launcher.errors import LauncherError, SpecError
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.formats import ChatFormat, Format, TextFormat
from launcher.inference.server.protocol import Completion
from launcher.inference.session import Prepared, Session

_NAME = re.compile(r"[\w.:+-]+")


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """A model and its name. asked_as: a second name, by which the user named it, such as "last"."""

    name: str
    session: Session
    defaults: GenerationSpec
    asked_as: str = ""

    def prepare(self, completion: Completion) -> list[Prepared]:
        """Return the prompts as token ids. Raises RequestError when the model cannot answer them."""
        if not completion.text and self.session.model.template is None:
            message = f"{self.name} has no chat template: ask /v1/completions, or serve it with --template"
            raise RequestError(400, message, param="model", code="no_template")
        if completion.scores_prompts and not self.session.on_cpu:
            message = (
                "echo with logprobs needs the logits of all tokens of a prompt; decoding on Ascend has the last ones"
            )
            raise RequestError(400, message, param="echo", code="unsupported_parameter")
        try:
            return self.session.prepare(completion.prompts, room=min(1, completion.spec.max_new_tokens))
        except LauncherError as error:
            param = "prompt" if completion.text else "messages"
            raise RequestError(400, error.message, param=param, code="context_length_exceeded") from error

    def format(self, completion: Completion, prepared: list[Prepared]) -> Format:
        """Return what formats the answers."""
        tokenizer = self.session.tokenizer
        if not completion.text:
            return ChatFormat(completion, tokenizer)
        return TextFormat(completion, tokenizer, [self.prompt_text(item) for item in prepared])

    def prompt_text(self, item: Prepared) -> str:
        """Return the text of a prompt; of token ids, the one that they decode to."""
        text = item.question.text
        return self.session.tokenizer.decode(item.ids) if text is None else text


def name_of(session: Session) -> str:
    """Return the job's id, or the base name of a folder or file: clients put it into a URL."""
    parts = session.model.name.split(" + ")  # a model and its adapter
    return "+".join(Path(part).resolve().name for part in parts)


def check_names(models: list[Served]) -> None:
    """Raise SpecError for a name that two models have, or that does not fit into a URL."""
    taken: dict[str, Served] = {}
    for model in models:
        for name in {model.name, model.asked_as} - {""}:
            if taken.setdefault(name, model) is not model:
                raise SpecError(f"two models are called {name}", hint="give one another name: --model NAME=MODEL")


def split_named(text: str) -> tuple[str, str]:
    """Return name and reference of NAME=MODEL. Raises SpecError when it has another form."""
    name, equals, reference = text.partition("=")
    if not equals or not reference or not _NAME.fullmatch(name):
        raise SpecError(
            f"--model {text} is not NAME=MODEL, with a name of letters, digits, and . _ - : +",
            hint="--model base=/models/llama, --model tuned=last",
        )
    return name, reference


def split_adapter(reference: str) -> tuple[str, str | None]:
    """Return model and adapter of MODEL+ADAPTER; a path that exists is a model, whatever signs it has."""
    model, plus, adapter = reference.partition("+")
    if Path(reference).exists() or not plus:
        return reference, None
    return model, adapter
