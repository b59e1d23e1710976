"""merge-ckpt --format gguf: what the package gguf reads from the file, and what transformers computes with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.checkpoint_sets import MODEL, launcher, llama, read, run_merge, write_shards
from support.data_tools import make_hugging_face, make_sentencepiece

from launcher.checkpoint.dtypes import Array
from launcher.checkpoint.gguf_file import DTYPES
from launcher.checkpoint.gguf_vocab import read_vocabulary
from launcher.checkpoint.merge import GGUF, HF, Options
from launcher.checkpoint.split import SplitPlan
from launcher.errors import CheckpointError, SpecError

SIZES = {**MODEL, "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": False}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embedding": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "llama3": {**SIZES, "rope_scaling": SCALING, "rope_theta": 100000.0},
    "qwen2": {**SIZES, "family": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**SIZES, "family": "qwen3", "head_dim": 24},
}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONFIG = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of each family's kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    pieces = make_sentencepiece(root / "tokenizer.model")
    described = json.loads(make_hugging_face(root / "bytes.json", "bytes").read_text())
    found = {"llama": pieces}
    for name, digits in {"llama3": "{1,3}", "qwen2": "", "qwen3": ""}.items():
        split = {"type": "Split", "pattern": {"Regex": WORDS % digits}, "behavior": "Isolated", "invert": False}
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        (root / name).mkdir()
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, step]}
        found[name] = root / name / "tokenizer.json"
        found[name].write_text(json.dumps(described))
        found[name].with_name("tokenizer_config.json").write_text(json.dumps(CONFIG))
    return found


def known(model: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    described = {"model": model, "template": "vicuna" if tokenizer.suffix == ".model" else "own"}
    return {"model": {**described, "precision": {"params": "float32", "compute": "float32"}}, "tokenizer": tokenizer}


def shards(folder: Path, model: dict[str, Any]) -> Path:
    arrays = llama(model)
    if model["tie_word_embeddings"]:
        arrays.pop("lm_head.weight", None)
    return write_shards(folder, arrays, SplitPlan(model_parallel=2))


def read_gguf(folder: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(folder / "model.gguf")


def values(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def permuted(array: Array, heads: int) -> Array:
    """As LlamaModel.permute of llama.cpp's converter."""
    parts = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return parts.swapaxes(1, 2).reshape(array.shape)


def expected_tensors(hf: Path, model: dict[str, Any]) -> dict[str, Array]:
    """The tensors of transformers in float32, renamed and put in order by llama.cpp's rules."""
    is_llama = "family" not in model
    arch = gguf.MODEL_ARCH.LLAMA if is_llama else gguf.MODEL_ARCH[model["family"].upper()]
    names = gguf.get_tensor_name_map(arch, model["num_layers"])
    found = {}
    for name, array in read(hf / "model.safetensors").items():
        if is_llama and "q_proj" in name:
            array = permuted(array, model["num_heads"])
        if is_llama and "k_proj" in name:
            array = permuted(array, model["n_kv_heads"])
        found[names.get_name(name, try_suffixes=(".weight", ".bias")) or name] = array
    return found


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_those_of_transformers(tmp_path: Path, tokenizers: dict[str, Path], name: str, kind: str) -> None:
    model = MODELS[name]
    folder, given = shards(tmp_path / "run", model), known(model, tokenizers[name])
    run_merge(folder, tmp_path / "hf", Options(layout=HF), **given)
    merged = run_merge(folder, tmp_path / "out", Options(layout=GGUF, dtype=DTYPES[kind], verify_full=True), **given)
    expected, reader = expected_tensors(tmp_path / "hf", model), read_gguf(tmp_path / "out")
    found = {tensor.name: tensor for tensor in reader.tensors}
    freqs = found.pop("rope_freqs.weight", None)
    assert (freqs is None) == (name != "llama3")
    assert found.keys() == expected.keys()
    assert merged.num_folded
    assert merged.verified is not None
    assert merged.verified.tensors == len(found)
    for tensor, array in expected.items():
        vector = array.ndim < 2 or tensor.endswith("_norm.weight")
        wanted = gguf.GGMLQuantizationType["F32" if vector else kind.upper()]
        assert found[tensor].tensor_type == wanted, tensor
        assert tuple(reversed(found[tensor].shape.tolist())) == array.shape
        assert found[tensor].data.tobytes() == gguf.quants.quantize(array, wanted).tobytes(), tensor
        if kind == "q8_0" and not vector:
            error = abs(gguf.quants.dequantize(found[tensor].data, wanted) - array)
            assert error.max() <= abs(array).max() / 127 * 0.57
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["merge.json", "model.gguf"]


def test_the_metadata_are_those_that_llama_cpp_reads(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    model = SIZES
    run_merge(
        shards(tmp_path / "run", model), tmp_path / "out", Options(layout=GGUF), **known(model, tokenizers["llama"])
    )
    found = values(read_gguf(tmp_path / "out"))
    assert {name: value for name, value in found.items() if not name.startswith(("GGUF.", "tokenizer."))} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "t",
        "general.size_label": "190K",
        "general.file_type": gguf.LlamaFileType.MOSTLY_F16,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 32,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": 1000,
    }
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tokenizers["llama"]))
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[: pieces.vocab_size()] == [pieces.IdToPiece(number) for number in range(pieces.vocab_size())]
    assert tokens[pieces.vocab_size() :] == [f"[PAD{number}]" for number in range(pieces.vocab_size(), 1000)]
    assert (kinds[0], kinds[1], kinds[2], kinds[-1]) == (2, 3, 3, 5)
    assert all(kinds[number] == 6 for number in range(1000) if tokens[number].startswith("<0x"))
    assert found["tokenizer.ggml.scores"][20] == pytest.approx(pieces.GetScore(20))
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("llama", "default")
    ids = [found[f"tokenizer.ggml.{token}_token_id"] for token in ("bos", "eos")]
    assert ids == [1, 2]
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_eos_token"] is False
    assert "USER: " in found["tokenizer.chat_template"]


@pytest.mark.parametrize(("name", "pre"), [("llama3", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "qwen2")])
def test_a_byte_level_tokenizer_and_the_rest(tmp_path: Path, tokenizers: dict[str, Path], name: str, pre: str) -> None:
    model = MODELS[name]
    run_merge(shards(tmp_path / "run", model), tmp_path / "out", Options(layout=GGUF), **known(model, tokenizers[name]))
    reader = read_gguf(tmp_path / "out")
    found, described = values(reader), json.loads(tokenizers[name].read_text())
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", pre)
    tokens = found["tokenizer.ggml.tokens"]
    assert all(tokens[number] == text for text, number in described["model"]["vocab"].items())
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in described["model"]["merges"]]
    assert found["tokenizer.ggml.merges"] == merges
    specials = {item["id"]: item["content"] for item in described["added_tokens"]}
    kinds = found["tokenizer.ggml.token_type"]
    assert all(kinds[number] == 3 for number in specials)
    assert specials[found["tokenizer.ggml.bos_token_id"]] == "<|begin_of_text|>"
    assert specials[found["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    arch = found["general.architecture"]
    assert arch == ("llama" if name == "llama3" else name)
    assert found[f"{arch}.rope.freq_base"] == model["rope_theta"]
    assert found.get(f"{arch}.attention.key_length") == {"llama3": 16, "qwen3": 24}.get(name)


@pytest.mark.slow
def test_positions_are_stretched_as_transformers_does(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    model = MODELS["llama3"]
    run_merge(
        shards(tmp_path / "run", model), tmp_path / "out", Options(layout=GGUF), **known(model, tokenizers["llama3"])
    )
    (freqs,) = (tensor for tensor in read_gguf(tmp_path / "out").tensors if tensor.name == "rope_freqs.weight")
    assert freqs.data.tolist() == pytest.approx(llama3_factors(16, 100000.0))
    assert len(set(freqs.data.tolist())) > 2  # some as they are, some stretched, some between


def llama3_factors(size: int, theta: float) -> list[float]:
    """By how much transformers divides each frequency."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {**SCALING, "rope_type": "llama3", "original_max_position_embeddings": 32}
    sizes: dict[str, Any] = {"hidden_size": size, "num_attention_heads": 1, "rope_theta": theta}
    config = LlamaConfig(**sizes, rope_scaling=scaling)  # type: ignore[no-untyped-call]
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / theta ** (np.arange(0, size, 2) / size)
    return [float(value) for value in plain / scaled.numpy()]


_LOGITS = """
import sys, torch, json
from transformers import AutoModelForCausalLM
found = []
for folder in sys.argv[1:]:
    for name in ("hf", "out"):
        given = {"gguf_file": "model.gguf"} if name == "out" else {}
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", torch_dtype=torch.float32, **given).eval()
        with torch.no_grad():
            found.append(model(torch.tensor([[1, 5, 9, 200, 30, 2, 7]])).logits[0])
    print(float((found[-1] - found[-2]).abs().max()), float(found[-2].abs().max()))
"""


@pytest.mark.slow
def test_transformers_computes_the_same_with_it(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    """It reads GGUF by code of its own, and undoes the order of rows: the logits are those of the folder for it."""
    names = ("llama", "qwen2", "qwen3")
    for name in names:
        # The reader of transformers takes a head of a Qwen3 for 128 wide, as all that are published are.
        model = {**MODELS[name], **({"head_dim": 128} if name == "qwen3" else {})}
        folder, given = shards(tmp_path / name / "run", model), known(model, tokenizers[name])
        run_merge(folder, tmp_path / name / "hf", Options(layout=HF), **given)
        run_merge(folder, tmp_path / name / "out", Options(layout=GGUF, dtype="float32"), **given)
    argv = [sys.executable, "-c", _LOGITS, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stdout.splitlines():
        error, largest = map(float, line.split())
        assert largest > 0.1
        assert error < 1e-5
    assert len(done.stdout.splitlines()) == 3


def test_as_a_command(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    (tmp_path / "model.json").write_text(json.dumps(known(SIZES, tokenizers["llama"])["model"]))
    folder = shards(tmp_path / "run", SIZES)
    given = ["merge-ckpt", folder, "--config", tmp_path / "model.json", "-o", tmp_path / "out", "--format", "gguf"]
    lost = launcher(*given)
    assert lost.returncode == 4
    assert "no tokenizer is known" in lost.stderr
    made = launcher(*given, "--tokenizer", tokenizers["llama"], "--quantize", "q8_0")
    assert made.returncode == 0, made.stderr
    assert f"write  {tmp_path}/out/model.gguf" in made.stdout
    assert f"llama-cli -m {tmp_path}/out/model.gguf" in made.stdout
    again = launcher(*given, "--tokenizer", tokenizers["llama"], "--quantize", "q8_0")
    assert again.stdout.startswith("already merged")
    other = launcher(*given, "--tokenizer", tokenizers["llama"])
    assert "dtype 'q8_0' there, 'float16' here" in other.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "gguf", "--dtype", "float16"), "--dtype does not go with --format gguf"),
        (("--format", "hf", "--quantize", "f16"), "--quantize does not go with --format hf"),
    ],
)
def test_quantize_and_dtype_go_with_their_formats(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "run").mkdir()
    done = launcher("merge-ckpt", tmp_path / "run", *options)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [({"fold": False}, "--no-fold"), ({"with_optimizer": True}, "--with-optimizer"), ({"file_format": "ckpt"}, "ckpt")],
)
def test_what_does_not_go_with_gguf(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=f"{said} does not go with --format gguf"):
        Options(layout=GGUF, **options).check()


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"layout": "gguff"}, "there is no layout 'gguff'", "did you mean gguf?"),
        ({"dtype": "flaot16"}, "there is no dtype 'flaot16'", "did you mean float16?"),
        ({"layout": GGUF, "dtype": "bfloat16"}, "there is no dtype 'bfloat16'", "q8_0"),
    ],
)
def test_layouts_and_types_that_there_are_not(options: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(SpecError, match=said) as raised:
        Options(**options).check()
    assert hint in raised.value.hint


def test_rows_that_blocks_do_not_divide_are_said(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    model = {**SIZES, "intermediate_size": 80}
    (tmp_path / "model.json").write_text(json.dumps(known(model, tokenizers["llama"])["model"]))
    given = ("--config", tmp_path / "model.json", "--tokenizer", tokenizers["llama"])
    done = launcher("merge-ckpt", shards(tmp_path / "run", model), *given, "--format", "gguf", "--quantize", "q8_0")
    assert (
        "note   2 matrices are f16: rows of q8_0 have a multiple of 32 numbers (blk.0.ffn_down.weight)" in done.stdout
    )
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read_gguf(tmp_path / "run" / "merged-gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_a_damaged_result_is_found(tmp_path: Path, tokenizers: dict[str, Path]) -> None:
    folder, given = shards(tmp_path / "run", SIZES), known(SIZES, tokenizers["llama"])
    full = Options(layout=GGUF, dtype="q8_0", verify_full=True)
    run_merge(folder, tmp_path / "out", full, **given)
    path = tmp_path / "out" / "model.gguf"
    good = path.read_bytes()
    for place, said in ((200, "does not hold what was written"), (len(good) - 3000, "an error of")):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        with pytest.raises(CheckpointError, match=said):
            run_merge(folder, tmp_path / "out", full, **given)
    path.write_bytes(good)
    assert not run_merge(folder, tmp_path / "out", full, **given).fresh


@pytest.mark.parametrize("kind", ["metaspace", "prepend"])
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path, kind: str) -> None:
    make_hugging_face(tmp_path / "tokenizer.json", kind)
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(tmp_path, 1000)
    assert "llama.cpp has no name for this tokenizer.json" in caught.value.message
    assert "tokenizer.model" in caught.value.hint


def test_other_tokenizers_by_what_they_do(tmp_path: Path) -> None:
    path = make_hugging_face(tmp_path / "tokenizer.json", "bytes")
    assert read_vocabulary(tmp_path, 1000).pre == "gpt-2"
    described = json.loads(path.read_text())
    digits = {"type": "Digits", "individual_digits": True}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, described["pre_tokenizer"]]}
    path.write_text(json.dumps(described))
    assert read_vocabulary(tmp_path, 1000).pre == "smollm"
    with pytest.raises(CheckpointError, match=r"has a token 899 .*, the model 899 tokens"):
        read_vocabulary(tmp_path, 899)
    path.unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"no pieces")
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        read_vocabulary(tmp_path, 900)


def test_tokens_added_to_a_sentencepiece_model(tmp_path: Path) -> None:
    make_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<extra>": 700}')
    added = {"701": {"content": "<|end|>", "special": False}, "702": {"content": "a\u2581b"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    found = read_vocabulary(tmp_path, 704)
    assert found.tokens[700:] == (b"<extra>", b"<|end|>", b"a b", b"[PAD703]")
    assert found.types[700:] == (4, 3, 4, 5)
