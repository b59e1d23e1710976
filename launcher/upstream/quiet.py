"""Keep MindSpore and MindFormers from printing into our output and writing into the user's working folder."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def quiet() -> Iterator[TextIO]:
    """Redirect file descriptors 1 and 2 of this process, and MindFormers' log folder, to temporary ones in the block.

    MindFormers logs to stdout, MindSpore's C++ to stderr, past sys.stdout. Enter it before either is imported. It
    yields the real stdout, unbuffered, for output that the user is to see.
    """
    with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
        os.environ.setdefault("LOCAL_DEFAULT_PATH", folder)  # mindformers 1.9.0, tools/utils.py
        os.environ.setdefault("GLOG_v", "3")  # errors only; what is logged at exit comes after the context
        with _redirected(Path(folder) / "said.log") as stdout:
            yield stdout


@contextmanager
def _redirected(target: Path) -> Iterator[TextIO]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with target.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    stdout = os.fdopen(os.dup(kept[0]), "w", encoding="utf-8", errors="replace")
    try:
        yield stdout
    finally:
        stdout.close()
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in zip((1, 2), kept, strict=True):
            os.dup2(original, number)
            os.close(original)
