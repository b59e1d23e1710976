"""The errors that this program raises on purpose, with their exit codes.

LauncherError          1   anything not listed below
  SpecError            2   the run spec or a command line is wrong; lists every problem
  DataError            3   a dataset, tokenizer or prompt file is missing, unreadable or does not fit
  CheckpointError      4   a checkpoint is missing, incomplete, or shards disagree
  HostError            5   this host cannot do it: no card, no program, no free port
  JobError             6   no such job, or the job is not in a state that allows this
  JobFailed            7   a rank of the job failed
  JobCancelled       130   the job was stopped before its end (143 when by SIGTERM)

Code below the command line raises these and never exits; ``launcher.cli`` turns them into text and an exit code.
What a user must be told although it is no error is a warning of category Note; ``launcher.cli`` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence


class LauncherError(Exception):
    """An error whose message says what went wrong and where; ``hint`` says what to type next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(LauncherError):
    """A run spec or command line that cannot be carried out. ``problems`` holds one line per mistake."""

    exit_code = 2

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in problems)]), hint=hint)
        self.problems = tuple(problems)


class DataError(LauncherError):
    """A dataset, tokenizer or prompt file that is missing, unreadable or does not fit."""

    exit_code = 3


class CheckpointError(LauncherError):
    """A checkpoint that is missing or incomplete, or shards that disagree."""

    exit_code = 4


class HostError(LauncherError):
    """This host cannot do what was asked: no card, no program, no free port."""

    exit_code = 5


class JobError(LauncherError):
    """No such job, or the job is not in a state that allows this."""

    exit_code = 6


class JobFailed(LauncherError):
    """A rank of the job failed; the message is the verdict."""

    exit_code = 7


class JobCancelled(LauncherError):
    """The job was stopped before its end. ``exit_code`` is 128 plus the signal that asked for it."""

    def __init__(self, message: str, *, signum: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum


class Note(UserWarning):
    """What a command was not told and took all the same: which job a name means, say."""
