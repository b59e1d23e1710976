"""A folder that hosts share as by NFS: each has a view of its own, in which names of others show late.

bindfs (FUSE) passes everything on, and the kernel remembers for ``delay_s`` what a name is, and that there is none, as
an NFS client does (acregmax, acdirmax: 60 s). As there, a file that is opened anew shows what was last written.
Listings, which an NFS client remembers too, are not remembered here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from launcher.jobs import JobRecord
from support.hosted import Hosted
from support.netlab import NetHost, need, run
from support.supervised import wait_until


class Shared(Hosted):
    """A job in a shared folder. FUSE at times finds no file while another takes its place; it does right after."""

    def record(self) -> JobRecord:
        found: list[JobRecord] = []

        def look() -> bool:
            with suppress(AssertionError):
                found.append(super(Shared, self).record())
            return bool(found)

        wait_until(look, "the job's record")
        return found[0]


@contextmanager
def slow_share(folder: Path, hosts: Sequence[NetHost], delay_s: float) -> Iterator[tuple[Path, Sequence[NetHost]]]:
    """Yield the shared folder below ``folder``, as this process has it, and the hosts, with their views of it."""
    need("bindfs", "mount", "umount")
    back, shared = folder / "back", folder / "shared"
    views = [shared, *(folder / f"view_{host.name}" for host in hosts)]
    names = ("attr_timeout", "entry_timeout", "negative_timeout")
    options = ",".join(["direct_io", *(f"{name}={delay_s:g}" for name in names)])
    for path in (back, *views):
        path.mkdir()
    mounted: list[Path] = []
    try:
        for view in views:
            run("bindfs", "-o", options, str(back), str(view))
            mounted.append(view)
        pairs = zip(hosts, views[1:], strict=True)
        yield shared, [replace(host, mounted=(str(view), str(shared))) for host, view in pairs]
    finally:
        for view in mounted:
            run("umount", "--lazy", str(view), check=False)
