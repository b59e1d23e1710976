"""How fast convert and preprocess are, against peers in the same run.

    python tests/benchmarks/bench_data.py [--rows 100000] [--seq-length 2048] [--million] [--writers]

TOKENIZERS_PARALLELISM is set by preprocess in its processes, false: each has a core of its own, and a tokenizer with a
thread per core in each would have them fight. Ratios are of the best of two runs each, taken in turns.

Peers: two processes that only hand the same ready rows to MindSpore's FileWriter, one file each; a script
after the reference recipe (LlamaTokenizer of MindFormers, one conversation at a time), over the first rows; and
``datasets.map`` with the same SentencePiece model in two processes (datasets_map.py, in build/peers), to Arrow files.
The last table has rows a second and bytes on disk. About 3 minutes for 100,000 rows on two idle cores; ``--rows
1000000`` takes some 20 minutes and 5 GB under TMPDIR.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from peers import DATASETS, PeerError

from launcher.data.convert import convert, read_conversations
from launcher.data.info import read_info
from launcher.data.messages import Message
from launcher.data.options import PreprocessOptions
from launcher.data.preprocess import preprocess, remove_dataset
from launcher.data.sample import Dice, sample_lines
from launcher.data.templates import get_template
from launcher.data.tokenizer import train_tokenizer

REFERENCE_ROWS = 2000
BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--million", action="store_true", help="also measure memory with 1,000,000 rows")
    parser.add_argument("--writers", action="store_true", help="only compare ways to feed FileWriter")
    arguments = parser.parse_args()
    if arguments.writers:
        writers(arguments.seq_length + 1)
        return
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), arguments)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    source, model = folder / "math.jsonl", folder / "tokenizer.model"
    source.write_text("".join(sample_lines(arguments.rows, 1)), "utf-8")
    array = folder / "math.json"
    array.write_text("[" + ",\n".join(source.read_text("utf-8").splitlines()) + "]", "utf-8")
    seconds = timed(lambda: train_tokenizer(texts(source), model, vocab_size=arguments.vocab_size))
    print(f"{arguments.rows:,} rows, {source.stat().st_size / 1e6:.1f} MB; tokenizer trained in {seconds:.0f} s")
    cores = len(os.sched_getaffinity(0))
    for file in (source, array):
        before = sum(os.times()[:4])
        seconds = timed(partial(convert, file, folder / "out.json", force=True, processes=cores))
        size_mb, cpu_s = file.stat().st_size / 1e6, sum(os.times()[:4]) - before
        print(f"convert {file.suffix}: {size_mb / seconds:.0f} MB/s, {size_mb / cpu_s:.0f} MB a second of CPU")
    made = partial(made_rows, folder, model, arguments.seq_length)
    ours, packed = in_turns(partial(made, source), partial(made, source, packing=True))
    print(f"preprocess, {cores} processes: {ours.rows_s:,.0f} rows/s of 2 x {arguments.seq_length + 1}")
    print(
        f"packing: {packed.tokens_s:,.0f} tokens/s in rows {packed.fill:.1%} full, without {ours.tokens_s:,.0f}; "
        f"{ours.tokens_s / packed.tokens_s:.2f} x the time a token"
    )
    columns = as_parquet(source)
    lines, tables = in_turns(partial(made, source), partial(made, columns))
    print(f"parquet: {tables.rows_s:,.0f} rows/s, {tables.rows_s / lines.rows_s:.2f} x those of jsonl")
    writers = filewriter_rate(folder, source, model, arguments.seq_length, arguments.rows)
    print(f"FileWriter alone, 2 processes: {writers:,.0f} rows/s; ours is {ours.rows_s / writers:.2f} x")
    reference = reference_rate(folder, source, model, arguments.seq_length)
    print(f"reference script: {reference:,.0f} rows/s; ours is {ours.rows_s / reference:.1f} x")
    table = [("launcher data preprocess", ours), ("the same with --packing", packed)]
    table.append(("FileWriter alone", Rate(rows_s=writers, disk_bytes=on_disk(folder, "peer[01].mindrecord*"))))
    table.append(("reference script", Rate(rows_s=reference)))
    for rows in (10_000, 1_000_000) if arguments.million else (10_000, arguments.rows):
        for packing in (False, True):
            peak = peak_memory_mb(folder, source, model, arguments.seq_length, rows, packing=packing)
            print(f"memory with {rows:,} {'samples, packed' if packing else 'rows'}: {peak:.0f} MB")
    try:
        table += beside_datasets(folder, model, source, made, arguments.seq_length)
    except PeerError as error:
        print(f"datasets.map is left out: {error}")
    print_table(table, arguments.rows)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def texts(source: Path) -> Iterator[str]:
    """What the tokenizer is trained on: problems, and made-up words, or there would not be 32,000 pieces."""
    for conversation in islice(read_conversations(source), 20_000):
        yield from (message.content for message in conversation.messages)
    dice = Dice(0)
    syllables = [first + second + third for first in "bdfgklmnprst" for second in "aeiou" for third in ("", "n", "r")]
    for _ in range(20_000):
        yield " ".join("".join(dice.pick(syllables) for _ in range(dice.number(2, 3))) for _ in range(8))


def timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast one run made rows: samples and tokens in rows a second, how full the rows are, and their size.

    ``beside``: the rate of our own run in the same turns, where there is one.
    """

    rows_s: float
    tokens_s: float = 0.0
    fill: float = 1.0
    disk_bytes: int = 0
    beside: float = 0.0


def made_rows(folder: Path, model: Path, seq_length: int, source: Path, *, packing: bool = False) -> Rate:
    options = PreprocessOptions(
        source=source,
        tokenizer=model,
        target=folder / f"{source.suffix}-{packing}" / "a.mindrecord",
        seq_length=seq_length,
        template="vicuna",
        packing=packing,
    )
    remove_dataset(options.target)
    seconds = timed(lambda: preprocess(options, force=True))
    info = read_info(options.target)
    assert info is not None
    counts = info.counts
    return Rate(
        rows_s=counts["conversations"] / seconds,
        tokens_s=counts["tokens"] / seconds,
        fill=counts["tokens"] / (counts["tokens"] + counts["padding"]),
        disk_bytes=on_disk(options.target.parent, "a.mindrecord*"),
    )


def in_turns(*runs: Callable[[], Rate]) -> list[Rate]:
    """The best of two runs of each, one after the other, so that what else the machine does hits all alike."""
    rounds = [[run() for run in runs] for _ in range(2)]
    return [max(rates, key=lambda rate: rate.rows_s) for rates in zip(*rounds, strict=True)]


def on_disk(folder: Path, names: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(names))


def beside_datasets(
    folder: Path, model: Path, source: Path, made: Callable[[Path], Rate], seq_length: int
) -> list[tuple[str, Rate]]:
    """``datasets.map`` in turns with our own run. Raises PeerError."""
    before, after = get_template("vicuna").prompt([Message("user", "\0")]).split("\0")
    python, saved = DATASETS.python, []

    def mapped() -> Rate:
        target = folder / "arrow"
        shutil.rmtree(target, ignore_errors=True)
        program = Path(__file__).with_name("datasets_map.py")
        argv = (python, program, source, model, target, seq_length + 1, 2, json.dumps([before, after]))
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(target / "cache")}
        done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, env=offline, timeout=3600)
        if done.returncode:
            raise PeerError(f"it returned {done.returncode}: {done.stderr.strip()[-500:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        saved.append(Rate(rows_s=found["rows"] / found["saved_s"], disk_bytes=found["saved_bytes"]))
        return Rate(
            rows_s=found["rows"] / found["mapped_s"],
            tokens_s=found["tokens"] / found["mapped_s"],
            disk_bytes=found["mapped_bytes"],
        )

    ours, peer = in_turns(partial(made, source), mapped)
    best = max(saved, key=lambda rate: rate.rows_s)
    print(f"tokens a row: ours {ours.tokens_s / ours.rows_s:.1f}, datasets.map {peer.tokens_s / peer.rows_s:.1f}")
    print(f"datasets.map, 2 processes: {peer.rows_s:,.0f} rows/s; ours is {ours.rows_s / peer.rows_s:.2f} x")
    return [
        (name, replace(rate, beside=ours.rows_s))
        for name, rate in (("datasets.map, Arrow in its cache", peer), ("datasets.map, save_to_disk", best))
    ]


def print_table(table: Sequence[tuple[str, Rate]], rows: int) -> None:
    """Rows a second, ours divided by theirs, and bytes on disk a row.

    Not those of the reference script: of its few rows most is the page that FileWriter begins with.
    """
    print("\n| | rows/s | ours is | bytes a row |\n|---|---|---|---|")
    ours = table[0][1].rows_s
    for name, rate in table:
        times = (rate.beside or ours) / rate.rows_s
        size = f"{rate.disk_bytes / rows:,.0f}" if rate.disk_bytes else "-"
        print(f"| {name} | {rate.rows_s:,.0f} | {times:.2f} x | {size} |")


def as_parquet(source: Path) -> Path:
    import pyarrow.json
    import pyarrow.parquet

    target = source.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.json.read_json(source), target)
    return target


def filewriter_rate(folder: Path, source: Path, model: Path, seq_length: int, rows: int) -> float:
    """Rows a second of two processes; the time to make the rows does not count."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        jobs = [(folder / f"peer{part}.mindrecord", source, model, seq_length, rows // 2) for part in range(2)]
        return rows // 2 * 2 / max(pool.map(only_write, jobs))


def only_write(job: tuple[Path, Path, Path, int, int]) -> float:
    """Seconds in which FileWriter takes the rows."""
    import numpy as np
    from mindspore.mindrecord import FileWriter

    from launcher.data.preprocess import make_encoder
    from launcher.data.rows import Samples, fit

    def whole(values: Any, padding: int) -> Any:
        return np.pad(values, (0, seq_length + 1 - len(values)), constant_values=padding)

    path, source, model, seq_length, rows = job
    options = PreprocessOptions(source=source, tokenizer=model, target=path, seq_length=seq_length, template="vicuna")
    encoder = make_encoder(options)
    writer = FileWriter(str(path), shard_num=1, overwrite=True)
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in ("input_ids", "labels")}, "peer")
    conversations = islice(read_conversations(source), rows)
    seconds = 0.0
    while batch := list(islice(conversations, BATCH)):
        assert encoder.template is not None
        encoded = [encoder.template.encode(encoder.tokenizer, item.messages) for item in batch]
        values = fit(Samples.of(encoded), seq_length=seq_length, overflow="truncate").values
        ready = [{"input_ids": whole(row[0], 0), "labels": whole(row[1], -100)} for row in values]
        seconds += timed(partial(writer.write_raw_data, ready))
    return seconds + timed(writer.commit)


def reference_rate(folder: Path, source: Path, model: Path, seq_length: int) -> float:
    """Rows a second of a script after the reference recipe, in a process of its own, imports not counted."""
    argv = (
        sys.executable,
        __file__,
        "--reference",
        str(source),
        str(model),
        str(folder / "r.mindrecord"),
        str(seq_length),
    )
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=3600, env=environment())
    return REFERENCE_ROWS / float(done.stdout.split()[-1])


def reference(source: str, model: str, target: str, seq_length: str) -> None:
    """One conversation at a time: tokenize all of it, then the question to see how long it is, and mask."""
    import numpy as np
    from mindformers.models.llama import LlamaTokenizer
    from mindspore.mindrecord import FileWriter

    from launcher.data.templates import get_template

    tokenizer = LlamaTokenizer(model, add_bos_token=True)
    template = get_template("vicuna")
    length = int(seq_length) + 1
    writer = FileWriter(target, shard_num=1, overwrite=True)
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in ("input_ids", "labels")}, "reference")

    def rows() -> None:
        for conversation in islice(read_conversations(Path(source)), REFERENCE_ROWS):
            question = template.prompt(conversation.messages[:1])
            text = f"{question} {conversation.messages[1].content}</s>"
            ids = tokenizer(text)["input_ids"][:length]
            asked = len(tokenizer(question)["input_ids"])
            ids = np.array(ids + [0] * (length - len(ids)), dtype=np.int32)
            labels = np.where(ids == 0, -100, ids).astype(np.int32)
            labels[:asked] = -100
            writer.write_raw_data([{"input_ids": ids, "labels": labels}])
        writer.commit()

    print(timed(rows))


def peak_memory_mb(folder: Path, source: Path, model: Path, seq_length: int, rows: int, *, packing: bool) -> float:
    """Peak resident memory of the largest process of one run of preprocess over ``rows`` rows."""
    lines = source.read_bytes().splitlines(keepends=True)
    some = folder / "some.jsonl"
    with some.open("wb") as out:
        for start in range(0, rows, len(lines)):
            out.writelines(lines[: rows - start])
    # The peak that a process reports begins with that of the process which started it: a shell, and not this one.
    argv = (
        *("sh", "-c", '"$@"; exit $?', "sh", sys.executable),
        __file__,
        "--memory",
        str(some),
        str(model),
        str(folder / "m.mindrecord"),
        str(seq_length),
        "packed" if packing else "",
    )
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=3600, env=environment())
    return float(done.stdout.split()[-1])


def memory(source: str, model: str, target: str, seq_length: str, packed: str) -> None:
    options = PreprocessOptions(
        source=Path(source),
        tokenizer=Path(model),
        target=Path(target),
        seq_length=int(seq_length),
        template="vicuna",
        packing=bool(packed),
    )
    preprocess(options, force=True)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(max(peaks) / 1024)


def writers(length: int, rows: int = 8000) -> None:
    """Ways to give ready rows, mostly padding, to FileWriter; and our own writer."""
    import numpy as np
    from mindspore.mindrecord import FileWriter

    from launcher.data.mindrecord import write_mindrecord

    rng = np.random.default_rng(0)
    values = np.zeros((rows, 2, length), dtype=np.int32)
    values[:, 1] = -100
    for row in values:
        used = int(rng.integers(50, 150))
        row[0, :used] = rng.integers(0, 32000, used)
        row[1, used // 2 : used] = row[0, used // 2 : used]

    def theirs(path: Path, schema: dict[str, Any], batch: int, shards: int, parallel: bool) -> None:
        as_bytes = schema["type"] == "bytes"
        ready = [{"input_ids": row[0], "labels": row[1]} for row in values]
        if as_bytes:
            ready = [{name: value.tobytes() for name, value in row.items()} for row in ready]
        writer = FileWriter(str(path), shard_num=shards, overwrite=True)
        writer.add_schema({"input_ids": schema, "labels": schema}, "peer")
        for start in range(0, rows, batch):
            writer.write_raw_data(ready[start : start + batch], parallel_writer=parallel)
        writer.commit()

    array = {"type": "int32", "shape": [-1]}
    ways: dict[str, tuple[dict[str, Any], int, int, bool]] = {
        "int32, one at a time": (array, 1, 1, False),
        "int32, batches of 100": (array, 100, 1, False),
        "int32, batches of 1,000": (array, 1000, 1, False),
        "int32, all at once": (array, rows, 1, False),
        "int32, batches of 1,000, 2 shards": (array, 1000, 2, False),
        "the same with parallel_writer": (array, 1000, 2, True),
        "bytes, batches of 1,000": ({"type": "bytes"}, 1000, 1, False),
    }
    with tempfile.TemporaryDirectory() as name:
        for way, (schema, batch, shards, parallel) in ways.items():
            print_way(way, rows, partial(theirs, Path(name) / "peer.mindrecord", schema, batch, shards, parallel))
        batches = [values[start : start + 256] for start in range(0, rows, 256)]
        ours = partial(write_mindrecord, Path(name) / "ours.mindrecord", batches, row_length=length)
        print_way("our writer, batches of 256", rows, ours)


def print_way(way: str, rows: int, function: Callable[[], Any]) -> None:
    before = sum(os.times()[:4])
    seconds = timed(function)
    cpu_us = (sum(os.times()[:4]) - before) / rows * 1e6
    print(f"{way:<36} {rows / seconds:>8,.0f} rows/s {cpu_us:>6.0f} us of CPU a row", flush=True)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reference"]:
        reference(*sys.argv[2:])
    elif sys.argv[1:2] == ["--memory"]:
        memory(*sys.argv[2:])
    else:
        main()
