"""Checks that need the run spec: files, degrees, disk; and the conversion of a RunSpec to JobNeeds."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from launcher.cluster.imagined import first_cards
from launcher.cluster.inventory import load_inventory
from launcher.cluster.model import Cluster
from launcher.cluster.rank_table.make import checked_text
from launcher.cluster.rank_table.table import table_of
from launcher.doctor.findings import Finding, JobNeeds, NeededFile, failed, passed
from launcher.errors import CheckpointError, SpecError
from launcher.plan.hints import for_missing_base, for_missing_tokenizer
from launcher.plan.memory import ADAM_BYTES, BYTES, lora_count, parameter_count
from launcher.runspec.checking import load_spec
from launcher.runspec.sections import RunSpec


def check_files(needs: JobNeeds) -> Iterator[Finding]:
    """Check that every input file of the job exists and is readable."""
    for needed in needs.files:
        ident = needed.what.replace(" ", "-")
        if not needed.path.exists():
            yield failed(ident, f"{needed.path} does not exist", needed.fix)
        elif not os.access(needed.path, os.R_OK):
            yield failed(ident, f"{needed.path} is not readable", f"chmod u+r {needed.path}")
        else:
            yield passed(ident, str(needed.path))


def check_base(needs: JobNeeds) -> Iterator[Finding]:
    """Check that the base checkpoint, if it exists, has the model's names, shapes and dtypes; reads only headers."""
    from launcher.plan.inputs import find_base  # jinja2 comes with it, and help needs none

    model = needs.model
    if model is None or model.checkpoint is None or not Path(model.checkpoint).exists():
        return
    try:
        base, _ = find_base(model.model_dump(mode="json"), model.checkpoint)
    except CheckpointError as error:
        yield failed("base-weights", error.message, error.hint)
        return
    yield passed("base-weights", f"those of the model, {' and '.join(base.dtypes)}")


def check_degrees(needs: JobNeeds, available: int) -> Iterator[Finding]:
    """Check that data_parallel x model_parallel x pipeline_stage is the number of cards."""
    cards = needs.cards or available
    if needs.data_parallel is None and needs.split == 1:
        return
    data_parallel = needs.copies(cards)
    product = data_parallel * needs.split
    text = f"{data_parallel} x {needs.model_parallel} x {needs.pipeline_stage} = {product}"
    if product == cards:
        yield passed("degrees", f"data x model x pipeline: {text} cards")
    else:
        fix = f"pass --cards {product}, or set parallel.data_parallel: {max(1, cards // needs.split)}"
        yield failed("degrees", f"data x model x pipeline: {text}, but there are {cards} cards", fix)


def check_rank_table(cluster: Cluster) -> Finding:
    """Check that HCCL would accept the rank table of a job on ``cluster``."""
    try:
        table = table_of(cluster)
        checked_text(table, "rank_table.json", kind=cluster.kind)
    except SpecError as error:
        problems = error.problems or (f"{error.message}; {error.hint}",)
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        return failed(
            "rank-table", problems[0] + more, "launcher rank-table make, with -i INVENTORY, shows every problem"
        )
    return passed("rank-table", f"version {table.version}, {cluster.num_devices} ranks on {len(cluster.hosts)} host(s)")


def needs_of(
    spec: str | None,
    *,
    cards: int | None = None,
    folder: Path | None = None,
    port: int | None = None,
    inventory: Path | None = None,
) -> JobNeeds:
    """Return the needs of a job of the spec of that name, on the hosts of ``inventory``; both may be left open.

    Raises SpecError for a spec that is wrong; an inventory that is, becomes a finding.
    """
    needs = JobNeeds(cards=cards, folder=folder, scheduler_port=port)
    if spec is not None:
        needs = needs_of_spec(load_spec(spec), cards=cards, folder=folder, port=port)
    if inventory is None:
        return needs
    try:
        return replace(needs, hosts=first_cards(load_inventory(inventory), cards))
    except SpecError as error:
        return replace(needs, inventory_fault=error.message)


def needs_of_spec(
    spec: RunSpec, *, cards: int | None = None, folder: Path | None = None, port: int | None = None
) -> JobNeeds:
    """Return the needs of a run of ``spec`` on ``cards`` devices."""
    return JobNeeds(
        cards=cards,
        data_parallel=spec.parallel.data_parallel,
        model_parallel=spec.parallel.model_parallel or 1,
        pipeline_stage=spec.parallel.pipeline_stage or 1,
        bfloat16="bfloat16" in (spec.precision.params, spec.precision.compute),
        files=tuple(_files(spec)),
        folder=folder,
        checkpoint_bytes=checkpoint_bytes(spec),
        scheduler_port=port,
        model=spec.model,
        spec=spec,
        keep=spec.checkpoint.keep,
    )


def missing_inputs(spec: RunSpec) -> tuple[str, ...]:
    """Return what the run reads and is not there, each with what to do about it."""
    files = (file for file in _files(spec) if not file.path.exists())
    # An index is asked for only beside its dataset: who has neither, makes both at once.
    missing = (file for file in files if file.path.suffix != ".db" or file.path.with_suffix("").exists())
    return tuple(f"{file.what} {file.path} does not exist; {file.fix}" for file in missing)


def _files(spec: RunSpec) -> Iterator[NeededFile]:
    for path in [source.path for source in spec.data.sources]:
        if not glob.has_magic(path):
            yield from _dataset_files("dataset", path)
    if spec.evaluation and spec.evaluation.data:
        yield from _dataset_files("held-out dataset", spec.evaluation.data)
    if spec.model.tokenizer:
        yield NeededFile(what="tokenizer", path=Path(spec.model.tokenizer), fix=for_missing_tokenizer(spec.model))
    if spec.model.checkpoint:
        yield NeededFile(what="base checkpoint", path=Path(spec.model.checkpoint), fix=for_missing_base())


def _dataset_files(what: str, path: str) -> Iterator[NeededFile]:
    """Yield a dataset and its index; raw records have none."""
    made = path.endswith(".mindrecord")
    fix = "launcher data preprocess makes one" if made else "--data FILE names another"
    yield NeededFile(what=what, path=Path(path), fix=fix)
    if made:
        yield NeededFile(what=f"{what} index", path=Path(f"{path}.db"), fix="copy it too: the two belong together")


def checkpoint_bytes(spec: RunSpec) -> int:
    """Return the bytes of all checkpoints of one model copy on disk at one time: ``keep``, and one being written.

    A checkpoint holds all weights, and AdamW's moments of trained ones. Data-parallel ranks write one each
    (mindformers 1.9.0); model-parallel and pipeline ranks share one between them.
    """
    weights = parameter_count(spec.model)
    added = lora_count(spec.model, spec.lora)
    trained = added if spec.lora else weights
    # Left open, the format follows from the cards: 16 bits under LoRA (launcher.plan.degrees).
    param_bytes = BYTES[spec.precision.params or ("float16" if spec.lora else "float32")]
    one = (weights + added) * param_bytes + trained * ADAM_BYTES
    return one * (spec.checkpoint.keep + 1)
