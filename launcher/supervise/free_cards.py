"""Waiting for cards to be free again: after a kill the driver needs some seconds to clear up (EJ0001 otherwise)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

# "wait 10 s after killing the last training process" (CANN, EJ0001); a card that is held longer is somebody's.
FREE_TIMEOUT_S = 60.0
_POLL_S = 0.5


def wait_until_free(
    device_ids: Sequence[int], *, give_up: Callable[[], bool], root: Path = Path("/"), timeout_s: float = FREE_TIMEOUT_S
) -> bool:
    """Return True once no visible process has /dev/davinciN of one of ``device_ids`` open, False on a timeout."""
    from launcher.doctor.holders import holders  # brings in all of doctor: only where there are cards

    deadline = time.monotonic() + timeout_s
    while holders(list(device_ids), root):
        if give_up() or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
