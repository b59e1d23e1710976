"""``launcher merge-ckpt``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Size, job_argument, jobs_dir_option, jobs_dir_words
from launcher.cli.options.completion import step_numbers
from launcher.cli.options.group import option, takes
from launcher.cli.output.datasets import many
from launcher.cli.output.interruption import interruptible
from launcher.cli.output.progress import progress
from launcher.cli.output.tables import print_json, table
from launcher.errors import SpecError

if TYPE_CHECKING:
    from launcher.checkpoint.merge import Merged, MergePlan, Options, Source
    from launcher.checkpoint.parts import Part, PartMerged
    from launcher.checkpoint.steps import Step
    from launcher.checkpoint.stream import PlannedFile
    from launcher.checkpoint.verify import Verified

_PATH = click.Path(path_type=Path)


def _step(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | tuple[int, int] | None:
    match = re.fullmatch(r"(?:(\d{1,9})_)?(\d{1,9})", text or "")
    if text is None:
        return None
    if match is None:
        raise click.BadParameter(f"{text!r} is no step; write 1200, or 2_100 for step 100 of epoch 2")
    return (int(match[1]), int(match[2])) if match[1] else int(match[2])


def _part(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Part | None:
    if text is None:
        return None
    from launcher.checkpoint.parts import Part

    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"{text!r} is no part; write 2/4 for the second of four")
    return Part(number=int(match[1]), count=int(match[2]))


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """All options of merge-ckpt but --jobs-dir."""

    step: int | tuple[int, int] | None = option(
        "--step",
        metavar="N",
        callback=_step,
        shell_complete=step_numbers,
        help="Step of the whole run to merge (or EPOCH_STEP); the newest complete one if left out.",
    )
    list_steps: bool = option("--list", is_flag=True, help="List the steps and which ranks have them; merge nothing.")
    dry_run: bool = option("--dry-run", is_flag=True, help="Print what would be merged, read, needed and written.")
    layout: str = option(
        "--format",
        type=click.Choice(["mindspore", "hf", "peft", "gguf", "json"]),
        default="mindspore",
        show_default=True,
        help="mindspore: for launcher infer. hf: for transformers. peft: the adapter alone. gguf: for llama.cpp and "
        "ollama. json: with --list.",
    )
    file_format: str = option(
        "--file-format",
        type=click.Choice(["safetensors", "ckpt"]),
        default="safetensors",
        show_default=True,
        help="Kind of the weight files; hf and peft are always safetensors.",
    )
    dtype: str | None = option(
        "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Cast the weights."
    )
    quantize: str | None = option(
        "--quantize",
        type=click.Choice(["f32", "f16", "q8_0"]),
        help="Kind of the numbers of gguf.  [default: f16]",
    )
    no_fold: bool = option(
        "--no-fold", is_flag=True, help="Write base weights and LoRA adapters to two files, unmerged."
    )
    with_optimizer: bool = option(
        "--with-optimizer", is_flag=True, help="Also write the optimizer state, to a separate file."
    )
    verify: str = option(
        "--verify",
        type=click.Choice(["sample", "full"]),
        default="sample",
        show_default=True,
        help="How much to compare across ranks before merging and to read back afterwards.",
    )
    max_shard_bytes: int | None = option(
        "--max-shard-size", type=Size(), metavar="SIZE", help="Size of one file of hf.  [default: 5GB]"
    )
    strategy: Path | None = option(
        "--strategy", type=_PATH, help="Strategy file, or folder of them, when not in FOLDER/strategy."
    )
    base: Path | None = option(
        "--base",
        type=_PATH,
        help="Base checkpoint (a file, or a folder of merge-ckpt or convert-ckpt) for shards that hold adapters only.",
    )
    config: Path | None = option(
        "--config", type=_PATH, help="config.json or launcher_model.json of the model.  [default: the job's]"
    )
    tokenizer: Path | None = option(
        "--tokenizer", type=_PATH, help="Tokenizer to copy next to the weights.  [default: the job's]"
    )
    output: Path | None = option(
        "-o", "--output", type=_PATH, help="Folder to write.  [default: merged in the job or folder]"
    )
    force: bool = option("--force", is_flag=True, help="Replace a different merge in the output folder.")
    part: Part | None = option(
        "--part",
        metavar="I/N",
        callback=_part,
        help="Write part I of N of the files; run the others on other hosts, or later, with the same options.",
    )

    def source(self, reference: str, jobs_dir: Path) -> Source:
        """Return the job or folder that is meant; what the options say of it comes before what it knows itself."""
        from launcher.checkpoint.of_job import find_source, read_model

        source = find_source(reference, jobs_dir)
        return replace(
            source,
            strategy=self.strategy or source.strategy,
            tokenizer=self.tokenizer or source.tokenizer,
            base=self.base or source.base,
            model=read_model(self.config) if self.config else source.model,
        )

    def merging(self) -> Options:
        """Return how to merge. Raises SpecError for options that contradict each other."""
        from launcher.checkpoint.gguf_file import DTYPES
        from launcher.checkpoint.huggingface import SHARD_BYTES
        from launcher.checkpoint.merge import GGUF, HF, Options

        if self.layout == "json":
            raise SpecError("--format json goes with --list", hint="leave it out, or add --list")
        self._check_quantize()
        if self.part and self.force:
            raise SpecError(
                "--force does not go with --part", hint="remove the old result first, or give another --output"
            )
        if self.max_shard_bytes and self.layout != HF:
            raise SpecError(
                f"--max-shard-size does not go with --format {self.layout}", hint="leave it out, or use --format hf"
            )
        return Options(
            step=self.step,
            layout=self.layout,
            file_format=self.file_format,
            dtype=DTYPES[self.quantize or "f16"] if self.layout == GGUF else self.dtype,
            fold=not self.no_fold,
            with_optimizer=self.with_optimizer,
            verify_full=self.verify == "full",
            max_shard_bytes=self.max_shard_bytes or SHARD_BYTES,
        )

    def _check_quantize(self) -> None:
        if self.quantize and self.layout != "gguf":
            raise SpecError(f"--quantize does not go with --format {self.layout}", hint="use --dtype, or --format gguf")
        if self.dtype and self.layout == "gguf":
            raise SpecError("--dtype does not go with --format gguf", hint="use --quantize f32, f16 or q8_0")


@click.command("merge-ckpt")
@job_argument
@jobs_dir_option
@takes(MergeOptions, "options")
def merge_ckpt(job: str, jobs_dir: Path, options: MergeOptions) -> None:
    """Merge the shards of JOB, or of a FOLDER with rank_0, rank_1, ..., into one model, LoRA folded in.

    \b
    launcher merge-ckpt last
    launcher merge-ckpt last --list
    launcher merge-ckpt last --format hf -o my-model
    launcher merge-ckpt /data/run7 --step 1200 --dry-run
    """
    # Two threads of ours do the arithmetic; BLAS must not start more of its own under each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    source = options.source(job, jobs_dir)
    if options.list_steps:
        _print_steps(source, options.layout)
    else:
        _merge(source, job, options)


def _merge(source: Source, job: str, options: MergeOptions) -> None:
    from launcher.checkpoint.merge import plan_merge
    from launcher.checkpoint.of_job import default_output
    from launcher.common.folders import check_target

    merging = options.merging()
    target = options.output or default_output(source, merging)
    with interruptible(str(target)), ExitStack() as stack:
        plan = plan_merge(source, merging, stack)
        if options.dry_run:
            _print_plan(plan, target, options.part)
            check_target(target, plan.size)
            return
        if options.part is None:
            merged = _carried_out(plan, target, stack, force=options.force)
        else:
            done = _part_carried_out(plan, target, stack, options.part)
            _print_part(done)
            if done.merged is None:
                return
            merged = done.merged
    if not merged.fresh:
        _print_skipped(plan)
        for note in plan.notes if source.state else ():
            click.echo(f"note: {note}")
    _print_merged(merged, source, job)


def _carried_out(plan: MergePlan, target: Path, stack: ExitStack, *, force: bool) -> Merged:
    from launcher.checkpoint.merge import merge

    return merge(
        plan,
        target,
        force=force,
        on_begin=lambda: _print_plan(plan, target),
        on_progress=progress(stack, "merge"),
        on_wait=lambda: click.echo(f"waiting: another process writes {target}", err=True),
    )


def _part_carried_out(plan: MergePlan, target: Path, stack: ExitStack, part: Part) -> PartMerged:
    from launcher.checkpoint.parts import merge_part

    return merge_part(
        plan,
        target,
        part,
        on_begin=lambda: _print_plan(plan, target, part),
        on_progress=progress(stack, f"part {part}"),
        on_wait=lambda: click.echo(f"waiting: another process writes part {part} of {target}", err=True),
    )


def _print_part(done: PartMerged) -> None:
    _print_verified(done.verified, folded=done.folded)
    if done.written:
        click.echo(f"  took   {_spent(done.timings_s)}")
    files = [
        f"{len(names)} file{'' if len(names) == 1 else 's'} {how}"
        for names, how in ((done.written, "written"), (done.kept, "kept"))
        if names
    ]
    if files:
        click.echo(f"part {done.part} done: {', '.join(files)}")
    if done.missing:
        numbers = ", ".join(f"--part {part}" for part in done.missing[:8])
        more = f" and {len(done.missing) - 8} more" if len(done.missing) > 8 else ""
        click.echo(f"Next: the same command with {numbers}{more}; the last to end completes {done.target}")


def _print_steps(source: Source, form: str) -> None:
    from launcher.checkpoint.shards import find_shards
    from launcher.checkpoint.steps import damaged_ranks, list_steps

    shards = find_shards(source.folder, strategy=source.strategy, num_ranks=source.num_ranks)
    found = [(step, shards.missing(step.moment), damaged_ranks(shards, step.moment)) for step in list_steps(shards)]
    if form == "json":
        print_json([_step_values(*item, shards.num_ranks) for item in found])
    else:
        rows = (_step_row(*item, shards.num_ranks) for item in found)
        click.echo(table(("STEP", "EPOCH_STEP", "RANKS", "COMPLETE"), rows))


def _step_values(step: Step, missing: Sequence[int], damaged: Sequence[int], num_ranks: int) -> dict[str, Any]:
    from launcher.checkpoint.shards import moment_text

    lacking = {"missing": list(missing), "damaged": list(damaged)}
    known = {"step": step.number, "epoch_step": moment_text(step.moment), "ranks": num_ranks}
    return {**known, **lacking, "complete": not (missing or damaged)}


def _step_row(step: Step, missing: Sequence[int], damaged: Sequence[int], num_ranks: int) -> tuple[str, ...]:
    from launcher.checkpoint.shards import moment_text, ranks_text

    lacks = [f"{ranks_text(ranks)} {how}" for ranks, how in ((missing, "missing"), (damaged, "damaged")) if ranks]
    number = "?" if step.number is None else str(step.number)
    there = f"{num_ranks - len(missing)} of {num_ranks}"
    return number, moment_text(step.moment), there, f"no: {', '.join(lacks)}" if lacks else "yes"


def _print_plan(plan: MergePlan, target: Path, part: Part | None = None) -> None:
    files = plan.opened.opened
    written = plan.files if part is None else _files_of(plan, part)
    read = sum(output.whole.nbytes for file in written for output in file.outputs)
    action = f"{plan.num_folded} folded" if plan.options.fold else "adapters kept apart"
    _print_skipped(plan)
    stages = f", {plan.gathered.num_stages} pipeline stages" if plan.gathered.num_stages > 1 else ""
    click.echo(f"{plan.chosen} of {plan.source.name}: {many(plan.shards.num_ranks, 'rank')}{stages}")
    click.echo(f"  read   {read / 1e6:,.1f} MB from {many(len(files), 'file')}; {_lora_text(plan)}, {action}")
    for file in written:
        click.echo(f"  write  {target / file.name}  {len(file.outputs)} tensors, {file.bytes.size / 1e6:,.1f} MB")
    for name in plan.left_out[:5]:
        click.echo(f"  leave  {name}: no weight of the model")
    for note in plan.notes:
        click.echo(f"  note   {note}")
    click.echo(f"  needs  {plan.peak_bytes / 1e6:,.0f} MB of memory at most, {plan.size / 1e6:,.1f} MB of disk")


def _files_of(plan: MergePlan, part: Part) -> Sequence[PlannedFile]:
    from launcher.checkpoint.parts import divide

    return divide(plan.files, part.count)[part.number - 1]


def _print_skipped(plan: MergePlan) -> None:
    for skipped in plan.chosen.skipped:
        click.echo(f"skipped {skipped}")


def _lora_text(plan: MergePlan) -> str:
    if plan.scale is not None:
        return f"LoRA scale {plan.scale:g}"
    return "LoRA of several scales" if plan.scales else "no LoRA"


def _print_merged(merged: Merged, source: Source, job: str) -> None:
    if not merged.fresh:
        click.echo(f"already merged: {merged.folder} (step {'?' if merged.step is None else merged.step})")
        _print_verified(merged.verified, folded=merged.num_folded)
        return
    if merged.timings_s:  # of a part they have been shown
        _print_verified(merged.verified, folded=merged.num_folded)
        click.echo(f"  took   {_spent(merged.timings_s)}")
    folded = f", {merged.num_folded} with LoRA folded in" if merged.num_folded else ""
    click.echo(f"wrote {merged.folder}: {merged.num_tensors} tensors{folded}")
    _print_next(merged, source, job)


def _spent(timings_s: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in timings_s.items())


def _print_verified(checked: Verified | None, *, folded: int) -> None:
    if checked is None:
        return
    kind = "all" if checked.full else "a sample of"
    meant = "(W + s B A)" if folded else "W"
    error = f"max|merged - {meant}| = {checked.max_error:.2g} (tolerance {checked.tolerance:.2g})"
    found = error if checked.tolerance else "the shards' bytes"
    click.echo(f"  check  {kind} {checked.tensors} tensors: {found}; what several ranks hold is the same")


def _print_next(merged: Merged, source: Source, job: str) -> None:
    files = {path.name for path in merged.folder.iterdir()}
    base = next((name for name in ("base.safetensors", "base.ckpt") if name in files), None)
    if "launcher_model.json" in files:
        of_job = f"{jobs_dir_words()} {job}".lstrip()
        reference = of_job if source.model and merged.folder.name == "merged" else merged.folder
        asked = f"{merged.folder / base} --adapter {merged.folder}" if base else reference
        click.echo(f'Next: launcher infer {asked} --prompt "..."')
    elif "model.gguf" in files:
        click.echo(f'Next, with llama.cpp: llama-cli -m {merged.folder / "model.gguf"} -p "..."')
    elif "config.json" in files:
        click.echo(f'Next, in Python: transformers.AutoModelForCausalLM.from_pretrained("{merged.folder}")')
    elif "adapter_config.json" in files:
        click.echo(f'Next, in Python: peft.PeftModel.from_pretrained(base, "{merged.folder}")')
