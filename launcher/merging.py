"""What ``merge-ckpt`` merges: a job, or a folder of shards that some other run left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.checkpoint.merge import MINDSPORE, Options, Source
from launcher.errors import CheckpointError, JobError

if TYPE_CHECKING:
    from launcher.jobs import JobPaths, JobRecord


def job_source(paths: JobPaths, record: JobRecord) -> Source:
    """The shards of the job at ``paths``, with the scale, model, tokenizer and base of its spec and plan.

    Raises JobError when the job has not ended or its files are gone.
    """
    if not record.is_final:
        raise JobError(f"job {record.job_id} is {record.state}", hint=f"launcher attach {record.job_id}")
    spec, plan = _read(paths.spec), _read(paths.plan)
    lora = spec.get("lora")
    return Source(
        name=record.job_id,
        folder=paths.root,
        num_ranks=record.cards,
        scale=(lora["alpha"] / lora["r"], lora["r"]) if lora else None,
        model={"model": spec["model"], "template": spec["data"]["template"], "precision": spec["precision"]},
        tokenizer=Path(plan["tokenizer"]) if plan["tokenizer"] else None,
        base=Path(plan["checkpoint"]) if plan["checkpoint"] else None,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(
            f"{path} is missing or damaged: {error}", hint="merge the job's folder of checkpoints"
        ) from error
    return found


def read_model(path: Path) -> dict[str, Any]:
    """How a model is built, as launcher_model.json has it, from such a file or a Hugging Face config.json.

    Raises CheckpointError when ``path`` is neither.
    """
    from launcher.checkpoint.huggingface import model_of_config

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "model" in found:
            return {key: found[key] for key in ("model", "template", "precision")}
        return {
            "model": model_of_config(found),
            "template": "vicuna",
            "precision": {"params": "float32", "compute": "float32"},
        }
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not say how a model is built: {error}", hint="give a config.json or a launcher_model.json"
        ) from error


def default_output(source: Source, options: Options) -> Path:
    """Where a merge goes unless --output says so: merged/ in the source's folder, or merged-hf/, merged-peft/."""
    suffix = "" if options.layout == MINDSPORE else f"-{options.layout}"
    return source.folder / f"merged{suffix}"
