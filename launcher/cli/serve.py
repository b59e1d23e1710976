"""``launcher serve``."""

from __future__ import annotations

from dataclasses import dataclass

import click

from launcher.cli.options.common import Seconds, model_argument
from launcher.cli.options.group import option, takes
from launcher.cli.options.listening import ListenOptions, port_option
from launcher.cli.options.model import ModelOptions, SamplingOptions
from launcher.cli.output.progress import waiting


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ListenOptions):
    """Where the server listens, and how much one client may ask of it."""

    port: int = port_option(8000)
    batch_size: int = option(
        "--batch-size", type=click.IntRange(min=1, max=1024), default=8, show_default=True, metavar="N"
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
    """Answer over HTTP as OpenAI's chat completions and models do. For trying a model out, not for production.

    \b
    launcher serve last --port 8000
    LAUNCHER_TOKEN=$(openssl rand -hex 32) launcher serve last --host 0.0.0.0
    """
    from launcher.inference.server.http import Limits
    from launcher.inference.server.server import opened
    from launcher.inference.server.server import serve as run
    from launcher.inference.session import Session

    token = server.token(server.host)
    session = Session(choice.find(reference), batch_size=server.batch_size, device_id=choice.device_id)
    limits = Limits(
        body_bytes=server.max_body,
        most_tokens=server.max_tokens,
        most_waiting=server.max_waiting,
        timeout_s=server.timeout_s,
    )
    with waiting() as session.on_phase:
        service = opened(session, limits, defaults=sampling.spec(session.model), token=token, asked_as=reference)
    run(service, server.host, server.port)
