"""``launcher serve``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import Seconds, model_argument
from launcher.cli.options.group import option, takes
from launcher.cli.options.listening import ListenOptions, port_option
from launcher.cli.options.model import ModelOptions, SamplingOptions
from launcher.cli.output.progress import waiting
from launcher.common.host_memory import available_memory

if TYPE_CHECKING:
    from launcher.inference.server.served import Served


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ListenOptions):
    """Where the server listens, and how much one client may ask of it."""

    port: int = port_option(8000)
    models: tuple[str, ...] = option(
        "--model",
        multiple=True,
        metavar="NAME=MODEL[+ADAPTER]",
        help="One more model, by a name: a job, folder or file, and an adapter on top; repeatable.",
    )
    batch_size: int | None = option(
        "--batch-size",
        type=click.IntRange(min=1, max=1024),
        metavar="N",
        help="Answers of a model that are computed together; default: what fits into a quarter of the memory, 32 at "
        "most (8 on Ascend).",
    )
    max_tokens: int = option(
        "--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Longest answer."
    )
    max_body: int = option(
        "--max-body", type=click.IntRange(min=1), default=1 << 20, show_default=True, help="Bytes per request."
    )
    max_waiting: int = option(
        "--max-waiting", type=click.IntRange(min=1), default=32, show_default=True, help="Requests that wait."
    )
    timeout_s: float = option(
        "--timeout", type=Seconds(min=0.1), default=300.0, show_default=True, help="Seconds per request."
    )


@click.command()
@model_argument
@takes(ModelOptions, "choice")
@takes(ServerOptions, "server")
@takes(SamplingOptions, "sampling")
def serve(reference: str, choice: ModelOptions, server: ServerOptions, sampling: SamplingOptions) -> None:
    """Answer over HTTP as OpenAI's chat completions, completions and models do. For trying models out, not for
    production. --model serves more of them beside MODEL; --adapter, --config and --tokenizer are MODEL's alone.

    \b
    launcher serve last --port 8000
    launcher serve last --model base=/models/llama --model apart=/models/llama+last
    LAUNCHER_TOKEN=$(openssl rand -hex 32) launcher serve last --host 0.0.0.0
    """
    from launcher.inference.server.http import Limits
    from launcher.inference.server.server import opened
    from launcher.inference.server.server import serve as run

    token = server.token(server.host)
    models = list(_served(reference, choice, server, sampling))
    limits = Limits(
        body_bytes=server.max_body,
        most_tokens=server.max_tokens,
        most_waiting=server.max_waiting,
        timeout_s=server.timeout_s,
    )
    with waiting() as on_phase:
        service = opened(models, limits, token=token, on_phase=on_phase)
    run(service, server.host, server.port)


def _served(reference: str, choice: ModelOptions, server: ServerOptions, sampling: SamplingOptions) -> Iterator[Served]:
    from launcher.inference.server.served import Served, name_of, split_adapter, split_named
    from launcher.inference.session import Session, computed_on_cpu
    from launcher.inference.slots import default_slots

    available = available_memory()

    def session(reference: str, choice: ModelOptions) -> Session:
        model = choice.find(reference)
        slots = server.batch_size or default_slots(
            model, on_cpu=computed_on_cpu(model), available=available, models=1 + len(server.models)
        )
        return Session(model, batch_size=slots, device_id=choice.device_id)

    named = [split_named(text) for text in server.models]
    first = session(reference, choice)
    yield Served(name=name_of(first), session=first, defaults=sampling.spec(first.model), asked_as=reference)
    for name, text in named:
        other, adapter = split_adapter(text)
        found = session(other, replace(choice, adapter=adapter, config=None, tokenizer=None))
        yield Served(name=name, session=found, defaults=sampling.spec(found.model))
