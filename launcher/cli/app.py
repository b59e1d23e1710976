"""The root command, lazy loading of subcommands, and the one place where an error becomes text and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from launcher import __version__
from launcher.common.nearest import nearest
from launcher.errors import HostError, LauncherError, Note

# name -> (module, attribute, help). The help stands here so that `launcher --help` imports no command module.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": (
        "launcher.cli.demo",
        "demo",
        "Run the whole path on this machine's CPU: data, train, merge, ask.",
    ),
    "data": ("launcher.cli.data", "data", "Make, convert, tokenize and preprocess datasets."),
    "submit": ("launcher.cli.submit", "submit", "Finetune a model as a run spec describes."),
    "sweep": ("launcher.cli.sweep", "sweep", "Run a spec with other settings, trial by trial, and compare them."),
    "plan": ("launcher.cli.plan", "plan", "Show all that a run would do, and whether it fits the cards."),
    "config": ("launcher.cli.config", "config", "Make, read and check run specs."),
    "attach": ("launcher.cli.control", "attach", "Follow a job again."),
    "stop": ("launcher.cli.control", "stop", "Stop a job, saving first if asked."),
    "resume": ("launcher.cli.control", "resume", "Go on with a job that failed or was stopped."),
    "jobs": ("launcher.cli.job_list", "jobs", "List, label and remove jobs."),
    "status": ("launcher.cli.jobs", "status", "Show what a job is doing or how it ended."),
    "top": ("launcher.cli.observe", "top", "Show all jobs that run, live."),
    "board": ("launcher.cli.board", "board", "Show all jobs on a web page, live."),
    "report": ("launcher.cli.observe", "report", "Write a report of a job as one HTML file."),
    "compare": ("launcher.cli.observe", "compare", "Compare jobs: results, spec, data, versions."),
    "plot": ("launcher.cli.observe", "plot", "Draw curves of jobs in the terminal or to a file."),
    "track": ("launcher.cli.track", "track", "Give a job's metrics to TensorBoard or another tracker."),
    "metrics": ("launcher.cli.metrics", "metrics", "Export the metrics of all jobs for Prometheus."),
    "logs": ("launcher.cli.jobs", "logs", "Print the logs of a job."),
    "merge-ckpt": ("launcher.cli.merge_ckpt", "merge_ckpt", "Merge the shards of a job into one model."),
    "split-ckpt": ("launcher.cli.split_ckpt", "split_ckpt", "Split a whole checkpoint into the shards of a plan."),
    "convert-ckpt": ("launcher.cli.convert_ckpt", "convert_ckpt", "Convert a model from or to Hugging Face's layout."),
    "infer": ("launcher.cli.infer", "infer", "Ask a model, one prompt or many."),
    "chat": ("launcher.cli.chat", "chat", "Talk with a model in the terminal."),
    "eval": ("launcher.cli.evaluate", "evaluate", "Compare models on held-out rows."),
    "serve": ("launcher.cli.serve", "serve", "Serve an OpenAI-style chat API, for trials."),
    "rank-table": ("launcher.cli.rank_table", "rank_table", "Make, check, show and merge HCCL rank tables."),
    "devices": ("launcher.cli.devices", "devices", "Show the Ascend cards of this host, or its CPU."),
    "docs": ("launcher.cli.docs", "docs", "Print a page of the documentation."),
    "completion": ("launcher.cli.completion", "completion", "Print the script for the shell's completion."),
    "node": ("launcher.cli.node", "node", "Run the agent on one host of a multi-host job (started by the launcher)."),
    "doctor": ("launcher.cli.doctor", "doctor", "Check whether this host can run the job, and say what to do."),
}


# Commands that the launcher types itself, on other hosts: no user looks for them.
_STARTED_BY_US = frozenset({"node"})


# What a host refuses wherever a file is touched; it says more than a traceback would.
_NO_FAULT_OF_OURS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG),
)


class LauncherGroup(click.Group):
    """Loads a subcommand when it is asked for, and prints LauncherError as "error: ..." with its hint."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = nearest(args[0], COMMANDS)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items() if name not in _STARTED_BY_US])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LauncherError as error:
            show_error(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with _notes_said():
                return super().main(*args, **kwargs)
        except BrokenPipeError:
            # The reader of our output went away (`launcher jobs | head`): nothing is wrong. Point stdout at
            # nothing so that the interpreter's own flush at exit does not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            if error.errno not in _NO_FAULT_OF_OURS:
                raise
            show_error(HostError(f"{error.filename}: {error.strerror}", hint="look at its permissions and its disk"))
            sys.exit(HostError.exit_code)


@contextmanager
def _notes_said() -> Iterator[None]:
    """Print each Note once, on stderr; other warnings stay what they are."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                other(message, category, *place, **more)
            elif str(message) not in said:
                said.add(str(message))
                click.echo(f"note: {message}", err=True)

        warnings.showwarning = show
        yield


def show_error(error: LauncherError) -> None:
    """Print ``error`` and its hint on stderr."""
    from launcher.cli.options.common import in_jobs_dir

    click.echo(f"error: {in_jobs_dir(error.message)}", err=True)
    if error.hint:
        click.echo(f"  hint: {in_jobs_dir(error.hint)}", err=True)


@click.group(cls=LauncherGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="launcher")
def main() -> None:
    """Finetune LLaMA, Qwen2.5 and Qwen3 on Ascend cards (or on this machine's CPU), merge the shards, ask the result.

    \b
    launcher submit --cards 2
    launcher merge-ckpt last
    launcher infer last --prompt "..."
    """
