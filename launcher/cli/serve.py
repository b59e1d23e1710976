"""``launcher serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from launcher.cli.options.common import Seconds
from launcher.cli.options.model import find, generation_spec, model_options, sampling_options


@click.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others demand a token.")
@click.option(
    "--port", type=click.IntRange(min=0, max=65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token.  [default: $LAUNCHER_TOKEN]")
@click.option("--batch-size", type=click.IntRange(min=1, max=1024), default=8, show_default=True, metavar="N")
@click.option("--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Longest answer.")
@click.option("--max-body", type=click.IntRange(min=1), default=1 << 20, show_default=True, help="Bytes of a request.")
@click.option("--max-waiting", type=click.IntRange(min=1), default=32, show_default=True, help="Requests that wait.")
@click.option("--timeout", "timeout_s", type=Seconds(min=0.1), default=300.0, show_default=True, help="Seconds.")
@sampling_options
def serve(reference: str, **options: Any) -> None:
    """Answer over HTTP as OpenAI's chat completions and models do. For trying a model out, not for production.

    \b
    launcher serve last --port 8000
    LAUNCHER_TOKEN=$(openssl rand -hex 32) launcher serve last --host 0.0.0.0
    """
    import time

    from launcher.inference.server.http import Limits, Service
    from launcher.inference.server.queue import TaskQueue
    from launcher.inference.server.server import check_address
    from launcher.inference.server.server import serve as run
    from launcher.inference.session import Session
    from launcher.upstream.quiet import quiet

    token = _token(options["token_file"])
    check_address(options["host"], token)
    session = Session(find(reference, options), batch_size=options["batch_size"], device_id=options["device_id"])
    _ = session.template
    limits = Limits(
        body_bytes=options["max_body"],
        most_tokens=options["max_tokens"],
        most_waiting=options["max_waiting"],
        timeout_s=options["timeout_s"],
    )
    with quiet():
        session.load()
    service = Service(
        session=session,
        queue=TaskQueue(session, most_waiting=limits.most_waiting),
        limits=limits,
        defaults=generation_spec(options, session.model),
        token=token,
        created=int(time.time()),
    )
    run(service, options["host"], options["port"])


def _token(path: Path | None) -> str | None:
    from launcher.errors import DataError

    if path is None:
        return os.environ.get("LAUNCHER_TOKEN") or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the token in {path}: {error}", hint="give another --token-file") from error
