"""The agent of one host, for the doctor of another: JSON requests, a line each, on stdin; a line of JSON for each.

It keeps what it listens on open until stdin closes, and leaves nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.cluster.discover.host import host_root, look_around
from launcher.doctor.between import listening, ping_all, reach
from launcher.doctor.checks import host_checks
from launcher.doctor.facts import facts_of
from launcher.doctor.findings import JobNeeds, NeededFile
from launcher.errors import LauncherError

# Each answer has this key, so that the text of a login shell is told from it.
ANSWER = "doctor"


def serve(requests: Iterable[str], say: Callable[[str], None]) -> None:
    """Answer ``requests`` until they end: each has "do", the name of a method of the agent, and its arguments."""
    with contextlib.ExitStack() as stack:
        agent = _Agent(stack)
        for line in requests:
            say(json.dumps({ANSWER: agent.answer(**json.loads(line))}))


class _Agent:
    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._does: Mapping[str, Callable[..., dict[str, Any]]] = {
            "time": self._time, "check": self._check, "listen": self._listen, "reach": self._reach, "ping": self._ping,
        }  # fmt: skip

    def answer(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self._does[do](**arguments)
        except (LauncherError, OSError) as error:
            return {"fault": str(error)}

    def _time(self) -> dict[str, Any]:
        return {"time": time.time()}

    def _check(self, needs: Mapping[str, Any]) -> dict[str, Any]:
        report = look_around(host_root())
        findings = list(host_checks(needs_from(needs), report))
        facts = facts_of(report, with_tls=any(finding.id == "tls" for finding in findings))
        return {"findings": [asdict(finding) for finding in findings], "facts": facts.to_dict()}

    def _listen(self, port: int | None, *, ascend: bool) -> dict[str, Any]:
        return {"ports": self._stack.enter_context(listening(port, ascend=ascend))}

    def _reach(self, targets: Sequence[tuple[str, int]]) -> dict[str, Any]:
        found = reach([(address, port) for address, port in targets])
        return {"faults": [asdict(item) for item in found if item.fault]}

    def _ping(self, pairs: Sequence[tuple[int, str]]) -> dict[str, Any]:
        return {"pings": [asdict(item) for item in ping_all([(card, address) for card, address in pairs])]}


def needs_to(needs: JobNeeds, *, cards: int, port: int | None, shared: Path | None) -> dict[str, Any]:
    """Return what one host of the job must have, as JSON. ``shared``: a file in the jobs folder that it must see."""
    files = [_file(needed.what, needed.path, needed.fix) for needed in needs.files]
    if shared is not None:
        fix = f"mount {shared.parent} at the same place on all hosts, or pass --jobs-dir"
        files.append(_file("shared folder", shared, fix))
    return {
        "cards": cards,
        "bfloat16": needs.bfloat16,
        "files": files,
        "folder": str(needs.folder.absolute()) if needs.folder else None,
        "bytes": needs.checkpoint_bytes * needs.copies(needs.hosts.num_devices if needs.hosts else cards),
        "keep": needs.keep,
        "port": port,
        "several": needs.several,
    }


def _file(what: str, path: Path, fix: str) -> dict[str, str]:
    return {"what": what, "path": str(path.absolute()), "fix": fix}


def needs_from(raw: Mapping[str, Any]) -> JobNeeds:
    """Read what ``needs_to`` wrote: all of the job's checkpoints are in one folder, whoever writes them."""
    return JobNeeds(
        cards=raw["cards"],
        bfloat16=raw["bfloat16"],
        files=tuple(_files(raw["files"])),
        folder=Path(raw["folder"]) if raw["folder"] else None,
        checkpoint_bytes=raw["bytes"],
        data_parallel=1,
        keep=raw["keep"],
        scheduler_port=raw["port"],
        among_others=raw["several"],
    )


def _files(raw: Iterable[Mapping[str, str]]) -> Iterator[NeededFile]:
    for item in raw:
        yield NeededFile(what=item["what"], path=Path(item["path"]), fix=item["fix"])
