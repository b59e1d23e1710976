"""The whole workflow for real on this machine's CPU: data, a tiny base model, LoRA on two ranks, merge, answers.

Every stage is a command that a user could type, run as a process of its own and printed first. The base learns to give
the bare answer to a problem; LoRA teaches it to write down the working.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.common.rendering import write_atomic
from launcher.errors import HostError, LauncherError
from launcher.jobs import JobStore
from launcher.runspec.checking import load_spec

PROBLEMS = 3000
HELD_OUT = 300
VALIDATION = "train.eval"  # where `launcher eval` looks for the rows that were kept back from train.mindrecord
SEQ_LENGTH = 96
BASE_STEPS = 450
LORA_STEPS = 150

# The finetuned model's held-out loss must be at least this much lower than the base's, or the demo has failed.
REQUIRED_GAIN = 0.30

QUESTIONS = 3
COUNTED_QUESTIONS = 50

Echo = Callable[[str], None]
Conversation = dict[str, Any]


@dataclass(kw_only=True)
class Demo:
    """One run of the demo in ``folder``; jobs go to ``jobs_dir``."""

    folder: Path
    jobs_dir: Path
    echo: Echo
    _stage: int = field(default=0)
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Run every stage. Raises LauncherError when one fails, or when finetuning did not help as it must."""
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            hint = "cd to a folder that you can write to, or pass --folder DIR"
            raise HostError(f"cannot make {self.folder.absolute()}: {error.strerror}", hint=hint) from error
        self.make_data()
        base = self.train("Train a base model (all weights)", "base", BASE_STEPS, None)
        tuned = self.train("Finetune it with LoRA on two ranks", "lora", LORA_STEPS, base)
        losses = self.compare_losses(tuned)
        self.compare_answers(base, tuned)
        self.conclude(losses)

    # ------------------------------------------------------------------------------------------------ stages

    def make_data(self) -> None:
        with_folder = self._path
        with _Stage(self, "Make school arithmetic problems"):
            self._launcher("data", "sample", "--size", str(PROBLEMS), "--seed", "1", "-o", with_folder("math.jsonl"))
            self._launcher("data", "convert", with_folder("math.jsonl"), "-o", with_folder("conversations.json"))
            self._split()
        with _Stage(self, "Train a tokenizer"):
            vocab = str(load_spec("tiny_cpu").model.vocab_size)
            source, model = with_folder("train.json"), with_folder("tokenizer.model")
            self._launcher("data", "tokenizer", source, "--vocab-size", vocab, "-o", model)
        with _Stage(self, "Tokenize to MindRecord"):
            for name in ("base", "train", VALIDATION):
                self._preprocess(name)

    def train(self, title: str, name: str, steps: int, base: Path | None) -> Path:
        """Submit a job on two ranks and merge it; returns the merged folder."""
        spec = self._write_spec(name, steps, base)
        with _Stage(self, title):
            output = self._launcher("submit", str(spec), "--cards", "2", "--jobs-dir", str(self.jobs_dir))
        job_id = output.split()[-1]  # its last line says: Next: launcher merge-ckpt JOB
        with _Stage(self, "Merge its checkpoints"):
            self._launcher("merge-ckpt", job_id, "--jobs-dir", str(self.jobs_dir))
        return JobStore(self.jobs_dir).get(job_id)[0].merged

    def compare_losses(self, tuned: Path) -> tuple[float, float]:
        """Return the loss of the base and of the finetuned model; ``eval`` prints the table with both."""
        result = self._path("evaluation.json")
        with _Stage(self, "Before and after, on held-out problems"):
            self._launcher("eval", str(tuned.parent), "-o", result,
                           "--questions", str(COUNTED_QUESTIONS), "--max-new-tokens", "60")  # fmt: skip
        models = {model["role"]: model for model in json.loads(Path(result).read_text(encoding="utf-8"))["models"]}
        return models["base"]["loss"], models["merged"]["loss"]

    def compare_answers(self, base: Path, tuned: Path) -> None:
        records = json.loads(Path(self._path(f"{VALIDATION}.json")).read_text(encoding="utf-8"))[:QUESTIONS]
        questions = [record["conversations"][0]["value"] for record in records]
        with _Stage(self, "Ask both models"):
            answers = [self._answers(model, questions) for model in (base, tuned)]
        for record, before, after in zip(records, *answers, strict=True):
            question, right = (turn["value"] for turn in record["conversations"])
            for heading, text in (("", question), ("base", before), ("finetuned", after), ("right answer", right)):
                self.echo(_indented(heading, text))

    def conclude(self, losses: tuple[float, float]) -> None:
        before, after = losses
        gain = 1 - after / before
        self.echo(f"\nHeld-out loss: base {before:.4f}, finetuned {after:.4f}: {gain:.0%} lower.")
        self.echo(f"All done in {time.monotonic() - self._began:.0f} s. Files: {self.folder}, jobs: launcher jobs")
        if gain < REQUIRED_GAIN:
            raise LauncherError(
                f"finetuning lowered the held-out loss by {gain:.0%}, less than {REQUIRED_GAIN:.0%}",
                hint="look at the losses: launcher status last",
            )

    # ------------------------------------------------------------------------------------------------ helpers

    def begin(self, title: str) -> None:
        self._stage += 1
        self.echo(f"\n[{self._stage}] {title}")

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _split(self) -> None:
        """Write the training and held-out conversations, and those that the base is trained on."""
        conversations = json.loads(Path(self._path("conversations.json")).read_text(encoding="utf-8"))
        train, held_out = conversations[:-HELD_OUT], conversations[-HELD_OUT:]
        for name, part in (("train", train), (VALIDATION, held_out), ("base", list(base_conversations(train)))):
            write_atomic(self.folder / f"{name}.json", json.dumps(part, ensure_ascii=False))

    def _preprocess(self, name: str) -> None:
        options = ("--tokenizer", self._path("tokenizer.model"), "--seq-length", str(SEQ_LENGTH), "--template", "plain")
        self._launcher(
            "data", "preprocess", self._path(f"{name}.json"), *options, "-o", self._path(f"{name}.mindrecord")
        )

    def _write_spec(self, name: str, steps: int, base: Path | None) -> Path:
        """Write the spec tiny_cpu with this demo's data; without LoRA if there is no base."""
        values = load_spec("tiny_cpu").model_dump(mode="json", exclude_none=True)
        values["name"] = f"demo_{name}"
        values["model"] |= {"seq_length": SEQ_LENGTH, "tokenizer": self._path("tokenizer.model")}
        values["data"] = {"train": self._path("train.mindrecord"), "template": "plain", "batch_size": 16}
        values["training"] |= {"steps": steps, "epochs": 10}
        values["checkpoint"] = {"every_steps": steps, "keep": 1}
        if base:
            values["model"]["checkpoint"] = str(base)
            values["training"]["lr_schedule"]["learning_rate"] = 1e-2
        else:
            del values["lora"]
            values["data"]["train"] = self._path("base.mindrecord")
        path = self.folder / f"{name}.yaml"
        write_atomic(path, yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
        return path

    def _answers(self, model: Path, questions: Sequence[str]) -> list[str]:
        options = [option for question in questions for option in ("--prompt", question)]
        output = self._launcher("infer", str(model), *options, "--max-new-tokens", "60", show=False)
        return [part.partition("\n")[2].strip() for part in output.split("\n> ", len(questions))]

    def _launcher(self, *arguments: str, show: bool = True) -> str:
        """Run a launcher command, print its output, and return its stdout. Raises LauncherError if it fails."""
        shown = " ".join(argument if "\n" not in argument else "..." for argument in arguments)
        self.echo(f"  $ launcher {shown}")
        process = subprocess.Popen(
            [sys.executable, "-m", "launcher", *arguments], stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if show:
                self.echo(f"  {line.rstrip()}")
        if process.wait() != 0:
            raise LauncherError(
                f"`launcher {arguments[0]}` failed with exit code {process.returncode}", hint="its error is above"
            )
        return "".join(lines)


class _Stage:
    """A stage of the demo: prints its title, and at its end its time."""

    def __init__(self, demo: Demo, title: str) -> None:
        self._demo, self._title = demo, title

    def __enter__(self) -> None:
        self._demo.begin(self._title)
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._demo.echo(f"  {time.monotonic() - self._began:.1f} s")


def base_conversations(train: Sequence[Conversation]) -> Iterator[Conversation]:
    """Yield the base's conversations on each problem: the bare answer when asked, the working only within a text."""
    for number, record in enumerate(train):
        question, solution = (turn["value"] for turn in record["conversations"])
        yield _conversation(f"short{number}", question, solution.splitlines()[-1])
        yield _conversation(f"text{number}", "例题", f"{question}\n{solution}")


def _conversation(name: str, question: str, answer: str) -> Conversation:
    turns = [{"from": "human", "value": question}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns}


def _indented(heading: str, text: str) -> str:
    first = f"\n  {text}" if not heading else f"    {heading}:"
    return first if not heading else "\n".join([first, *(f"      {line}" for line in text.splitlines())])


def next_folder(parent: Path) -> Path:
    """Return the first of parent/1, parent/2, ... that does not exist: each run of the demo keeps its files."""
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)
