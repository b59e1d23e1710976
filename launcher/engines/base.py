"""What an engine gives the plan: a command, and nothing that runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Command:
    """An argv and the environment variables that are *added* for it. No shell ever sees it."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line that works when it is pasted into a shell."""
        pairs = (f"{key}={shlex.quote(value)}" for key, value in sorted(self.env.items()))
        return " ".join([*pairs, shlex.join(self.argv)])
