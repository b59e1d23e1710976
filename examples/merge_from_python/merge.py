"""Merge a job's newest step, and look at single tensors of it. Usage: python merge.py JOB OUTPUT"""

import sys
from pathlib import Path

import numpy as np

from launcher.checkpoint import list_steps, merge_shards, open_step, read_file
from launcher.checkpoint.of_job import job_source
from launcher.jobs import JobStore


def main(reference: str, output: Path) -> None:
    job = job_source(*JobStore(Path("jobs")).get(reference))
    print("complete steps:", [step.number for step in list_steps(job.folder)])

    # A step is a mapping from names to whole arrays, each read when it is asked for. fold=False keeps LoRA apart.
    with open_step(job, fold=False) as step:
        lora_a = next(name for name in step if name.endswith("lora_a"))
        layer = lora_a.removesuffix(".mindpet_delta_lora_a")
        delta = step.scale * step[f"{layer}.mindpet_delta_lora_b"] @ step[lora_a]
        expected = step[f"{layer}.weight"] + delta
        print(f"{layer}: LoRA changes weights by {np.abs(delta).max():.1e} at most")

    merged = merge_shards(job, output)
    print(f"merged: {merged.num_folded} weights with LoRA folded in")
    tensors = read_file(output / "model.safetensors")
    difference = np.abs(tensors[f"{layer}.weight"] - expected).max()
    print("the same as computed here:", bool(difference < 1e-6))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
