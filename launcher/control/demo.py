"""The whole workflow for real on this machine's CPU: LoRA on two ranks of a shipped base, merge, held-out questions.

Every stage is a command that a user could type, run as a process of its own and printed first. The base gives the bare
number of a problem; LoRA teaches it to write down the working first. Only an answer with its working counts.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import HostError, LauncherError

COUNTED = 50
HELD_OUT_SEED = 3
SHOWN = 2
MOST_NEW_TOKENS = 24

# Right answers of the counted ones: the base has no more, the finetuned model no fewer, or the demo has failed.
MOST_OF_BASE, LEAST_OF_TUNED = 10, 45

Echo = Callable[[str], None]


@dataclass(kw_only=True)
class Demo:
    """One run of the demo in ``folder``; jobs go to ``jobs_dir``."""

    folder: Path
    jobs_dir: Path
    echo: Echo
    _stage: int = field(default=0)
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run every stage. Raises LauncherError when one fails, or when finetuning did not help as it must."""
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            hint = "cd to a folder that you can write to, or pass --folder DIR"
            raise HostError(f"cannot make {self.folder.absolute()}: {error.strerror}", hint=hint) from error
        held_out, result = str(self.folder / "held_out.jsonl"), str(self.folder / "eval.json")
        self._run("Make problems that neither the base nor LoRA is trained on", "data", "sample", "--kind", "steps",
                  "--held-out", "--size", str(COUNTED), "--seed", str(HELD_OUT_SEED), "-o", held_out)  # fmt: skip
        self._run("Finetune the shipped base with LoRA on two ranks", "submit", "--cards", "2", *self._jobs)
        self._run("Merge what the ranks saved", "merge-ckpt", "last", *self._jobs)
        self._run("Before and after: an answer counts when its working and its number are right", "eval", "last",
                  "--ask", held_out, "--score", "exact", "--max-new-tokens", str(MOST_NEW_TOKENS), "-o", result,
                  *self._jobs)  # fmt: skip
        graded = json.loads(Path(result).read_text(encoding="utf-8"))
        self._show_answers(graded)
        self._run("Draw its loss", "plot", "last", *self._jobs)
        self._run("Write its report", "report", "last", "-o", str(self.folder / "report.html"), *self._jobs)
        self._conclude({model["role"]: model["right"] for model in graded["models"]})

    def _show_answers(self, graded: dict[str, Any]) -> None:
        for asked in graded["questions"][:SHOWN]:
            answers = {answer["role"]: answer["text"] for answer in asked["answers"]}
            self.echo(f"\n  {asked['question']}")
            for heading, role in (("base", "base"), ("finetuned", "merged")):
                self.echo(f"    {heading + ':':11}{answers[role]}".replace("\n", "\n" + " " * 15))

    def _conclude(self, right: dict[str, int]) -> None:
        base, tuned = right["base"], right["merged"]
        words = shlex.join(self._jobs)
        self.echo("\nGo on:")
        for command in ("chat last", "serve last", "board"):
            self.echo(f"  launcher {command} {words}".rstrip())
        self.echo(f"\nHeld-out problems right, with their working: base {base} of {COUNTED}, finetuned {tuned}.")
        self.echo(f"All done in {time.monotonic() - self._began:.0f} s. Files: {self.folder}")
        if base > MOST_OF_BASE or tuned < LEAST_OF_TUNED:
            raise LauncherError(
                f"the base should have at most {MOST_OF_BASE} right, and the finetuned model at least {LEAST_OF_TUNED}",
                hint="look at the losses: launcher status last",
            )

    @property
    def _jobs(self) -> tuple[str, ...]:
        return ("--jobs-dir", str(self.jobs_dir)) if self.jobs_dir != Path("jobs") else ()

    def _run(self, title: str, *arguments: str) -> None:
        """Show a launcher command and run it, its output to ours. Raises LauncherError if it fails."""
        self._stage += 1
        self.echo(f"\n[{self._stage}] {title}\n$ launcher {shlex.join(arguments)}")
        began = time.monotonic()
        process = subprocess.run([sys.executable, "-m", "launcher", *arguments], check=False)
        if process.returncode != 0:
            raise LauncherError(
                f"`launcher {arguments[0]}` failed with exit code {process.returncode}", hint="its error is above"
            )
        self.echo(f"({time.monotonic() - began:.1f} s)")


def next_folder(parent: Path) -> Path:
    """Return the first of parent/1, parent/2, ... that does not exist: each run of the demo keeps its files."""
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)
