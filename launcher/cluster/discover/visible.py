"""ASCEND_RT_VISIBLE_DEVICES and ASCEND_VISIBLE_DEVICES: the cards that a process or container may use."""

from __future__ import annotations

from dataclasses import dataclass

_MOST_DEVICES = 64


@dataclass(frozen=True, kw_only=True)
class Visible:
    """The ids that a variable names. ``fault``: the mistake that the runtime would not accept, "" if none."""

    ids: tuple[int, ...]
    fault: str = ""


def runtime_visible(value: str) -> Visible:
    """Read ASCEND_RT_VISIBLE_DEVICES: logic ids, ascending, no blanks.

    The runtime stops reading at the first bad character and refuses duplicates (EE2002). User ids count from 0 over
    what is left.
    """
    ids: list[int] = []
    for part in value.split(","):
        if not (part.isascii() and part.isdecimal()) or int(part) >= _MOST_DEVICES:
            return Visible(ids=tuple(ids), fault=f"reading stops at {part!r}; write numbers and commas alone")
        if int(part) in ids:
            return Visible(ids=tuple(ids), fault=f"{part} stands twice (EE2002)")
        if ids and int(part) < ids[-1]:
            return Visible(ids=tuple(ids), fault=f"{part} after {ids[-1]}: write the ids in ascending order")
        ids.append(int(part))
    return Visible(ids=tuple(ids))


def container_visible(value: str) -> Visible:
    """Read ASCEND_VISIBLE_DEVICES: physical ids such as ``0-2,4``, set on the container for ascend-docker-runtime."""
    ids: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdecimal() for end in ends) or int(ends[1]) >= _MOST_DEVICES:
            return Visible(ids=tuple(ids), fault=f"{part!r} is no id and no range such as 0-2")
        ids += range(int(ends[0]), int(ends[1]) + 1)
    return Visible(ids=tuple(dict.fromkeys(ids)))
