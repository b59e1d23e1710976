"""``merge-ckpt`` of a job: the newest step that every rank saved, LoRA folded in, as one model that answers.

The result is a folder, whole or absent: model.safetensors with MindFormers' parameter names, launcher_model.json,
tokenizer.model and merge.json.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from launcher.errors import CheckpointError, JobError
from launcher.infer import MODEL_CONFIG, TOKENIZER, WEIGHTS
from launcher.installed import installed
from launcher.jobs import JobPaths, JobRecord
from launcher.render import write_atomic
from launcher.spec import RunSpec

MERGE_RECORD = "merge.json"

# mindformers 1.9.0, core/callback: PREFIX_rank_R-EPOCH_STEP.safetensors; STEP counts within the epoch.
_FILE = re.compile(r".+_rank_\d+-(?P<epoch>\d+)_(?P<step>\d+)\.safetensors")
_LORA_A, _LORA_B = ".mindpet_delta_lora_a", ".mindpet_delta_lora_b"
_WEIGHT_PREFIXES = ("model.", "lm_head.")

Array = npt.NDArray[Any]
Moment = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What ``merge_job`` found or made. ``step`` counts over the whole run."""

    folder: Path
    step: int
    num_weights: int
    num_folded: int
    fresh: bool


def merge_job(paths: JobPaths, record: JobRecord) -> Merged:
    """Merge the job at ``paths`` into ``paths.merged``; what is there already stays as it is.

    Raises CheckpointError when no step is complete on all ranks, or ranks disagree; JobError when the job is running.
    """
    if paths.merged.is_dir():
        return _already(paths)
    if not record.is_final:
        raise JobError(f"job {record.job_id} is {record.state}", hint=f"launcher attach {record.job_id}")
    spec = RunSpec.model_validate_json(paths.spec.read_text(encoding="utf-8"))
    files = newest_complete(paths.checkpoints, record.cards)
    scratch = Path(tempfile.mkdtemp(dir=paths.root, prefix=".merged."))
    try:
        merged = _fill(scratch, paths, spec, files)
        scratch.chmod(0o755)
        scratch.rename(paths.merged)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return merged


def _already(paths: JobPaths) -> Merged:
    try:
        record = json.loads((paths.merged / MERGE_RECORD).read_text(encoding="utf-8"))
        return Merged(
            folder=paths.merged,
            step=record["step"],
            num_weights=record["weights"],
            num_folded=record["folded"],
            fresh=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{paths.merged} exists but its {MERGE_RECORD} is missing or damaged: {error}",
            hint=f"move it away: mv {paths.merged} {paths.merged}.old",
        ) from error


def newest_complete(checkpoints: Path, num_ranks: int) -> list[Path]:
    """The files, one a rank, of the newest moment that all ranks saved; newest by number, never by name.

    Raises CheckpointError, saying which rank has what, when there is none.
    """
    saved = [_saved(checkpoints / f"rank_{rank_id}") for rank_id in range(num_ranks)]
    common = set.intersection(*(set(files) for files in saved))
    if common:
        newest = max(common)
        return [files[newest] for files in saved]
    if not any(saved):
        raise CheckpointError(f"no checkpoint in {checkpoints}", hint="let the job reach its first checkpoint")
    lines = [f"  rank {rank}: {_moments(files)}" for rank, files in enumerate(saved)]
    raise CheckpointError(
        "\n".join([f"no step in {checkpoints} is complete on all {num_ranks} ranks (epoch_step saved)", *lines]),
        hint="copy the missing ranks' files from the hosts that wrote them",
    )


def _saved(folder: Path) -> dict[Moment, Path]:
    matches = ((path, _FILE.fullmatch(path.name)) for path in folder.glob("*.safetensors"))
    return {(int(match["epoch"]), int(match["step"])): path for path, match in matches if match}


def _moments(files: Mapping[Moment, Path]) -> str:
    return ", ".join(f"{epoch}_{step}" for epoch, step in sorted(files)) or "nothing"


def _fill(folder: Path, paths: JobPaths, spec: RunSpec, files: list[Path]) -> Merged:
    tensors = read_checkpoint(files[0])
    for rank_id, file in enumerate(files[1:], 1):
        _check_same(tensors, read_checkpoint(file), rank_id, file)
    weights = dict(fold(tensors, spec.lora.scale if spec.lora else None))
    save_file(weights, folder / WEIGHTS, metadata={"format": "mindformers"})
    plan = json.loads(paths.plan.read_text(encoding="utf-8"))
    config = {
        "model": spec.model.model_dump(mode="json"),
        "template": spec.data.template,
        "precision": spec.precision.model_dump(mode="json"),
    }
    write_atomic(folder / MODEL_CONFIG, json.dumps(config, indent=2) + "\n")
    if plan["tokenizer"]:
        shutil.copyfile(plan["tokenizer"], folder / TOKENIZER)
    step = int(tensors["global_step"].reshape(-1)[0])
    num_folded = sum(name.endswith(_LORA_A) for name in tensors)
    record = {
        "job_id": paths.job_id,
        "step": step,
        "lora_scale": spec.lora.scale if spec.lora else None,
        "weights": len(weights),
        "folded": num_folded,
        "inputs": [{"path": str(file), "bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files],
        "versions": installed(),
    }
    write_atomic(folder / MERGE_RECORD, json.dumps(record, indent=2) + "\n")
    return Merged(folder=paths.merged, step=step, num_weights=len(weights), num_folded=num_folded, fresh=True)


def read_checkpoint(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file but the optimizer's. Raises CheckpointError when it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if not name.startswith("adam_")}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", hint="merge an earlier step") from error


def _check_same(first: Mapping[str, Array], other: Mapping[str, Array], rank_id: int, path: Path) -> None:
    """Data-parallel ranks hold the same weights, bit for bit."""
    for name, tensor in first.items():
        if name not in other or tensor.tobytes() != other[name].tobytes():
            raise CheckpointError(
                f"{name} differs between rank 0 and rank {rank_id} ({path}): the ranks did not train together",
                hint=f"launcher logs --rank {rank_id}",
            )


def fold(tensors: Mapping[str, Array], scale: float | None) -> Iterator[tuple[str, Array]]:
    """The model's weights, by name: W + scale * B @ A where LoRA adapters stand beside W (arXiv:2106.09685).

    Shapes: W (out, in), lora_a (r, in), lora_b (out, r). The product is taken in float32, the result has W's dtype.
    Raises CheckpointError when there are adapters and no ``scale``.
    """
    for name, tensor in tensors.items():
        if not name.startswith(_WEIGHT_PREFIXES) or name.endswith((_LORA_A, _LORA_B)):
            continue
        stem = name.removesuffix(".weight")
        lora_a, lora_b = tensors.get(stem + _LORA_A), tensors.get(stem + _LORA_B)
        if lora_a is None or lora_b is None:
            yield name, tensor
        elif scale is None:
            raise CheckpointError(f"{name} has LoRA adapters, but the run had no LoRA", hint="look at spec.json")
        else:
            delta = lora_b.astype(np.float32) @ lora_a.astype(np.float32)
            yield name, (tensor.astype(np.float32) + np.float32(scale) * delta).astype(tensor.dtype)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
