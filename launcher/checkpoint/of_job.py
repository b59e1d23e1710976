"""Sources of ``merge-ckpt``: a job, or a folder of shards from any other run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.checkpoint.lora import LoraConfig
from launcher.checkpoint.merge import MINDSPORE, Options, Source
from launcher.errors import CheckpointError, JobError
from launcher.models.registry import check_model

if TYPE_CHECKING:
    from launcher.jobs import JobPaths, JobRecord

_BY_FOLDER = "merge its checkpoints alone: launcher merge-ckpt JOB_FOLDER/checkpoint --config config.json"


def find_source(reference: str, jobs_dir: Path) -> Source:
    """Return the shards of the job or folder that ``reference`` means. Raises JobError when no job fits."""
    from launcher.jobs import find_job, find_job_or_path

    # A path that is not there is told by who reads the shards.
    found = (find_job if os.sep in reference else find_job_or_path)(reference, jobs_dir)
    return job_source(*found) if found else Source(name=str(Path(reference).absolute()), folder=Path(reference))


def job_source(paths: JobPaths, record: JobRecord) -> Source:
    """Return the shards of the job at ``paths``, with the scale, model, tokenizer and base of its spec and plan.

    Raises JobError when its files are gone.
    """
    spec, plan = _read(paths.spec), _read(paths.plan)
    try:
        lora = spec.get("lora")
        return Source(
            name=record.job_id,
            folder=paths.root,
            num_ranks=record.cards,
            state="" if record.is_final else record.state,
            lora=LoraConfig(alpha=lora["alpha"], rank=lora["r"]) if lora else None,
            model={
                "model": check_model(spec["model"]),
                "template": spec["data"]["template"],
                "precision": spec["precision"],
                "generation": spec.get("generation") or {},
            },
            tokenizer=Path(plan["tokenizer"]) if plan["tokenizer"] else None,
            base=Path(plan["checkpoint"]) if plan["checkpoint"] else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise JobError(
            f"{paths.root}: spec.json or plan.json is not what submit wrote: {error!r}", hint=_BY_FOLDER
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{path} is missing or damaged: {error}", hint=_BY_FOLDER) from error
    return found


def read_model(path: Path) -> dict[str, Any]:
    """Read the model description, in the form of launcher_model.json, from such a file or a Hugging Face config.json.

    A config.json does not name the chat template of training: it is None.
    Raises CheckpointError when ``path`` is neither.
    """
    from launcher.checkpoint.huggingface import asked_model_of_config

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "model" in found:
            kept = {key: found[key] for key in ("template", "precision")}
            return {"model": check_model(found["model"]), **kept, "generation": found.get("generation") or {}}
        return {
            "model": asked_model_of_config(found),
            "template": None,
            "precision": {"params": "float32", "compute": "float32"},
        }
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not describe a model: {error}", hint="give a config.json or a launcher_model.json"
        ) from error


def default_output(source: Source, options: Options) -> Path:
    """Return the folder of a merge without --output: merged/ in the source's folder, or merged-hf/, merged-peft/."""
    suffix = "" if options.layout == MINDSPORE else f"-{options.layout}"
    return source.folder / f"merged{suffix}"
