"""Asking a model: whole process to the first token, and tokens a second, beside transformers on the same weights.

usage: bench_asking.py [--shapes smollm2-135m,qwen2-0.5b] [--rounds 5] [--new-tokens 64] [--threads N] [--profile]

A model of each shape gets random weights in float32, as a Hugging Face folder that both read. Greedy, the same cores
and as many threads as cores for both. "First token" is a process from its start to its end, one prompt, one token:
``launcher infer``, and a script of transformers (torch_infer.py).
Tokens a second are those of processes that have loaded the model, ours and theirs in turns: the seconds of N tokens
less those of one, for one prompt and for a batch of eight. Both have to choose the same tokens; the report says so if
they do not.

Seconds are medians over the rounds; a ratio is the median of the rounds' own ratios of seconds: below 1 we are faster.
--profile prints where our time goes, by function. Shape "tiny" is for trying the script. Some minutes for each of
the two shapes on two idle cores, 8 GB of memory and 3 GB of disk; transformers' environment (build/peers) takes a
minute or two when it is made. MindFormers' own pipeline is held against us in bench_infer.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import os
import pstats
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import TORCH, PeerError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1800
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        **LLAMA, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 2048, "rope_theta": 100000.0,
    },
    "qwen2-0.5b": {
        **QWEN2, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936, "max_position_embeddings": 2048, "rope_theta": 1000000.0,
        "use_sliding_window": False,
    },
    "tiny": {
        **QWEN2, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 1024, "max_position_embeddings": 512, "rope_theta": 10000.0,
        "use_sliding_window": False,
    },
}  # fmt: skip
PIECES = 40_000  # of the tokenizer, at most; a model's vocabulary is often larger
PROMPTS = [
    "The ship left the harbour before the sun came up",
    "Write a short letter to a friend who has moved to another town",
    "Why is the sky blue?",
    "A train needs two hours for one hundred and sixty kilometres; how long does it need for four hundred?",
    "Name three fruits",
    "Tell me about the history of the bicycle, and who built the first one",
    "What would you cook with rice, eggs and a tomato",
    "Once upon a time",
]


# ------------------------------------------------------------------------------------------- the model


def make_model(folder: Path, config: Mapping[str, Any]) -> Path:
    """Random weights of the size that keeps every layer's output near 1: no two tokens are nearly as likely."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    numbers = np.random.default_rng(1)

    def values(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        scale = 0.02 if "embed" in name else shape[1] ** -0.5
        return numbers.standard_normal(shape, np.float32) * np.float32(scale)

    save_file({name: values(name, shape) for name, shape in shapes(config).items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    make_tokenizer(folder, min(PIECES, config["vocab_size"]))
    return folder


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = hidden // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * size
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        own = {f"self_attn.{part}_proj": (keys if part in "kv" else hidden, hidden) for part in "qkvo"}
        own |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = (hidden,)
        if config["model_type"] == "qwen2":
            found |= {f"model.layers.{layer}.self_attn.{part}_proj.bias": own[f"self_attn.{part}_proj"][:1]
                      for part in "qkv"}  # fmt: skip
    return found


def make_tokenizer(folder: Path, pieces: int) -> None:
    """A byte-level tokenizer whose pieces are the bytes and pairs of them: every token is text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(first, second) for first in letters for second in letters][: pieces - len(letters) - len(special)]
    names = [*special, *letters, *(first + second for first, second in pairs)]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    made.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<s>",
                 "eos_token": "</s>", "clean_up_tokenization_spaces": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")


# ------------------------------------------------------------------------------------------- our own child


def ours(folder: str) -> None:
    """The requests of torch_infer.py, to a session. With ``profile`` the answer has that of the request as text."""
    from launcher.inference.sampling import GenerationSpec
    from launcher.inference.session import Question, Session
    from launcher.inference.sources import find_model
    from launcher.upstream.quiet import quiet

    session = Session(find_model(folder, Path("jobs")), batch_size=len(PROMPTS))
    session.__dict__["ends"] = frozenset()  # as many tokens as were asked for
    with quiet() as stdout:
        session.load()
        for line in sys.stdin:
            request = json.loads(line)
            profile = cProfile.Profile() if request.get("profile") else None
            spec = GenerationSpec(max_new_tokens=request["new_tokens"])
            began = time.perf_counter()
            with profile or contextlib.nullcontext():
                questions = [Question(id=str(number), text=text) for number, text in enumerate(request["prompts"])]
                rows = [session.row(item, spec) for item in session.prepare(questions)]
                session.run(rows)
            found: dict[str, Any] = {"seconds": time.perf_counter() - began, "tokens": [r.new_tokens for r in rows]}
            if profile:
                found["profile"] = by_function(profile)
            stdout.write(json.dumps(found) + "\n")
            stdout.flush()


def by_function(profile: cProfile.Profile) -> str:
    """The functions in which most of the time was spent, their callees' left out."""
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(20)
    return text.getvalue()


# ------------------------------------------------------------------------------------------- measuring


@dataclass(kw_only=True)
class Child:
    """A process that has loaded the model and answers requests."""

    process: subprocess.Popen[str]

    def ask(self, prompts: Sequence[str], new_tokens: int, **more: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": list(prompts), "new_tokens": new_tokens, **more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        return dict(json.loads(line))


@contextlib.contextmanager
def child(argv: Sequence[str], env: Mapping[str, str], folder: Path) -> Iterator[Child]:
    with (
        (folder / "child.log").open("ab") as log,
        subprocess.Popen(
            argv, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            yield Child(process=process)
        finally:
            process.kill()


@dataclass(kw_only=True)
class Figures:
    """Seconds a round. ``first``: of whole processes, ``cpu``: their processor time; ``one``, ``eight``: of a step."""

    first: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    eight: list[float] = field(default_factory=list)


OURS, THEIRS = "launcher infer", "transformers"


def first_tokens(folder: Path, options: argparse.Namespace, env: Mapping[str, str]) -> dict[str, Figures]:
    launcher = (sys.executable, "-m", "launcher", "infer", str(folder), "--raw", "--max-new-tokens", "1", "--prompt")
    commands: dict[str, tuple[str, ...]] = {OURS: launcher}
    with contextlib.suppress(PeerError):
        commands[THEIRS] = theirs(folder, options.threads)
    found = {name: Figures() for name in commands}
    for number in range(options.rounds + 1):
        for name, argv in commands.items():
            seconds, cpu_s = whole_process((*argv, PROMPTS[0]), env, folder.parent)
            if number:  # the first round fills the page cache
                found[name].first.append(seconds)
                found[name].cpu.append(cpu_s)
    return found


def theirs(folder: Path, threads: int) -> tuple[str, ...]:
    return (str(TORCH.python), str(Path(__file__).with_name("torch_infer.py")), str(folder), str(threads))


def whole_process(argv: Sequence[str], env: Mapping[str, str], folder: Path) -> tuple[float, float]:
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    seconds, now = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} returned {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def decoding(folder: Path, options: argparse.Namespace, env: Mapping[str, str], found: dict[str, Figures]) -> str:
    """Add seconds a decoding step to ``found``; return whether the tokens are the same."""
    own = (sys.executable, str(Path(__file__).absolute()), "--ours", str(folder))
    with contextlib.ExitStack() as stack:
        children = {OURS: stack.enter_context(child(own, env, folder.parent))}
        if THEIRS in found:
            children[THEIRS] = stack.enter_context(child(theirs(folder, options.threads), env, folder.parent))
        tokens: dict[str, list[list[int]]] = {}
        for number in range(options.rounds + 1):
            for name, one in children.items():
                for count in (1, len(PROMPTS)):
                    short, long = (one.ask(PROMPTS[:count], length) for length in (1, options.new_tokens))
                    step_s = (long["seconds"] - short["seconds"]) / (options.new_tokens - 1)
                    tokens.setdefault(name, []).extend(long["tokens"])
                    if number:  # the first round allocates
                        (found[name].one if count == 1 else found[name].eight).append(step_s)
        if options.profile:
            for count in (1, len(PROMPTS)):
                done = children[OURS].ask(PROMPTS[:count], options.new_tokens, profile=True)
                print(f"\n{count} prompt(s), {options.new_tokens} tokens each, {done['seconds']:.2f} s, profiled:")
                print(done["profile"])
    return compared(tokens)


def compared(tokens: Mapping[str, list[list[int]]]) -> str:
    if THEIRS not in tokens:
        return "not compared"
    pairs = list(zip(tokens[OURS], tokens[THEIRS], strict=True))
    same = sum(left == right for left, right in pairs)
    if same == len(pairs):
        return f"the same tokens in {same} of {len(pairs)} answers"
    at = [next(place for place, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)
          for pair in pairs if pair[0] != pair[1]]  # fmt: skip
    return f"NOT THE SAME TOKENS: {same} of {len(pairs)} answers are equal; the others differ from token {min(at)} on"


def report(shape: str, found: Mapping[str, Figures]) -> list[str]:
    lines = []
    for name, figures in found.items():
        cells = [spread(figures.first), ratio(figures.first, found, "first"), f"{statistics.median(figures.cpu):.1f}"]
        for part, rows in (("one", 1), ("eight", len(PROMPTS))):
            values = getattr(figures, part)
            cells.append(f"{rows / statistics.median(values):.1f}" if values else "")
            cells.append(ratio(values, found, part))
        lines.append(f"| {shape}, {name} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def ratio(values: Sequence[float], found: Mapping[str, Figures], part: str) -> str:
    if not values or THEIRS not in found:
        return ""
    pairs = zip(values, getattr(found[THEIRS], part), strict=True)
    return f"{statistics.median(mine / other for mine, other in pairs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="smollm2-135m,qwen2-0.5b", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--profile", action="store_true", help="print where the time of our tokens goes")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        ours(options.ours)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # As many cores as threads, for both: numpy takes a thread for each core that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    table, same = measured(options)
    print("\n| | first token, s | x transformers | processor time, s | one prompt, tokens/s | seconds x transformers "
          "| eight prompts, tokens/s | seconds x transformers |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    print("\n".join([*table, "", *same]))
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def measured(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    table, same = [], []
    try:
        print(f"transformers: {TORCH.python}")
    except PeerError as error:
        print(f"transformers is left out: {error}")
    print(f"load {os.getloadavg()[0]:.1f}, {options.threads} cores, {options.rounds} rounds", flush=True)
    for shape in options.shapes.split(","):
        work = Path(tempfile.mkdtemp(prefix="bench-asking-", dir=options.folder))
        try:
            folder = make_model(work / shape, SHAPES[shape])
            env = {**os.environ, "PYTHONPATH": str(ROOT), "LAUNCHER_CACHE": str(work / "cache"), "GLOG_v": "3",
                   "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
            found = first_tokens(folder, options, env)
            same.append(f"{shape}: {decoding(folder, options, env, found)}")
            table += report(shape, found)
            print("\n".join(table[-len(found) :]), same[-1], sep="\n", flush=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return table, same


if __name__ == "__main__":
    main()
