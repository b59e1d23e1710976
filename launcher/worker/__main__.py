"""``python -m launcher.worker JOB_FOLDER``."""

from __future__ import annotations

import sys

from launcher.worker.main import main

if __name__ == "__main__":
    main(sys.argv[1])
