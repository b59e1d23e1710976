"""Logs: chosen, in order of time, followed, and rotated without loss."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from launcher.errors import JobError, SpecError
from launcher.jobs import JobPaths
from launcher.jobs.logs import (
    Source,
    Wanted,
    follow_logs,
    parse_ranks,
    parse_since,
    plain,
    print_logs,
    select,
    time_of,
    without_stamp,
)

MINDFORMERS = "2026-11-24 09:23:35,750 - mindformers./output/log - INFO - hello"
MINDSPORE = "[WARNING] ME(7:140,MainProcess):2026-11-24-09:23:36.113.456 [mindspore/train/x.py:1] there"


def make_logs(root: Path) -> JobPaths:
    paths = JobPaths(root=root / "job")
    paths.logs.mkdir(parents=True)
    paths.log("msrun").write_bytes(b"engine\n")
    paths.rank_log(0).write_bytes(b"one\ntwo \xff\nthree\n")
    return paths


def shown(paths: JobPaths, ranks: int = 2, **wanted: object) -> list[str]:
    lines: list[str] = []
    print_logs(paths, ranks, Wanted(**wanted), lines.append)  # type: ignore[arg-type]
    return lines


def test_logs_of_one_rank_and_of_all(tmp_path: Path) -> None:
    paths = make_logs(tmp_path)

    assert shown(paths, ranks=2, lines=2) == ["msrun | engine", "rank 0 | two \ufffd", "rank 0 | three"]
    lines: list[str] = []
    print_logs(paths, 2, Wanted(ranks=(0,), lines=2), lines.append)
    assert lines == ["two \ufffd", "three"]


@pytest.mark.parametrize(("rank", "expected"), [(2, "has ranks 0 to 1, not 2"), (1, "the rank never started")])
def test_logs_that_cannot_be_shown_say_why(tmp_path: Path, rank: int, expected: str) -> None:
    with pytest.raises(JobError, match=expected):
        print_logs(make_logs(tmp_path), 2, Wanted(ranks=(rank,)), lambda line: None)


def test_lines_of_ranks_are_in_order_of_time(tmp_path: Path) -> None:
    paths = make_logs(tmp_path)
    paths.log("msrun").unlink()
    paths.rank_log(0).write_text(f"{MINDFORMERS}\nof the same moment\n{MINDFORMERS.replace(':35,', ':39,')}\n")
    paths.rank_log(1).write_text(f"{MINDSPORE}\n")

    assert [line.split(" |")[0] for line in shown(paths)] == ["rank 0", "rank 0", "rank 1", "rank 0"]


def test_times_are_read_from_both_kinds_of_lines() -> None:
    assert time_of(MINDFORMERS) == datetime(2026, 11, 24, 9, 23, 35, 750000).timestamp()
    assert time_of(MINDSPORE) == datetime(2026, 11, 24, 9, 23, 36, 113000).timestamp()
    assert time_of("2026-13-24 09:23:35,750") is None
    assert time_of("no time") is None


def test_since_keeps_what_was_written_later(tmp_path: Path) -> None:
    lines = ["before all", MINDFORMERS, "a", MINDSPORE, "b"]
    wanted = Wanted(since=datetime(2026, 11, 24, 9, 23, 36).timestamp())

    assert [line for _, line in select(lines, wanted)] == [MINDSPORE, "b"]


def test_errors_are_lines_that_say_so_and_whole_tracebacks() -> None:
    trace = ["Traceback (most recent call last):", '  File "x", line 1, in y', "    boom()", "ValueError: no"]
    lines = ["fine", *trace, "fine", "[ERROR] DEVICE: EE9999: Inner Error!", "errors: 0", "EI0006: Getting socket"]

    assert [line for _, line in select(lines, Wanted(errors=True))] == [*trace, lines[6], lines[8]]


@pytest.mark.parametrize(("text", "ranks"), [("0", (0,)), ("0,3-5", (0, 3, 4, 5)), (" 1 , 1 ", (1,))])
def test_lists_of_ranks(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(text) == ranks


@pytest.mark.parametrize("text", ["", "x", "-1", "1-", "1-x", "0;1", "9" * 20, "5-3", "0-9999999999"])
def test_what_is_no_list_of_ranks_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--rank "):
        parse_ranks(text)


def test_since_is_an_age_or_a_time() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)

    assert parse_since("10m", now) == (now - timedelta(minutes=10)).timestamp()
    assert parse_since("1.5h", now) == (now - timedelta(minutes=90)).timestamp()
    assert parse_since("2026-01-31T12:00+00:00") == now.timestamp()


@pytest.mark.parametrize("text", ["yesterday", "", "9999999d", "99999999999999999999d", "9" * 400 + "d"])
def test_what_is_no_age_and_no_time_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is no time"):
        parse_since(text)


def test_a_log_is_rotated_without_losing_a_line(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from launcher.jobs.log_writing import rotate, write_to
log = Path(sys.argv[1])
write_to(log)
for number in range(3000):
    print(number, flush=True)
    if number % 700 == 699:
        rotate(log)
"""
    log = tmp_path / "worker_0.log"
    subprocess.run([sys.executable, "-c", script, str(log)], check=True, timeout=60)
    source = Source(name="rank 0", path=log, number=0)

    assert [path.name for path in source.parts()] == [f"worker_0.log.{n}" for n in (1, 2, 3, 4)] + ["worker_0.log"]
    assert list(source.lines()) == [str(number) for number in range(3000)]


PRINTS = """
import logging, sys
from pathlib import Path
from launcher.jobs.log_writing import stamp_lines, write_to
write_to(Path(sys.argv[1]))
stamp_lines()
print("one")
print("two", "three")
sys.stdout.write("fo")
sys.stdout.write("ur\\r100%\\n\\n")
logging.basicConfig(format="%(asctime)s - %(message)s")
logging.warning("said by logging")
print("\\ud800 \\u4e2d")
raise ValueError("five")
"""


def test_every_line_that_python_writes_has_one_time(tmp_path: Path) -> None:
    log = tmp_path / "worker_0.log"
    subprocess.run([sys.executable, "-c", PRINTS, str(log)], check=False, timeout=60)
    lines = log.read_bytes().decode().split("\n")

    assert [line for line in lines if line and time_of(line) is None] == []
    assert [without_stamp(line) for line in lines[:4]] == ["one", "two three", "four\r100%", ""]
    assert without_stamp(lines[4]) == lines[4]  # logging has a time of its own, and gets no second one
    assert without_stamp(lines[5]) == "\\ud800 \u4e2d"
    traceback = [line for _, line in select(lines, Wanted(errors=True))]
    assert [without_stamp(line) for line in (traceback[0], traceback[-1])] == [
        "Traceback (most recent call last):",
        "ValueError: five",
    ]


def test_following_reads_on_over_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "worker_0.log"
    source = Source(name="rank 0", path=log, number=0)
    assert list(source.new()) == []
    log.write_text("old\n")
    source.skip_to_end()
    with log.open("a") as file:
        file.write("one\ntw")
    assert list(source.new()) == ["one"]
    with log.open("a") as file:
        file.write("o\n")
    log.rename(tmp_path / "worker_0.log.1")
    log.write_text("three\n")
    assert list(source.new()) == ["two", "three"]
    source.close()


def test_a_line_that_comes_between_looking_back_and_following_is_shown_once(tmp_path: Path) -> None:
    log = tmp_path / "worker_0.log"
    source = Source(name="rank 0", path=log, number=0)
    log.write_text("old\nhal")
    source.skip_to_end()
    with log.open("a") as file:
        file.write("f\nnew\n")

    assert list(source.lines()) == ["old"]
    assert list(source.new()) == ["half", "new"]
    source.close()


def test_following_shows_a_line_once_that_is_written_while_the_lines_before_are_shown(tmp_path: Path) -> None:
    paths, lines = make_logs(tmp_path), list[str]()

    def write_and_note(line: str) -> None:
        if line == "rank 0 | one":
            with paths.rank_log(0).open("a") as file:
                file.write("four\n")
        lines.append(line)

    follow_logs(paths, 2, Wanted(), write_and_note, plain, now=lambda: (1, False))

    assert lines == ["msrun | engine", "rank 0 | one", "rank 0 | two \ufffd", "rank 0 | three", "rank 0 | four"]


def test_the_command_follows_to_the_end(tmp_path: Path) -> None:
    from test_jobs import record

    from launcher import jobs
    from launcher.common.processes import ProcessId

    paths = make_logs(tmp_path)
    running = record("job", jobs.RUNNING)
    jobs.write_record(paths, running)
    assert running.supervisor == ProcessId.current()
    argv = [sys.executable, "-m", "launcher", "logs", "job", "--follow", "--jobs-dir", str(tmp_path)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "msrun | engine\n"
    for _ in range(3):
        process.stdout.readline()
    with paths.rank_log(0).open("a") as file:
        file.write("four\n")
    assert process.stdout.readline() == "rank 0 | four\n"
    time.sleep(0.3)
    jobs.write_record(paths, record("job", jobs.SUCCEEDED))
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0


def test_following_goes_on_with_the_next_attempt_and_with_logs_that_come_later(tmp_path: Path) -> None:
    paths, lines = make_logs(tmp_path), list[str]()
    second = paths.of_attempt(2)
    told = iter([(1, True), (1, True), (2, True), (2, True), (2, False)])

    def now() -> tuple[int, bool]:
        attempt, running = next(told)
        if attempt == 2 and not second.logs.is_dir():
            second.logs.mkdir(parents=True)
            second.rank_log(0).write_bytes(b"again\n")
        elif attempt == 2:
            second.log("scheduler").write_bytes(b"late\n")
        return attempt, running

    follow_logs(paths, 2, Wanted(), lines.append, plain, now=now)

    assert lines[4:] == ["rank 0 | again", "scheduler | late"]


def test_following_waits_for_a_rank_that_is_still_to_start(tmp_path: Path) -> None:
    paths, lines = make_logs(tmp_path), list[str]()
    told = iter([True, True, False])

    def now() -> tuple[int, bool]:
        running = next(told)
        if not running:
            paths.rank_log(1).write_bytes(b"here\n")
        return 1, running

    follow_logs(paths, 2, Wanted(ranks=(1,)), lines.append, plain, now=now)

    assert lines == ["here"]


def test_a_traceback_that_comes_in_two_parts_is_followed_whole(tmp_path: Path) -> None:
    paths, lines = make_logs(tmp_path), list[str]()
    parts = iter([b"", b"Traceback (most recent call last):\n", b"  File\nOops: no\nfine\n", b""])

    def now() -> tuple[int, bool]:
        part = next(parts)
        with paths.rank_log(0).open("ab") as file:
            file.write(part)
        return 1, part != b"" or len(lines) == 0

    follow_logs(paths, 2, Wanted(ranks=(0,), errors=True), lines.append, plain, now=now)

    assert lines == ["Traceback (most recent call last):", "  File", "Oops: no"]


def test_plain_lines_carry_their_rank() -> None:
    assert plain(Source(name="rank 3", path=Path("x"), number=3), "hello") == "rank 3 | hello"
