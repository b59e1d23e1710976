"""Qwen2, Qwen2.5 and models distilled into them (DeepSeek-R1-Distill-Qwen): LLaMA with biases on q, k and v.

Yang et al., arXiv:2407.10671; transformers 4.57, models/qwen2/modeling_qwen2.py; mindformers 1.9.0, models/llama with
qkv_has_bias. The config.json of every size has a sliding window, but none uses it: ``use_sliding_window``.
"""

from __future__ import annotations

from launcher.models.hf_config import HfConfig
from launcher.models.llama import LlamaShape

QWEN2 = LlamaShape(
    name="qwen2",
    title="Qwen2",
    config=HfConfig(
        family="qwen2",
        architectures={"qwen2": "Qwen2ForCausalLM"},
        plain=dict.fromkeys(("attention_bias", "qkv_bias"), (True,)),
        written={"use_sliding_window": False},
        defaults={
            "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False},
        },
    ),
    biases=("attention.wq", "attention.wk", "attention.wv"),
    settings={"qkv_has_bias": True},
    template="chatml",  # vicuna needs a <s>, which Qwen's tokenizer does not have
    tokenizer_file="tokenizer.json",
)
