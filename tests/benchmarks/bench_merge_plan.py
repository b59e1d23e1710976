"""What planning a merge costs where a run had many ranks: processor time and peak memory of ``merge-ckpt --dry-run``.

    python -m tests.benchmarks.bench_merge_plan [--ranks 512] [--layers 80] [--work FOLDER] [--only CASE]

A LLaMA of 80 layers with LoRA has 1,363 tensors and a counter on every rank. Files and strategies are those that the
ranks would have written but for the weights, which are holes. Every rank's header is read: a damaged one must show
before anything is written.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint import ckpt
from launcher.checkpoint.entries import CKPT, SAFETENSORS
from launcher.checkpoint.layout import Shape, slice_shape
from launcher.checkpoint.safetensors_format import header_bytes
from launcher.checkpoint.split_layout import SplitPlan, layout_of, stage_of
from launcher.checkpoint.strategy import write_strategy
from launcher.checkpoint.tensorfile import TensorFile
from launcher.models import base
from launcher.models.base import Sizes
from launcher.models.llama import LLAMA
from launcher.models.names import GLOBAL_STEP, adapters_of

LIMIT_S, LIMIT_MIB = 5, 150
_RANK = 16
_HIDDEN, _VOCAB = 1024, 32000  # small, as .ckpt files have no holes; a header says the same of any size
# LoRA on q, k, v, o.
_ADAPTED = tuple(f"{LLAMA.path_of(name)}.weight" for name in LLAMA.lora_default.split("|"))


@dataclass(frozen=True)
class Case:
    """How a run is cut. crc: every header differs from the others, by its checksum."""

    title: str
    tensor: int = 1
    stages: int = 1
    optimizer: bool = False
    file_format: str = SAFETENSORS
    crc: bool = False

    def plan(self, ranks: int) -> SplitPlan:
        return SplitPlan(
            data_parallel=ranks // (self.tensor * self.stages),
            model_parallel=self.tensor,
            pipeline_stage=self.stages,
            optimizer_shards=-1 if self.optimizer else 1,
            optimizer_threshold_kib=0,
            cut_vocabulary=True,
        )


CASES = {
    "copies": Case("8 tensor x 64 data", tensor=8),
    "optimizer": Case("8 tensor x 64 data, optimizer cut", tensor=8, optimizer=True),
    "stages": Case("8 stages x 8 tensor x 8 data, optimizer cut", tensor=8, stages=8, optimizer=True),
    "crc": Case("8 tensor x 64 data, optimizer cut, with CRC", tensor=8, optimizer=True, crc=True),
    "ckpt": Case("8 tensor x 64 data, optimizer cut, .ckpt", tensor=8, optimizer=True, file_format=CKPT),
}


def shapes_of(layers: int) -> dict[str, Shape]:
    """Name and shape of every weight and adapter, in the order of the model."""
    sizes = Sizes(hidden=_HIDDEN, layers=layers, kv_size=_HIDDEN, intermediate=3 * _HIDDEN, vocab=_VOCAB)
    found: dict[str, Shape] = {}
    for name, shape in base.shapes(LLAMA, sizes).items():
        found[name] = shape
        if name.split(".", 3)[-1] in _ADAPTED:
            lora_a, lora_b = adapters_of(name)
            found |= {lora_a: (_RANK, shape[1]), lora_b: (shape[0], _RANK)}
    return found


def make_run(folder: Path, case: Case, ranks: int, layers: int) -> None:
    """Make ``folder`` as a run of ``ranks`` ranks would have left it."""
    shapes, plan = shapes_of(layers), case.plan(ranks)
    (folder / "strategy").mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": _RANK, "lora_alpha": 2 * _RANK}))
    layouts = {name: layout_of(name, shape, plan, nbytes=1 << 30) for name, shape in shapes.items()}
    for stage in range(plan.pipeline_stage):
        held = {name: layout for name, layout in layouts.items() if stage in stage_of(name, layers, plan)}
        slices = {name: slice_shape(layout, shapes[name], 0) for name, layout in held.items()}
        described = [(name, "float16", shape, 2 * math.prod(shape)) for name, shape in slices.items()]
        strategy = write_strategy(stage, held)
        for rank in range(stage * plan.per_stage, (stage + 1) * plan.per_stage):
            place = folder / f"rank_{rank}" / f"llama_rank_{rank}-1_100.{case.file_format}"
            place.parent.mkdir()
            _write(place, [*described, (GLOBAL_STEP, "int32", (1,), 4)], case, rank)
            (folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(strategy)


def _write(path: Path, described: Sequence[tuple[str, str, Shape, int]], case: Case, rank: int) -> None:
    with path.open("wb") as out:
        if case.file_format == CKPT:
            for item in described:
                out.write(ckpt.frame(*item))
                out.seek(item[-1], 1)
        else:
            out.write(header_bytes(described, {"crc_num": str(4_000_000_000 + rank)} if case.crc else {}))
            out.seek(sum(nbytes for *_, nbytes in described), 1)
        out.truncate()


def one(folder: Path) -> None:
    """Plan the merge of ``folder`` in this process and print what that took: the whole process, and its peak memory."""
    from contextlib import ExitStack

    from launcher.checkpoint.merge import Options, Source, plan_merge
    from launcher.common.peak_memory import peak_so_far

    with ExitStack() as stack:
        plan = plan_merge(Source(name=str(folder), folder=folder), Options(), stack)
        opened = len(plan.opened.opened)
    print(f"{time.process_time():.2f} {peak_so_far() / 2**20:.0f} {opened}")


def measure(folder: Path) -> tuple[float, float, int]:
    """(seconds of processor time, peak MiB, files that stay open) of a fresh process that plans the merge."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_merge_plan", "--one", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(output[0]), float(output[1]), int(output[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--work", type=Path, help="folder to make the runs in; they are removed again")
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--keep", action="store_true", help="keep the runs, and use those that are there")
    parser.add_argument("--one", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one)
        return
    work = arguments.work or Path(tempfile.mkdtemp(prefix="bench-merge-plan-"))
    print(f"{'case':46} {'tensors':>8} {'opened':>7} {'seconds':>8} {'us each':>8} {'peak MiB':>9}")
    good = True
    for name in arguments.only or CASES:
        folder = work / f"{name}-{arguments.ranks}-{arguments.layers}"
        good &= _report(folder, CASES[name], arguments.ranks, arguments.layers)
        if not arguments.keep:
            shutil.rmtree(folder)
    print(f"{'within' if good else 'OVER'} {LIMIT_S} s and {LIMIT_MIB} MiB")


def _report(folder: Path, case: Case, ranks: int, layers: int) -> bool:
    if not folder.exists():
        make_run(folder, case, ranks, layers)
    seconds, peak, opened = min(measure(folder) for _ in range(3))
    with TensorFile(next(folder.glob(f"rank_0/*.{case.file_format}"))) as file:
        count = len(file.entries)
    each_us = 1e6 * seconds / ranks / count
    print(f"{case.title:46} {count:>8,} {opened:>7} {seconds:>8.2f} {each_us:>8.2f} {peak:>9.0f}", flush=True)
    return seconds <= LIMIT_S and peak <= LIMIT_MIB


if __name__ == "__main__":
    main()
