"""transformers' generate on CPU, float32, greedy, as one would write it: what bench_asking is held against.

In the peer's environment: FOLDER THREADS PROMPT answers one prompt with one token, as a whole process. FOLDER THREADS
alone reads requests from stdin, one JSON object a line, ``{"prompts": [...], "new_tokens": N}``, and answers each with
``{"seconds": S, "tokens": [[...], ...]}``. The first token of a prompt is bos, as the launcher puts it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: str, threads: int, prompt: str | None) -> None:
    torch.set_num_threads(threads)
    read: Any = AutoTokenizer  # without types
    tokenizer = read.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if prompt is not None:
        print(ask(model, tokenizer, [prompt], 1)["texts"][0])
        return
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(ask(model, tokenizer, request["prompts"], request["new_tokens"])), flush=True)


def ask(model: Any, tokenizer: Any, prompts: list[str], new_tokens: int) -> dict[str, Any]:
    began = time.perf_counter()
    bos = model.config.bos_token_id
    rows = [[bos, *tokenizer(prompt, add_special_tokens=False)["input_ids"]] for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    tokens = found[:, width:]
    texts = tokenizer.batch_decode(tokens)
    return {"seconds": time.perf_counter() - began, "tokens": tokens.tolist(), "texts": texts}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
