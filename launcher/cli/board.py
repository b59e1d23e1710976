"""``launcher board``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from launcher.cli.options.common import jobs_dir_option
from launcher.cli.options.group import option, takes
from launcher.cli.options.listening import ListenOptions, port_option


@dataclass(frozen=True, kw_only=True)
class BoardOptions(ListenOptions):
    """Where the board listens, and its language."""

    port: int = port_option(8765)
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
    from launcher.common.http.connections import Patience
    from launcher.common.http.listening import listen, serving, stderr_log, url_of
    from launcher.common.signals import wait_for_stop
    from launcher.jobs.verdict import user_language
    from launcher.observe.board.web import STREAM_S, Board, application
    from launcher.sweeps.board import SweepPages

    token = options.token(options.host)
    listener = listen(options.host, options.port)
    lang = options.lang or user_language()
    shown = Board.over(jobs_dir, lang, token, sweeps=SweepPages(jobs_dir=jobs_dir, lang=lang))
    patience = Patience(most=256, request_s=30.0, answer_s=STREAM_S + 60.0)
    with serving(application(shown, stderr_log()), listener, patience):
        asks = " (it asks for the token)" if token else ""
        print(f"jobs in {jobs_dir} at {url_of(listener)}/{asks}, until Ctrl-C", file=sys.stderr, flush=True)
        wait_for_stop()
        shown.stopping.set()
    print("stopped", file=sys.stderr, flush=True)
