"""Every fault once and every engine with real MindSpore on CPU. `make faults` runs the whole table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults import FAULTS, run_cell
from support.supervised import engine_program

from launcher.engines import ENGINES

pytestmark = pytest.mark.mindspore

WHOLE = os.environ.get("LAUNCHER_FAULTS") == "all"


def cells() -> list[tuple[str, str, int]]:
    """Each fault with one engine, in turn; with $LAUNCHER_FAULTS=all each with every engine, on 2 and 4 ranks."""
    if WHOLE:
        return [(f.name, engine, ranks) for ranks in (2, 4) for f in FAULTS.values() for engine in f.engines]
    names = tuple(ENGINES)
    return [
        (fault.name, fault.engines[number % len(fault.engines)] if len(fault.engines) < 3 else names[number % 3], 2)
        for number, fault in enumerate(FAULTS.values())
    ]


@pytest.mark.parametrize(("name", "engine", "ranks"), cells())
def test_the_verdict_is_right_and_nothing_is_left(
    tmp_path: Path, no_survivors: str, name: str, engine: str, ranks: int
) -> None:
    fault = FAULTS[name]
    engine_program(engine)
    if name == "disk_full" and os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    cell = run_cell(fault, engine, ranks, tmp_path, no_survivors)

    assert cell.record.state == fault.state, cell
    if fault.state == "failed":
        assert cell.record.verdict is not None
        assert cell.record.verdict["rank_id"] == fault.rank, cell
        text = cell.record.verdict["text"]["en"]
        assert fault.text in text
    assert cell.survivors == 0
    if name == "death_in_save":
        assert cell.newest_saved == (1, 4)
