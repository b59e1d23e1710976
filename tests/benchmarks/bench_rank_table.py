"""How long making and checking a rank table takes, and how much memory, by number of ranks.

    python tests/benchmarks/bench_rank_table.py

"make" is from a Cluster to the text on disk (template, reading back, the linter's own verdict, fsync), "check" from
the file to the report. Two peers in the same run: ``json.dumps`` of the same table, and ``json.loads`` of the same
file, which is the least anybody can do. Memory is the peak of Python's own allocations (tracemalloc, in a run apart).
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.cluster.model import Cluster, Device, Host
from launcher.cluster.rank_table import Report, check_file, table_of
from launcher.cluster.rank_table.make import checked_text, write_table
from launcher.cluster.sdid import sdid

REPEATS = 5
SHAPES = ((1, 8), (8, 8), (64, 8), (512, 8), (1024, 8), (512, 16), (4096, 8), (8192, 8))


def cluster(hosts: int, per_host: int) -> Cluster:
    """A2 hosts of 8; A3 hosts of 16 in one super pod of up to 1,024 servers, so that 1.2 is measured too."""
    a3 = per_host == 16
    return Cluster(
        target="Ascend",
        kind="A3" if a3 else "A2",
        hosts=tuple(
            Host(
                name=f"node{host}",
                address=f"10.{host >> 8}.{host & 255}.1",
                super_pod_id="pod0" if a3 else None,
                devices=tuple(
                    Device(
                        device_id=device,
                        device_ip=f"172.{16 + device}.{host >> 8}.{host & 255}",
                        super_device_id=sdid(host, device) if a3 else None,
                    )
                    for device in range(per_host)
                ),
            )
            for host in range(hosts)
        ),
    )


def make(made: Cluster, target: Path) -> None:
    text, _ = checked_text(table_of(made), target.name, kind=made.kind)
    write_table(target, text, force=True)


def timed(work: Callable[[], object]) -> float:
    """The median of REPEATS runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_mib(work: Callable[[], object]) -> float:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (1 << 20)


def clean(report: Report) -> Report:
    if report.verdict:
        raise SystemExit(f"the table that was made is not right: {report.verdict}")
    return report


def both(made: Cluster, target: Path) -> None:
    make(made, target)
    check_file(target)


def json_alone(target: Path) -> float:
    """What the json module itself takes to write and to read the same table, in seconds."""
    document = json.loads(target.read_text(encoding="utf-8"))
    return timed(partial(json.dumps, document)) + timed(lambda: json.loads(target.read_text(encoding="utf-8")))


def line(made: Cluster, target: Path) -> str:
    """Measure one shape."""
    make_s = timed(partial(make, made, target))
    check_s = timed(lambda: clean(check_file(target)))
    times = (make_s + check_s) / json_alone(target)
    peak = peak_mib(partial(both, made, target))
    ranks, size_mb = made.num_devices, target.stat().st_size / 1e6
    shape = f"{len(made.hosts)} x{len(made.hosts[0].devices)}"
    return (
        f"{ranks:>6} {shape:>9} {size_mb:>6.2f} MB {make_s:>7.3f} s {check_s:>7.3f} s "
        f"{(make_s + check_s) / ranks * 1e6:>8.1f} {times:>7.1f} {peak:>6.1f} MiB {peak * 1024 / ranks:>9.2f}"
    )


def main() -> None:
    heads = ("ranks", "hosts", "file", "make", "check", "us/rank", "x json", "peak", "KiB/rank")
    print("{:>6} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>10} {:>9}".format(*heads))
    with tempfile.TemporaryDirectory() as folder:
        for hosts, per_host in SHAPES:
            print(line(cluster(hosts, per_host), Path(folder) / "table.json"))
    print(f"peak resident memory of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
