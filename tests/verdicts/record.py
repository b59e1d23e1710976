"""Records what the supervisor learns when a fault of the table happens, for the corpus. Real MindSpore on CPU.

usage: record.py [--only NAME,...] [--engines msrun,direct,mpirun] FOLDER
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
sys.path[:0] = [str(FAULTS_FOLDER), str(HERE.parent), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "recorder"), str(ROOT), os.environ.get("PYTHONPATH", "")])

from faults import FAULTS, Fault, run_cell  # noqa: E402

from launcher.engines import ENGINES  # noqa: E402
from launcher.jobs.logs import tail  # noqa: E402

LOG_LINES = 25
LINE_CHARS = 300


def record(fault: Fault, engine: str, out: Path) -> None:
    """Let ``fault`` happen with ``engine``, and write what was learnt to a file in ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder) / "tape"
        os.environ["VERDICTS_RECORD"] = str(tape)
        mark = f"launcher-verdicts-{os.urandom(4).hex()}"
        cell = run_cell(fault, engine, 2, Path(folder), mark)
        root = Path(folder) / f"{fault.name}-{engine}"
        case: dict[str, Any] = {
            "fault": fault.name, "engine": engine, "rank": fault.rank, "state": fault.state,
            "verdict": cell.record.verdict, "facts": [json.loads(line) for line in tape.read_text().splitlines()],
            "logs": {str(path.relative_to(root)): _lines(path) for path in _logs(root)},
        }  # fmt: skip
    (out / f"{fault.name}-{engine}.json").write_text(json.dumps(case, indent=1), encoding="utf-8")
    print(fault.name, engine, cell.said, flush=True)


def _logs(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix in (".log", ".txt")]


def _lines(path: Path) -> list[str]:
    return [line[:LINE_CHARS] for line in tail(path, LOG_LINES)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        for engine in options.engines.split(","):
            if engine in FAULTS[name].engines:
                record(FAULTS[name], engine, options.folder)


if __name__ == "__main__":
    main()
