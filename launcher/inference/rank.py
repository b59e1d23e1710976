"""What each rank runs when one model answers on several cards: ``python -m launcher.inference.rank FOLDER``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from launcher.inference.sampling import GenerationSpec
from launcher.jobs import JobPaths


def main(folder: str) -> None:
    """Answer the questions in ``folder`` with this rank's part of the model; rank 0 writes the answers.

    All ranks choose the same tokens: logits are gathered, and each row draws from its own seed.
    """
    os.environ["RUN_MODE"] = "predict"
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        from mindspore.communication import init

        init()
        return
    paths, rank_id = JobPaths(root=Path(folder)), int(os.environ["RANK_ID"])
    asked = json.loads((paths.root / "questions.json").read_text(encoding="utf-8"))
    answers = answer(build(str(paths.rank_config(rank_id))), asked)
    if rank_id == 0:
        from launcher.render import write_atomic

        lines = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in answers)
        write_atomic(paths.root / "answers.jsonl", lines)


def build(config_file: str) -> Any:
    """The network with this rank's weights, as mindformers 1.9.0 does it in trainer/base_trainer.py for prediction."""
    import mindformers
    import numpy as np
    from mindformers.trainer.utils import transform_and_load_checkpoint
    from mindspore import Model
    from mindspore.nn.utils import no_init_parameters

    config = mindformers.MindFormerConfig(config_file)
    mindformers.build_context(config)
    mindformers.build_parallel_config(config)
    values = {key: value for key, value in config.model.model_config.items() if key != "type"}
    with no_init_parameters():
        network = mindformers.LlamaForCausalLM(
            mindformers.LlamaConfig(**values, parallel_config=config.parallel_config)
        )
    network.set_train(False)
    shape = (network.config.batch_size, network.config.seq_length)
    layout = network.prepare_inputs_for_predict_layout(np.ones(shape))
    transform_and_load_checkpoint(config, Model(network), network, layout, do_predict=True)
    network.init_parameters_data()
    return network


def answer(network: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers to ``asked`` (questions.json) in its order, as ``launcher.inference.session.Answer`` has them."""
    from launcher.data.tokenizer import load_tokenizer
    from launcher.inference.decoding import Decoder, Row
    from launcher.inference.transcript import Transcript

    tokenizer = load_tokenizer(Path(asked["tokenizer"]))
    spec = GenerationSpec(**{**asked["spec"], "stop": tuple(asked["spec"]["stop"])})
    decoder = Decoder(network, pad_id=asked["pad_id"])
    found: dict[int, dict[str, Any]] = {}
    order = sorted(range(len(asked["rows"])), key=lambda place: -len(asked["rows"][place]["ids"]))
    for start in range(0, len(order), asked["batch_size"]):
        places = order[start : start + asked["batch_size"]]
        rows = [
            Row(
                prompt=asked["rows"][place]["ids"],
                spec=spec,
                limit=min(spec.max_new_tokens, asked["context"] - len(asked["rows"][place]["ids"])),
                ends=frozenset(asked["ends"]),
                transcript=Transcript(tokenizer, spec.stop),
            )
            for place in places
        ]
        began = time.monotonic()
        decoder.run(rows)
        seconds = round(time.monotonic() - began, 3)
        for place, row in zip(places, rows, strict=True):
            found[place] = _answer(asked["rows"][place], row, seconds)
    return [found[place] for place in range(len(order))]


def _answer(record: dict[str, Any], row: Any, seconds: float) -> dict[str, Any]:
    return {
        "id": record["id"],
        "prompt": record["prompt"],
        "text": row.transcript.text,
        "prompt_tokens": len(row.prompt),
        "new_tokens": len(row.new_tokens),
        "finish": row.finish,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main(sys.argv[1])
