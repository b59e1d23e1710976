"""GGUF, the format of llama.cpp and ollama: names, order of rows, element types and metadata of a merged model.

llama.cpp, convert_hf_to_gguf.py and conversion/llama.py (TextModel.set_gguf_parameters, LlamaModel), written by the
package gguf. Tensors are streamed like those of every other format; what precedes them is planned here.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launcher.checkpoint.dtypes import Q8_0, Q8_0_ITEMS
from launcher.checkpoint.gguf_vocab import read_vocabulary
from launcher.checkpoint.huggingface import CONFIG
from launcher.checkpoint.stream import Chunk, FilePlan, PlannedFile
from launcher.checkpoint.tensors import Output, Whole, unwoven, woven
from launcher.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    import gguf

GGUF_FILE = "model.gguf"
# By what --quantize says.
DTYPES = {"f32": "float32", "f16": "float16", "q8_0": Q8_0}
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", Q8_0: "MOSTLY_Q8_0"}
_TENSOR_TYPES = {"float32": "F32", "float16": "F16", Q8_0: "Q8_0"}
_ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
_ROPE_FREQS = "rope_freqs.weight"


def check_installed() -> None:
    """Raise SpecError where the package gguf is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise SpecError(
            "--format gguf needs the package gguf, which is not installed", hint="pip install 'launcher[gguf]'"
        ) from error


def gguf_file(outputs: Sequence[Output], texts: Mapping[str, bytes], dtype: str, name: str) -> PlannedFile:
    """Plan the file of ``outputs``, which have transformers' names.

    texts: what a transformers folder of the model has beside its weights. dtype: a value of DTYPES, for matrices;
    vectors and norms are float32, and rows that q8_0 cannot divide are float16. name: of the model, for its metadata.
    Raises CheckpointError when there is no tokenizer, or none that llama.cpp knows.
    """
    config = json.loads(texts[CONFIG])
    names = _names_of(config)
    made = [_named(output, names, config, dtype) for output in outputs]
    freqs = _rope_freqs(config)
    header = _header(made, config, texts, dtype, name, freqs)
    literals, chunks, offset = [(0, header)], [], len(header)
    if freqs is not None:
        literals.append((offset, freqs.tobytes()))
        offset += _padded(freqs.nbytes)
    for output in made:
        chunks.append(Chunk(output=output, start=0, stop=output.whole.rows, offset=offset))
        offset += _padded(output.nbytes)
    plan = FilePlan(literals=tuple(literals), chunks=tuple(chunks), size=offset)
    return PlannedFile(name=GGUF_FILE, outputs=tuple(made), bytes=plan)


def halved(outputs: Sequence[Output], dtype: str) -> list[str]:
    """Return the matrices of ``outputs`` that are float16 though ``dtype`` was asked for: their rows do not divide."""
    return [output.name for output in outputs if dtype == Q8_0 and output.dtype == "float16"]


def _padded(nbytes: int) -> int:
    import gguf

    return -(-nbytes // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT


# ------------------------------------------------------------------------------------------------ tensors


def _named(output: Output, names: gguf.TensorNameMap, config: Mapping[str, Any], dtype: str) -> Output:
    """Return ``output`` by llama.cpp's name, with its element type and its order of rows."""
    found = names.get_name(output.name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise CheckpointError(f"{output.name} has no name in GGUF", hint="use --format hf")
    made = replace(output, name=found, dtype=_dtype_of(found, output, dtype))
    heads = _permuted_heads(output.name, config)
    if not heads:
        return made
    fold = made.fold and replace(made.fold, lora_b=_permuted(made.fold.lora_b, heads))
    return replace(made, whole=_permuted(made.whole, heads), fold=fold)


def _names_of(config: Mapping[str, Any]) -> gguf.TensorNameMap:
    import gguf

    return gguf.get_tensor_name_map(_architecture(config), config["num_hidden_layers"])


def _architecture(config: Mapping[str, Any]) -> gguf.MODEL_ARCH:
    import gguf

    found: gguf.MODEL_ARCH = gguf.MODEL_ARCH[_ARCHITECTURES[config["model_type"]]]
    return found


def _dtype_of(name: str, output: Output, dtype: str) -> str:
    if len(output.shape) < 2 or name.endswith("_norm.weight"):
        return "float32"
    return "float16" if dtype == Q8_0 and output.whole.row_items % Q8_0_ITEMS else dtype


def _permuted_heads(name: str, config: Mapping[str, Any]) -> int:
    """Return of how many heads the rows of ``name`` are put in another order; 0 where they are not.

    llama.cpp turns neighbouring rows of a LLaMA's queries and keys as pairs, transformers those half a head apart.
    """
    if _ARCHITECTURES[config["model_type"]] != "LLAMA":
        return 0
    module = name.rpartition(".")[0]
    if module.endswith("q_proj"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if module.endswith("k_proj") else 0


def _permuted(whole: Whole, heads: int) -> Whole:
    """Return ``whole`` with the two halves of each head's rows in turn."""
    half = whole.rows // heads // 2
    return woven(whole.name, [unwoven(whole, (half, half), number) for number in (0, 1)], (1, 1))


def _rope_freqs(config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """Return by how much each pair's frequency is divided where positions are stretched as in Llama 3.1."""
    scaling = config.get("rope_scaling")
    if not scaling:
        return None
    size = _head_size(config)
    return np.array([_stretch(config, scaling, 2 * pair / size) for pair in range(size // 2)], np.float32)


def _stretch(config: Mapping[str, Any], scaling: Mapping[str, Any], exponent: float) -> float:
    length, factor = scaling["original_max_position_embeddings"], float(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi * config["rope_theta"] ** exponent
    if wavelength < length / high:
        return 1.0
    if wavelength > length / low:
        return factor
    smooth = (length / wavelength - low) / (high - low)
    return float(1 / ((1 - smooth) / factor + smooth))


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


# ------------------------------------------------------------------------------------------------ metadata


def _header(
    outputs: Sequence[Output],
    config: Mapping[str, Any],
    texts: Mapping[str, bytes],
    dtype: str,
    name: str,
    freqs: np.ndarray[Any, np.dtype[np.float32]] | None,
) -> bytes:
    """Return all that precedes the tensors, filled up to where they begin."""
    import gguf

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[_architecture(config)])
        if freqs is not None:
            writer.add_tensor_info(_ROPE_FREQS, freqs.shape, freqs.dtype, freqs.nbytes)
        for output in outputs:
            kind = gguf.GGMLQuantizationType[_TENSOR_TYPES[output.dtype]]
            writer.add_tensor_info(output.name, output.shape, np.dtype(np.float32), output.nbytes, raw_dtype=kind)
        _add_model(writer, config, dtype, name, outputs)
        for file, content in texts.items():
            (folder / file).write_bytes(content)
        _add_tokenizer(writer, folder, config)
        writer.write_header_to_file(folder / GGUF_FILE)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        found = (folder / GGUF_FILE).read_bytes()
    return found + bytes(_padded(len(found)) - len(found))


def _add_model(
    writer: gguf.GGUFWriter, config: Mapping[str, Any], dtype: str, name: str, outputs: Sequence[Output]
) -> None:
    import gguf

    parameters = sum(math.prod(output.shape) for output in outputs)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    is_llama = _ARCHITECTURES[config["model_type"]] == "LLAMA"
    if is_llama or config.get("head_dim"):
        writer.add_key_length(_head_size(config))
        writer.add_value_length(_head_size(config))
    if is_llama:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(_head_size(config))
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: Mapping[str, Any]) -> None:
    """Add the tokenizer in ``folder``, with its special tokens and chat template."""
    import gguf

    found = read_vocabulary(folder, config["vocab_size"])
    writer.add_tokenizer_model(found.kind)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    if found.scores:
        writer.add_token_scores(found.scores)
    writer.add_token_types(found.types)
    for key, value in _space_prefix(folder, config):
        writer.add_bool(key, value)
    special = gguf.SpecialVocab(folder, load_merges=found.kind == "gpt2", n_vocab=len(found.tokens))
    special.add_to_gguf(writer, quiet=True)


def _space_prefix(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    import gguf

    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")).get("add_prefix_space") if path.is_file() else None
    if said is not None and _ARCHITECTURES[config["model_type"]] == "LLAMA":
        yield gguf.Keys.Tokenizer.ADD_PREFIX, bool(said)
