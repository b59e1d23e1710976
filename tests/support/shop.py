"""A working folder for real runs, and what one small trained model left in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.jobs import JobPaths, JobRecord, JobStore
from launcher.runspec.checking import load_spec

SEQ_LENGTH = 64
VOCAB = 640
TIMEOUT_S = 300


def _extended(env: Mapping[str, str]) -> dict[str, str]:
    """``env``, with what PYTHONPATH has already after what it adds."""
    path = os.pathsep.join([env.get("PYTHONPATH", ""), os.environ["PYTHONPATH"]]).strip(os.pathsep)
    return {**env, "PYTHONPATH": path}


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """A working folder in which launcher commands run as a user would run them. ``cache``: their LAUNCHER_CACHE."""

    folder: Path
    cache: Path

    @classmethod
    def made(cls, folder: Path, *datasets: str, cache: Path | None = None) -> Workshop:
        """Return one with math.jsonl, a tokenizer, and ``datasets`` made of both."""
        shop = cls(folder=folder, cache=cache or folder / "cache")
        shop.launcher("data", "sample", "--size", "256", "--seed", "3", "-o", "math.jsonl")
        shop.launcher("data", "convert", "math.jsonl", "-o", "conversations.json")
        shop.launcher("data", "tokenizer", "conversations.json", "--vocab-size", str(VOCAB), "-o", "tokenizer.model")
        for name in datasets:
            options = ("--tokenizer", "tokenizer.model", "--seq-length", str(SEQ_LENGTH), "--template", "plain")
            shop.launcher("data", "preprocess", "conversations.json", *options, "-o", f"{name}.mindrecord")
        return shop

    def launcher(
        self, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and hold it to its exit code."""
        result = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=self.folder,
            env={**os.environ, "LAUNCHER_CACHE": str(self.cache), **_extended(env or {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
        assert result.returncode == code, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def python(self, program: str, *arguments: str) -> Any:
        """Return the JSON that a program, which must end well, prints last."""
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=self.folder, capture_output=True, text=True,
            env={**os.environ, "LAUNCHER_CACHE": str(self.cache)}, encoding="utf-8", timeout=TIMEOUT_S,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    def write_spec(self, name: str, *, lora: bool, data: str = "train.mindrecord", **training: Any) -> str:
        """A spec of a model of 60,000 parameters; without ``lora`` all of them are trained."""
        values = load_spec("tiny_cpu").model_dump(mode="json", exclude_none=True)
        values["name"] = name
        values["model"] = {
            "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "vocab_size": VOCAB,
            "seq_length": SEQ_LENGTH, "tokenizer": "tokenizer.model",
        }  # fmt: skip
        values["data"] = {"train": data, "template": "plain", "batch_size": 8}
        values["data"] |= training.pop("data_options", {})
        values["training"] |= training
        if not lora:
            del values["lora"]
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return f"{name}.yaml"

    def submit(self, spec: str, *options: str) -> Job:
        """Run a job to its good end."""
        output = self.launcher("submit", spec, *options).stdout
        return self.job(output.split()[-1])

    def job(self, reference: str) -> Job:
        paths, record = JobStore(self.folder / "jobs").get(reference)
        return Job(paths=paths, record=record)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has ended."""

    paths: JobPaths
    record: JobRecord


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A base model of all-weights training, and LoRA on top of it; both merged, both from two ranks.

    ``from_python``: what the program that trained the base found.
    """

    workshop: Workshop
    base: Job
    lora: Job
    questions: Sequence[str]
    from_python: Mapping[str, Any]
