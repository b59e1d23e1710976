"""A short script for transformers' Trainer with peft, as one would write it: what bench_start is held against.

Run by bench_start under torchrun, in the peer's environment: FOLDER, which has the model (``model/``), ready rows
(``rows.json``) and ``settings.json``; writes when each phase was over into OUTPUT/rank_N.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path, output: Path) -> None:
    notes = (output / f"rank_{os.environ['RANK']}.jsonl").open("a", buffering=1, encoding="utf-8")

    def note(name: str) -> None:
        notes.write(json.dumps({"name": name, "time": time.time()}) + "\n")

    note("begin")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    note("imported")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    arguments = TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=settings["batch_size"], max_steps=settings["steps"],
        learning_rate=settings["learning_rate"], logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        ddp_backend="gloo", seed=1,
    )  # fmt: skip
    _ = arguments.device  # builds the process group
    note("joined")
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.config.use_cache = False
    lora = LoraConfig(
        r=settings["r"], lora_alpha=settings["alpha"], target_modules=settings["targets"], task_type="CAUSAL_LM"
    )
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    data = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]

    class Notes(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            note("loaded")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            note("step")

    trainer = Trainer(model=get_peft_model(model, lora), args=arguments, train_dataset=data, callbacks=[Notes()])
    trainer.train()
    trainer.save_model()
    note("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
