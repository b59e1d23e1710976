"""``launcher metrics``."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Seconds, jobs_dir_option
from launcher.cli.options.group import takes
from launcher.cli.options.listening import TokenOptions

if TYPE_CHECKING:
    from launcher.jobs import JobStore


class Address(click.types.StringParamType):
    """HOST:PORT, or :PORT of the loopback address, as a pair."""

    name = "address"

    def convert(self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(?:(?P<host>[^\s:]+|\[[0-9a-fA-F:]+\])?:)?(?P<port>\d{1,5})", value)
        if found is None or int(found["port"]) > 65535:
            self.fail(f"{value!r} is no address; write :9555 or 0.0.0.0:9555.", param, ctx)
        return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])


@click.command()
@click.option("--serve", "address", type=Address(), metavar="[HOST]:PORT", help="Answer at http://HOST:PORT/metrics.")
@click.option(
    "--textfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a file for node_exporter's textfile collector, in the older text format.",
)
@click.option("--every", type=Seconds(min=1), metavar="S", help="Write --textfile again every S seconds.")
@takes(TokenOptions, "asked")
@jobs_dir_option
def metrics(
    address: tuple[str, int] | None, textfile: Path | None, every: float | None, asked: TokenOptions, jobs_dir: Path
) -> None:
    """Print metrics of all jobs for Prometheus (OpenMetrics), serve them, or write them for node_exporter.

    \b
    launcher metrics --serve :9555
    launcher metrics --textfile /var/lib/node_exporter/launcher.prom --every 15
    """
    from launcher.errors import SpecError
    from launcher.jobs import JobStore
    from launcher.observe.openmetrics import metrics_text

    if address and textfile:
        raise SpecError("--serve and --textfile exclude each other", hint="start the command twice")
    if every and not textfile:
        raise SpecError("--every goes with --textfile", hint="launcher metrics --textfile FILE --every 15")
    store = JobStore(jobs_dir)
    with suppress(KeyboardInterrupt):
        if address:
            _serve(address, asked, store)
        elif textfile:
            _write(textfile, store, every)
        else:
            click.echo(metrics_text(store), nl=False)


def _serve(address: tuple[str, int], asked: TokenOptions, store: JobStore) -> None:
    from launcher.common.http.connections import Patience
    from launcher.common.http.listening import listen, serving, stderr_log, url_of
    from launcher.common.signals import wait_for_stop
    from launcher.observe.openmetrics import Scrapes
    from launcher.observe.serving import application

    host, port = address
    token = asked.token(host, flag="--serve")
    listener = listen(host, port, flag="--serve")
    app = application(Scrapes(store).text, token, stderr_log())
    with serving(app, listener, Patience(most=64, request_s=30.0, answer_s=120.0)):
        click.echo(f"metrics of {store.root} at {url_of(listener)}/metrics, until Ctrl-C", err=True)
        wait_for_stop()
    click.echo("stopped", err=True)


def _write(textfile: Path, store: JobStore, every: float | None) -> None:
    from launcher.common.atomic import write_atomic
    from launcher.errors import HostError
    from launcher.observe.openmetrics import Scrapes

    scrapes = Scrapes(store)
    while True:
        try:
            write_atomic(textfile, scrapes.text(older=True))
        except OSError as error:
            raise HostError(f"cannot write {textfile}: {error.strerror}", hint="name another --textfile") from error
        if every is None:
            return
        time.sleep(every)
