"""What several tests of ``launcher data`` need: the command as a user runs it, and small tokenizers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from launcher.data.sample import problems
from launcher.data.tokenizer import train_tokenizer

CONTROLS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
ROOT = Path(__file__).resolve().parents[2]


def launcher(*argv: str, cwd: Path, code: int = 0) -> str:
    """Run the command; its stdout, or its stderr when it shall fail."""
    done = subprocess.run(
        (sys.executable, "-m", "launcher", *argv),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def make_sentencepiece(path: Path) -> Path:
    """A SentencePiece model of 700 pieces with the control tokens of all templates, trained on problems."""
    texts = [text for problem in problems(300, 5) for text in (problem.question, *problem.steps)]
    train_tokenizer(texts, path, vocab_size=700, special=CONTROLS)
    return path


def make_hugging_face(path: Path, kind: str) -> Path:
    """A ``tokenizer.json``: "bytes" as Llama 3's, "metaspace" and "prepend" as Llama 2's in two layouts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=kind != "bytes", unk_token=None if kind == "bytes" else "<unk>"))
    alphabet: list[str] = []
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind != "bytes":
        steps = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *CONTROLS]
    if kind != "bytes":
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for problem in problems(200, 5) for text in (problem.question, *problem.steps)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    if kind != "bytes":
        _plain_bytes(path)
    return path


def _plain_bytes(path: Path) -> None:
    # The trainer knows no other way to put the bytes into the vocabulary than as special tokens.
    saved = json.loads(path.read_text("utf-8"))
    saved["added_tokens"] = [token for token in saved["added_tokens"] if not token["content"].startswith("<0x")]
    path.write_text(json.dumps(saved), "utf-8")
