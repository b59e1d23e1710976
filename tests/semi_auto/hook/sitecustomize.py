"""Found by every Python process of a test of semi-auto parallel: lets CPU ranks have what the emulator gives them.

Modules of the launcher are changed right after they were loaded: the plan's refusal of collectives that MindSpore's
CPU backend lacks is lifted, and ranks make the emulator's groups once their context is built. LAUNCHER_TEST_DIE names
an attempt, an event and a step, "1:step:6": rank 1 is killed when it has reported that. LAUNCHER_TEST_SLOW_S is how
long every rank waits after each step. A rank that fails says so when all ranks have written their strategy files: the
others would be ended before.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def _lift_refusal(module: ModuleType) -> None:
    module.check_target = lambda spec, cluster: None  # type: ignore[attr-defined]


def _make_groups(module: ModuleType) -> None:
    prepare = module.prepare_training

    def prepared(world_size: int) -> None:
        prepare(world_size)
        from emulator_groups import make_groups

        make_groups()

    module.prepare_training = prepared  # type: ignore[attr-defined]


def _wait_for_strategies(folder: Path, count: int) -> None:
    until = time.monotonic() + 120
    while len(list(folder.glob("*.ckpt"))) < count and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1 if count else 0)  # the last of them is being written


def _die_or_wait_after_an_event(module: ModuleType) -> None:
    attempt, event, step = os.environ.get("LAUNCHER_TEST_DIE", "::").split(":")
    dies = attempt == os.environ.get("LAUNCHER_ATTEMPT") and os.environ.get("RANK_ID") == "1"
    wait_s = float(os.environ.get("LAUNCHER_TEST_SLOW_S", "0"))
    write = module.EventWriter.write

    def written(self: Any, name: str, /, **fields: Any) -> None:
        if name == "error":
            _wait_for_strategies(Path(sys.argv[1]) / "strategy", int(os.environ.get("LAUNCHER_TEST_STRATEGIES", "0")))
        write(self, name, **fields)
        if dies and name == event and str(fields.get("step", "")) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "step":
            time.sleep(wait_s)

    module.EventWriter.write = written


CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "launcher.plan.degrees": _lift_refusal,
    "launcher.upstream.cpu": _make_groups,
    "launcher.jobs.events": _die_or_wait_after_an_event,
}


class _Changed(MetaPathFinder):
    """Finds the modules of CHANGES as ever, and changes them when they have been loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in CHANGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            _change_after_loading(spec.loader, CHANGES[name])
        return spec


def _change_after_loading(loader: Loader, change: Callable[[ModuleType], None]) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        load(module)
        change(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


if os.environ.get("EMULATOR_GROUPS"):
    sys.meta_path.insert(0, _Changed())
