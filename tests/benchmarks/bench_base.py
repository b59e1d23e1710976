"""Bases of transformers and merging back to them: time and memory against ``cp`` in the same run.

python tests/benchmarks/bench_base.py [--work FOLDER] [--families llama qwen2 qwen3] [--layers 4 8] [--rounds 3]

For each family a folder of transformers with random float16 weights (hidden 4096, vocabulary 32000; 4 layers are
about 2 GB, 8 layers 4 GB) is converted into a base, and a LoRA run's eight shards are merged into such a folder. Whole
processes, files in the page cache, the best of the rounds; the peer copies what was written. The
conversion is then found in the cache: processor time of looking it up. About 16 GB are needed under --work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench_merge import PEAK, copy_once, make_shards, make_whole, measure, merge_once, warm

from launcher.checkpoint.hf_folder import folder_base
from launcher.models.base import Family
from launcher.models.llama import LLAMA
from launcher.models.registry import family

_WAYS = 8


def spec_of(shape: Family, layers: int) -> dict[str, object]:
    """The model section of a run spec for what ``make_whole`` makes."""
    return {
        "family": shape.name, "hidden_size": 4096, "num_layers": layers, "num_heads": 32,
        "n_kv_heads": 32 if shape is LLAMA else 8, "head_dim": 128, "intermediate_size": 11008, "vocab_size": 32000,
        "seq_length": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def best_of(rounds: int, action: Callable[[], dict[str, float]]) -> dict[str, float]:
    best: dict[str, float] = {}
    for _ in range(rounds):
        found = action()
        best = {key: min(value, best.get(key, value)) for key, value in found.items()}
    return best


def copied(folder: Path, work: Path) -> float:
    """Seconds that ``cp`` needs for the weights of ``folder``."""
    return sum(copy_once(path, work / "copy")["wall_s"] for path in sorted(folder.glob("*.safetensors")))


def convert(source: Path, work: Path) -> dict[str, float]:
    target = work / "converted"
    shutil.rmtree(target, ignore_errors=True)
    warm(source)
    done = measure(sys.executable, "-m", "launcher", "convert-ckpt", str(source), "-o", str(target))
    found = {"wall_s": float(str(done["wall_s"])), "peak": float(str(done[PEAK]))}
    return found | {"cp_s": copied(target, work)}


def merge(shards: Path, config: Path, work: Path, *options: str) -> dict[str, float]:
    output = work / "merged"
    warm(shards)
    done = merge_once(shards, output, "--format", "hf", "--config", str(config), *options)
    return {"wall_s": done["wall_s"], "peak": done[PEAK], "cp_s": copied(output, work)}


def cache_hit(source: Path, spec: dict[str, object]) -> float:
    """Processor seconds of looking a base up."""
    began = time.process_time()
    folder_base(source, spec, Path("/nowhere"))
    return time.process_time() - began


def show(what: str, gigabytes: float, found: dict[str, float]) -> None:
    ratio = found["wall_s"] / found["cp_s"]
    print(
        f"{what}, {gigabytes:.1f} GB: cp {found['cp_s']:.2f} s, ours {found['wall_s']:.2f} s: {ratio:.2f} x; "
        f"peak {found['peak']:.0f} MB",
        flush=True,
    )


def bench(shape: Family, layers: int, work: Path, rounds: int) -> None:
    spec = spec_of(shape, layers)
    config = work / "launcher_model.json"
    precision = {"params": "float16", "compute": "float16"}
    config.write_text(json.dumps({"model": spec, "template": "chatml", "precision": precision}))
    for lora in (False, True):
        whole, shards = work / "whole.safetensors", work / "shards"
        make_whole(whole, layers, shape, lora=lora)
        make_shards(whole, shards, _WAYS, family=shape)
        whole.unlink()
        what = f"{shape.title}, merge --format hf" + (" + fold" if lora else "")
        show(what, total(shards) / 1e9, best_of(rounds, partial(merge, shards, config, work)))
        shutil.rmtree(shards)
    source = work / "merged"
    show(f"{shape.title}, convert", total(source) / 1e9, best_of(rounds, partial(convert, source, work)))
    shutil.rmtree(work / "converted")
    print(f"{shape.title}, found in the cache: {min(cache_hit(source, spec) for _ in range(5)) * 1000:.0f} ms")
    shutil.rmtree(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--families", nargs="+", default=["llama", "qwen2", "qwen3"])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="bench-base-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        for name in given.families:
            for layers in given.layers:
                bench(family(name), layers, work, given.rounds)
    finally:
        if given.work is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
