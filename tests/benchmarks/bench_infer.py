"""Time to the first token and tokens a second, beside the reference recipe's script and MindFormers' pipeline.

    python tests/benchmarks/bench_infer.py [FOLDER]

Without a merged FOLDER one is made: a LLaMA of random weights, hidden 512, 8 layers, context 256. CPU, one machine, one
run; every figure is a ratio to a peer of the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(__file__).with_name("reference_infer.py")
ROUNDS = 3
NEW_TOKENS = 16

MODEL: dict[str, Any] = {
    "hidden_size": 512, "num_layers": 8, "num_heads": 8, "n_kv_heads": 8, "intermediate_size": 1408,
    "vocab_size": 800, "seq_length": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip

_OURS = """
import json, sys, time
from pathlib import Path
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Session
from launcher.inference.sources import find_model
from launcher.upstream.quiet import quiet
sys.path.insert(0, {benchmarks!r})
from reference_infer import PROMPTS
session = Session(find_model(sys.argv[1], Path("jobs")), batch_size=8)
session.__dict__["ends"] = frozenset()
spec = GenerationSpec(max_new_tokens=int(sys.argv[2]))
prompts = (PROMPTS * 3)[:8]
found = {{}}
with quiet() as stdout:
    session.load()
    for _ in range(3):
        began = time.monotonic()
        together = session.answer(prompts, spec, raw=True)
        found["batch"] = max(found.get("batch", 0), 8 * spec.max_new_tokens / (time.monotonic() - began))
        began = time.monotonic()
        alone = [session.answer([prompt], spec, raw=True)[0] for prompt in prompts]
        found["alone"] = max(found.get("alone", 0), 8 * spec.max_new_tokens / (time.monotonic() - began))
    found["same"] = [one.text for one in alone] == [one.text for one in together]
    stdout.write(json.dumps(found))
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-infer-") as scratch:
        folder = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else make_model(Path(scratch) / "model")
        print(f"model: {json.loads((folder / 'launcher_model.json').read_text())['model']}")
        ours, theirs = first_token(folder, scratch)
        print(f"whole process to the first token of three prompts, seconds: reference {theirs:.2f}, ours {ours:.2f}")
        print(f"  ratio {ours / theirs:.2f} (goal: at most 0.8)")
        program = _OURS.format(benchmarks=str(REFERENCE.parent))
        speeds = json.loads(run([sys.executable, "-c", program, str(folder), "64"], scratch))
        print(f"tokens/s: one by one {speeds['alone']:.1f}, batch of 8 {speeds['batch']:.1f}; same: {speeds['same']}")
        print(f"  ratio {speeds['batch'] / speeds['alone']:.1f} (goal: at least 3)")
        command = [sys.executable, str(REFERENCE), str(folder), str(NEW_TOKENS), "pipeline"]
        pipeline = json.loads(run(command, scratch).splitlines()[-1])
        print(f"MindFormers' pipeline, batch of 8, once compiled: {pipeline['second']:.1f} tokens/s")
        print(f"  ratio {speeds['batch'] / pipeline['second']:.1f} (goal: at least 1)")
        qwen2 = json.loads(
            run([sys.executable, "-c", program, str(make_model(Path(scratch) / "qwen2", "qwen2")), "64"], scratch)
        )
        print(f"Qwen2 of the same size, tokens/s: one by one {qwen2['alone']:.1f}, batch of 8 {qwen2['batch']:.1f}")
        print(f"  ratios {qwen2['alone'] / speeds['alone']:.2f} and {qwen2['batch'] / speeds['batch']:.2f} to LLaMA's")


def first_token(folder: Path, scratch: str) -> tuple[float, float]:
    """Medians of wall seconds, in turns: ours and the reference."""
    prompts = [part for prompt in _prompts() for part in ("--prompt", prompt)]
    command = [sys.executable, "-m", "launcher", "infer", str(folder), "--raw", "--max-new-tokens", "1", *prompts]
    reference = [sys.executable, str(REFERENCE), str(folder), "1"]
    runs: list[Callable[[], str]] = [lambda: run(command, scratch), lambda: run(reference, scratch)]
    for action in runs:  # files into the page cache
        action()
    times = [[timed(action) for action in runs] for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return ours, theirs


def _prompts() -> list[str]:
    sys.path.insert(0, str(REFERENCE.parent))
    from reference_infer import PROMPTS

    return PROMPTS


def timed(action: Callable[[], Any]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def run(argv: list[str], folder: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3", "LAUNCHER_CACHE": f"{folder}/cache"}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout


def make_model(folder: Path, family: str = "llama") -> Path:
    """A merged folder with random weights and a small tokenizer."""
    import numpy as np
    from safetensors.numpy import save_file

    from launcher.data.sample import sample_lines
    from launcher.data.tokenizer import train_tokenizer
    from launcher.models.registry import shapes_of

    folder.mkdir(parents=True)
    model = {**MODEL, "family": family}
    random = np.random.default_rng(1)
    weights = {
        name: np.ones(shape, np.float32) if "norm" in name else random.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in shapes_of(model).items()
    }
    save_file(weights, folder / "model.safetensors")
    config = {"model": model, "template": "vicuna", "precision": {"params": "float32", "compute": "float32"}}
    (folder / "launcher_model.json").write_text(json.dumps(config))
    texts = [json.dumps(json.loads(line), ensure_ascii=False) for line in sample_lines(400, 1)]
    train_tokenizer([*texts, *_prompts() * 50], folder / "tokenizer.model", vocab_size=MODEL["vocab_size"])
    return folder


if __name__ == "__main__":
    main()
