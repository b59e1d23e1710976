"""A workshop whose jobs split the model for real."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from emulator import Emulator
from support.events import read_events
from support.shop import Job, Workshop

# A vocabulary that 2 and 4 do not divide: the CPU backend has no AllReduce of a maximum, which a split head needs.
MODEL = {
    "hidden_size": 64, "num_layers": 2, "num_heads": 4, "n_kv_heads": 4, "intermediate_size": 128, "vocab_size": 1021,
    "seq_length": 64,
}  # fmt: skip
STEPS = 8
RANK, ALPHA = 8, 16


@dataclass(frozen=True, kw_only=True)
class SemiAuto:
    """A working folder, and the emulator that its jobs of several ranks run in."""

    shop: Workshop
    emulator: Emulator
    forms: Mapping[str, str] = field(default_factory=dict)

    def write_spec(
        self, name: str, parallel: Mapping[str, Any], model: Mapping[str, Any] = MODEL, **training: Any
    ) -> str:
        spec = {
            "name": name,
            "model": dict(model),
            "data": {"sample": {"size": 128, "seed": 1}, "template": "plain", "batch_size": 8},
            "training": {
                "epochs": 1,
                "steps": STEPS,
                "lr_schedule": {"type": "CosineWithWarmUpLR", "learning_rate": 5.0e-3, "warmup_steps": 1},
                **training,
            },
            "lora": {"r": RANK, "alpha": ALPHA, "dropout": 0.0, "target_modules": "wq|wk|wv|wo"},
            "parallel": dict(parallel),
            "checkpoint": {"every_steps": 4, "keep": 8},
        }
        (self.shop.folder / f"{name}.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
        return f"{name}.yaml"

    def env(self, cards: int, **extra: str) -> dict[str, str]:
        """Variables for a command whose job has ``cards`` ranks."""
        base = self.emulator.env(cards)
        path = os.pathsep.join(filter(None, (extra.pop("PYTHONPATH", ""), base["PYTHONPATH"])))
        return {**base, "LAUNCHER_CPU_DEVICES": "4", **extra, "PYTHONPATH": path}

    def submit(
        self, name: str, *options: str, cards: int = 2, code: int = 0, env: Mapping[str, str] | None = None,
        model: Mapping[str, Any] = MODEL, **parallel: Any,
    ) -> Job:  # fmt: skip
        """Run a job of ``cards`` ranks to its end; ``model_parallel`` is ``cards`` unless ``parallel`` says other."""
        degrees = parallel or {"data_parallel": 1, "model_parallel": cards}
        spec = self.write_spec(name, {"mode": "semi_auto", **degrees}, model)
        environment = self.env(cards, **(env or {}))
        self.shop.launcher("submit", spec, "--cards", str(cards), *options, code=code, env=environment)
        return self.shop.job("last")

    def path(self, form: str) -> Path:
        """The base as ``form``: whole, ckpt, shards_2 or shards_4."""
        return self.shop.folder / self.forms[form]


def losses(job: Job, attempt: int = 1, rank_id: int = 0) -> dict[int, float]:
    events = read_events(job.paths.of_attempt(attempt).rank_events(rank_id))
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}
