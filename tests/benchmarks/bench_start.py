"""From the command to the first step, and to the end of a short job, beside what a user would start instead.

usage: bench_start.py [--rounds 5] [--only NAME,...] [--folder DIR] [--keep]

The same job for all: two CPU ranks, LoRA of rank 8 on q, k, v and o, 20 steps of 2 x 4 rows of 64 tokens, a LLaMA
with two layers of 64 whose weights are a Hugging Face folder. Everyone begins with ready rows: MindRecord, token ids in
JSON, LLaMA-Factory's own tokenized folder. Contestants:

direct, msrun   ``launcher submit``; "fresh" with no graphs kept from an earlier job, "kept" right after it
plain msrun     msrun and MindFormers with the YAML that the launcher rendered (reference_train.py)
torchrun        transformers' Trainer with peft, in a script of our own (torch_train.py)
llamafactory    ``llamafactory-cli train`` under torchrun

One round runs each of them once, one after the other; a round before them, whose figures are thrown away, fills the
page cache. Seconds are medians over the rounds; a ratio is the median of the rounds' own ratios. Processor time is that
of all processes of a run. A round takes 2 to 3 minutes on two idle cores, so that 5 take about 16, and the peers'
environments (build/peers, 3 GB) some 5 minutes when they are made. A peer that cannot be installed or run is named and
left out; only an error of ours ends with a code other than 0.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from peers import LLAMA_FACTORY, TORCH, PeerError

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)

from support.events import read_events  # noqa: E402
from support.shop import Workshop  # noqa: E402

from launcher.jobs import JobPaths  # noqa: E402

RANKS, STEPS, BATCH, LENGTH, VOCAB = 2, 20, 4, 64, 640
LORA: dict[str, Any] = {"r": 8, "alpha": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
RATE = 1e-3
LIMIT_S = 900.0
LEFT_S = 60.0
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
BASELINES = ("plain msrun", "torchrun")
PHASES = ("begin", "imported", "joined", "loaded", "first step", "last step", "done")
# What lies between a phase and the one before it.
TITLES = ("spawn", "import", "rendezvous", "load", "compile and first step", f"{STEPS - 1} steps", "save", "exit")

MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip


class RunFailed(Exception):
    """A run did not end well; the message has the end of what it said."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run. ``reached``: when its phases were over, in seconds since the command; empty where they are unknown."""

    first_s: float
    whole_s: float
    cpu_s: float
    reached: Mapping[str, float]


# ------------------------------------------------------------------------------------------- what all begin with


def prepare(folder: Path) -> None:
    """Make the model, the tokenizer and the rows, in the forms that the contestants read."""
    shop = Workshop(folder=folder, cache=folder / "cache")
    shop.launcher("data", "sample", "--size", str(RANKS * STEPS * BATCH), "--seed", "3", "-o", "math.jsonl")
    shop.launcher("data", "convert", "math.jsonl", "-o", "conversations.json")
    shop.launcher("data", "tokenizer", "conversations.json", "--vocab-size", str(VOCAB), "-o", "tokenizer.model")
    options = ("--tokenizer", "tokenizer.model", "--seq-length", str(LENGTH), "--template", "plain")
    shop.launcher("data", "preprocess", "conversations.json", *options, "-o", "train.mindrecord")
    write_model(folder / "model", folder / "tokenizer.model")
    write_rows(folder)
    spec = {
        "name": "bench",
        "model": {"folder": "model", "seq_length": LENGTH},
        "data": {"train": "train.mindrecord", "template": "plain", "batch_size": BATCH},
        "training": {"epochs": 1, "lr_schedule": {"learning_rate": RATE}},
        "lora": {"r": LORA["r"], "alpha": LORA["alpha"], "dropout": 0.0, "target_modules": "wq|wk|wv|wo"},
        "checkpoint": {"keep": 1},
    }
    (folder / "bench.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    settings = {**LORA, "batch_size": BATCH, "steps": STEPS, "learning_rate": RATE}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def write_model(folder: Path, tokenizer: Path) -> None:
    """A Hugging Face folder with random weights. Its tokenizer is there in both forms that are in use."""
    import numpy as np
    from safetensors.numpy import save_file
    from transformers import LlamaTokenizerFast

    hidden, inner, numbers = MODEL["hidden_size"], MODEL["intermediate_size"], np.random.default_rng(1)
    shapes = {"model.embed_tokens": (VOCAB, hidden), "lm_head": (VOCAB, hidden), "model.norm": (hidden,)}
    for layer in range(MODEL["num_hidden_layers"]):
        before = f"model.layers.{layer}."
        shapes |= {f"{before}self_attn.{part}_proj": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{before}mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
        shapes |= {f"{before}mlp.down_proj": (hidden, inner)}
        shapes |= {f"{before}{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    weights = {
        f"{name}.weight": numbers.normal(1.0 if len(shape) == 1 else 0.0, 0.05, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    fast: Any = LlamaTokenizerFast
    fast(vocab_file=str(tokenizer), pad_token="<unk>", legacy=True).save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")


def write_rows(folder: Path) -> None:
    """The rows of the MindRecord as token ids in JSON, and the raw ones as LLaMA-Factory knows them."""
    from launcher.data.convert import read_conversations
    from launcher.data.options import PreprocessOptions
    from launcher.data.preprocess import make_encoder
    from launcher.data.rows import Samples, fit

    source = folder / "conversations.json"
    options = PreprocessOptions(
        source=source, tokenizer=folder / "tokenizer.model", target=folder / "-", seq_length=LENGTH, template="plain"
    )
    encoder = make_encoder(options)
    assert encoder.template is not None
    samples = [encoder.template.encode(encoder.tokenizer, item.messages) for item in read_conversations(source)]
    rows = [
        {"input_ids": whole(row[0].tolist(), 0), "labels": whole(row[1].tolist(), -100)}
        for row in fit(Samples.of(samples), seq_length=LENGTH, overflow="truncate").values
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    described = {"rows": {"file_name": str(folder / "math.jsonl")}}
    (folder / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")


def whole(values: list[int], padding: int) -> list[int]:
    """``values``, as long as the context."""
    return [*values, *[padding] * LENGTH][:LENGTH]


# ------------------------------------------------------------------------------------------- one run


def run(
    argv: tuple[str, ...], folder: Path, *, env: Mapping[str, str] | None = None, watch: Callable[[], bool] = bool
) -> dict[str, float]:
    """Run a command in ``folder``. Returns when it ``began``, when ``watch`` was first true (``seen``), ``whole_s``
    and ``cpu_s``. Raises RunFailed."""
    said, used, seen, ended = folder / "said.log", children_cpu_s(), 0.0, False
    try:
        with said.open("wb") as out:
            began = time.time()
            process = subprocess.Popen(
                argv, cwd=folder, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            while process.poll() is None and time.time() - began < LIMIT_S:
                seen = seen or (time.time() if watch() else 0.0)
                time.sleep(0.02)
        whole, ended = time.time() - began, process.returncode is not None
    finally:
        if not ended:
            kill_all()
        reap_orphans()
    if process.returncode or not ended:
        raise RunFailed(f"{' '.join(argv)} returned {process.returncode}:\n{tail(said)}")
    return {"began": began, "seen": seen, "whole_s": whole, "cpu_s": children_cpu_s() - used}


def kill_all() -> None:
    for process in psutil.Process().children(recursive=True):
        process.kill()


def tail(file: Path) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reap_orphans() -> None:
    """Wait for what a command left running. As their subreaper we inherit them, and their processor time."""
    deadline = time.monotonic() + LEFT_S
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.05)
    kill_all()
    raise RunFailed(f"processes were left {LEFT_S:.0f} s after the end of the command")


def launched(work: Path, engine: str, *, fresh: bool) -> Result:
    """``launcher submit`` as a user types it; the phases are those of the job's events."""
    if fresh:
        shutil.rmtree(work / "cache" / "graphs" / "training", ignore_errors=True)
    before = set(job_folders(work))
    argv = (sys.executable, "-m", "launcher", "submit", "bench.yaml", "--cards", str(RANKS), "--engine", engine)
    done = run(argv, work, env={"LAUNCHER_CACHE": str(work / "cache")})
    (root,) = set(job_folders(work)) - before
    paths = JobPaths(root=root)
    ranks = [read_events(paths.rank_events(rank)) for rank in range(RANKS)]
    named = [[(event.get("name", event["event"]), event["time"]) for event in events] for events in ranks]
    return result(done, named)


def job_folders(work: Path) -> list[Path]:
    return [path.parent for path in work.glob("jobs/*/job.json")]


def plain_msrun(work: Path, own: Path) -> Result:
    """msrun with MindSpore's defaults; each rank reads the YAML of an earlier job of ours."""
    if not job_folders(work):
        launched(work, "direct", fresh=False)
    job = job_folders(work)[0]
    for rank in range(RANKS):
        text = JobPaths(root=job).rank_config(rank).read_text(encoding="utf-8")
        (own / f"rank_{rank}.yaml").write_text(text.replace(str(job), str(own)), encoding="utf-8")
    (own / "base").symlink_to(job / "base")
    argv = (
        str(Path(sys.executable).with_name("msrun")), f"--worker_num={RANKS}", f"--local_worker_num={RANKS}",
        f"--master_port={free_port()}", f"--log_dir={own / 'logs'}", "--join=True",
        str(HERE / "reference_train.py"), str(own),
    )  # fmt: skip
    # msrun runs the "python" of PATH.
    env = {"GLOG_v": "3", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return result(run(argv, own, env=env), notes(own))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(work: Path, own: Path) -> Result:
    program = (str(HERE / "torch_train.py"), str(work), str(own))
    argv = (str(TORCH.python.with_name("torchrun")), "--nproc-per-node", str(RANKS), "--master-port", str(free_port()))
    return result(run((*argv, *program), own), notes(own))


def notes(own: Path) -> list[list[tuple[str, float]]]:
    """What each rank of a peer wrote: names of phases, and when they were over."""
    lines = [(own / f"rank_{rank}.jsonl").read_text(encoding="utf-8").splitlines() for rank in range(RANKS)]
    return [[(note["name"], note["time"]) for note in map(json.loads, rank)] for rank in lines]


def result(done: Mapping[str, float], ranks: list[list[tuple[str, float]]]) -> Result:
    """Phases are over when both ranks have them; the first step is the first of any, as a user sees it."""
    reached = {
        name: max(next(at for found, at in rank if found == name) for rank in ranks) - done["began"]
        for name in ("begin", "imported", "joined", "loaded", "done")
    }
    steps = [[at - done["began"] for name, at in rank if name == "step"] for rank in ranks]
    if any(len(rank) != STEPS for rank in steps):
        raise RunFailed(f"{[len(rank) for rank in steps]} steps and not {STEPS}")
    reached |= {"first step": min(rank[0] for rank in steps), "last step": max(rank[-1] for rank in steps)}
    return Result(first_s=reached["first step"], whole_s=done["whole_s"], cpu_s=done["cpu_s"], reached=reached)


def llamafactory(work: Path, own: Path) -> Result:
    """The command that a user of LLaMA-Factory types. It prints the loss of the first step when that is done."""
    settings = {
        "model_name_or_path": str(work / "model"), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": LORA["r"], "lora_alpha": LORA["alpha"], "lora_target": ",".join(LORA["targets"]),
        "dataset": "rows", "dataset_dir": str(work), "template": "default", "cutoff_len": LENGTH,
        "tokenized_path": str(work / "tokenized"), "output_dir": str(own / "output"), "logging_steps": 1,
        "save_strategy": "no", "per_device_train_batch_size": BATCH, "learning_rate": RATE, "max_steps": STEPS,
        "ddp_backend": "gloo", "report_to": "none", "use_cpu": True, "seed": 1,
    }  # fmt: skip
    (own / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    argv = (str(LLAMA_FACTORY.python.with_name("llamafactory-cli")), "train", str(own / "train.yaml"))
    env = {
        "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(RANKS), "MASTER_PORT": str(free_port()), "HF_HUB_OFFLINE": "1",
        "PATH": f"{LLAMA_FACTORY.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    if not (work / "tokenized").exists():
        run(argv, own, env=env)  # writes the tokenized rows, and ends
        shutil.rmtree(own / "output", ignore_errors=True)
    said = own / "said.log"
    done = run(argv, own, env=env, watch=lambda: bool(re.search(rb"'loss'", said.read_bytes())))
    if not done["seen"]:
        raise RunFailed(f"LLaMA-Factory printed no loss:\n{tail(said)}")
    return Result(first_s=done["seen"] - done["began"], whole_s=done["whole_s"], cpu_s=done["cpu_s"], reached={})


# ------------------------------------------------------------------------------------------- rounds and tables


def in_rounds(contestants: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Run each once a round. A peer that fails is named and runs no more; our own failure is raised."""
    found: dict[str, list[Result]] = {name: [] for name in contestants}
    for number in range(max(rounds, 1) + 1):
        for name in [name for name in contestants if name in found]:
            try:
                done = contestants[name]()
            except (PeerError, RunFailed) as error:
                if name.startswith("launcher"):
                    raise
                print(f"{name} is left out: {error}", flush=True)
                del found[name]
                continue
            said = f"first step {done.first_s:.1f} s, in all {done.whole_s:.1f} s, processor {done.cpu_s:.1f} s"
            print(f"{f'round {number}' if number else 'warm-up'}: {name}: {said}", flush=True)
            if number:
                found[name].append(done)
    return found


def print_tables(found: Mapping[str, list[Result]]) -> None:
    against = [name for name in BASELINES if name in found]
    columns = {"first step": "first_s", "whole job": "whole_s", "processor time": "cpu_s"}
    heads = [head for what in columns for head in (f"{what}, s", *(f"x {name}" for name in against))]
    print(f"\n| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name, results in found.items():
        cells: list[str] = []
        for field in columns.values():
            values = [getattr(each, field) for each in results]
            cells.append(f"{statistics.median(values):.1f} [{min(values):.1f}-{max(values):.1f}]")
            for other in against:
                ratios = [mine / getattr(each, field) for mine, each in zip(values, found[other], strict=True)]
                cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| seconds of each part | {' | '.join(TITLES)} |\n|---|{'---|' * len(TITLES)}")
    for name, results in found.items():
        if results[0].reached:
            print(f"| {name} | {' | '.join(f'{seconds:.1f}' for seconds in parts(results))} |")


def parts(results: list[Result]) -> list[float]:
    """Medians of the seconds between one phase and the next, from the command to its end."""
    edges = [[0.0, *(each.reached[name] for name in PHASES), each.whole_s] for each in results]
    return [statistics.median(edge[place + 1] - edge[place] for edge in edges) for place in range(len(TITLES))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="contestants, by parts of their names")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--keep", action="store_true", help="keep the working folder with all logs")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = Path(tempfile.mkdtemp(prefix="bench-start-", dir=options.folder))
    try:
        prepare(work)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {options.rounds} rounds", flush=True)
        print_tables(in_rounds(contestants(work, options.only), options.rounds))
        print(f"\nload at the end {os.getloadavg()[0]:.1f}; seconds are medians [min-max]")
    finally:
        if options.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def contestants(work: Path, only: str) -> dict[str, Callable[[], Result]]:
    """In the order of a round: "kept" follows "fresh", whose graphs it finds; plain msrun needs a job's YAML."""

    def own_folder(name: str, action: Callable[[Path, Path], Result]) -> Callable[[], Result]:
        return lambda: action(work, Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work)))

    found: dict[str, Callable[[], Result]] = {}
    for engine in ("direct", "msrun"):
        found[f"launcher, {engine}, fresh"] = lambda engine=engine: launched(work, engine, fresh=True)  # type: ignore[misc]
        found[f"launcher, {engine}, graphs kept"] = lambda engine=engine: launched(work, engine, fresh=False)  # type: ignore[misc]
    found["plain msrun"] = own_folder("plain", plain_msrun)
    found["torchrun"] = own_folder("torchrun", torchrun)
    found["llamafactory"] = own_folder("llamafactory", llamafactory)
    wanted = [part for part in only.split(",") if part]
    return {name: run for name, run in found.items() if not wanted or any(part in name for part in wanted)}


if __name__ == "__main__":
    main()
