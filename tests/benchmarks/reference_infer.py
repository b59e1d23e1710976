"""The reference recipe's way to ask a finetuned LLaMA three questions, in our words: what bench_infer is held against.

One script with its paths at the top: import mindformers, build the context, the configuration, the network and the
tokenizer, load the merged checkpoint whole, pad the three prompts to one length, generate, decode. For CPU, the same
changes as in launcher.upstream.cpu. Run by bench_infer: FOLDER TOKENS [pipeline].
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PROMPTS = ["I love Beijing, because", "LLaMA is a", "Huawei is a company that"]


def main(folder: str, new_tokens: int, use_pipeline: bool) -> None:
    """Print the answers; in ``use_pipeline``, tokens a second of batches of 8 through MindFormers' pipeline."""
    os.environ["RUN_MODE"] = "predict"
    import mindformers
    import mindspore as ms
    from mindspore import ops

    model = json.loads(Path(folder, "launcher_model.json").read_text(encoding="utf-8"))["model"]
    context = {"mode": 0, "device_target": "CPU", "postprocess_use_numpy": True}
    mindformers.build_context({"context": context, "parallel": {}, "use_parallel": False, "run_mode": "predict"})
    config = mindformers.LlamaConfig(
        batch_size=8 if use_pipeline else len(PROMPTS), seq_length=model["seq_length"],
        hidden_size=model["hidden_size"], num_layers=model["num_layers"], num_heads=model["num_heads"],
        intermediate_size=model["intermediate_size"], vocab_size=model["vocab_size"],
        rms_norm_eps=model["rms_norm_eps"], compute_dtype="float32", param_init_type="float32",
        softmax_compute_type="float32", rotary_dtype="float32", use_past=False, use_flash_attention=False,
        fused_rms_norm=False, use_rope_slice=True, checkpoint_name_or_path="",
    )  # fmt: skip
    network = mindformers.LlamaForCausalLM(config)
    network.set_train(False)
    parameters = ms.load_checkpoint(f"{folder}/model.safetensors", format="safetensors")
    ms.load_param_into_net(network, parameters)
    network.argmax = lambda logits, axis=-1: ops.argmax(logits, axis)
    tokenizer = mindformers.LlamaTokenizer(f"{folder}/tokenizer.model")
    if use_pipeline:
        print(json.dumps(_pipeline(mindformers, network, tokenizer, new_tokens)))
        return
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    ids = tokenizer(PROMPTS, max_length=longest, padding="max_length")["input_ids"]
    outputs = network.generate(ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=[-1], pad_token_id=0)
    print(json.dumps([tokenizer.decode(output, skip_special_tokens=True) for output in outputs]))


def _pipeline(mindformers: Any, network: Any, tokenizer: Any, new_tokens: int) -> dict[str, float]:
    ask = mindformers.pipeline(task="text_generation", model=network, tokenizer=tokenizer)
    prompts = (PROMPTS * 3)[:8]
    found = {}
    for attempt in ("first", "second"):  # the first compiles
        began = time.monotonic()
        ask(prompts, max_new_tokens=new_tokens, do_sample=False, eos_token_id=[-1], pad_token_id=0, batch_size=8)
        found[attempt] = 8 * new_tokens / (time.monotonic() - began)
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "pipeline" in sys.argv[3:])
