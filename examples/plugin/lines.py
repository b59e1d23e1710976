"""A tracker that a package adds: what a job did as JSON lines, in a file that ``tail -f`` shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.observe.trackers import Run


class Lines:
    """Called by a process beside the job; a job that is resumed begins again with the first step that is new."""

    def __init__(self) -> None:
        self._file = Path()

    def begin(self, run: Run, first_step: int) -> None:
        self._file = run.folder / "lines.jsonl"
        kept = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        before = [line for line in kept if json.loads(line).get("step", 0) < first_step]
        self._file.write_text("".join(f"{line}\n" for line in before), encoding="utf-8")

    def step(self, step: int, when: float, values: dict[str, float]) -> None:
        self._write(step=step, time=when, **values)

    def evaluation(self, step: int, when: float, loss: float) -> None:
        self._write(step=step, time=when, held_out_loss=loss)

    def end(self, state: str) -> None:
        self._write(state=state)

    def _write(self, **values: Any) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
