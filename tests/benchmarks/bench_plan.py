"""How planning grows with ranks: seconds and peak memory of a whole plan, every file rendered and checked.

The peer is the same plan with every rank's YAML read back on its own (what it cost before ranks that differ in
comments alone shared one parse), on as many ranks as it can do in reasonable time.

    python tests/benchmarks/bench_plan.py [--most 8192]
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S, LIMIT_MIB = 20, 500
PEER_MOST = 512


def one(ranks: int, peer: bool) -> None:
    """Plan ``ranks`` ranks in this process and print what it took."""
    from launcher.cluster.imagined import imagined_cluster
    from launcher.control.preview import preview
    from launcher.plan import launch_plan
    from launcher.runspec.layers import parse_sets

    if peer:
        launch_plan._COMMENT = re.compile(r"(?!)")  # no two texts are the same any more
    began = time.monotonic()
    made = preview(
        "llama_7b_lora", imagined_cluster(ranks, "A2"), parse_sets(["parallel.model_parallel=8"]), Path("jobs")
    )
    seconds = time.monotonic() - began
    written = sum(len(file.text) for file in made.plan.files)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.3f} {peak_mib:.0f} {len(made.plan.files)} {written / 1e6:.1f}")


def measure(ranks: int, *, peer: bool = False) -> tuple[float, float, int, float]:
    """(seconds, peak MiB, files, MB of text) of a fresh process that plans ``ranks`` ranks."""
    command = [sys.executable, __file__, "--one", str(ranks), *(["--peer"] if peer else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(output[0]), float(output[1]), int(output[2]), float(output[3])


def steps(most: int) -> list[int]:
    """8, 32, 128, ... and ``most`` itself."""
    found = [8 * 4**power for power in range(12) if 8 * 4**power < most]
    return [*found, most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=8192)
    parser.add_argument("--one", type=int)
    parser.add_argument("--peer", action="store_true")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.peer)
        return
    print(f"{'ranks':>6} {'seconds':>8} {'ms/rank':>8} {'peak MiB':>9} {'files':>6} {'MB':>6} {'each read back':>15}")
    for ranks in steps(arguments.most):
        seconds, peak, files, size = measure(ranks)
        times = f"{measure(ranks, peer=True)[0] / seconds:.1f} x" if ranks <= PEER_MOST else "-"
        each_ms = 1000 * seconds / ranks
        print(f"{ranks:>6} {seconds:>8.2f} {each_ms:>8.2f} {peak:>9.0f} {files:>6} {size:>6.1f} {times:>15}")
    good = seconds < LIMIT_S and peak < LIMIT_MIB
    print(f"{'within' if good else 'OVER'} {LIMIT_S} s and {LIMIT_MIB} MiB at {arguments.most} ranks")


if __name__ == "__main__":
    main()
