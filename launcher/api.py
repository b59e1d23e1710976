"""Jobs and models from Python, as ``import launcher`` offers them; the command line stands on the same functions.

Nothing here prints or exits. Errors are those of ``launcher.errors``; what a user must be told although it is no error
is a warning of category ``launcher.errors.Note``. Ctrl-C (KeyboardInterrupt) ends the waiting, not the job.

>>> import launcher
>>> job = launcher.submit(cards=2)
>>> job.wait().state
'succeeded'
>>> job.merge().folder.name
'merged'
>>> print(launcher.load(job).generate("3+5=?")[0].text)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.common.nearest import nearest
from launcher.control import follow, prepare, start, stop
from launcher.errors import JobError, LauncherError, Note, SpecError
from launcher.jobs import JobPaths, JobRecord, JobStore, find_job, read_record, select_jobs
from launcher.plan.launch import LOCAL, Limits
from launcher.plan.placement import RunOptions
from launcher.runspec.layers import Override
from launcher.upstream.quiet import quiet

if TYPE_CHECKING:
    from launcher.checkpoint.merge import Merged
    from launcher.inference.session import Answer, Session
    from launcher.jobs.events import Event
    from launcher.observe.summary import Summary
    from launcher.runspec.sections import RunSpec

AnyPath = str | os.PathLike[str]
Tell = Callable[[str], object]

# A supervisor that writes the job's end is gone a moment later. Where agents wrote it, it may hang for ever.
_LEAVE_S = 30.0


def _warn(text: str) -> None:
    warnings.warn(text, Note, stacklevel=4)


def default_jobs_dir() -> Path:
    """Return the folder of jobs that is meant where none is named: $LAUNCHER_JOBS, or jobs here."""
    return Path(os.environ.get("LAUNCHER_JOBS") or "jobs")


# ------------------------------------------------------------------------------------------------ jobs


@dataclass(frozen=True)
class Job:
    """A job in its folder; all that is said of it is read when it is asked for."""

    paths: JobPaths
    _guard: subprocess.Popen[bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.paths.job_id

    @property
    def folder(self) -> Path:
        return self.paths.root

    @property
    def record(self) -> JobRecord:
        """Return what job.json and its scheduler say now. Raises JobError when the file is gone or damaged."""
        if self._guard is not None:
            self._guard.poll()  # else it stays a zombie as long as this process lives
        record = read_record(self.paths)
        if record is None:
            raise JobError(f"{self.paths.record} is gone or damaged", hint="launcher jobs lists the jobs")
        return follow.ask_scheduler(record)

    @property
    def state(self) -> str:
        """Return "planned", "starting", "running", "stopping", "succeeded", "failed", "cancelled" or "lost"."""
        return self.record.state

    @property
    def verdict(self) -> Mapping[str, Any] | None:
        """Return which rank failed first, how and why; None for a job that did not fail."""
        return self.record.verdict

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        check: bool = True,
        on_event: Callable[[Event], None] | None = None,
        on_state: Callable[[JobRecord], None] | None = None,
    ) -> Job:
        """Wait for the job's end, through its restarts. ``on_event``: called with each event of each rank, in order.

        Raises JobFailed with the verdict or JobCancelled when it did not succeed, unless ``check`` is False, and
        TimeoutError after ``timeout_s`` seconds, after which the job runs on.
        """
        nothing: Callable[[Any], None] = lambda _said: None  # noqa: E731
        record = follow.follow(self.paths, on_event or nothing, on_state or nothing, [], timeout_s=timeout_s)
        self.leave(wait=True)
        if check:
            follow.raise_for_end(self.paths, record)
        return self

    def leave(self, *, wait: bool = False) -> bool:
        """Let the processes of the job's supervision go on by themselves; ``wait``: return False if they do not end."""
        guard = self._guard
        if guard is None:
            return True
        # The record has this process until then: once it ended, the job would pass for lost.
        if record := read_record(self.paths):
            stop.supervised(self.paths, record, may_come=lambda: guard.poll() is None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if wait:
                guard.wait(_LEAVE_S)
        ended = guard.poll() is not None
        if not ended:
            guard.returncode = 0  # nobody waits for it any more
        return ended

    def stop(self, *, save: bool = False, grace_s: float | None = None) -> Job:
        """Stop the job and return when none of its processes is left; ``save``: a checkpoint first.

        Raises JobError when it has ended, or does not end in time.
        """
        stop.stop_job(self.paths, self.record, save=save, grace_s=grace_s)
        self.leave(wait=True)
        return self

    def resume(self, tell: Tell = _warn) -> Job:
        """Go on from the newest step that is complete on all ranks. Raises JobError when the job runs or succeeded."""
        started = start.begin_again(self.paths, self.record)
        for line in started.lines:
            tell(line)
        return _started(started)

    def metrics(self, *names: str) -> Any:
        """Return a value a step of ``names`` (as ``launcher plot --list`` has them; all that there are without any).

        A pandas.DataFrame where pandas is installed, else a dict of lists: "step", "time" and a list a metric, with
        nan where it has no value.
        """
        from launcher.observe.csv import to_columns
        from launcher.observe.history import read_history
        from launcher.observe.metrics import METRICS, metric_of

        history = read_history(self.paths, self.record)
        chosen = [metric_of(name) for name in names] or [
            one for one in METRICS.values() if not one.read(history).is_empty
        ]
        columns = to_columns(chosen, history)
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            return columns
        return pandas.DataFrame(columns)

    def summary(self) -> Summary:
        """Return the figures of ``launcher status``: progress, losses, throughput, where the time went."""
        from launcher.observe.history import read_history
        from launcher.observe.summary import summarize

        return summarize(read_history(self.paths, self.record))

    def logs(
        self, *, rank: int | None = None, lines: int | None = None, errors: bool = False, attempt: int | None = None
    ) -> list[str]:
        """Return lines of the logs: the engine's and those of all ranks in order of time, or those of one ``rank``.

        ``lines``: the last of each log. ``errors``: only errors and tracebacks. ``attempt``: the newest if None.
        """
        from launcher.jobs.logs import Wanted, plain, show_logs

        found: list[str] = []
        wanted = Wanted(ranks=None if rank is None else (rank,), lines=lines, errors=errors)
        show_logs(self.paths, self.record, wanted, found.append, plain, attempt=attempt)
        return found

    def merge(
        self,
        output: AnyPath | None = None,
        *,
        step: int | tuple[int, int] | None = None,
        layout: str = "mindspore",
        dtype: str | None = None,
        verify_full: bool = False,
        force: bool = False,
    ) -> Merged:
        """Merge a step, the newest complete one if None, as ``launcher merge-ckpt`` does; the default folder is its.

        Raises CheckpointError when shards are incomplete, disagree or are damaged; HostError when the disk is full.
        """
        from launcher.checkpoint.merge import Options, merge, plan_merge
        from launcher.checkpoint.of_job import default_output, job_source

        source = job_source(self.paths, self.record)
        options = Options(step=step, layout=layout, dtype=dtype, verify_full=verify_full)
        target = default_output(source, options) if output is None else Path(output)
        with ExitStack() as stack:
            return merge(plan_merge(source, options, stack), target, force=force)

    def report(self, output: AnyPath | None = None, *, lang: str | None = None) -> Path:
        """Write the report, one HTML file, to ``output`` or JOB.report.html, and return its path."""
        return report([self], output, lang=lang)


def report(jobs: Sequence[Job], output: AnyPath | None = None, *, lang: str | None = None) -> Path:
    """Write the report of one job, or the comparison of several, and return its path.

    ``lang``: "en" or "zh"; by $LAUNCHER_LANG or the locale if None. Raises HostError when it cannot be written.
    """
    from launcher.common.atomic import write_atomic
    from launcher.errors import HostError
    from launcher.jobs.verdict import user_language
    from launcher.observe.history import read_history
    from launcher.observe.report import make_report

    page = make_report([read_history(one.paths, one.record) for one in jobs], lang or user_language())
    short = "_".join(one.id.split("-")[0] for one in jobs) if len(jobs) > 1 else jobs[0].id
    target = Path(f"{short}.report.html" if output is None else output)
    try:
        write_atomic(target, page)
    except OSError as error:
        raise HostError(f"cannot write {target}: {error.strerror}", hint="name another file") from error
    return target


def job(reference: AnyPath = "last", *, jobs_dir: AnyPath | None = None) -> Job:
    """Return the job of an id, a unique prefix of one, the name of a run, "last", or a job's folder.

    Raises JobError when there is none, or a prefix fits several.
    """
    found = find_job(os.fspath(reference), default_jobs_dir() if jobs_dir is None else Path(jobs_dir))
    if found is None:
        raise JobError(f"{os.fspath(reference)} is not the folder of a job", hint="launcher jobs lists them")
    return Job(found[0])


def list_jobs(
    *,
    state: str | None = None,
    name: str | None = None,
    tags: str | Sequence[str] = (),
    jobs_dir: AnyPath | None = None,
) -> list[Job]:
    """Return all jobs, oldest first: those in ``state`` ("running,failed"), with ``name`` in their id, with ``tags``.

    Raises SpecError for an unknown state.
    """
    store = JobStore(default_jobs_dir() if jobs_dir is None else Path(jobs_dir))
    return [Job(paths) for paths, _ in select_jobs(store.all(), states=state, name=name, tags=_listed(tags))]


def _listed(given: str | Sequence[str]) -> Sequence[str]:
    """Return one text as the only one of a list: a text is a sequence of letters, too."""
    return (given,) if isinstance(given, str) else given


# ------------------------------------------------------------------------------------------------ submitting


def submit(
    spec: RunSpec | Mapping[str, Any] | AnyPath | None = None,
    *,
    cards: int | None = None,
    scheduler: str = LOCAL,
    model: AnyPath | None = None,
    data: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    changes: Mapping[str, Any] | None = None,
    again: Job | None = None,
    engine: str | None = None,
    limits: Limits | None = None,
    queue: bool = False,
    priority: int = 0,
    port: int | None = None,
    trackers: str | Sequence[str] = (),
    tags: str | Sequence[str] = (),
    note: str = "",
    preflight: bool = True,
    jobs_dir: AnyPath | None = None,
    tell: Tell = _warn,
    **scheduler_options: Any,
) -> Job:
    """Start a job as ``launcher submit`` does and return it as soon as its supervisor, or its scheduler, has it.

    ``spec``: a .yaml file, a name in configs/, a RunSpec, or a dict in its form; the default one if None. ``changes``:
    values by key, {"lora.r": 8}. ``again``: a job whose run this is once more, in place of ``spec``. ``queue``: for
    cards that other jobs have, by ``priority`` and arrival. ``tell``: takes
    notes for the user, which are warnings otherwise. ``scheduler_options``: of the command line, with underscores.

    Raises SpecError, DataError, CheckpointError or HostError before anything is started when something does not fit.
    """
    options = _options(
        again, engine=engine, limits=limits, wait_for_cards=queue, priority=priority, scheduler=scheduler
    )
    prepared = prepare.prepare(
        _spec(spec), cards=cards, port=port, jobs_dir=default_jobs_dir() if jobs_dir is None else Path(jobs_dir),
        checkpoint=_text(checkpoint), model=_text(model), data=_text(data), changes=_overrides(changes or {}),
        earlier=(again.paths, again.record) if again else None,
        options=options, scheduler=scheduler, values=_known_options(scheduler, scheduler_options),
        track=_listed(trackers), tags=_listed(tags), note=note,
    )  # fmt: skip
    for said in prepared.notes:
        tell(said)
    if preflight:
        for said in prepare.preflight(prepared.plan, port=port):
            tell(said)
    return begin(completed(prepared, tell), tell)


def completed(prepared: prepare.PreparedRun, tell: Tell = _warn) -> prepare.PreparedRun:
    """Make the data that a prepared run lacks, tell what is new then, and return the run with it."""
    found = prepare.complete(prepared)
    for said in (said for said in found.notes if said not in prepared.notes):
        tell(said)
    return found


def begin(prepared: prepare.PreparedRun, tell: Tell = _warn) -> Job:
    """Start a run that is prepared and complete. Raises HostError when a card is taken or the scheduler refuses."""
    started = start.begin(prepared.plan)
    for line in started.lines:
        tell(line)
    return _started(started)


# Guards of jobs that this process started and that may have been dropped: who has started a process collects it.
_guards: list[subprocess.Popen[bytes]] = []


def _started(started: start.Started) -> Job:
    _guards[:] = [guard for guard in _guards if guard.poll() is None]
    if started.guard is not None:
        _guards.append(started.guard)
    return Job(started.paths, started.guard)


def _options(again: Job | None, *, limits: Limits | None, scheduler: str, **chosen: Any) -> RunOptions:
    launch = prepare.launch_of(again.paths) if again else None
    if launch and chosen["engine"] is None and launch.scheduler == scheduler:
        chosen["engine"] = launch.engine
    return RunOptions(limits=limits or (launch.limits if launch else Limits()), **chosen)


def _spec(spec: RunSpec | Mapping[str, Any] | AnyPath | None) -> str | dict[str, Any] | None:
    if spec is None or isinstance(spec, str | os.PathLike):
        return _text(spec)
    if isinstance(spec, Mapping):
        return dict(spec)
    return spec.model_dump(mode="json", exclude_unset=True)


def _text(path: AnyPath | None) -> str | None:
    return None if path is None else os.fspath(path)


def _overrides(changes: Mapping[str, Any]) -> list[Override]:
    return [
        Override(keys=tuple(key.split(".")), value=value, origin=f"changes[{key!r}]") for key, value in changes.items()
    ]


def _known_options(scheduler: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values``, of options that the scheduler has. Raises SpecError for others: they would have no effect."""
    from launcher.schedulers import registry

    known = {option.name for option in registry.get(scheduler).options}
    for name in values:
        if name not in known:
            has = f"its options: {', '.join(sorted(known))}" if known else "it has no options"
            hint = registry.get(scheduler).instead.get(f"--{name.replace('_', '-')}", has)
            raise SpecError(f"submit() has no option {name!r} with scheduler {scheduler!r}", hint=hint)
    return dict(values)


# ------------------------------------------------------------------------------------------------ models


class LoadedModel:
    """A model that answers. It is loaded with the first answer; one thread at a time asks it, others wait."""

    def __init__(self, session: Session) -> None:
        self._session, self._lock = session, threading.Lock()

    @property
    def name(self) -> str:
        return self._session.model.name

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[Mapping[str, str]]],
        *,
        raw: bool = False,
        system: str | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Return an answer to each prompt, in their order: ``text``, ``finish``, ``new_tokens``, ...

        A prompt is a text or a conversation, [{"role": "user", "content": "..."}, ...]. ``raw``: without the chat
        template. ``sampling``: max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop; what is left
        out is as the model's run said. Raises DataError for a prompt that is empty or too long, SpecError for settings
        that there are not. On Ascend what other threads print meanwhile is lost: MindSpore's own output is held back.
        """
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        spec = self._sampling(sampling)
        questions = [self._question(number, prompt, raw, system) for number, prompt in enumerate(asked)]
        # MindFormers logs to stdout, and makes a folder where the user is.
        with self._lock, contextlib.nullcontext() if self._session.on_cpu else quiet():
            found = dict(self._session.answers(self._session.prepare(questions), spec))
        return [found[place] for place in range(len(questions))]

    def _sampling(self, values: Mapping[str, Any]) -> Any:
        from pydantic import ValidationError

        from launcher.inference.sampling import GenerationSpec
        from launcher.runspec.sections import GenerationSection

        asked = {**self._session.model.generation.model_dump(), **values}
        seed = asked.pop("seed", 0)
        if isinstance(asked["stop"], str):
            asked["stop"] = (asked["stop"],)
        if not isinstance(seed, int) or seed < 0:
            raise SpecError(f"generate(): seed is a whole number from 0, got {seed!r}")
        try:
            found = GenerationSection.model_validate(asked)
        except ValidationError as error:
            names = ("seed", *GenerationSection.model_fields)
            problems = [_sampling_problem(item, names) for item in error.errors()]
            raise SpecError(
                "generate() cannot do this", problems=problems, hint=f"settings: {', '.join(names)}"
            ) from error
        return GenerationSpec(seed=seed, **found.model_dump())

    def _question(self, number: int, prompt: str | Sequence[Mapping[str, str]], raw: bool, system: str | None) -> Any:
        from launcher.data.messages import Message
        from launcher.inference.session import Question

        if isinstance(prompt, str):
            turns = [Message("user", prompt)]
        elif raw:
            raise SpecError("raw prompts are texts, not conversations", hint="leave raw out")
        else:
            turns = [Message(turn["role"], turn["content"]) for turn in prompt]
        if system is not None:
            turns.insert(0, Message("system", system))
        return Question(id=str(number), messages=tuple(turns), text=prompt if raw and isinstance(prompt, str) else None)


def load(
    reference: Job | AnyPath = "last",
    *,
    adapter: Job | AnyPath | None = None,
    tokenizer: AnyPath | None = None,
    config: AnyPath | None = None,
    template: str | None = None,
    context: int | None = None,
    device: int | None = None,
    batch_size: int = 8,
    jobs_dir: AnyPath | None = None,
    tell: Tell = _warn,
) -> LoadedModel:
    """Return the model of a job, a folder of merge-ckpt or transformers, or a weights file, as ``launcher infer`` does.

    Raises JobError when there is none, CheckpointError when it is no model, DataError for a bad tokenizer or template,
    HostError when there is no such card.
    """
    from launcher.inference.session import Session
    from launcher.inference.sources import Given, find_model

    given = Given(
        adapter=_reference(adapter),
        config=None if config is None else Path(config),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        template=template,
        context=context,
    )
    folder = default_jobs_dir() if jobs_dir is None else Path(jobs_dir)
    model = find_model(_reference(reference) or "last", folder, given)
    for said in model.notes:
        tell(said)
    return LoadedModel(Session(model, batch_size=batch_size, device_id=device))


def _reference(named: Job | AnyPath | None) -> str | None:
    return str(named.folder) if isinstance(named, Job) else _text(named)


def _sampling_problem(item: Any, names: Sequence[str]) -> str:
    name = ".".join(map(str, item["loc"]))
    if item["type"] != "extra_forbidden":
        return f"{name}: {item['msg'][:1].lower()}{item['msg'][1:]}, got {item['input']!r}"
    near = nearest(name, names)
    return f"there is no setting {name}" + (f"; did you mean {near}?" if near else "")


__all__ = ["Job", "LauncherError", "LoadedModel", "Note", "job", "list_jobs", "load", "report", "submit"]
