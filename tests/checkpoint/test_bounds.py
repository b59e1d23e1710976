"""Files that are no model of anybody's and would cost minutes or gigabytes: refused, in little of both."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.checkpoint.ckpt import frame
from launcher.checkpoint.entries import MAX_PARTS, MAX_TENSORS
from launcher.checkpoint.wire import BYTES, tag, varint

ONE = np.ones((4, 4), np.float32)
EMBEDDING = "model.tok_embeddings.embedding_weight"


def rank_file(folder: Path, suffix: str = ".safetensors") -> Path:
    (folder / "rank_0").mkdir(parents=True)
    return folder / "rank_0" / f"x_rank_0-1_1{suffix}"


def layer(number: int) -> Callable[[Path], None]:
    return lambda folder: save_file(
        {EMBEDDING: ONE, f"model.layers.{number}.attention.wq.weight": ONE}, rank_file(folder)
    )


def many_tensors(folder: Path) -> None:
    count = MAX_TENSORS + 1
    header = {
        f"model.layers.0.t{n}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(count)
    }
    text = json.dumps(header).encode()
    rank_file(folder).write_bytes(len(text).to_bytes(8, "little") + text)


def many_tensors_of_a_ckpt(folder: Path) -> None:
    rank_file(folder, ".ckpt").write_bytes(b"".join(frame(f"t{n}", "float32", (0,), 0) for n in range(MAX_TENSORS + 1)))


def many_parts(folder: Path) -> None:
    rank_file(folder, ".ckpt").write_bytes(frame(EMBEDDING, "float32", (0,), 0) * 100_000)


def step_that_is_no_number(folder: Path) -> None:
    save_file({EMBEDDING: ONE, "global_step": np.array([np.nan], np.float32)}, rank_file(folder))


def long_crc(folder: Path) -> None:
    save_file({EMBEDDING: ONE}, rank_file(folder), metadata={"crc_num": "1" * 5000})


def large_strategy(folder: Path) -> None:
    save_file({EMBEDDING: ONE}, rank_file(folder))
    (folder / "strategy").mkdir()
    item = tag_and_length(3, tag_and_length(1, b"a") + tag_and_length(2, b""))
    (folder / "strategy" / "ckpt_strategy_rank_0.ckpt").write_bytes(item * ((30 << 20) // len(item)))


def tag_and_length(number: int, content: bytes) -> bytes:
    return varint(tag(number, BYTES)) + varint(len(content)) + content


CASES = {
    "a layer of two million": (layer(2_000_000), "a tensor of layer 2000000 is there, and 2 weights in all"),
    "a layer without end": (layer(99_999_999_999), "a tensor of layer 99999999999 is there"),
    "more tensors than any model": (many_tensors, f"it has more than {MAX_TENSORS} tensors"),
    "the same in a .ckpt": (many_tensors_of_a_ckpt, f"it has more than {MAX_TENSORS} tensors"),
    "a hundred thousand parts": (many_parts, f"is in more than {MAX_PARTS} parts"),
    "a step that is no number": (step_that_is_no_number, "its global_step is nan"),
    "a long CRC": (long_crc, "a CRC-32 of 5000 digits"),
    "a strategy of 30 MB": (large_strategy, "is no strategy file: "),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_little_time_and_memory(tmp_path: Path, case: str) -> None:
    make, said = CASES[case]
    make(tmp_path / "run")
    argv = ("-m", "launcher", "merge-ckpt", str(tmp_path / "run"), "-o", str(tmp_path / "merged"))
    # Of processor time, which other work on the machine does not lengthen, and of memory.
    limited = f"ulimit -t 15; ulimit -v {2 << 20}; exec {shlex.join([sys.executable, *argv])}"
    done = subprocess.run(["/bin/sh", "-c", limited], capture_output=True, text=True, check=False)

    assert done.returncode == 4, done.stderr[-2000:]
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert not (tmp_path / "merged").exists()
