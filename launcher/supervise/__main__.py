"""``python -m launcher.supervise JOB_FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.jobs import JobPaths
from launcher.supervise.guard import guard

if __name__ == "__main__":
    sys.exit(guard(JobPaths(root=Path(sys.argv[1]))))
