"""What commands print about plans and jobs: plain text, the same on a terminal and in a pipe, but for the bar."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from launcher import jobs
from launcher.cli.options.common import jobs_dir_words
from launcher.cli.output.tables import table
from launcher.common.clock import duration, local_time
from launcher.common.sizes import size_text
from launcher.jobs import JobPaths, JobRecord, JobStore
from launcher.jobs.events import (
    Done,
    Evaluation,
    Event,
    Exit,
    Phase,
    Ready,
    Save,
    Step,
    last_held_out,
    last_step,
    read_last_events,
)

if TYPE_CHECKING:
    from launcher.control.prepare import PreparedRun
    from launcher.plan.inputs import Pending
    from launcher.plan.launch_plan import LaunchPlan


def plan(plan: LaunchPlan, pending: Pending | None = None) -> str:
    """The whole plan for people: what would be made and written, then what would be run."""
    from launcher.plan.launch_plan import about_rows, about_steps

    degrees, files = plan.degrees, plan.files
    split = " x ".join(f"{name} {degree}" for name, degree in dataclasses.asdict(degrees).items())
    base = plan.inputs.checkpoint or "none: random weights"
    lines = [
        f"job      {plan.paths.root}",
        f"model    {plan.spec.name}: {'LoRA' if plan.spec.lora else 'all weights'}, base {base}",
        f"data     {plan.inputs.dataset} ({about_rows(plan.inputs)})",
        f"ranks    {plan.cluster.num_devices} on {plan.cluster.target}: {split}",
        *(
            [f"spare    {', '.join(f'{n.name} ({n.address})' for n in plan.launch.spares)}"]
            if plan.launch.spares
            else []
        ),
        f"steps    {about_steps(plan)}, {plan.global_batch} rows each",
        "would make",
        *([f"  data: {pending.describe()}"] if pending else []),
        *(f"  folder {folder}" for folder in _new_folders(plan.paths.root)),
        "would write",
        *(f"  {plan.paths.root / file.path}  ({len(file.text.encode())} bytes)" for file in files),
        *(f"  {plan.paths.root / link.path} -> {link.target}" for link in plan.links),
        "would run",
        *_commands(plan),
    ]
    for file in files:
        lines += ["", f"--- {file.path}", file.text.rstrip()]
    return "\n".join(lines)


def _new_folders(folder: Path) -> list[Path]:
    """``folder`` and those above it that are not there yet."""
    return [place for place in (*reversed(folder.parents), folder) if not place.exists()]


def dry_run(prepared: PreparedRun) -> None:
    """Print the plan with its notes; or, for a program to read, one file alone, and the notes on stderr."""
    document, pending = _document(prepared.plan), prepared.pending
    for note in prepared.notes:
        click.echo(note, err=document is not None)
    if document and pending:
        click.echo(f"Data: would be made first: {pending.describe()}", err=True)
    click.echo(document or plan(prepared.plan, pending))


def _document(plan: LaunchPlan) -> str | None:
    """Return the file that the plan's scheduler has a dry run print alone; None where it has none."""
    from launcher.schedulers import registry

    name = registry.get(plan.launch.scheduler).dry_run_file
    return next((file.text.rstrip() for file in plan.files if file.path == name), None)


def _commands(plan: LaunchPlan) -> list[str]:
    if plan.launch.nodes:
        return _node_commands(plan)
    return [f"  {program.command}" for program in plan.launch.programs(plan.paths)]


_SHOWN_NODES = 4


def _node_commands(plan: LaunchPlan) -> list[str]:
    """Show how agents come to their hosts, and what they start there; addresses and cards may still be found out."""
    from launcher.engines.base import Command
    from launcher.schedulers import registry

    launch, scheduler = plan.launch, registry.get(plan.launch.scheduler)
    starts = scheduler.agents(launch, plan.paths)
    lines = [f"  {step}" for step in scheduler.steps(plan)]
    lines += [f"  {Command(argv=start.command.argv)}" for start in starts[:_SHOWN_NODES]]
    lines += [f"  ... and {len(starts) - _SHOWN_NODES} more"] if len(starts) > _SHOWN_NODES else []
    for node in launch.nodes[:_SHOWN_NODES]:
        lines.append(f"  on {node.name}:")
        lines += [f"    {program.command}" for program in launch.for_node(node.node_rank).programs(plan.paths)]
    more = len(launch.nodes) - _SHOWN_NODES
    return [*lines, f"  ... and {more} more host(s)"] if more > 0 else lines


def _known(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def finished(paths: JobPaths, record: JobRecord, progress: Progress) -> str:
    """The end of a good run: loss, place, how often to save next time where that matters, and what to type next."""
    from launcher.observe.goodput import interval_text
    from launcher.observe.history import read_history
    from launcher.observe.summary import summarize
    from launcher.observe.words import words

    summary = summarize(read_history(paths, record), flops=False)
    first, last = progress.first_loss, progress.last_loss
    if record.attempt > 1:  # this attempt alone was followed
        first, last = summary.first_loss, summary.last_loss
    loss = "" if first is None or last is None else f" Loss {first:.4f} -> {last:.4f}."
    lines = [f"Job {record.job_id} succeeded in {_seconds_between(record.started, record.ended):.0f} s.{loss}"]
    lines += [f"warning: {warning}" for warning in record.warnings]
    interval = summary.goodput.interval
    lines += [interval_text(interval, words("en"))] if interval else []
    following = f"Next: launcher merge-ckpt{jobs_dir_words()} {record.job_id}"
    return "\n".join([*lines, f"Checkpoints in {paths.checkpoints}", following])


def stopped(record: JobRecord, *, save: bool) -> str:
    """The end of a job that was asked to stop, and what to type next. ``save``: a checkpoint was wanted."""
    note = f"; {record.note}" if record.note else ""
    if save and not note and record.state == jobs.CANCELLED:
        note = "; nothing was saved, as its ranks did not finish a step together within the grace"
    following = "merge-ckpt" if record.state == jobs.SUCCEEDED else "resume"
    return f"Job {record.job_id} {record.state}{note}. Next: launcher {following}{jobs_dir_words()} {record.job_id}"


def _seconds_between(begin: str | None, end: str | None) -> float:
    if not begin or not end:
        return 0.0
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


class Progress:
    """A bar with step, loss, learning rate and time left; lines where there is no terminal.

    Times and the learning rate are those of ``loss_rank``, the loss is the mean over the ``cards`` ranks that have one.
    """

    def __init__(self, steps: int | None, loss_rank: int = 0, cards: int = 1) -> None:
        self._steps, self._loss_rank = steps, loss_rank
        self._told = _Told(loss_rank, cards)
        self._times: deque[float] = deque(maxlen=50)
        self._compiled = False
        self._bar: Any = None
        self._next_line = 0.0
        self.first_loss: float | None = None
        self.last_loss: float | None = None

    def __enter__(self) -> Progress:
        return self

    def begin(self, job_id: str, cards: int, target: str) -> None:
        """Say that the job begins, then show the bar."""
        click.echo(f"Job {job_id}: {cards} rank(s) on {target}, {_known(self._steps)} steps.")
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._steps, detail="")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the bar as it is; what follows is printed below it."""
        self._show_rest()
        if self._bar:
            self._bar.stop()

    def note_state(self, record: JobRecord) -> None:
        """Say what the job waits for, that it is being stopped, or that another attempt began."""
        if record.state == jobs.STOPPING:
            self._say("stopping; Ctrl-C again stops at once")
        elif record.state == jobs.PLANNED and record.note:
            self._say(record.note)
        elif record.state == jobs.STARTING and record.earlier:
            self._show_rest()
            reason = record.earlier[-1]["reason"] or "stopped"
            self._say(f"attempt {record.attempt}; attempt {record.attempt - 1} ended: {reason}")

    def _say(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        self._bar.console.print(line, highlight=False, markup=False) if self._bar else click.echo(line, err=True)

    def note(self, event: Event) -> None:
        """Take an event of any rank; but for steps, only one rank's are shown."""
        if isinstance(event, Step):
            for step in self._told.add(event):
                self._show_step(step)
        elif event.rank_id != self._loss_rank:
            return
        elif isinstance(event, Evaluation) and event.seconds is not None:
            self._note_evaluation(event)
        elif isinstance(event, Ready) and event.from_step:
            self._note_resumed(event.from_step)
        elif self._bar and isinstance(event, Phase | Done):
            after = "saved" if isinstance(event, Done) else _AFTER.get(event.name, "starting")
            self._bar.update(self._task, description=after)

    def _note_resumed(self, step: int) -> None:
        left = "nothing is left to train" if step == self._steps else "going on from its checkpoint"
        self._say(f"step {step}/{_known(self._steps)}  {left}")

    def _show_rest(self) -> None:
        """Show the steps that not all ranks told of: no more will be heard of them."""
        for step in self._told.rest():
            self._show_step(step)

    def _show_step(self, event: Step) -> None:
        loss, step = event.loss, event.step
        if isinstance(loss, float):
            self.first_loss = loss if self.first_loss is None else self.first_loss
            self.last_loss = loss
        if self._compiled:
            self._times.append(event.step_s)
        self._compiled = True
        detail = f"loss {_number(loss, '.4f')}  lr {_number(event.lr, '.2e')}  {self._left(step)}"
        if self._bar:
            self._bar.update(self._task, description="training", completed=step, detail=detail)
        elif time.monotonic() >= self._next_line or step == self._steps:
            click.echo(f"step {step}/{_known(self._steps)}  {detail}", err=True)
            self._next_line = time.monotonic() + 5.0

    def _note_evaluation(self, event: Evaluation) -> None:
        self._say(f"step {event.step}  held-out loss {_number(event.loss, '.4f')}  ({event.seconds or 0:.1f} s)")

    def _left(self, step: int) -> str:
        """Time left by the median step; the first step compiles and says nothing about the others."""
        if self._steps is None or not self._times:
            return ""
        import statistics

        seconds = statistics.median(self._times) * (self._steps - step)
        return f"{duration(seconds)} left"


# What a rank does after each part of its start.
_AFTER = {"imported": "joining", "joined": "loading", "loaded": "compiling"}


# Ranks whose events arrive late, or cannot be read, hold back no more steps than this.
_MOST_UNTOLD = 1000


class _Told:
    """Steps that some ranks have told of, and others not yet; each leaves with the mean loss, in order."""

    def __init__(self, loss_rank: int, cards: int) -> None:
        self._loss_rank, self._cards = loss_rank, cards
        self._steps: dict[int, dict[int | None, Step]] = {}

    def add(self, event: Step) -> Iterator[Step]:
        """Take the step of one rank; yield what is complete, and what was waited for long enough."""
        self._steps.setdefault(event.step, {})[event.rank_id] = event
        while self._steps and (self._is_complete(next(iter(self._steps))) or len(self._steps) > _MOST_UNTOLD):
            yield from self._leave()

    def rest(self) -> Iterator[Step]:
        """Yield what is left, with the loss of the ranks that told."""
        while self._steps:
            yield from self._leave()

    def _is_complete(self, step: int) -> bool:
        return len(self._steps[step]) >= self._cards

    def _leave(self) -> Iterator[Step]:
        ranks = self._steps.pop(next(iter(self._steps)))
        if self._loss_rank in ranks:
            yield with_mean_loss(ranks[self._loss_rank], ranks.values())


def with_mean_loss(step: Step, ranks: Iterable[Step]) -> Step:
    """Return ``step`` with the mean loss of ``ranks``, those that have one; a word like "nan" of any rank stays."""
    losses = [rank.loss for rank in ranks if rank.loss is not None]
    word = next((loss for loss in losses if isinstance(loss, str)), None)
    if not losses or word is not None:
        return dataclasses.replace(step, loss=word)
    numbers = [loss for loss in losses if isinstance(loss, float)]
    mean = math.fsum(numbers) / len(numbers)
    return step if mean == step.loss else dataclasses.replace(step, loss=mean)


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else str(value)


def job_table(
    store: JobStore,
    chosen: list[tuple[JobPaths, JobRecord]] | None = None,
    sizes: Mapping[Path, int] | None = None,
) -> str:
    """One line a job; size, tags and notes where there are some. ``sizes``: bytes by the job's folder."""
    found = store.all() if chosen is None else chosen
    if not found:
        every = len(store.all()) if chosen is not None else 0
        if every:
            return f"No such jobs in {store.root}. launcher jobs{jobs_dir_words()} lists all {every}."
        return f"No jobs in {store.root}. launcher submit{jobs_dir_words()} --cards 2 starts one."
    columns = {"JOB": [], "STATE": [], "CARDS": [], "CREATED": [], "STEP": [], "LOSS": []}  # type: dict[str, list[str]]
    for paths, record in found:
        last = last_step_of(paths, record)
        step, loss = (str(last.step), _number(last.loss, ".4f")) if last else ("", "")
        cells = (record.job_id, record.state, f"{record.cards} {record.target}", local_time(record.created), step, loss)
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    if sizes is not None:
        columns["SIZE"] = [size_text(sizes[paths.root]) for paths, _ in found]
    columns |= _label_columns([jobs.read_labels(paths) for paths, _ in found])
    return table(tuple(columns), zip(*columns.values(), strict=True))


# A note is shown up to here in a list, and whole by status.
_LISTED_NOTE = 40


def _label_columns(labels: Sequence[jobs.Labels]) -> dict[str, list[str]]:
    columns = {"TAGS": [",".join(one.tags) for one in labels], "NOTE": [_cut(one.note) for one in labels]}
    return {name: cells for name, cells in columns.items() if any(cells)}


def _cut(text: str) -> str:
    return text if len(text) <= _LISTED_NOTE else f"{text[: _LISTED_NOTE - 3]}..."


def labels_text(labels: jobs.Labels) -> str:
    """Tags, and the note after them; "" for none."""
    return "; ".join(filter(None, [", ".join(labels.tags), labels.note]))


def last_step_of(paths: JobPaths, record: JobRecord) -> Step | None:
    """The last step of the newest attempt that finished one, with the mean loss of the ranks that are as far."""
    rank_id = jobs.loss_rank(paths, record.cards)
    for number in range(record.attempt, 0, -1):
        files = paths.of_attempt(number).events_of_ranks(max(1, record.cards))
        if (last := last_step(files[rank_id])) is not None:
            others = (last_step(file) for file in files if file != files[rank_id])
            return with_mean_loss(last, [last, *(step for step in others if step and step.step == last.step)])
    return None


def last_steps(paths: JobPaths, record: JobRecord) -> list[Step]:
    """Steps of the rank whose loss counts, in the newest attempt that finished one."""
    rank_id = jobs.loss_rank(paths, record.cards)
    attempts = (progress_of(paths.of_attempt(number), rank_id).steps for number in range(record.attempt, 0, -1))
    return next((steps for steps in attempts if steps), [])


def jobs_json(chosen: list[tuple[JobPaths, JobRecord]], sizes: Mapping[Path, int] | None = None) -> str:
    """Every job's record with its folder, its labels, its newest held-out loss, and each rank's last event, as one JSON
    array. ``sizes``: bytes by the job's folder."""
    return json.dumps([_job_values(*job, sizes) for job in chosen], ensure_ascii=False, indent=2)


def status_json(paths: JobPaths, record: JobRecord) -> str:
    """The same of one job, as an array of one, with where its time went and who is slow."""
    from launcher.observe.goodput import goodput
    from launcher.observe.history import read_history
    from launcher.observe.summary import stragglers

    history, values = read_history(paths, record), _job_values(paths, record)
    slow = stragglers(history)
    for rank in values["ranks"]:
        rank |= slow.figures_of(rank["rank_id"]).to_dict()
    values |= {"goodput": goodput(history).to_dict(), "stragglers": slow.to_dict()}
    return json.dumps([values], ensure_ascii=False, indent=2)


def _job_values(paths: JobPaths, record: JobRecord, sizes: Mapping[Path, int] | None = None) -> dict[str, Any]:
    ranks = [rank_json(progress_of(paths, rank_id)) for rank_id in range(record.cards)]
    size = {} if sizes is None else {"bytes": sizes[paths.root]}
    known = {"folder": str(paths.root), **size, "labels": jobs.read_labels(paths).to_dict()}
    return {**dataclasses.asdict(record), **known, "held_out": held_out_json(paths, record), "ranks": ranks}


@dataclass(frozen=True, kw_only=True)
class RankProgress:
    """What one rank has reported in an attempt. ``steps`` holds its step events, or the last thousand of them;
    ``saves`` those of checkpoints among them."""

    rank_id: int
    state: str
    steps: list[Step]
    saves: tuple[Save, ...] = ()
    damaged: int = 0  # lines that cannot be read

    @property
    def step_s(self) -> float | None:
        """Median step time of the last steps; the first one compiles."""
        import statistics

        times = [step.step_s for step in self.steps[1:][-20:]] or [step.step_s for step in self.steps]
        return statistics.median(times) if times else None


def progress_of(paths: JobPaths, rank_id: int) -> RankProgress:
    last = read_last_events(paths.rank_events(rank_id))
    events = [event for event in last.events if not isinstance(event, Exit)]
    steps = [event for event in events if isinstance(event, Step)]
    last_event = events[-1] if events else None
    state = (
        "not started" if last_event is None else last_event.name if isinstance(last_event, Phase) else last_event.kind
    )
    saves = tuple(event for event in events if isinstance(event, Save))
    return RankProgress(rank_id=rank_id, state=state, steps=steps, saves=saves, damaged=last.damaged)


def held_out_json(paths: JobPaths, record: JobRecord) -> dict[str, Any] | None:
    """The newest held-out loss of any attempt with its step; None without one."""
    rank_id = jobs.loss_rank(paths, record.cards)
    for number in range(record.attempt, 0, -1):
        found = last_held_out(paths.of_attempt(number).rank_events(rank_id))
        if found is not None:
            return {"step": found.step, "loss": found.loss}
    return None


def rank_json(progress: RankProgress) -> dict[str, Any]:
    last = progress.steps[-1].to_json() if progress.steps else None
    known = {"rank_id": progress.rank_id, "state": progress.state, "step_s": progress.step_s, "last_step": last}
    return {**known, "unreadable_events": progress.damaged}
