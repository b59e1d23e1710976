"""Records what the supervisor learns when a fault of the table happens, for the corpus. Real MindSpore on CPU.

usage: record.py [--only NAME,...] [--engines msrun,direct,mpirun]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FAULTS_FOLDER = HERE.parent / "integration" / "faults"
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(FAULTS_FOLDER), str(HERE.parent), str(ROOT)]
PYTHONPATH = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])

from condense import as_text, condense  # noqa: E402
from corpus import CASES  # noqa: E402
from faults import FAULTS, Fault, run_cell  # noqa: E402

from launcher.engines import ENGINES  # noqa: E402
from launcher.jobs.logs import tail  # noqa: E402

LOG_LINES = 200

# Loaded by every Python process of a recorded job; only a supervisor writes what it learns.
SITE_CUSTOMIZE = """
import os, sys
if "launcher.supervise" in sys.orig_argv:
    import supervisor_tap
    supervisor_tap.tap(os.environ["VERDICTS_RECORD"])
"""
LINE_CHARS = 300


def record(fault: Fault, engine: str) -> None:
    """Let ``fault`` happen with ``engine``, and write what was learnt as a case of the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder) / "tape"
        (Path(folder) / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
        os.environ.update(VERDICTS_RECORD=str(tape), PYTHONPATH=os.pathsep.join([folder, PYTHONPATH]))
        mark = f"launcher-verdicts-{os.urandom(4).hex()}"
        cell = run_cell(fault, engine, 2, Path(folder), mark)
        assert (cell.record.state, fault.text in cell.said) == (fault.state, True), cell.said
        root = Path(folder) / f"{fault.name}-{engine}"
        raw: dict[str, Any] = {
            "fault": fault.name, "engine": engine, "rank": fault.rank, "state": fault.state,
            "limits": fault.limits or {},
            "facts": [json.loads(line) for line in tape.read_text().splitlines()],
            "logs": {str(path.relative_to(root)): _lines(path) for path in _logs(root)},
        }  # fmt: skip
    (CASES / "own" / f"{fault.name}-{engine}.json").write_text(as_text(condense(raw)), encoding="utf-8")
    print(fault.name, engine, cell.said, flush=True)


def _logs(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix in (".log", ".txt")]


def _lines(path: Path) -> list[str]:
    return [line[:LINE_CHARS] for line in tail(path, LOG_LINES)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--only", default=",".join(FAULTS))
    options = parser.parse_args()
    for name in options.only.split(","):
        for engine in options.engines.split(","):
            if engine in FAULTS[name].engines:
                record(FAULTS[name], engine)


if __name__ == "__main__":
    main()
