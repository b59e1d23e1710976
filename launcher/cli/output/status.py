"""What ``launcher status`` prints: what a job is doing, how far it is, what it was made of, and what to type next."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.cli.options.common import in_jobs_dir, jobs_dir_words
from launcher.cli.output.show import RankProgress, progress_of
from launcher.common.clock import local_time, seconds_text
from launcher.common.ranges import spans
from launcher.jobs import JobPaths, JobRecord, Labels, read_labels
from launcher.jobs.verdict import user_language, verdict_text
from launcher.observe.facts import merges
from launcher.observe.history import History, read_history, value_at
from launcher.observe.summary import Summary, outcome, summarize
from launcher.observe.words import words

_SHOWN_NODES = 4
# Up to this many ranks have a line each; of more, those in the same state share one.
_RANK_LINES = 4


def status(paths: JobPaths, record: JobRecord) -> str:
    """State, progress, what the job was made of, its ranks, the verdict of a failed job, the next command."""
    history = read_history(paths, record)
    summary = summarize(history, flops=False)
    ranks, slow = [progress_of(paths, rank_id) for rank_id in range(record.cards)], summary.stragglers
    lines = [
        *_fields(_what(history)),
        *_fields(_progress(history, summary)),
        *_fields(_made_of(history)),
        *_rank_lines(ranks),
        *(_fields([("slow", said) for said in slow.sentences(words("en"))]) if slow.is_judged else ()),
        *(f"events    rank {rank.rank_id}: {rank.damaged} line(s) cannot be read" for rank in ranks if rank.damaged),
        *(f"warning   {warning}" for warning in record.warnings),
        *(_earlier_line(entry) for entry in record.earlier),
        *_fields([("next", in_jobs_dir(next_command(history)))]),
    ]
    if record.state == jobs.LOST and not record.verdict:
        lines.append("The process that watched this job is gone; the job did not end in order.")
    if record.verdict:
        lines += ["", in_jobs_dir(verdict_text(record.verdict, user_language(), record.job_id))]
    return "\n".join(lines)


def _earlier_line(entry: Mapping[str, Any]) -> str:
    restart = entry.get("restart")
    why = f"; {restart['en']}" if isinstance(restart, Mapping) and restart.get("en") else ""
    return f"attempt {entry['attempt']} ended: {entry.get('reason') or 'stopped'}{why}"


Fields = list[tuple[str, str]]


def _fields(fields: Fields) -> Iterable[str]:
    return (f"{name:<9} {value}" for name, value in fields if value)


def _what(history: History) -> Fields:
    record = history.record
    attempt = f", attempt {record.attempt}" if record.attempt > 1 else ""
    note = f" ({record.note})" if record.note else ""
    place = f"{record.cards} on {record.target}{_on_hosts(history.paths, record)}, engine {record.engine}"
    return [
        ("job", record.job_id),
        ("state", f"{record.state}{attempt}{note}"),
        *_labels(read_labels(history.paths)),
        ("ranks", place),
        (record.scheduler, f"job {record.scheduler_job}" if record.scheduler_job else ""),
    ]


def _labels(labels: Labels) -> Fields:
    return [("tags", ", ".join(labels.tags)), ("note", labels.note)]


def _progress(history: History, summary: Summary) -> Fields:
    """How far it is, in steps, loss and time."""
    total, loss = summary.total_steps, ""
    unfinished = total and 0 < summary.done_steps < total
    share = f" ({100 * summary.done_steps / total:.0f} %)" if total and unfinished else ""
    if summary.last_loss is not None:
        first = "" if summary.first_loss is None else f"{summary.first_loss:.4f} -> "
        loss = f"{first}{summary.last_loss:.4f}" + (
            f", lowest {summary.lowest_loss:.4f}" if summary.lowest_loss else ""
        )
    speed = "" if summary.step_s is None else f"{seconds_text(summary.step_s)} a step"
    if speed and summary.tokens_per_s:
        speed += f", {summary.tokens_per_s:,.0f} tokens/s on all ranks"
    return [
        ("progress", outcome(history, summary, words("en")).rstrip(".") + share),
        ("loss", loss),
        ("held-out", _held_out(summary)),
        ("speed", speed),
        ("time", _time(summary)),
    ]


def _held_out(summary: Summary) -> str:
    last, best = summary.last_held_out, summary.best_held_out
    if last is None or best is None:
        return ""
    lowest = "" if best.step == last.step else f", best {best.loss:.4f} at step {best.step}"
    return f"loss {last.loss:.4f} at step {last.step}{lowest}"


# Parts of the time that take less than this share are not worth a word.
_WORTH_SAYING = 0.02


def _time(summary: Summary) -> str:
    spent = summary.goodput
    if spent.ratio is None:
        return ""
    others = sorted(((s, name) for name, s in spent.parts.items() if name != "steps"), reverse=True)
    told = [f"{name} {seconds_text(s)}" for s, name in others if s >= _WORTH_SAYING * spent.wall_s]
    redone = [f"{summary.redone_steps} step(s) done again"] if summary.redone_steps else []
    waited = [f"waited {seconds_text(spent.waited_s)} before"] if spent.waited_s > _WORTH_SAYING * spent.wall_s else []
    return ", ".join([f"{seconds_text(spent.wall_s)}, {100 * spent.ratio:.0f} % in steps", *told, *redone, *waited])


def _made_of(history: History) -> Fields:
    record, plan = history.record, history.plan
    lora = value_at(history.spec, "lora")
    way = f"LoRA r {lora.get('r')} on {lora.get('target_modules')}" if lora else "full-parameter finetuning"
    base = str(plan["checkpoint"]) if plan.get("checkpoint") else "none, random weights"
    rows = f" ({plan['rows']:,} rows)" if isinstance(plan.get("rows"), int) else ""
    merged = ", ".join(f"{merge.folder} (step {merge.record.get('step')})" for merge in merges(history))
    return [
        ("spec", f"{plan['spec']}: {way}" if plan.get("spec") else ""),
        ("base", base if plan else ""),
        ("data", f"{plan['dataset']}{rows}" if plan.get("dataset") else ""),
        ("merged", merged or ("not yet" if record.state == jobs.SUCCEEDED else "")),
        ("created", local_time(record.created)),
        ("ended", local_time(record.ended)),
        ("commit", record.origin.get("commit", "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("folder", str(history.paths.root)),
    ]


def next_command(history: History) -> str:
    """Return what to type next about a job in its state."""
    record, words_ = history.record, jobs_dir_words()
    if not record.is_final:
        return f"launcher status{words_} {record.job_id} --watch"
    if record.state == jobs.SUCCEEDED:
        ask = f'launcher infer{words_} {record.job_id} --prompt "..."'
        return ask if merges(history) else f"launcher merge-ckpt{words_} {record.job_id}"
    if history.checkpoints:
        return f"launcher resume{words_} {record.job_id}"
    return f"launcher logs{words_} {record.job_id} --errors"


def _on_hosts(paths: JobPaths, record: JobRecord) -> str:
    """Its host, or its hosts as this attempt found them."""
    nodes, aside = _nodes_in(paths.start), _aside(paths)
    if not nodes and (planned := len(_nodes_in(paths.launch))):  # record.host is only where they are led from
        return f", {planned} host{'s' * (planned > 1)}{aside}"
    if len(nodes) < 2:
        host = nodes[0] if nodes else record.host
        return f", host {host}{aside}" if host else ""
    return f", {len(nodes)} hosts ({_some(nodes)}){aside}"


def _aside(paths: JobPaths) -> str:
    """Hosts of the job without a part in it: spare ones, and those whose places spares have taken."""
    spares, left_out = _nodes_in(paths.launch, "spares"), _nodes_in(paths.launch, "left_out")
    told = [f"spare: {_some(spares)}"] if spares else []
    told += [f"left out: {_some(left_out)}"] if left_out else []
    return "".join(f", {text}" for text in told)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NODES]) + (f" and {len(names) - _SHOWN_NODES} more" * (len(names) > _SHOWN_NODES))


def _nodes_in(file: Path, key: str = "nodes") -> list[str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
        return [node if isinstance(node, str) else node["name"] for node in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _rank_lines(ranks: Sequence[RankProgress]) -> list[str]:
    """A line a rank; of many, a line for all in one state, with the spread over them."""
    if len(ranks) <= _RANK_LINES:
        return [_rank_line(rank) for rank in ranks]
    groups: dict[str, list[RankProgress]] = {}
    for rank in ranks:
        groups.setdefault(rank.state, []).append(rank)
    return [_group_line(group) for group in groups.values()]


def _rank_line(rank: RankProgress) -> str:
    if not rank.steps:
        return f"rank {rank.rank_id:<4} {rank.state}"
    last = rank.steps[-1]
    wait = f"  input wait {wait:.3f} s" if (wait := _input_wait(rank)) is not None else ""
    memory = f"  {last.memory_mib} MiB" if last.memory_mib else ""
    return f"rank {rank.rank_id:<4} {rank.state:<6} step {last.step}  loss {_number(last.loss)}{wait}{memory}"


def _input_wait(rank: RankProgress) -> float | None:
    known = [step.input_s for step in rank.steps if step.input_s is not None]
    return math.fsum(known) / len(known) if known else None


def _group_line(group: Sequence[RankProgress]) -> str:
    name = f"ranks {spans([rank.rank_id for rank in group])}"
    with_steps = [rank for rank in group if rank.steps]
    if not with_steps:
        return f"{name:<9} {group[0].state}"
    last = [rank.steps[-1] for rank in with_steps]
    losses = [step.loss for step in last if isinstance(step.loss, float)]
    waits = [wait for rank in with_steps if (wait := _input_wait(rank)) is not None]
    parts = [
        f"step {_spread([step.step for step in last], '{:.0f}')}",
        f"loss {_spread(losses, '{:.4f}')}" if losses else "",
        f"input wait {_spread(waits, '{:.3f}')} s" if waits else "",
        f"{_spread([step.memory_mib or 0 for step in last], '{:.0f}')} MiB",
    ]
    return f"{name:<9} {group[0].state:<6} " + "  ".join(part for part in parts if part)


def _spread(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else str(value)
