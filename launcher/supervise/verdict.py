"""The verdict on a failed job: the rank that failed first, how, why, and what to type next, in English and Chinese."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.jobs import JobPaths
from launcher.jobs.logs import tail
from launcher.jobs.verdict import EN, ZH, Verdict
from launcher.plan.launch import RankPlace
from launcher.supervise.known_errors import NOT_BUILT, KnownError, Recognised, look_for, recognise
from launcher.supervise.rank_states import SCHEDULER, Failure, RankStates

TRACEBACK_LINES = 30
TAIL_LINES = 6

# A process that MindSpore ends with an error writes C++ frames after the line that tells the cause.
ENDING_LINES = 60
LINE_CHARS = 200
_SCAN_LINES = 400

# Written by faulthandler for a signal that ends the process (CPython, Python/fault_handler).
_FATAL = re.compile(r"^Fatal Python error: ")

# "2026-11-24 13:48:54,931 - mindformers/JOB/log[mindformers/core/callback/callback.py:1781] - INFO - Finish saving".
_MINDFORMERS = re.compile(r"\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d{3} - mindformers\S*\[[^\]]*\] - [A-Z]+ - (.*)")

# py-spy's head of the main thread's stack, and faulthandler's: signals are handled in the main thread.
_MAIN_THREAD = re.compile(r'Thread .*"MainThread"$|Current thread 0x')

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Facts besides the failure itself. ``oom``: called with a pid, and only when the answer matters."""

    oom: Callable[[int | None], bool] | None = None
    stopped: tuple[int, ...] = ()
    disk_full: bool = False


def find_verdict(
    paths: JobPaths, places: Sequence[RankPlace], states: RankStates, failure: Failure, findings: Findings
) -> Verdict:
    """Return the verdict on ``failure``, from the ranks' reports and the ends of their logs."""
    ending = _ending(paths, failure, states.engine)
    how = _how(failure, states, findings)
    found = look_for(_texts(failure, ending))
    known = found.known if found else None
    lines = _shown(failure, ending, found)
    if known and known.name == NOT_BUILT:  # MindSpore's scheduler says why in its log, and nobody else knows
        known, lines = _asked_scheduler(paths, known, lines)
    # On a full disk a rank may not even have written its last words; the disk then explains it best.
    if known is None and findings.disk_full:
        known = recognise(["No space left on device"])
    rank = states.ranks[failure.rank_id] if failure.rank_id is not None else None
    place = next((place for place in places if place.rank_id == failure.rank_id), None)
    behind = failure.behind or (_behind(states, failure) if known and known.elsewhere else ())
    step = rank.last_step if rank else None
    text = {lang: _report(lang, failure, place, step, how, known, lines, findings.stopped, behind) for lang in (EN, ZH)}
    return Verdict(
        rank_id=failure.rank_id,
        reason=how[EN],
        step=step,
        kind=failure.kind,
        host=place.host if place else None,
        local_rank=place.local_rank if place else None,
        device_id=place.device_id if place else None,
        cause=known.cause[EN] if known else None,
        known=known.name if known else None,
        stopped=findings.stopped,
        behind=behind,
        retry=_retry(failure, known),
        # Only an exception that repeats proves a fault of the program; signals and hangs may well repeat by chance.
        signature=how[EN] if failure.kind == "exception" else "",
        text=text,
    )


def _asked_scheduler(paths: JobPaths, known: KnownError, lines: list[str]) -> tuple[KnownError, list[str]]:
    """Return the cause named by the scheduler's log, with that line first; ``known`` and ``lines`` if it names none."""
    said = tail(paths.log(SCHEDULER), _SCAN_LINES)
    # It warns of the port and of its address, and then fails without them.
    found = look_for(["\n".join(said)], warnings=True)
    if found is None or found.known.name == NOT_BUILT:
        return known, lines
    return found.known, [f"scheduler: {found.line.rpartition('] ')[2]}", *lines]


def _retry(failure: Failure, known: KnownError | None) -> bool:
    """Return True for faults of the machine: signals, dead engines, hangs, and exceptions with such a known text."""
    if known is not None:
        return known.machine
    if failure.kind == "exit":
        return failure.code is None or failure.code < 0 or failure.program is not None
    return failure.kind in ("no_progress", "no_start", "stopped")


def _texts(failure: Failure, lines: Sequence[str]) -> list[str]:
    event = failure.event
    # The traceback ends with the exception; what it was raised from comes before, and counts only after it.
    said = [f"{event.type}: {event.message}", str(event.traceback)] if event else []
    return [*said, "\n".join(lines)]


def _behind(states: RankStates, failure: Failure) -> tuple[int, ...]:
    """Return the ranks with fewer steps than the one that complained; the unready ones when it had made no step."""
    own = states.ranks[failure.rank_id].last_step or 0 if failure.rank_id is not None else 0
    others = [rank for rank in states.ranks.values() if rank.rank_id != failure.rank_id]
    return tuple(rank.rank_id for rank in others if (rank.last_step or 0) < own or (not own and not rank.ready))


# ------------------------------------------------------------------------------------------------ how it ended


def _how(failure: Failure, states: RankStates, findings: Findings) -> dict[str, str]:
    if failure.kind == "exception":
        message = str(failure.event.message).strip() if failure.event else ""
        kind = failure.event.type if failure.event else None
        how = f"{kind}: {message.splitlines()[0] if message else ''}".rstrip(": ")
        return {EN: how, ZH: how}
    if failure.kind == "exit":
        return _how_ended(failure, states, findings)
    how_en, how_zh = _OTHER_KINDS[failure.kind]
    return {EN: how_en.format(failure.detail), ZH: how_zh.format(failure.detail)}


_OTHER_KINDS = {
    "no_start": ("it did not start within {} s", "在 {} 秒内未启动"),
    "no_progress": ("no progress: no rank finished a step for {} s", "没有进展：{} 秒内没有任何 rank 完成一个 step"),
    "stopped": ("its process has been suspended (SIGSTOP) for {} s", "进程已被挂起（SIGSTOP）{} 秒"),
    "foreign": ("{}", "{}"),
}


def _how_ended(failure: Failure, states: RankStates, findings: Findings) -> dict[str, str]:
    process = states.ranks[failure.rank_id].process if failure.rank_id is not None else None
    # The kernel kills with SIGKILL only; any other end has another cause.
    if failure.code == -signal.SIGKILL and findings.oom and findings.oom(process.pid if process else None):
        return {
            EN: "killed by the kernel's out-of-memory killer: this host has not enough main memory",
            ZH: "被内核 OOM killer 终止：主机内存不足",
        }
    return {EN: describe_exit(failure.code), ZH: describe_exit(failure.code, ZH)}


def describe_exit(code: int | None, lang: str = EN) -> str:
    """Return a Popen return code in words: "exit code 3", "killed by SIGKILL", "crashed (SIGSEGV)"."""
    if code is None:
        return "its process is gone, without a Python exception" if lang == EN else "进程已消失，没有 Python 异常"
    if code >= 0:
        return f"exit code {code}, without a Python exception" if lang == EN else f"退出码 {code}，没有 Python 异常"
    name = signal_name(code)
    if -code in _CRASHES:
        return f"crashed ({name})" if lang == EN else f"崩溃（{name}）"
    return f"killed by {name}" if lang == EN else f"被 {name} 终止"


def signal_name(code: int) -> str:
    """Return the name of the signal in a return code of -N, else "exit code N"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# ------------------------------------------------------------------------------------------------ last words


def _ending(paths: JobPaths, failure: Failure, engine: str | None) -> list[str]:
    """Return the last output of the rank or program that failed: its traceback, its stack, or the end of its log.

    Before a rank has a log, its output is in its engine's.
    """
    if failure.event is not None:
        return str(failure.event.traceback).rstrip().splitlines()
    if failure.kind == "no_progress":
        return stack_of(paths, next(iter(failure.behind), 0))
    if failure.rank_id is not None:
        own = tail(paths.rank_log(failure.rank_id), _SCAN_LINES)
        return _from_fatal_error(own or _before_rules(tail(paths.log(engine), _SCAN_LINES) if engine else []))
    return tail(paths.log(failure.program), ENDING_LINES) if failure.program else []


def _before_rules(lines: list[str]) -> list[str]:
    """Return the lines before Open MPI's own messages, which it sets between lines of dashes."""
    return list(itertools.takewhile(lambda line: not line.startswith("-" * 20), lines)) or lines


def _from_fatal_error(lines: list[str]) -> list[str]:
    """Return the lines from the interpreter's last fatal error on, where a crash wrote one; else the last lines."""
    for index in range(len(lines) - 1, -1, -1):
        if _FATAL.match(lines[index]):
            return lines[index:][:TRACEBACK_LINES]
    return lines[-ENDING_LINES:]


def _shown(failure: Failure, ending: list[str], found: Recognised | None) -> list[str]:
    """Return nearly all of a traceback or stack; of a log its last lines, and before them the line with the cause."""
    if failure.event is not None:
        # The last lines name the exception and where it was raised; of the rest only the beginning helps.
        whole = len(ending) <= TRACEBACK_LINES
        return ending if whole else [*ending[:2], "  ...", *ending[-TRACEBACK_LINES:]]
    if failure.kind == "no_progress" or (ending and _FATAL.match(ending[0])):
        return ending
    earlier, last = ending[:-TAIL_LINES], ending[-TAIL_LINES:]
    telling = [found.line] if found and found.line in earlier else []
    return [_brief(line) for line in (*telling, *(["..."] if telling else []), *last)]


def _brief(line: str) -> str:
    """Return a line of MindFormers' log reduced to its time and text."""
    match = _MINDFORMERS.match(line)
    return f"{match[1]} {match[2]}" if match else line


def stack_of(paths: JobPaths, rank_id: int) -> list[str]:
    """Return the main thread's stack of a rank that hangs, written by py-spy or by the rank's own faulthandler."""
    file = paths.rank_stacks(rank_id)
    spied = file.is_file()
    lines = tail(file if spied else paths.rank_log(rank_id), _SCAN_LINES)
    heads = [number for number, line in enumerate(lines) if _MAIN_THREAD.match(line)]
    if not heads:
        return lines[-TAIL_LINES:]
    # A log may hold several dumps; the last one is of this hang.
    frames = itertools.takewhile(lambda line: line.startswith("  "), lines[heads[-1] + 1 :])
    return [f"stack of rank {rank_id} (those of all ranks: {file.parent})", *frames][:TRACEBACK_LINES]


# ------------------------------------------------------------------------------------------------ the report

_WORDS = {
    EN: {
        "rank": "rank {rank} failed first, {when}: {how}",
        "place": "on host {host}, local rank {local}, device {device}",
        "before": "before its first step", "after": "after step {step}",
        "program": "{program} failed first: {how}",
        "behind": "not yet in the step: {ranks}",
        "cause": "probable cause: {cause}", "check": "check: {check}", "fix": "next: {fix}",
        "stopped": "stopped by launcher afterwards: {ranks}", "last": "the last it said:",
        "ranks": "rank {}", "join": ", rank ",
    },
    ZH: {
        "rank": "rank {rank} 最先失败，{when}：{how}",
        "place": "主机 {host}，local rank {local}，设备 {device}",
        "before": "第一个 step 之前", "after": "step {step} 之后",
        "program": "{program} 最先失败：{how}",
        "behind": "尚未进入该 step：{ranks}",
        "cause": "可能原因：{cause}", "check": "检查：{check}", "fix": "下一步：{fix}",
        "stopped": "随后由 launcher 停止：{ranks}", "last": "最后的输出：",
        "ranks": "rank {}", "join": "、rank ",
    },
}  # fmt: skip


def _report(
    lang: str, failure: Failure, place: RankPlace | None, step: int | None, how: Mapping[str, str],
    known: KnownError | None, lines: Sequence[str], stopped: Sequence[int], behind: Sequence[int],
) -> str:  # fmt: skip
    words = _WORDS[lang]
    parts = [_headline(lang, failure, place, step, how[lang])]
    # Lines of a rank that ended without an error of its own explain nothing by themselves.
    explains = known or failure.kind != "exit" or not lines or _FATAL.match(lines[0])
    parts += [] if explains else ["  " + words["last"]]
    parts += [f"    {_cut(line)}" for line in lines]
    if place:
        where = words["place"].format(host=place.host, local=place.local_rank, device=place.device_id)
        parts.append(f"  {where}")
    for name, ranks in (("behind", behind), ("stopped", stopped)):
        if ranks:
            shown = words["ranks"].format(words["join"].join(map(str, ranks)))
            parts.append("  " + words[name].format(ranks=shown))
    if known:
        parts.append("  " + words["cause"].format(cause=known.cause[lang]))
        parts += ["  " + words["check"].format(check=known.check)] if known.check else []
        parts.append("  " + words["fix"].format(fix=known.fix[lang]))
    return "\n".join(parts)


def _cut(line: str) -> str:
    """Return the part of a line that fits; the log has all of it."""
    return line if len(line) <= LINE_CHARS else f"{line[:LINE_CHARS]} ..."


def _headline(lang: str, failure: Failure, place: RankPlace | None, step: int | None, how: str) -> str:
    words = _WORDS[lang]
    if place is not None:
        when = words["before"] if step is None else words["after"].format(step=step)
        return words["rank"].format(rank=place.rank_id, when=when, how=how)
    if failure.program is not None:
        program = "MindSpore's scheduler" if failure.program == SCHEDULER and lang == EN else failure.program
        return words["program"].format(program=program, how=how)
    return how


def with_restart(verdict: Verdict) -> Verdict:
    """Return ``verdict`` with the decision on a restart as the last line of its report."""
    if not verdict.restart:
        return verdict
    text = {
        lang: f"{said}\n  {verdict.restart[lang]}" for lang, said in verdict.text.items() if lang in verdict.restart
    }
    return replace(verdict, text={**verdict.text, **text})


def lost_verdict(how: str, survivors: Sequence[int]) -> Verdict:
    """Return the verdict that the guard writes when the supervisor itself was ended from outside."""
    left = f" these processes would not die: {', '.join(map(str, survivors))}" if survivors else ""
    reason = f"the job's supervisor was ended from outside ({how});"
    text = {
        EN: f"{reason}{left or ' everything of the job was stopped'}\n  next: launcher resume JOB",
        ZH: f"任务的监控进程被外部终止（{how}）；{left or '任务的所有进程已停止'}\n  下一步：launcher resume JOB",
    }
    return Verdict(rank_id=None, reason=reason.rstrip(";"), step=None, kind="lost", retry=True, text=text)
