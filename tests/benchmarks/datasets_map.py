"""``datasets.map`` with the same SentencePiece model, as one would write it: what bench_data is held against.

In the peer's environment: SOURCE MODEL FOLDER LENGTH PROCESSES AROUND; AROUND is JSON, the template's text before and
after a question. Rows are cut at LENGTH and not padded, answers alone are in the labels. Prints seconds, imports not
counted, tokens, and bytes: reading and map alone, which leaves Arrow files in the cache, and save_to_disk too.
"""

from __future__ import annotations

import json
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import sentencepiece


@lru_cache(maxsize=1)
def tokenizer(model: str) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=model)


def encode(batch: dict[str, list[str]], model: str, length: int, around: tuple[str, str]) -> dict[str, Any]:
    read = tokenizer(model)
    given = zip(batch["instruction"], batch["input"], strict=True)
    questions = [around[0] + (f"{text}\n{more}" if more else text) + around[1] for text, more in given]
    asked, said = (read.encode(texts, num_threads=1) for texts in (questions, batch["output"]))
    rows: dict[str, Any] = {"input_ids": [], "labels": []}
    for question, answer in zip(asked, said, strict=True):
        end = [*answer, read.eos_id()]
        rows["input_ids"].append([read.bos_id(), *question, *end][:length])
        rows["labels"].append(([-100] * (len(question) + 1) + end)[:length])
    return rows


def main(source: str, model: str, folder: str, length: str, processes: str, around: str) -> None:
    datasets.disable_progress_bars()
    options = {"model": model, "length": int(length), "around": tuple(json.loads(around))}
    began = time.perf_counter()
    read = datasets.load_dataset("json", data_files=source, split="train", cache_dir=f"{folder}/cache")
    before = size(Path(folder, "cache"))
    made = read.map(encode, batched=True, num_proc=int(processes), remove_columns=read.column_names, fn_kwargs=options)
    mapped_s, mapped_bytes = time.perf_counter() - began, size(Path(folder, "cache")) - before
    made.save_to_disk(f"{folder}/saved", num_proc=int(processes))
    saved_s = time.perf_counter() - began
    found = {"rows": len(made), "mapped_s": mapped_s, "saved_s": saved_s, "mapped_bytes": mapped_bytes}
    found["tokens"] = sum(sum(map(len, batch["input_ids"])) for batch in made.iter(10_000))
    print(json.dumps({**found, "saved_bytes": size(Path(folder, "saved"))}))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(*sys.argv[1:])
