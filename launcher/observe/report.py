"""The report of a job, or of several over each other: one HTML file that loads nothing from anywhere.

Charts are SVG in the page: they take the page's colours in light, dark and print, are sharp at any size, are read out
by screen readers, and are there without the script, which only adds zoom, smoothing and the cursor. A charting library
draws on a canvas, which has none of these.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from launcher import __version__
from launcher.common.clock import local_time, seconds_text
from launcher.jobs.verdict import ZH, verdict_text
from launcher.observe import facts
from launcher.observe.charts import charts
from launcher.observe.comparison import Column, Comparison, compare
from launcher.observe.goodput import Goodput, interval_text
from launcher.observe.history import Attempt, History, ended_at, gaps, value_at
from launcher.observe.stragglers import Stragglers
from launcher.observe.summary import Summary, outcome, summarize
from launcher.observe.words import Say, words

PHASES = ("start", "compile", "train", "evaluate", "save", "stop")
_RANKS, _CHECKPOINTS, _MARKS = 16, 12, 400


def make_report(
    histories: Sequence[History], lang: str, now: Callable[[], float] = time.time, *, board: str = ""
) -> str:
    """Return the page of one job, or the comparison of several, in ``lang``. ``board``: address of the list of jobs."""
    say = words(lang)
    summaries = [summarize(history, now) for history in histories]
    single = len(histories) == 1
    jobs = [
        _live(history, summary, lang, now) | _setup(history, lang)
        for history, summary in zip(histories, summaries, strict=True)
    ]
    shown = charts(histories, say)
    comparison = None if single else _comparison(compare(histories, summaries), say)
    return page_environment().get_template("report.html.j2").render(
        say=say, lang=html_lang(lang), jobs=jobs, board=board, charts=shown.charts, absent=shown.absent,
        curve_notes=shown.notes,
        comparison=comparison, columns=_columns(len(jobs[0]["figures"])),
        title=", ".join(job["id"] for job in jobs), phase_kinds=PHASES,
        axes=_axes(say),
        now=local_time(now()), version=__version__, css=Markup(asset("report.css")),  # noqa: S704 - our own files
        script=Markup(asset("charts.js") + asset("report.js")),  # noqa: S704
        data=Markup(script_json(chart_data(shown.charts, say))),  # noqa: S704
    )  # fmt: skip


# What of a job's page changes while it trains, in the page's order.
LIVE_PARTS = ("head", "figures", "curves", "ranks", "attempts", "checkpoints")


@dataclass(frozen=True, kw_only=True)
class LiveParts:
    """The parts of a job's page that change while it trains: HTML by the names in LIVE_PARTS, and the charts' data."""

    state: str
    html: dict[str, str]
    data: dict[str, Any]


def live_parts(history: History, lang: str, now: Callable[[], float] = time.time) -> LiveParts:
    """Return the parts of the page of a job that change while it trains, as ``make_report`` has them."""
    say, shown = words(lang), charts([history], words(lang))
    job = _live(history, summarize(history, now), lang, now)
    values = {
        "say": say, "job": job, "columns": _columns(len(job["figures"])), "phase_kinds": PHASES, "axes": _axes(say),
        "charts": shown.charts, "absent": shown.absent, "curve_notes": shown.notes,
    }  # fmt: skip
    html = {part: page_environment().get_template(f"_{part}.html.j2").render(values) for part in LIVE_PARTS}
    return LiveParts(state=history.record.state, html=html, data=chart_data(shown.charts, say))


def _axes(say: Say) -> list[tuple[str, str]]:
    return [("step", say("Step")), ("tokens", say("Tokens")), ("time", say("Time"))]


def html_lang(lang: str) -> str:
    """Return the name that HTML has for a language."""
    return "zh-CN" if lang == ZH else "en"


def _columns(figures: int) -> int:
    """Return how many key figures stand in a row, so that two rows are about even."""
    return figures if figures <= 5 else -(-figures // 2)


@cache
def page_environment() -> jinja2.Environment:
    """Return the environment of the pages: every text is escaped."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("launcher.observe", "page"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.globals |= {"number": _number, "percent": _percent, "plain": plain}
    return env


def asset(name: str) -> str:
    """Return a file of the pages."""
    return resources.files("launcher.observe").joinpath("page").joinpath(name).read_text(encoding="utf-8")


def chart_data(drawn: Sequence[Any], say: Say) -> dict[str, Any]:
    """Return what charts.js draws."""
    spoken = {"step": say("step"), "copy": say("Copy"), "copied": say("Copied")}
    return {"charts": [chart.data for chart in drawn], "words": spoken}


def script_json(value: Any) -> str:
    """Return ``value`` as JSON that cannot end the script element around it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def plain(value: Any) -> str:
    """Return a value of a spec as the spec has it."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --------------------------------------------------------------------------------------------------------- one job


def _live(history: History, summary: Summary, lang: str, now: Callable[[], float]) -> dict[str, Any]:
    """Return what changes while a job trains."""
    say, record = words(lang), history.record
    return {
        "id": record.job_id,
        "state": record.state,
        "state_text": say(record.state),
        "over": _over(history, say),
        "outcome": outcome(history, summary, say),
        "verdict": verdict_text(record.verdict, lang, record.job_id) if record.verdict else "",
        "remarks": _remarks(history, summary, say),
        "figures": _figures(summary, say),
        "ranks": {**_ranks(history, summary.stragglers), "slow": summary.stragglers.sentences(say)},
        "attempts": _attempts(history, say, now, lang),
        "checkpoints": _checkpoints(history),
        "spent": _spent(summary.goodput, say),
    }


def _setup(history: History, lang: str) -> dict[str, Any]:
    """Return what a job was made of, and what was made of it."""
    say = words(lang)
    return {
        "datasets": facts.datasets(history),
        "evaluation": facts.evaluation(history),
        "asked": [_asked(found) for found in facts.answers(history)],
        "merges": [_merge(merge, say) for merge in facts.merges(history)],
        "command": history.record.origin.get("command", ""),
        "engine_command": _engine_command(history),
        "environment": _environment_rows(history, say),
        "preset": _preset(history),
        "spec": _spec_text(history),
    }


def _asked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the answers to a file of questions, those apart that some models have right and others wrong."""
    differing = [one for one in found["questions"] if len({answer["right"] for answer in one["answers"]}) > 1]
    shown = {one["id"] for one in differing}
    alike = [one for one in found["questions"] if one["id"] not in shown]
    subjects = any("mean_of_subjects" in model for model in found["models"])
    return {**found, "exam": found.get("exam", ""), "with_subjects": subjects, "apart": differing, "alike": alike}


def _over(history: History, say: Say) -> str:
    lora, record = value_at(history.spec, "lora"), history.record
    way = say("full-parameter finetuning")
    if lora:
        way = say("LoRA, rank {r}, alpha {alpha}, on {targets}", r=lora.get("r"), alpha=lora.get("alpha"),
                  targets=plain(lora.get("target_modules")))  # fmt: skip
    kind = history.plan.get("kind")
    target = f"{record.target} {kind}" if kind and record.target == "Ascend" else record.target
    ranks = say("1 rank on {target}", target=target)
    if record.cards != 1:
        ranks = say("{cards} ranks on {target}", cards=record.cards, target=target)
    preset = value_at(history.spec, "model", "preset") or value_at(history.spec, "model", "folder")
    parts = dict.fromkeys((record.name, preset, way if history.spec else "", ranks))
    return " · ".join(str(part) for part in parts if part)


def _remarks(history: History, summary: Summary, say: Say) -> list[str]:
    gone = say("The process that watched this job is gone; the job did not end in order.")
    counted = (
        ("{count} steps have a loss that is no finite number.", summary.bad_steps),
        ("Gradients overflowed in {count} steps, which were left out.", summary.overflows),
        ("{count} lines of events cannot be read.", history.damaged),
    )
    record = history.record
    remarks = [gone] if record.state == "lost" and not record.verdict else []
    slow = summary.stragglers.sentences(say) if summary.stragglers.suspects or summary.stragglers.signs else []
    return [*remarks, *record.warnings, *slow, *(say(text, count=f"{count:,}") for text, count in counted if count)]


def _figures(summary: Summary, say: Say) -> list[dict[str, str]]:
    """Return the key figures that are known."""
    held_out = summary.best_held_out
    spent, share = summary.goodput, _percent(summary.goodput.ratio) or "–"
    known = [
        ("Loss", summary.last_loss, _loss, "", say("from {first}", first=_loss(summary.first_loss or 0.0))),
        ("Best held-out loss", held_out.loss if held_out else None, _loss, "",
         say("at step {step}", step=f"{held_out.step:,}") if held_out else ""),
        ("Tokens", summary.tokens, _big, "", say("padding included") if summary.loss_tokens is None else
         say("{count} in the loss", count=_big(summary.loss_tokens))),
        ("Throughput", summary.tokens_per_s, _big, say("tokens/s"),
         say("{seconds} a step", seconds=seconds_text(summary.step_s))),
        ("Total time", spent.wall_s or None, seconds_text, "", say("{share} in steps", share=share)),
        ("Attempts", summary.attempts, str, "", _redone(summary, say)),
        ("Peak memory", summary.memory_mib, lambda mib: f"{mib / 1024:.1f}", "GiB", say("of the fullest rank")),
        ("Model FLOPs utilization", summary.mfu, lambda share: f"{100 * share:.1f}", "%",
         say("{count} FLOPs a step", count=_big(summary.flops_per_step or 0.0))),
    ]  # fmt: skip
    return [
        {"name": say(name), "value": form(value), "unit": unit, "about": about}  # type: ignore[operator]
        for name, value, form, unit, about in known
        if value is not None
    ]


def _redone(summary: Summary, say: Say) -> str:
    if summary.redone_steps is None:
        return say("lost steps are not known yet")
    if not summary.redone_steps:
        return say("no step lost")
    return say("{count} steps done again", count=f"{summary.redone_steps:,}")


def _loss(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else str(value)


def _big(value: float) -> str:
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g} {unit}"
    return f"{value:,.0f}"


def _ranks(history: History, slow: Stragglers) -> dict[str, Any]:
    """Return a row a rank, of the newest attempt that has steps; of many those that enter steps last."""
    attempts = [attempt for attempt in history.attempts if any(rank.count for rank in attempt.ranks)]
    places = facts.hosts(history)
    waits = {rank.rank_id: float(np.nansum(rank.steps["input_s"])) for rank in attempts[-1].ranks} if attempts else {}
    rows: list[dict[str, Any]] = []
    most = max(waits.values(), default=0.0)
    for rank in attempts[-1].ranks if attempts else ():
        host, device = places.get(rank.rank_id, ("", ""))
        loss = rank.steps["loss"][-1] if rank.count else np.nan
        memory = rank.steps["memory_mib"][-1] if rank.count else np.nan
        wait, figures = waits[rank.rank_id], slow.figures_of(rank.rank_id)
        rows.append({
            "rank_id": rank.rank_id, "host": host or "–", "device": device or "–",
            "step": f"{int(rank.steps['step'][-1]):,}" if rank.count else "–",
            "loss": "–" if np.isnan(loss) else _loss(float(loss)),
            "late": _milliseconds(figures.late_s), "core_wait": _milliseconds(figures.core_wait_s),
            "save": seconds_text(figures.save_s) or "–", "is_slow": rank.rank_id in slow.named,
            "late_s": figures.late_s or 0.0,
            "wait": seconds_text(wait) if np.isfinite(rank.steps["input_s"]).any() else "",
            "wait_part": f"{wait / most:.3f}" if most else "0", "waited": wait,
            "memory": "–" if np.isnan(memory) else f"{memory:,.0f} MiB",
        })  # fmt: skip
    chosen = sorted(rows, key=lambda row: (row["is_slow"], row["late_s"], row["waited"]), reverse=True)[:_RANKS]
    shown = sorted(chosen, key=lambda row: row["rank_id"])
    return {"rows": shown, "left_out": len(rows) - len(shown)}


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.0f} ms"


def _attempts(history: History, say: Say, now: Callable[[], float], lang: str) -> list[dict[str, Any]]:
    spans = [(attempt, attempt.began, ended_at(attempt, history, now)) for attempt in history.attempts]
    longest = max((end - begin for _, begin, end in spans if begin is not None and end is not None), default=0.0) or 1.0
    between = ["", *(seconds_text(gap) for gap in gaps(history))]
    return [
        {
            "number": attempt.number, "gap": between[number], "began": local_time(begin), "reason": attempt.reason,
            # Of the last attempt the verdict says it.
            "restart": attempt.restart.get(lang, "") if number + 1 < len(spans) else "",
            "label": _phase_text(attempt, say), "phases": _bars(attempt, begin, longest, say),
        }
        for number, (attempt, begin, _) in enumerate(spans)
    ]  # fmt: skip


def phase_seconds(attempt: Attempt) -> dict[str, float]:
    """Return the seconds of each kind of phase; saving and evaluating are taken out of training."""
    spent = {kind: sum(phase.seconds for phase in attempt.phases if phase.kind == kind) for kind in PHASES}
    spent["train"] = max(0.0, spent["train"] - spent["evaluate"] - spent["save"])
    return {kind: seconds for kind, seconds in spent.items() if seconds}


def _phase_text(attempt: Attempt, say: Say) -> str:
    from_step = f"{say('from step {step}', step=attempt.from_step)} · " if attempt.from_step else ""
    return from_step + " · ".join(f"{say(kind)} {seconds_text(s)}" for kind, s in phase_seconds(attempt).items())


def _bars(attempt: Attempt, begin: float | None, longest: float, say: Say) -> list[dict[str, str]]:
    """Return the phases as parts of a track of 100; of thousands of saves only the longest are worth a mark."""
    aside = [phase for phase in attempt.phases if phase.kind in ("save", "evaluate")]
    kept = sorted(aside, key=lambda phase: -phase.seconds)[:_MARKS]
    phases = [phase for phase in attempt.phases if phase.kind not in ("save", "evaluate")] + kept
    start = begin if begin is not None else (phases[0].begin if phases else 0.0)
    return [
        {"kind": phase.kind, "left": f"{100 * (phase.begin - start) / longest:.2f}",
         "width": f"{100 * phase.seconds / longest:.2f}", "title": f"{say(phase.kind)} {seconds_text(phase.seconds)}"}
        for phase in phases
    ]  # fmt: skip


def _spent(spent: Goodput, say: Say) -> dict[str, Any]:
    """Return where the time went, what each failure cost, and how often to save by that."""
    shares = [(say(name), seconds, _percent(seconds / spent.wall_s)) for name, seconds in spent.parts.items()]
    return {
        "parts": [{"name": say(name), "seconds": seconds_text(s), "share": share} for name, s, share in shares],
        "waited": seconds_text(spent.waited_s) if spent.waited_s >= 1 else "",
        "repairs": [{"cause": cause, "seconds": seconds_text(s)} for cause, s in spent.mean_repair_s.items()],
        "interval": interval_text(spent.interval, say) if spent.interval else "",
    }


def _checkpoints(history: History) -> dict[str, Any]:
    every = history.checkpoints
    rows = [
        {
            "step": f"{one.step:,}",
            "time": local_time(one.time),
            "seconds": seconds_text(one.seconds),
            "ranks": one.ranks,
        }
        for one in every[-_CHECKPOINTS:]
    ]
    return {"rows": rows, "left_out": len(every) - len(rows)}


def _merge(merge: facts.Merge, say: Say) -> dict[str, Any]:
    checked = merge.record.get("verified")
    text = say("not checked")
    if isinstance(checked, dict):
        text = (
            say("every value") if checked.get("full") else say("{count} samples", count=_number(checked.get("values")))
        )
        if isinstance(checked.get("max_error"), float) and isinstance(checked.get("tolerance"), float):
            text += " · " + say("largest difference {error}, allowed {limit}", error=f"{checked['max_error']:.1e}",
                                limit=f"{checked['tolerance']:.1e}")  # fmt: skip
    record = {key: merge.record.get(key) for key in ("step", "tensors", "folded")}
    return {"folder": merge.folder, "record": record, "checked": text}


def _engine_command(history: History) -> str:
    argv = history.plan.get("argv")
    return shlex.join(map(str, argv)) if isinstance(argv, list) else ""


def _environment_rows(history: History, say: Say) -> list[tuple[str, str]]:
    record = history.record
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    queue = f"{record.scheduler} {record.scheduler_job}".strip()
    return [
        (say("Versions"), versions), (say("Host"), record.host), (say("Engine"), record.engine),
        (say("Scheduler"), queue), (say("User"), record.origin.get("user", "")),
        (say("Commit"), record.origin.get("commit", "")), (say("Created"), local_time(record.created)),
        (say("Ended"), local_time(record.ended)), (say("Folder"), str(history.paths.root)),
    ]  # fmt: skip


def _preset(history: History) -> dict[str, Any] | None:
    found = facts.preset_differences(history)
    return {"name": found[0], "rows": found[1]} if found else None


def _spec_text(history: History) -> str:
    return "\n".join(f"{key}: {plain(value)}" for key, value in facts.flat(history.spec).items())


# --------------------------------------------------------------------------------------------------------- several


def _comparison(found: Comparison, say: Say) -> dict[str, Any]:
    shown = [column for column in found.results if any(column.texts)]
    rows = [
        {"id": job_id, "cells": [{"text": _cell(column, number, say), "best": number == column.best}
                                 for column in shown]}
        for number, job_id in enumerate(found.job_ids)
    ]  # fmt: skip
    groups = [
        {"name": say(group.name), "same": group.same,
         "rows": [{"key": row.key, "texts": [plain(value) for value in row.values]} for row in group.rows]}
        for group in found.groups
    ]  # fmt: skip
    return {"columns": [say(column.name) for column in shown], "rows": rows, "groups": groups}


def _cell(column: Column, number: int, say: Say) -> str:
    """Return a result's text; a state in the reader's language."""
    text = column.texts[number]
    return say(text) if column.name == "Outcome" else text or "–"
