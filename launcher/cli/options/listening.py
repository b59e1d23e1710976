"""Options of the commands that answer over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from launcher.cli.options.group import option


def port_option(default: int) -> Any:
    """Return the field of the port to listen on."""
    return option(
        "--port", type=click.IntRange(min=0, max=65535), default=default, show_default=True, help="0 takes a free one."
    )


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """The token that a server asks for."""

    token_file: Path | None = option(
        "--token-file", type=click.Path(path_type=Path), help="File with the token.  [default: $LAUNCHER_TOKEN]"
    )

    def token(self, host: str, *, flag: str = "--host") -> str | None:
        """Return the token for a server on ``host``, which ``flag`` gave; None: only this machine reaches it.

        Raises SpecError when others could reach it and there is no token, DataError when the file cannot be read.
        """
        from launcher.common.http.access import checked_token

        return checked_token(host, self.token_file, flag=flag)


@dataclass(frozen=True, kw_only=True)
class ListenOptions(TokenOptions):
    """Where a server listens, and the token that it asks for."""

    host: str = option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; any but the loopback address requires a token.",
    )
    port: int = port_option(0)
