"""MindFormers' own way to finetune from a YAML, for plain msrun: what bench_start is held against.

The script of MindFormers' repository (run_mindformer.py is not in its wheel) in our words: read the YAML, build the
context, train. Only the changes without which MindFormers does not train on CPU are ours. Run by bench_start under
msrun: FOLDER, with FOLDER/rank_N.yaml; writes when each phase was over into FOLDER/rank_N.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(folder: Path) -> None:
    rank = os.environ["RANK_ID"]
    notes = (folder / f"rank_{rank}.jsonl").open("a", buffering=1, encoding="utf-8")

    def note(name: str) -> None:
        notes.write(json.dumps({"name": name, "time": time.time()}) + "\n")

    note("begin")
    import mindformers

    note("imported")
    config = mindformers.MindFormerConfig(str(folder / f"rank_{rank}.yaml"))
    mindformers.build_context(config)
    note("joined")
    from launcher.upstream import cpu

    cpu.prepare_training(world_size=int(os.environ["RANK_SIZE"]))
    from mindspore.train import Callback

    class Notes(Callback):  # type: ignore[misc]
        def on_train_begin(self, run_context: object) -> None:
            note("loaded")

        def on_train_step_end(self, run_context: object) -> None:
            note("step")

    trainer = mindformers.Trainer(args=config, task="text_generation", callbacks=[Notes()])
    trainer.finetune(finetune_checkpoint=config.load_checkpoint or False)
    note("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
