"""``launcher plan``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import AnyCase, format_option, jobs_dir_option
from launcher.cli.options.completion import spec_names
from launcher.cli.options.group import declared, option, takes
from launcher.cli.options.run import SpecChanges
from launcher.cli.output.datasets import source_lines
from launcher.cli.output.tables import print_json
from launcher.engines.base import Command

if TYPE_CHECKING:
    from launcher.control.preview import PlanPreview


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The cards to plan for, and what takes the place of the spec's values."""

    cards: int | None = option(
        "--cards", type=int, metavar="N", help="Cards to plan for; all of the host's if left out."
    )
    kind: str | None = option(
        "--kind",
        type=AnyCase(["910", "A2", "A3", "950", "310P"]),
        help="Plan for N cards of this kind, whether this host has them or not.",
    )
    inventory: Path | None = option(
        "-i", "--inventory", type=click.Path(path_type=Path), metavar="FILE", help="Plan for the hosts of an inventory."
    )
    spare_hosts: int | None = option(
        "--spare-hosts",
        type=click.IntRange(min=1),
        metavar="N",
        help="Hold the inventory's last N hosts back, as spares.",
    )
    jobs_dir: Path = declared(jobs_dir_option)

    def preview(self, spec: str | None, changes: SpecChanges) -> PlanPreview:
        """Return the plan of ``spec`` with ``changes``."""
        from launcher.control import prepare, preview
        from launcher.runspec.reading import find_spec

        if spec is not None:
            find_spec(spec)  # before the hosts: a misspelt name is not to be blamed on their cards
        cluster = preview.cluster_for(self.cards, self.kind, self.inventory, self.spare_hosts)
        made_up = self.kind is not None and self.inventory is None
        name, changed = prepare.chosen(spec, cluster, changes.overrides(), changes.model)
        return preview.preview(name, cluster, changed, self.jobs_dir, made_up=made_up)


@click.command()
@click.argument("spec", required=False, shell_complete=spec_names)
@takes(PlanOptions, "options")
@takes(SpecChanges, "changes")
@format_option
@click.option("--sim", is_flag=True, help="Also let MindSpore compile the run without cards (needs CANN).")
def plan(spec: str | None, options: PlanOptions, changes: SpecChanges, form: str, sim: bool) -> None:
    """Show all that a run of SPEC would do, and whether it fits the cards. Nothing is written.

    Without SPEC the run is that of submit without one.

    \b
    launcher plan llama_7b_lora --cards 8 --kind A2
    launcher plan llama_7b_lora --model ./Qwen2.5-7B-Instruct --cards 8 --kind A2
    """
    shown = options.preview(spec, changes)
    if form == "json":
        print_json(shown.to_dict())
    else:
        click.echo(text(shown))
    if sim:
        from launcher.control import simulation

        click.echo(simulation.run(shown.plan).describe(), err=form == "json")


def text(shown: PlanPreview) -> str:
    """The plan for people."""
    parts = [_head(shown), _nodes(shown), _memory(shown), _files(shown), _missing(shown)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(shown: PlanPreview) -> list[str]:
    from launcher.plan.launch_plan import about_rows, about_steps
    from launcher.plan.memory import lora_count, parameter_count

    plan = shown.plan
    spec, model = plan.spec, plan.spec.model
    weights, adapters = parameter_count(model), lora_count(model, spec.lora)
    trains = (
        f"LoRA r {spec.lora.r} on {', '.join(spec.lora.targets_in(spec.model.architecture))}: {adapters:,} trained"
        if spec.lora
        else "all trained"
    )
    tokens = plan.global_batch * model.seq_length
    total = "" if plan.steps is None else f", {plan.steps * tokens:,} tokens in all"
    kind = f" {plan.cluster.kind}" if plan.cluster.kind else ""
    precision = spec.precision
    return [
        f"model     {model.preset or model.folder or 'own'}: {weights:,} parameters; {trains}",
        f"base      {plan.inputs.checkpoint or 'none: random weights'}",
        f"data      {plan.inputs.dataset} ({about_rows(plan.inputs)})",
        *(f"          {line}" for line in source_lines(plan.inputs.sources)),
        f"ranks     {plan.cluster.num_devices} on {plan.cluster.target}{kind}, {len(plan.cluster.hosts)} host(s)",
        f"split     {_split(shown)}",
        f"precision weights {precision.params}, compute {precision.compute}, loss scale {precision.loss_scale}",
        f"batch     {plan.global_batch:,} rows = {tokens:,} tokens a step",
        f"steps     {about_steps(plan)}{total}",
        *(f"note      {note}" for note in shown.notes if not note.startswith(_CHOSEN)),
    ]


_CHOSEN = "split: "


def _split(shown: PlanPreview) -> str:
    """The split: as chosen, with its memory, or as the spec has it."""
    from launcher.plan.degrees import name_degrees

    chosen = (note.removeprefix(_CHOSEN) for note in shown.notes if note.startswith(_CHOSEN))
    return next(chosen, f"{shown.plan.spec.parallel.mode}: {name_degrees(shown.plan.degrees)}")


_SHOWN_NODES = 4
_SHOWN_GROUPS = 4


def _nodes(shown: PlanPreview) -> list[str]:
    from launcher.control.preview import groups, node_commands

    plan = shown.plan
    lines = ["ranks, hosts, devices"]
    ranks = list(plan.cluster.ranks())
    for node_rank, host in list(enumerate(plan.cluster.hosts))[:_SHOWN_NODES]:
        own = [rank.rank_id for rank in ranks if rank.node_rank == node_rank]
        devices = ",".join(str(device.device_id) for device in host.devices)
        lines.append(f"  ranks {_span(tuple(own))}  {host.name} ({host.address})  devices {devices}")
    lines += _rest(len(plan.cluster.hosts) - _SHOWN_NODES, "host")
    for name, members in groups(plan.degrees).items():
        spans = "  ".join(_span(group) for group in members[:_SHOWN_GROUPS])
        more = "  ..." if len(members) > _SHOWN_GROUPS else ""
        lines.append(f"  {name}: {len(members)} group(s) of {len(members[0])}: {spans}{more}")
    lines.append("would run (ID: given by submit)")
    for _, command in zip(range(_SHOWN_NODES), node_commands(plan), strict=False):
        lines += _pasted(command)
    return lines + _rest(len(plan.cluster.hosts) - _SHOWN_NODES, "host")


_WIDTH = 110


def _pasted(command: Command) -> list[str]:
    """The command as lines to paste; of PATH only what is put in front of it."""
    added, separator, _ = command.env.get("PATH", "").partition(os.pathsep)
    path = [f'PATH={shlex.quote(added)}:"$PATH"'] if separator else []
    others = [f"{name}={shlex.quote(value)}" for name, value in command.env.items() if name != "PATH"]
    lines = [*_filled([*path, *others], "  "), *_filled([shlex.quote(word) for word in command.argv], "    ")]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _filled(words: Sequence[str], indent: str) -> list[str]:
    """Lines of whole words, each begun with ``indent``; a long word has a line of its own."""
    lines = [""]
    for word in words:
        if lines[-1] and len(indent) + len(lines[-1]) + len(word) > _WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return [f"{indent}{line}" for line in lines if line]


def _rest(count: int, noun: str) -> list[str]:
    return [f"  ... and {count} more {noun}(s)"] if count > 0 else []


def _span(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 1 and ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]},{ranks[1]},..,{ranks[-1]}"


def _memory(shown: PlanPreview) -> list[str]:
    from launcher.plan.memory import GIB

    need = shown.plan.memory
    if need is None:
        return []
    lines = ["memory of the fullest rank, by estimate"]
    for term in need.terms:
        absent = "" if term.counts else " (not at the peak: not counted)"
        lines.append(f"  {term.name:<17}{term.size / GIB:>9.3f} GiB  {term.formula}{absent}")
    lines.append(f"  {'total':<17}{need.total / GIB:>9.3f} GiB  of what counts")
    if need.pool != need.total:
        lines.append(f"  {'in the pool':<17}{need.pool / GIB:>9.3f} GiB  all but communication")
    lines.append(
        "  t, h, V: a rank's tokens, hidden size, vocabulary; c: bytes of a computed number; mp: model_parallel"
    )
    if need.pool_gib is not None:
        what = "MindSpore's pool" if shown.plan.cluster.target == "Ascend" else "a rank's part of this host's memory"
        least, most = need.band
        lines.append(
            f"  {need.verdict}: {need.pool / GIB:.1f} GiB, {least:.1f} to {most:.1f} by the estimate's error, "
            f"of {need.pool_gib:.4g} ({what})"
        )
    if shown.changes:
        lines.append("any one of these makes it fit")
        for change in shown.changes[:6]:
            options = " ".join(f"--set {key}" for key in change.keys.split())
            lines.append(f"  {options}  ({change.memory.pool / GIB:.1f} GiB)")
    elif need.verdict == "does not fit":
        lines.append("no single change makes it fit: take more cards")
    return lines


def _files(shown: PlanPreview) -> list[str]:
    plan = shown.plan
    ranks = [file for file in plan.files if file.path.startswith("ranks/")]
    others = [file for file in plan.files if not file.path.startswith("ranks/")]
    size = sum(len(file.text.encode()) for file in ranks)
    lines = [f"would write in {plan.paths.root}"]
    lines += [f"  {file.path}  ({len(file.text.encode()):,} bytes)" for file in others]
    names = ranks[0].path + (f" to {Path(ranks[-1].path).name}" if len(ranks) > 1 else "")
    lines.append(f"  {names}  ({len(ranks):,} file(s), {size:,} bytes)")
    lines += [f"  {link.path} -> {link.target}" for link in plan.links[:_SHOWN_NODES]]
    return lines + _rest(len(plan.links) - _SHOWN_NODES, "link")


def _missing(shown: PlanPreview) -> list[str]:
    """What submit would refuse for, last, where it is seen."""
    lines = [f"  {line}" for line in shown.missing]
    return ["missing: submit refuses this run until these are there", *lines] if lines else []
