"""``launcher board``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from launcher.cli.options.common import jobs_dir_option
from launcher.cli.options.group import option, takes


@dataclass(frozen=True, kw_only=True)
class BoardOptions:
    """Where the board listens."""

    host: str = option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; any but the loopback address requires a token.",
    )
    port: int = option(
        "--port", type=click.IntRange(min=0, max=65535), default=8765, show_default=True, help="0 takes a free one."
    )
    token_file: Path | None = option(
        "--token-file", type=click.Path(path_type=Path), help="File with the token.  [default: $LAUNCHER_TOKEN]"
    )
    lang: str | None = option(
        "--lang", type=click.Choice(["en", "zh"]), help="Language; $LAUNCHER_LANG, else the locale's, if left out."
    )


@click.command()
@takes(BoardOptions, "options")
@jobs_dir_option
def board(options: BoardOptions, jobs_dir: Path) -> None:
    """Show all jobs on a web page, live. It changes nothing, and jobs do not depend on it.

    \b
    launcher board
    LAUNCHER_TOKEN=$(openssl rand -hex 32) launcher board --host 0.0.0.0
    """
    from launcher.common.http.access import check_address, read_token
    from launcher.common.http.connections import Patience
    from launcher.common.http.listening import listen, serving, stderr_log, url_of
    from launcher.common.signals import wait_for_stop
    from launcher.jobs.verdict import user_language
    from launcher.observe.board.web import STREAM_S, Board, application

    token = read_token(options.token_file)
    check_address(options.host, token)
    listener = listen(options.host, options.port)
    shown = Board.over(jobs_dir, options.lang or user_language(), token)
    patience = Patience(most=256, request_s=30.0, answer_s=STREAM_S + 60.0)
    with serving(application(shown, stderr_log()), listener, patience):
        asks = " (it asks for the token)" if token else ""
        print(f"jobs in {jobs_dir} at {url_of(listener)}/{asks}, until Ctrl-C", file=sys.stderr, flush=True)
        wait_for_stop()
        shown.stopping.set()
    print("stopped", file=sys.stderr, flush=True)
