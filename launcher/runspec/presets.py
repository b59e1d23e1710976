"""Model presets: the architecture of published models, each with its source.

Sources: Touvron et al., "LLaMA", arXiv:2302.13971, table 2 (hidden size, layers, heads) and the released params.json
(norm_eps 1e-6 for 7B, 13B and 30B, 1e-5 for 65B); Touvron et al., "Llama 2", arXiv:2307.09288; Grattafiori et al.,
"The Llama 3 Herd of Models", arXiv:2407.21783, table 3; Meta's model cards and config.json of the released weights.
Feed-forward widths: 2/3 of 4 x hidden (x 1.3 for the 70B models) rounded up to a multiple of 256 (1024 for Llama 3),
as the released code does. Token ids of Llama 3: config.json, and MindFormers' llama3 configurations (pad 128002).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """``model`` holds keys of the run spec's ``model``. ``source`` is the paper or file that gives them."""

    name: str
    source: str
    model: Mapping[str, Any]


_LLAMA2 = {"vocab_size": 32000, "seq_length": 4096, "rms_norm_eps": 1e-5}
_LLAMA3 = {
    "vocab_size": 128256, "seq_length": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128002,
}  # fmt: skip


def _shape(hidden: int, layers: int, heads: int, width: int, kv_heads: int | None = None) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "num_layers": layers, "num_heads": heads, "intermediate_size": width}
    return shape if kv_heads is None else {**shape, "n_kv_heads": kv_heads}


def _llama1(eps: float) -> dict[str, Any]:
    return {"vocab_size": 32000, "seq_length": 2048, "rms_norm_eps": eps}


_LLAMA1_PAPER, _LLAMA2_PAPER, _LLAMA3_PAPER = "arXiv:2302.13971", "arXiv:2307.09288", "arXiv:2407.21783"

_ALL = (
    ("llama_7b", _LLAMA1_PAPER, _shape(4096, 32, 32, 11008) | _llama1(1e-6)),
    ("llama_13b", _LLAMA1_PAPER, _shape(5120, 40, 40, 13824) | _llama1(1e-6)),
    ("llama_30b", _LLAMA1_PAPER, _shape(6656, 60, 52, 17920) | _llama1(1e-6)),
    ("llama_65b", _LLAMA1_PAPER, _shape(8192, 80, 64, 22016) | _llama1(1e-5)),
    ("llama2_7b", _LLAMA2_PAPER, _shape(4096, 32, 32, 11008) | _LLAMA2),
    ("llama2_13b", _LLAMA2_PAPER, _shape(5120, 40, 40, 13824) | _LLAMA2),
    ("llama2_70b", _LLAMA2_PAPER, _shape(8192, 80, 64, 28672, 8) | _LLAMA2),
    ("llama3_8b", _LLAMA3_PAPER, _shape(4096, 32, 32, 14336, 8) | _LLAMA3),
    ("llama3_70b", _LLAMA3_PAPER, _shape(8192, 80, 64, 28672, 8) | _LLAMA3),
    (
        "llama3_2_1b",
        "config.json of Llama-3.2-1B",
        _shape(2048, 16, 32, 8192, 8)
        | _LLAMA3
        | {
            "max_position_embedding": 131072,
            "tie_word_embeddings": True,
            "rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embedding": 8192},
        },
    ),
    (
        "tiny_cpu",
        "made up for this program",
        _shape(96, 3, 4, 256) | {"vocab_size": 1024, "seq_length": 128, "rms_norm_eps": 1e-5},
    ),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: Preset(name=name, source=source, model=MappingProxyType(model)) for name, source, model in _ALL}
)
