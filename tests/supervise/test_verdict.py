"""Causes, languages, and the kernel's out-of-memory killer."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launcher.jobs import JobPaths
from launcher.jobs.events import Event, from_json
from launcher.jobs.verdict import EN, ZH, Verdict, user_language, verdict_text
from launcher.plan.launch import RankPlace
from launcher.supervise import oom
from launcher.supervise.known_errors import KNOWN_ERRORS, recognise
from launcher.supervise.rank_states import Failure, RankStates
from launcher.supervise.verdict import Findings, describe_exit, find_verdict, lost_verdict

PLACES = tuple(RankPlace(rank_id=n, local_rank=n, host="node0", device_id=n + 4) for n in range(3))


def event(rank_id: int | None, kind: str, when: float = 1.0, **fields: object) -> Event:
    found = from_json({"time": when, "rank_id": rank_id, "event": kind, **fields})
    assert found
    return found


def error(rank_id: int, message: str, when: float = 5.0) -> Event:
    trace = f"Traceback (most recent call last):\n  x\nRuntimeError: {message}"
    return event(rank_id, "error", when, type="RuntimeError", message=message, traceback=trace)


def judge(states: RankStates, tmp_path: Path, findings: Findings | None = None) -> Verdict:
    failure = states.first_failure()
    assert failure is not None
    return find_verdict(JobPaths(root=tmp_path), PLACES, states, failure, findings or Findings())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("EI0002: The wait execution of the Notify register times out", "EI0002"),
        ("EI0004: The ranktable is invalid", "EI0004"),
        ("EI0006: Getting socket times out", "EI0006"),
        ("EI0009: Transport init error", "EI0009"),
        ("EJ0001: Failed to initialize the HCCP process", "EJ0001"),
        ("EL0004: Failed to allocate memory", "out of device memory"),
        ("EE9999: Inner Error!", "EE9999"),
        ("EE1001: The argument is invalid. set device=8, valid device range is [0, 8)", "EE1001"),
        ("EE9999: Inner Error! other processes occupying this card", "occupied"),
        ("Device(id:0) memory isn't enough and alloc failed", "out of device memory"),
        ("ValueError: loss is nan at step 3", "loss is not a number"),
        ("OSError: [Errno 28] No space left on device", "disk full"),
        ("Ring ReduceScatter wait receiving message fail", "peer gone"),
    ],
)
def test_known_errors_are_recognised(text: str, name: str) -> None:
    known = recognise([text])

    assert known is not None
    assert known.name == name


def test_the_line_that_tells_the_cause_is_shown_though_frames_follow_it(tmp_path: Path) -> None:
    log = JobPaths(root=tmp_path).rank_log(1)
    log.parent.mkdir(parents=True)
    prefix = "2026-11-24 13:48:54,931 - mindformers/jobs/x/log[mindformers/core/callback/callback.py:1781] - INFO - "
    frames = [f"frame {number}" for number in range(20)]
    log.write_text("\n".join(["EL0004: Failed to allocate memory", *frames, f"{prefix}Finish saving ckpt", ""]))
    states = RankStates(3, "msrun")
    states.rank_gone(1, 5.0, 1)
    verdict = judge(states, tmp_path)

    assert verdict.known == "out of device memory"
    assert verdict.text[EN].splitlines()[1:9] == [
        "    EL0004: Failed to allocate memory", "    ...", *(f"    {frame}" for frame in frames[-5:]),
        "    13:48:54 Finish saving ckpt",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["ValueError: no luck", "NEI0002X", "loss 0.1", "banana", "EE99999", ""])
def test_other_texts_are_not(text: str) -> None:
    assert recognise([text]) is None


def test_every_line_of_the_corpus_that_names_a_code_is_known() -> None:
    corpus = Path(os.environ.get("LAUNCHER_CORPUS") or Path(__file__).resolve().parents[3] / "shared" / "corpus")
    file = corpus / "hosts" / "plog" / "cann_error_lines.txt"
    if not file.is_file():
        pytest.skip(f"no corpus at {corpus}")
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"E[A-Z0-9]\d{4}", line)]

    assert len(lines) >= 10
    assert [line for line in lines if recognise([line]) is None] == []


def test_every_known_error_speaks_both_languages_and_says_what_to_do() -> None:
    for known in KNOWN_ERRORS:
        for texts in (known.cause, known.fix):
            assert set(texts) == {EN, ZH}
            assert texts[EN].isascii(), known.name
        assert re.search("[\u4e00-\u9fff]", known.cause[ZH]), known.name


def test_the_earliest_counts_and_victims_name_who_is_behind(tmp_path: Path) -> None:
    states = RankStates(3, "msrun")
    for rank_id in (0, 1, 2):
        states.note(event(rank_id, "begin", pid=1, started=1.0))
        states.note(event(rank_id, "ready"))
        states.note(event(rank_id, "step", step=7, step_s=0.1))
    states.note(event(0, "step", step=8, step_s=0.1))
    states.note(error(2, "later", 6.0))
    states.note(error(0, "EI0002: notify wait timeout", 5.0))
    verdict = judge(states, tmp_path, Findings(stopped=(1,)))

    assert (verdict.rank_id, verdict.step, verdict.behind, verdict.retry) == (0, 8, (1, 2), True)
    assert (verdict.host, verdict.local_rank, verdict.device_id) == ("node0", 0, 4)
    english, chinese = verdict.text[EN], verdict.text[ZH]
    assert english.startswith("rank 0 failed first, after step 8: RuntimeError: EI0002: notify wait timeout\n")
    assert "on host node0, local rank 0, device 4" in english
    assert "not yet in the step: rank 1, rank 2" in english
    assert "stopped by launcher afterwards: rank 1" in english
    assert "probable cause: a collective waited longer than HCCL_EXEC_TIMEOUT" in english
    assert chinese.startswith("rank 0 最先失败，step 8 之后：RuntimeError")
    assert "可能原因：集合通信等待超过 HCCL_EXEC_TIMEOUT" in chinese


def test_a_death_before_an_error_is_the_first_failure(tmp_path: Path) -> None:
    states = RankStates(2, None)
    states.rank_gone(1, 4.0, -9)
    states.note(error(0, "Connection reset by peer", 4.2))

    assert judge(states, tmp_path).text[EN].startswith("rank 1 failed first, before its first step: killed by SIGKILL")


def test_ranks_that_fell_with_their_engine_did_not_fail_first(tmp_path: Path) -> None:
    states = RankStates(2, "msrun")
    for rank_id in (0, 1):
        states.rank_gone(rank_id, 4.0 + rank_id / 100, -9)
    assert states.in_doubt
    states.program_gone("msrun", 4.6, 0)

    assert judge(states, tmp_path).text[EN].startswith("msrun failed first: exit code 0")


def test_msrun_that_reacts_to_a_death_spares_its_scheduler_and_one_that_is_told_to_stop_does_not() -> None:
    states = RankStates(2, "msrun")
    assert not states.scheduler_was_spared  # nothing is known of it
    states.note(event(None, "begin", pid=os.getpid(), started=1.0))
    assert states.scheduler_was_spared
    states.program_gone("scheduler", 4.1)
    assert not states.scheduler_was_spared


def test_ranks_that_were_told_to_end_by_their_engine_need_not_end_at_once(tmp_path: Path) -> None:
    states = RankStates(3, "mpirun")
    states.rank_gone(0, 4.0, -15)
    assert states.in_doubt
    states.rank_gone(1, 4.7, -15)
    states.rank_gone(2, 5.0, -9)
    states.program_gone("mpirun", 5.2, 1)

    assert judge(states, tmp_path).text[EN].startswith("mpirun failed first: exit code 1")


@pytest.mark.parametrize(("engine", "code"), [("mpirun", 1), ("msrun", 0)])
@pytest.mark.parametrize("first", [None, -15, -9])
@pytest.mark.parametrize("second", [None, -15, -6])
def test_an_engine_that_was_told_to_stop_may_take_its_time_between_ranks(
    tmp_path: Path, engine: str, code: int, first: int | None, second: int | None
) -> None:
    """On a busy host: and the rank that is left may crash of the other's loss before its turn comes."""
    states = RankStates(2, engine)
    states.rank_gone(0, 4.0, first)
    assert states.in_doubt or states.unexplained or first == -9
    states.rank_gone(1, 4.4, second)
    states.program_gone(engine, 5.2, code)

    assert judge(states, tmp_path).text[EN].startswith(f"{engine} failed first: exit code {code}")


def test_a_rank_that_raised_before_its_engine_was_told_to_stop_failed_first(tmp_path: Path) -> None:
    states = RankStates(2, "mpirun")
    states.note(error(1, "no luck", 4.0))
    states.rank_gone(0, 4.4, -15)
    assert not states.in_doubt
    states.program_gone("mpirun", 5.2, 1)

    assert judge(states, tmp_path).rank_id == 1


def test_a_lone_rank_that_its_engine_ended_did_not_fail_first(tmp_path: Path) -> None:
    states = RankStates(1, "mpirun")
    states.rank_gone(0, 4.0, -15)
    assert states.in_doubt
    states.program_gone("mpirun", 5.2, 1)

    assert judge(states, tmp_path).text[EN].startswith("mpirun failed first")


def test_the_rank_that_mpirun_names_ended_before_those_that_it_then_ended(tmp_path: Path) -> None:
    """Both were seen gone at once, and how is not known: alone that looks as if mpirun had been told to stop."""
    states = RankStates(2, "mpirun")
    for rank_id in (0, 1):
        states.rank_gone(rank_id, 4.0)
    states.program_gone("mpirun", 4.1, 1)
    assert judge(states, tmp_path).text[EN].startswith("mpirun failed first")
    states.rank_named(1, 5.0, 1)

    assert judge(states, tmp_path).text[EN].startswith("rank 1 failed first, before its first step: exit code 1")


def test_an_engines_word_is_no_news_of_a_rank_that_told_itself(tmp_path: Path) -> None:
    states = RankStates(2, "mpirun")
    states.note(error(0, "no luck", 4.0))
    states.note(event(1, "done"))
    for rank_id in (0, 1):
        states.rank_named(rank_id, 5.0, 1)

    assert states.ranks[0].gone is states.ranks[1].gone is None


def test_a_rank_that_somebody_ended_is_not_its_engines_victim(tmp_path: Path) -> None:
    """mpirun itself then ends with the rank's code, and msrun with 1."""
    for engine, code in (("mpirun", 143), ("msrun", 1)):
        states = RankStates(2, engine)
        states.rank_gone(0, 4.0, -15)
        states.rank_gone(1, 4.5, -9)
        states.program_gone(engine, 5.2, code)
        assert judge(states, tmp_path).rank_id == 0


def test_ranks_that_fell_one_after_the_other_did_not_fall_with_their_engine(tmp_path: Path) -> None:
    states = RankStates(2, "msrun")
    states.rank_gone(1, 4.0, -9)
    assert not states.in_doubt
    states.rank_gone(0, 5.0, -9)
    states.program_gone("msrun", 5.5, 1)

    assert judge(states, tmp_path).rank_id == 1


def test_the_out_of_memory_killer_is_named(tmp_path: Path) -> None:
    states = RankStates(1, None)
    states.rank_gone(0, 4.0, -9)
    verdict = judge(states, tmp_path, Findings(oom=lambda pid: True))

    assert "killed by the kernel's out-of-memory killer" in verdict.text[EN]
    assert "OOM killer" in verdict.text[ZH]


def test_pids_are_read_from_the_kernels_log() -> None:
    log = (
        "3,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,task=python,pid=77,uid=0\n"
        "3,1,3,-;Memory cgroup out of memory: Killed process 77 (python) total-vm:1kB, anon-rss:1kB\n"
        "3,1,4,-;Out of memory: Killed process 1234 (python) total-vm:1kB\n"
        "6,1,5,-;something else about process 99\n"
    )
    assert oom.killed_pids(log) == {77, 1234}


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        ("0::/jobs/a\n", "sys/fs/cgroup/jobs/a/memory.events", "low 0\noom 1\noom_kill 3\noom_group_kill 0\n"),
        ("5:cpu:/x\n9:memory:/a\n", "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\noom_kill 3\n"),
    ],
)
def test_kills_are_read_from_both_kinds_of_cgroups(tmp_path: Path, own: str, file: str, text: str) -> None:
    for path, content in (("proc/self/cgroup", own), (file, text)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)

    assert oom.cgroup_kills(tmp_path) == 3
    assert oom.cgroup_kills(tmp_path / "none") == 0


def test_a_crash_shows_what_the_interpreter_wrote_about_it(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path)
    paths.logs.mkdir(parents=True)
    noise = "\n".join(f"line {n}" for n in range(300))
    paths.rank_log(0).write_text(f"{noise}\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1:\n  File x\n")
    states = RankStates(1, None)
    states.rank_gone(0, 4.0, -11)
    text = judge(states, tmp_path).text[EN]

    assert "crashed (SIGSEGV)\n    Fatal Python error: Segmentation fault" in text
    assert "line 299" not in text


@pytest.mark.parametrize(
    ("code", "english", "chinese"),
    [(3, "exit code 3", "退出码 3"), (-15, "killed by SIGTERM", "被 SIGTERM 终止"), (-6, "crashed (SIGABRT)", "崩溃"),
     (-99, "killed by signal 99", "signal 99"), (None, "its process is gone", "进程已消失")],
)  # fmt: skip
def test_exit_codes_in_words(code: int | None, english: str, chinese: str) -> None:
    assert english in describe_exit(code)
    assert chinese in describe_exit(code, ZH)


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, EN), ({"LANG": "zh_CN.UTF-8"}, ZH), ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, EN),
        ({"LANG": "C", "LAUNCHER_LANG": "zh"}, ZH), ({"LANG": "en_US.UTF-8"}, EN),
    ],
)  # fmt: skip
def test_the_language_follows_the_locale(environment: dict[str, str], language: str) -> None:
    assert user_language(environment) == language


def test_a_verdict_of_another_version_can_be_shown() -> None:
    assert verdict_text({"text": "plain"}, ZH) == "plain"
    assert verdict_text({"text": {"en": "a"}}, ZH) == "a"
    assert verdict_text({}, EN) == ""
    assert "SIGKILL" in lost_verdict("SIGKILL", [7]).text[EN]


@pytest.mark.parametrize("lang", [EN, ZH])
def test_what_a_report_says_to_type_names_the_job(lang: str) -> None:
    shown = verdict_text(lost_verdict("SIGKILL", []).to_dict(), lang, "bcdfg-x")

    assert "launcher resume bcdfg-x" in shown
    assert "JOB" not in shown


def test_a_full_disk_is_the_cause_when_nothing_else_is_known(tmp_path: Path) -> None:
    states = RankStates(1, None)
    states.note(error(0, "write error"))
    verdict = judge(states, tmp_path, Findings(disk_full=True))

    assert "probable cause: the disk is full" in verdict.text[EN]


def test_a_failure_that_is_no_ranks_has_no_place(tmp_path: Path) -> None:
    failure = Failure(kind="foreign", time=1.0, detail="the launcher itself could not go on")
    verdict = find_verdict(JobPaths(root=tmp_path), PLACES, RankStates(0, None), failure, Findings())

    assert verdict.text[EN] == "the launcher itself could not go on"
