"""How long merging takes, and how much memory, against ``cp`` and MindSpore's own tools in the same run.

python -m tests.benchmarks.bench_merge [--work FOLDER] [--official] [--layers 4 8] [--ways 8 64]
python -m tests.benchmarks.bench_merge --cold [--work FOLDER] [--rounds 2]      (root; about 25 min, 54 GB of disk)

Shards of a LLaMA with hidden 4096, vocabulary 32000, float16, LoRA r 16 on q, k, v, o. All figures are of whole
processes, files in the page cache; the time to sync to disk is shown apart and is in neither side's time. About 12 GB
are needed under --work (a folder in memory, /dev/shm, keeps a busy disk out of the figures; then there is no sync).

--cold: 13B-shaped, 26 GB, on disk. Before each command nothing of it is in memory (drop_caches), and each side's time
has its sync. ``cp`` copies the shards, which are as many bytes as the result, so that no third copy needs room.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from launcher.checkpoint.safetensors_format import header_bytes
from launcher.checkpoint.split import SplitPlan, split
from launcher.checkpoint.tensorfile import TensorFile
from launcher.models import base
from launcher.models.base import Family, Sizes
from launcher.models.llama import LLAMA
from launcher.models.names import GLOBAL_STEP, adapters_of

_RANK, _ALPHA = 16, 32
_HIDDEN, _INTERMEDIATE, _VOCAB = 4096, 11008, 32000
_13B = Sizes(hidden=5120, layers=40, kv_size=5120, intermediate=13824, vocab=32000, head=128)
PEAK = "anonymous_peak_mb"

# Runs a command as a child and prints its time, its processor time, and the peak of anonymous memory in /proc.
_MEASURE = """
import json, os, re, resource, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
peak = 0
while child.poll() is None:
    try:
        status = open(f"/proc/{child.pid}/status").read()
        peak = max(peak, int((re.search(r"RssAnon:\\s+(\\d+)", status) or [0, 0])[1]))
    except OSError:
        pass
    time.sleep(0.01)
text = child.stdout.read()
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_s": seconds, "cpu_s": used.ru_utime + used.ru_stime, "anonymous_peak_mb": peak / 1024,
                  "code": child.returncode, "text": text}))
"""


def shapes_of(family: Family, layers: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight; of Qwen3 with eight heads of keys, so that a fused one really is woven."""
    kv_size = _HIDDEN if family is LLAMA else _HIDDEN // 4
    sizes = Sizes(hidden=_HIDDEN, layers=layers, kv_size=kv_size, intermediate=_INTERMEDIATE, vocab=_VOCAB, head=128)
    return base.shapes(family, sizes)


def make_whole(
    path: Path, layers: int, family: Family = LLAMA, *, lora: bool = True, sizes: Sizes | None = None
) -> None:
    """A whole checkpoint in safetensors: random float16 weights, and adapters on attention with small values."""
    adapted = {f"{family.path_of(name)}.weight" for name in family.lora_default.split("|")} if lora else set()
    tensors: list[tuple[str, tuple[int, ...]]] = []
    shapes = base.shapes(family, sizes) if sizes else shapes_of(family, layers)
    for name, shape in shapes.items():
        tensors.append((name, shape))
        if name.split(".", 3)[-1] in adapted:
            lora_a, lora_b = adapters_of(name)
            tensors += [(lora_a, (_RANK, shape[1])), (lora_b, (shape[0], _RANK))]
            # The optimizer's state: a real set has it, and a merge leaves it out.
            tensors += [(f"adam_m.{lora_a}", (_RANK, shape[1])), (f"adam_v.{lora_a}", (_RANK, shape[1]))]
    described = [(name, "float16", shape, int(np.prod(shape)) * 2) for name, shape in tensors]
    described.append((GLOBAL_STEP, "int32", (1,), 4))
    rng = np.random.default_rng(0)
    pool = (rng.standard_normal(1 << 22, dtype=np.float32) * 0.02).astype(np.float16)
    with path.open("wb") as out:
        out.write(header_bytes(described, {}))
        for number, (_, shape) in enumerate(tensors):
            out.write(np.resize(np.roll(pool, number * 977), int(np.prod(shape))).tobytes())
        out.write(np.int32(100).tobytes())


def make_shards(
    whole: Path,
    folder: Path,
    ways: int,
    file_format: str = "safetensors",
    family: Family = LLAMA,
    plan: SplitPlan | None = None,
) -> None:
    with TensorFile(whole) as source:
        split(source, folder, plan or SplitPlan(model_parallel=ways, cut_vocabulary=True), file_format=file_format)
    layers = [f".*{name}" for name in family.lora_default.split("|")]
    config = {"r": _RANK, "lora_alpha": _ALPHA, "peft_type": "LORA", "target_modules": layers}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def measure(*argv: str, cores: int = 0) -> dict[str, object]:
    """Run ``argv`` in a process of its own: wall_s, cpu_s, anonymous_peak_mb, text. ``cores``: how many it may use."""
    command = [sys.executable, "-c", _MEASURE, *argv]
    if cores:
        command = ["/usr/bin/taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores])), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, object] = json.loads(done.stdout)
    if result["code"] != 0:
        sys.exit(f"{' '.join(argv)} failed:\n{result['text']}")
    return result


def merge_once(folder: Path, output: Path, *options: str, cores: int = 0) -> dict[str, float]:
    """One ``launcher merge-ckpt`` of ``folder``: wall_s without the final sync, sync_s, cpu_s, peak, laps."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    command = (sys.executable, "-m", "launcher", "merge-ckpt", str(folder), "-o", str(output), *options)
    result = measure(*command, cores=cores)
    line = next(line for line in str(result["text"]).splitlines() if line.strip().startswith("took"))
    parts = (part.split() for part in line.replace("took", "").split(","))
    laps = {name: float(seconds) for name, seconds, _ in parts}
    wall = float(str(result["wall_s"]))
    found = {"wall_s": wall - laps["sync"], "sync_s": laps["sync"], **laps}
    return found | {key: float(str(result[key])) for key in ("cpu_s", PEAK)}


def wait_for_quiet(patience_s: float) -> None:
    """Wait, at most ``patience_s``, until for a second hardly any other process has wanted a processor."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        running = []
        for _ in range(20):
            line = next(row for row in Path("/proc/stat").read_text().splitlines() if row.startswith("procs_running"))
            running.append(int(line.split()[1]))
            time.sleep(0.05)
        if sum(running) / len(running) < 1.5:  # this process is one of them
            return


def copy_once(source: Path, target: Path) -> dict[str, float]:
    """One ``cp``: wall_s and cpu_s."""
    target.unlink(missing_ok=True)
    os.sync()
    found = measure("/bin/cp", str(source), str(target))
    target.unlink()
    return {key: float(str(found[key])) for key in ("wall_s", "cpu_s")}


def warm(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass


def official(work: Path, layers: int, ways: int) -> None:
    """Their transform_checkpoints + transform_ckpt_lora in one process, and merge-ckpt, on the same .ckpt shards."""
    whole, folder = work / "whole.safetensors", work / "official-shards"
    make_whole(whole, layers)
    make_shards(whole, folder, ways, "ckpt")
    whole.unlink()
    ranks = work / "official-ranks"
    ranks.mkdir()
    for path in folder.glob("rank_*"):
        (ranks / path.name).symlink_to(path.absolute())
    warm(folder)
    ours = [merge_once(folder, work / "ours", "--file-format", "ckpt") for _ in range(2)]
    shutil.rmtree(work / "ours")
    options = {
        "--src_ckpt_strategy": folder / "strategy" / "ckpt_strategy_rank_0.ckpt",
        "--src_ckpt_path_or_dir": ranks,
        "--dst_ckpt_dir": work / "theirs",
        "--prefix": "m",
        "--lora_scaling": _ALPHA / _RANK,
    }
    words = [str(word) for pair in options.items() for word in pair]
    theirs = measure(sys.executable, "-m", "mindformers.tools.transform_ckpt_lora", *words)
    for path in (ranks, folder, work / "theirs"):
        shutil.rmtree(path)
    theirs_s, ours_s = float(str(theirs["wall_s"])), min(found["wall_s"] for found in ours)
    print(
        f"official, {layers} layers, {ways} ways, .ckpt: {theirs_s:.1f} s and {float(str(theirs[PEAK])):,.0f} MB, "
        f"merge-ckpt {ours_s:.2f} s and {ours[0][PEAK]:.0f} MB: {theirs_s / ours_s:.0f} x as fast"
    )


def bench(work: Path, layers: int, ways: int, rounds: int, *, one_core: bool, patience_s: float) -> dict[str, float]:
    """Best of ``rounds``, copies and merges in turn; prints one line a round."""
    folder = work / f"shards-{layers}-{ways}"
    if not folder.exists():
        whole = work / f"whole-{layers}.safetensors"
        if not whole.exists():
            make_whole(whole, layers)
        make_shards(whole, folder, ways)
        whole.unlink()
    output, copy = work / "merged", work / "copy.safetensors"
    best: dict[str, float] = {}
    for _ in range(rounds):
        warm(folder)
        wait_for_quiet(patience_s)
        plain = merge_once(folder, work / "plain", "--no-fold")
        shutil.rmtree(work / "plain")
        folded = merge_once(folder, output)
        cp = copy_once(output / "model.safetensors", copy)
        found = {
            "cp_s": cp["wall_s"],
            "cp_cpu_s": cp["cpu_s"],
            "merge_s": plain["wall_s"],
            "merge_cpu_s": plain["cpu_s"],
            "fold_verify_s": folded["wall_s"],
            "fold_verify_cpu_s": folded["cpu_s"],
            "sync_s": folded["sync_s"],
            "peak_mb": max(folded[PEAK], plain[PEAK]),
        }
        if one_core:
            found["one_core_s"] = merge_once(folder, output, cores=1)["wall_s"]
        shown = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
        print(f"  {layers} layers, {ways} ways: {shown}", flush=True)
        best = {key: min(value, best.get(key, value)) for key, value in found.items()}
    shutil.rmtree(output)
    return best


def cold(work: Path, rounds: int) -> None:
    """Tensor parallel, and tensor x pipeline parallel; prints a line a round and a row of a table a case."""
    plans = {"8 tensor": SplitPlan(model_parallel=8, cut_vocabulary=True),
             "8 tensor x 8 stages": SplitPlan(model_parallel=8, pipeline_stage=8, cut_vocabulary=True)}  # fmt: skip
    rows = []
    for name, plan in plans.items():
        whole, shards = work / "whole.safetensors", work / "shards"
        make_whole(whole, _13B.layers, sizes=_13B)
        size = whole.stat().st_size / 1e9
        make_shards(whole, shards, 8, plan=plan)
        whole.unlink()
        found = [_cold_round(work, shards) for _ in range(rounds)]
        shutil.rmtree(shards)
        best = {key: min(one[key] for one in found) for key in found[0]}
        ratios = " | ".join(f"{best[key]:.0f} | {best[key] / best['cp']:.2f}" for key in ("merge", "fold + verify"))
        peak = max(one["peak_mb"] for one in found)
        rows.append(f"| {name} | {size:.1f} | {best['cp']:.0f} | {ratios} | {peak:.0f} |")
    print("| shards | GB | cp, s | merge, s | x cp | fold + verify, s | x cp | peak MB |")
    print("\n".join(["|---" * 8 + "|", *rows]), flush=True)


def _cold_round(work: Path, shards: Path) -> dict[str, float]:
    copy, merged = work / "copy", work / "merged"
    found: dict[str, float] = {}
    merge = (sys.executable, "-m", "launcher", "merge-ckpt", str(shards), "-o", str(merged))
    commands = {"cp": ("/bin/cp", "-r", str(shards), str(copy)), "merge": (*merge, "--no-fold"), "fold + verify": merge}
    for name, command in commands.items():
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        began = time.perf_counter()
        result = measure(*command)
        os.sync()
        found[name] = time.perf_counter() - began
        found["peak_mb"] = max(found.get("peak_mb", 0.0), float(str(result[PEAK])) if name != "cp" else 0.0)
        for folder in (copy, merged):
            shutil.rmtree(folder, ignore_errors=True)
    print("  " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
    return found


def report(layers: int, ways: int, best: dict[str, float]) -> None:
    cp, folded = best["cp_s"], best["fold_verify_s"]
    one_core = f"; on one core {best['one_core_s']:.2f} s" if "one_core_s" in best else ""
    print(
        f"{layers} layers, {ways} ways: cp {cp:.2f} s, merge {best['merge_s'] / cp:.2f} x cp, "
        f"merge + fold + verify {folded / cp:.2f} x cp ({folded:.2f} s{one_core}, sync {best['sync_s']:.2f} s), "
        f"peak {best['peak_mb']:.0f} MB; processor time {best['merge_cpu_s'] / best['cp_cpu_s']:.2f} and "
        f"{best['fold_verify_cpu_s'] / best['cp_cpu_s']:.2f} x that of cp",
        flush=True,
    )


def start_up(work: Path) -> None:
    """merge-ckpt --help, and a merge of a model of one layer with four ranks; best of five."""
    folder, whole = work / "tiny", work / "tiny.safetensors"
    rng = np.random.default_rng(0)
    shapes = base.shapes(LLAMA, Sizes(hidden=32, layers=1, kv_size=32, intermediate=64, vocab=100))
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    described = [(name, "float32", array.shape, array.nbytes) for name, array in arrays.items()]
    whole.write_bytes(header_bytes(described, {}) + b"".join(array.tobytes() for array in arrays.values()))
    make_shards(whole, folder, 4)
    command = (sys.executable, "-m", "launcher", "merge-ckpt")
    help_s = min(float(str(measure(*command, "--help")["wall_s"])) for _ in range(5))
    merges = []
    for _ in range(5):
        shutil.rmtree(work / "tiny-merged", ignore_errors=True)
        found = measure(*command, str(folder), "-o", str(work / "tiny-merged"))
        merges.append(float(str(found["wall_s"])))
    for path in (folder, work / "tiny-merged"):
        shutil.rmtree(path)
    whole.unlink()
    print(f"merge-ckpt --help {help_s:.2f} s, a tiny merge {min(merges):.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--ways", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait for a quiet moment before a round")
    parser.add_argument("--official", action="store_true", help="run MindSpore's and MindFormers' own merge too")
    parser.add_argument("--cold", action="store_true", help="13B-shaped, on disk, with a cold cache")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="bench-merge-"))
    work.mkdir(parents=True, exist_ok=True)
    cases = [(given.layers[0], ways) for ways in given.ways] + [(layers, given.ways[0]) for layers in given.layers[1:]]
    try:
        if given.cold:
            cold(work, given.rounds)
            return
        start_up(work)
        for layers, ways in cases:
            best = bench(
                work, layers, ways, given.rounds, one_core=(layers, ways) == cases[0], patience_s=given.patience
            )
            report(layers, ways, best)
            shutil.rmtree(work / f"shards-{layers}-{ways}")
        if given.official:
            official(work, given.layers[0], given.ways[0])
    finally:
        if given.work is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
