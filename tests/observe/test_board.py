"""``launcher board``: who may look, what the list and a job's page say, and that broken folders break nothing.

The page in a browser is in tests/web.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from support.boards import ENDED, RUNS, make_jobs, served_board
from support.job_folders import Made, MadeJob, lines, text

from launcher import jobs
from launcher.cli.app import main
from launcher.common.http.connections import Patience
from launcher.common.http.listening import listen, serving
from launcher.observe.board.listing import Listing, Row
from launcher.observe.board.live import LiveJob, LogView, log_end, log_names
from launcher.observe.board.pace import Paced
from launcher.observe.board.web import Board, application

TOKEN = "a-token-of-some-length"


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """A board that answers on ``port``. ``log``: its lines."""

    port: int
    log: list[str]

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        found = Answer(
            status=answer.status, headers=dict(answer.getheaders()), text=answer.read().decode("utf-8", "replace")
        )
        connection.close()
        return found

    @contextmanager
    def stream(self, path: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """Events of a stream, as (kind, value)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()

        def events() -> Iterator[tuple[str, Any]]:
            kind = ""
            while line := answer.readline().decode().rstrip("\n"):
                pass
            while True:
                line = answer.readline().decode().rstrip("\n")
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    yield kind, json.loads(line[6:])

        yield events()
        connection.close()


@contextmanager
def serve(root: Path, token: str | None = None, lang: str = "en") -> Iterator[Served]:
    with served_board(root, token, lang) as (port, log):
        yield Served(port=port, log=log)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    make_jobs(folder)
    return folder


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    with serve(root) as found:
        yield found


# --------------------------------------------------------------------------------------------------- list


def rows_of(served: Served) -> dict[str, Any]:
    with served.stream("/events") as events:
        kind, value = next(events)
    assert (kind, value["whole"]) == ("rows", True)
    return {row["job_id"]: row for row in value["rows"]}


def test_of_many_ranks_the_list_reads_one(tmp_path: Path) -> None:
    for cards in (16, 17):
        MadeJob(job_id=f"bcdfg-{cards}", cards=cards).write(tmp_path)
    rows = Listing(tmp_path).rows()

    assert rows["bcdfg-16"].loss == 2.0 + 0.5 * 7.5
    assert rows["bcdfg-17"].loss == 2.0


def test_the_list_tells_state_progress_loss_and_owner(served: Served) -> None:
    rows = rows_of(served)

    assert list(rows) == [RUNS, ENDED]
    assert (rows[RUNS]["state"], rows[RUNS]["done"], rows[RUNS]["total"], rows[RUNS]["left_s"]) == ("running", 4, 10, 6)
    assert (rows[RUNS]["loss"], rows[RUNS]["spark"]) == (2.25, [8.25, 4.25, 2.9167, 2.25])
    assert (rows[ENDED]["owner"], rows[ENDED]["left_s"], rows[ENDED]["cards"]) == ("ann", None, 2)


def test_only_what_changes_is_sent_again(tmp_path: Path) -> None:
    paths = make_jobs(tmp_path)
    with serve(tmp_path) as served, served.stream("/events") as events:
        next(events)
        more = lines(Made(from_step=4, steps=1), 0)[-1]
        with paths.rank_events(0).open("a") as file:
            file.write(text([more]))
        _, value = next(events)
        assert [(row["job_id"], row["done"]) for row in value["rows"]] == [(RUNS, 5)]
        (paths.root / "job.json").unlink()
        _, value = next(events)
        assert (value["rows"], value["gone"], value["whole"]) == ([], [RUNS], False)


def test_files_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    make_jobs(tmp_path)
    moment = [0.0]
    listing = Listing(tmp_path, clock=lambda: moment[0])
    before = listing.rows()
    moment[0] = 5.0
    after = listing.rows()

    assert all(after[job_id] is row for job_id, row in before.items())
    assert after is not before


def test_a_large_folder_is_read_in_several_looks(tmp_path: Path) -> None:
    make_jobs(tmp_path)
    moment = [0.0]

    def clock() -> float:
        moment[0] += 0.4
        return moment[0]

    listing, known = Listing(tmp_path, clock=clock), list[int]()
    for _ in range(3):
        known.append(sum(row.total is not None for row in listing.rows().values()))
        moment[0] += 5.0

    assert known == [1, 2, 2]


def test_a_value_that_was_costly_rests() -> None:
    moment, made = [0.0], list[str]()
    paced: Paced[str] = Paced(clock=lambda: moment[0])

    def make(name: str) -> str:
        moment[0] += 1.0
        made.append(name)
        return name

    assert paced.get(("running", 1), lambda: make("a")) == "a"
    assert paced.get(("running", 2), lambda: make("b")) == "a"
    assert paced.get(("failed", 2), lambda: make("c")) == "c"
    moment[0] += 21.0
    assert paced.get(("failed", 3), lambda: make("d")) == "d"
    assert made == ["a", "c", "d"]


# --------------------------------------------------------------------------------------------------- one job


def test_a_jobs_page_looks_like_its_report(served: Served) -> None:
    page = served.get(f"/jobs/{RUNS}")

    assert page.status == 200
    assert "4 of 10 steps are done, 6 s left." in page.text
    assert all(f'data-part="{name}"' in page.text for name in ("head", "curves", "ranks", "attempts", "events"))
    assert ">Held-out loss<" in page.text
    assert f'data-job="{RUNS}"' in page.text
    assert "<option>rank 1</option>" in page.text


def test_no_page_reads_files_while_streams_wait_for_it(tmp_path: Path) -> None:
    """Files are read in threads of their own: a folder that is slow must not hold up the loop that serves all."""

    class Watched(Listing):
        threads: ClassVar[set[str]] = set()

        def rows(self) -> dict[str, Row]:
            self.threads.add(threading.current_thread().name)
            return super().rows()

    make_jobs(tmp_path)
    board = Board(listing=Watched(tmp_path), lang="en")
    listener = listen("127.0.0.1", 0)
    with serving(application(board, lambda _: None), listener, Patience(most=64, request_s=20, answer_s=60)):
        served = Served(port=listener.getsockname()[1], log=[])
        assert served.get(f"/jobs/{RUNS}").status == 200
        assert served.get(f"/report?job={RUNS}").status == 200
    assert Watched.threads
    assert all(name.startswith("asyncio_") for name in Watched.threads), Watched.threads


def test_a_page_grows_with_its_job(tmp_path: Path) -> None:
    paths = make_jobs(tmp_path)
    with serve(tmp_path) as served, served.stream(f"/jobs/{RUNS}/events?log=rank+0&contains=two") as events:
        first = dict([next(events), next(events)])
        assert first["log"]["lines"] == ["Two"]
        assert first["job"]["charts"]["charts"][0]["curves"][0]["x"] == [1, 2, 3, 4]
        for rank_id in (0, 1):
            with paths.rank_events(rank_id).open("a") as file:
                file.write(text([lines(Made(from_step=4, steps=1), rank_id)[-1]]))
        with paths.rank_log(0).open("a") as file:
            file.write("two more\n")
        found: dict[str, Any] = {}
        while found.get("curve") != [1, 2, 3, 4, 5] or found.get("log") != ["Two", "two more"]:
            kind, value = next(events)
            found |= {"curve": value["charts"]["charts"][0]["curves"][0]["x"]} if kind == "job" else {}
            found |= {"log": value["lines"]} if kind == "log" else {}
        jobs.write_record(paths, replace(jobs.JobRecord.from_json(paths.record.read_text()), state=jobs.FAILED))
        while kind != "job" or value["state"] != "failed":
            kind, value = next(events)
        assert value["final"]
        assert "head" in value["parts"]


def test_a_job_that_goes_away_is_said(tmp_path: Path) -> None:
    paths = make_jobs(tmp_path)
    with serve(tmp_path) as served, served.stream(f"/jobs/{RUNS}/events") as events:
        next(events)
        paths.record.unlink()
        kind = ""
        while kind != "gone":
            kind, value = next(events)
        assert "there is no job" in value["message"]


def test_the_end_of_a_log_is_filtered(tmp_path: Path) -> None:
    paths = make_jobs(tmp_path)
    record = jobs.JobRecord.from_json(paths.record.read_text())

    def end(name: str, **choice: Any) -> list[str]:
        return log_end(paths, record, LogView(name=name, **choice))

    assert end("rank 0") == ["one", "Two", "ERROR bad"]
    assert end("rank 0", contains="TWO") == ["Two"]
    assert end("rank 0", errors=True) == ["ERROR bad"]
    assert end("rank 1") == end("rank 2") == end("../../job") == end("/etc/passwd") == []
    paths.log("msrun").write_text("started\n")
    assert log_names(paths, record) == ["rank 0", "rank 1", "msrun"]


def test_jobs_are_compared_as_by_the_command(served: Served) -> None:
    both = served.get(f"/report?job={RUNS}&job={ENDED}")

    assert "2 jobs" in both.text
    assert '<a href="/">All jobs</a>' in both.text
    assert "'unsafe-inline'" in both.headers["content-security-policy"].split("script-src")[1].split(";")[0]
    assert served.get(f"/report?job={ENDED}").status == 200
    assert served.get("/report").status == 400
    assert served.get("/report?" + "&".join(f"job=a{number}" for number in range(17))).status == 400


def test_the_board_speaks_chinese(root: Path) -> None:
    with serve(root, lang="zh") as served:
        assert "剩余时间" in served.get("/").text
        assert "包含文字" in served.get(f"/jobs/{RUNS}").text


# --------------------------------------------------------------------------------------------------- who may look


def test_other_host_names_are_refused(served: Served) -> None:
    for host in ("evil.example", "localhost.evil.example", f"127.0.0.1.evil.example:{served.port}", ""):
        assert served.get("/", Host=host).status in (400, 403)
    assert served.get("/", Host=f"localhost:{served.port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_there_is_nothing_to_write(served: Served, method: str) -> None:
    for path in ("/", f"/jobs/{RUNS}", "/events", "/report"):
        assert served.get(path, method).status == 405


def test_pages_load_scripts_of_this_server_alone(served: Served) -> None:
    page = served.get("/")

    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "http" not in page.text.replace("http-equiv", "")
    for name in ("board.js", "charts.js", "board.css", "report.css"):
        assert served.get(f"/static/{name}").status == 200


def test_a_token_is_asked_for_and_moved_into_a_cookie(root: Path) -> None:
    with serve(root, token=TOKEN) as served:
        for path in ("/", "/events", f"/jobs/{RUNS}", f"/jobs/{RUNS}/events", "/report?job=x", "/static/board.js"):
            assert served.get(path).status == 401
        assert served.get("/?token=wrong").status == 401
        assert 'name="token"' in served.get("/").text
        moved = served.get(f"/?state=failed&token={TOKEN}")
        assert (moved.status, moved.headers["location"]) == (303, "/?state=failed")
        assert "HttpOnly" in moved.headers["set-cookie"]
        assert "SameSite=strict" in moved.headers["set-cookie"]
        cookie = moved.headers["set-cookie"].split(";")[0]
        assert served.get("/", Cookie=cookie).status == 200
        assert TOKEN not in cookie
        assert served.get("/", Cookie=cookie[:-1]).status == 401
        assert served.get("/", Authorization=f"Bearer {TOKEN}").status == 200
        assert served.get(f"//evil.example/?token={TOKEN}").headers["location"] == "/evil.example/"
    assert not any(TOKEN in line for line in served.log)


def test_any_token_is_kept(root: Path) -> None:
    with serve(root, token='ein "Wort"; größer als 16') as served:
        moved = served.get("/?token=ein+%22Wort%22%3B+gr%C3%B6%C3%9Fer+als+16", Host="a:b")
        assert served.get("/", Cookie=moved.headers["set-cookie"].split(";")[0]).status == 200
        assert served.get("/", Cookie='a="; \\"').status == 401


@pytest.mark.parametrize(
    "path",
    ["/jobs/..", "/jobs/%2e%2e", "/jobs/..%2f..%2fetc", "/jobs/%2Fetc%2Fpasswd", "/jobs/.", "/jobs/nothing", "/jobs/",
     "/jobs/../../etc/passwd", "/jobs/a%00b", "/jobs/..%2Fjobs%2Fevents", "/static/..%2fcharts.py", "/static/report.js",
     "/static/%2e%2e/report.py", "/static/", "/jobs/%2e%2e/events", "/elsewhere"],
)  # fmt: skip
def test_paths_lead_nowhere_else(served: Served, path: str) -> None:
    answer = served.get(path)

    assert answer.status == 404
    assert "root:" not in answer.text


# --------------------------------------------------------------------------------------------------- broken folders


def broken(root: Path) -> dict[str, str]:
    """Write folders that are no good jobs; return what is said of each."""
    said = {}
    for number, (content, note) in enumerate((
        ("{", "line 1, column 2"), ("[]", "no JSON object"), ("null", ""), ("[" * 5000, "RecursionError"),
    )):  # fmt: skip
        folder = root / f"broken{number}"
        folder.mkdir()
        (folder / "job.json").write_text(content)
        said[folder.name] = note
    changes: dict[str, dict[str, Any]] = {
        "cards": {"cards": 10**9}, "attempt": {"attempt": 10**9}, "minus": {"cards": -1}, "named": {"name": 5},
        "entries": {"earlier": [1]}, "origin": {"origin": [1]}, "verdict": {"verdict": "x"}, "created": {"created": 7},
    }  # fmt: skip
    for name, change in changes.items():
        paths = MadeJob(job_id=name).write(root)
        paths.record.write_text(json.dumps({**json.loads(paths.record.read_text()), **change}))
        said[name] = "job.json"
    return said


def test_broken_folders_are_listed_and_break_nothing(tmp_path: Path) -> None:
    said = broken(tmp_path)
    make_jobs(tmp_path)
    (tmp_path / "a file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "job.json")
    with serve(tmp_path) as served:
        rows = rows_of(served)
        assert set(rows) == {*said, RUNS, ENDED}
        for name, note in said.items():
            assert rows[name]["state"] == "unreadable", name
            assert note in rows[name]["note"]
            answer = served.get(f"/jobs/{name}")
            assert (answer.status, "cannot be read" in answer.text) == (404, True)
        assert served.get(f"/jobs/{RUNS}").status == 200


@pytest.mark.parametrize("damage", ["[]", "{", '{"steps": -1, "ranks": [1, {"rank_id": "x"}]}', '{"steps": 1e400}'])
def test_damaged_files_of_a_job_leave_the_rest(tmp_path: Path, damage: str) -> None:
    paths = make_jobs(tmp_path)
    for file in (paths.plan, paths.spec):
        file.write_text(damage)
    paths.rank_events(1).write_text(
        '{"event": "eval", "step": {}, "time": []}\n\x00\n{"event": "begin", "time": "x"}\n'
    )
    with serve(tmp_path) as served:
        assert rows_of(served)[RUNS]["state"] == "running"
        assert served.get(f"/jobs/{RUNS}").status in (200, 500)
        assert served.get("/").status == 200


def test_what_jobs_say_is_text_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    job = MadeJob(job_id=evil.replace("/", "_"), record={"name": evil, "warnings": (evil,)})
    paths = job.write(tmp_path)
    with paths.rank_events(0).open("a") as file:
        file.write(json.dumps({"time": 1.0, "event": "error", "message": evil, "rank_id": 0}) + "\n")
    page = LiveJob("en").page(paths, job.make_record())

    assert "<script>" not in "".join(page.html.values())
    assert "&lt;script&gt;alert(1)" in page.html["events"]


def test_a_name_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    paths = make_jobs(tmp_path)
    paths.root.rename(tmp_path / os.fsdecode(b"\xff-job"))
    with serve(tmp_path) as served:
        assert rows_of(served)["\\udcff-job"]["note"] == "the name of its folder is not UTF-8"


def test_the_command_answers_until_it_is_stopped(root: Path) -> None:
    command = (sys.executable, "-m", "launcher", "board", "--port", "0", "--jobs-dir", str(root))
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LAUNCHER_TOKEN": ""}
    ) as child:
        assert child.stderr
        said = child.stderr.readline()
        port = int(said.split("http://127.0.0.1:")[1].split("/")[0])
        assert Served(port=port, log=[]).get("/").status == 200
        child.terminate()
        assert child.wait(20) == 0
        assert child.stderr.read().endswith("stopped\n")


def test_other_machines_need_a_token(tmp_path: Path) -> None:
    found = CliRunner(env={"LAUNCHER_TOKEN": ""}).invoke(
        main, ["board", "--host", "0.0.0.0", "--jobs-dir", str(tmp_path)]  # noqa: S104
    )  # fmt: skip

    assert found.exit_code == 2
    assert "there is no token" in found.stderr
