"""``python -m launcher.sweeps FOLDER``: the runner of the sweep in it."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.sweeps.runner import run

if __name__ == "__main__":
    run(Path(sys.argv[1]))
