"""``launcher metrics``: what Prometheus' own parsers read in it."""

from __future__ import annotations

import http.client
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_older
from support.job_folders import BEGAN, Made, MadeJob, lines, text

from launcher import jobs
from launcher.cli.app import main
from launcher.common.http.connections import Patience
from launcher.common.http.listening import listen, serving
from launcher.common.openmetrics import CONTENT_TYPE
from launcher.jobs import JobPaths, JobStore
from launcher.observe.openmetrics import Scrapes, metrics_text
from launcher.observe.serving import application

ENDED, RUNS = "bcdfg-ended", "zzzzz-runs"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """A job that was resumed and has ended, one that runs, and one that cannot be read."""
    first = Made(ended=40.0, steps=6)
    second = Made(began=50.0, ended=80.0, from_step=4, steps=4, held_out=(8,))
    origin = {"user": 'a "b" \\ c'}
    MadeJob(job_id=ENDED, steps=8, attempts=(first, second), record={"origin": origin}).write(tmp_path)
    waiting = Made(more=lambda rank_id, step: {"input_s": 0.5 * rank_id})
    job = MadeJob(job_id=RUNS, state=jobs.RUNNING, steps=10, attempts=(waiting,))
    jobs.write_record(job.write(tmp_path), replace(job.make_record(), host="another"))
    (tmp_path / "qqqqq-damaged").mkdir()
    (tmp_path / "qqqqq-damaged" / "job.json").write_text("{")
    return JobStore(tmp_path)


def samples(families: Iterator[Any]) -> dict[tuple[str, ...], float]:
    """Return the value of each sample by its name, job and what else tells it from others."""
    found = {}
    for family in families:
        for sample in family.samples:
            own = [sample.labels[key] for key in ("rank", "state") if key in sample.labels]
            found[tuple([sample.name, sample.labels["job"], *own])] = sample.value
    return found


def test_the_official_parser_reads_every_job(store: JobStore) -> None:
    found = samples(parse_openmetrics(metrics_text(store)))

    assert found["launcher_job_info", ENDED] == 1
    assert {state: found["launcher_job_state", RUNS, state] for state in jobs.STATES if state == "running"} == {
        "running": 1
    }
    assert sum(found["launcher_job_state", "qqqqq-damaged", state] for state in jobs.STATES) == 1
    assert (found["launcher_job_step", ENDED], found["launcher_job_steps", ENDED]) == (8, 8)
    assert (found["launcher_job_loss", ENDED], found["launcher_job_held_out_loss", ENDED]) == (1.25, 1.125)
    assert found["launcher_job_tokens_total", ENDED] == 10 * 32 * 96  # two steps were done again
    assert found["launcher_job_restarts_total", ENDED] == 1
    assert (found["launcher_job_running_seconds", ENDED], found["launcher_job_productive_seconds", ENDED]) == (70, 8)
    assert found["launcher_job_created_timestamp_seconds", ENDED] == BEGAN
    assert found["launcher_job_remaining_seconds", RUNS] == 6


def test_ranks_of_running_jobs_alone_are_told(store: JobStore) -> None:
    found = samples(parse_openmetrics(metrics_text(store)))

    assert found["launcher_rank_input_wait_seconds_total", RUNS, "1"] == 2.0
    assert found["launcher_rank_memory_bytes", RUNS, "1"] == 1001 << 20
    assert ("launcher_rank_step", ENDED, "0") not in found


def test_labels_come_back_as_they_were(store: JobStore) -> None:
    (info,) = (family for family in parse_openmetrics(metrics_text(store)) if family.name == "launcher_job")
    users = {sample.labels["job"]: sample.labels["user"] for sample in info.samples}

    assert users[ENDED] == 'a "b" \\ c'


def test_the_older_format_has_the_same_values(store: JobStore) -> None:
    older = samples(parse_older(metrics_text(store, older=True)))
    types = {family.name: family.type for family in parse_older(metrics_text(store, older=True))}

    now = samples(parse_openmetrics(metrics_text(store)))
    moving = "launcher_job_running_seconds"
    assert {key: value for key, value in older.items() if key[0] != moving} == {
        key: value for key, value in now.items() if key[0] != moving
    }
    assert types["launcher_job_tokens"] == "counter"
    assert "# EOF" not in metrics_text(store, older=True)


def test_a_loss_that_is_no_number_is_nan(tmp_path: Path) -> None:
    paths = MadeJob().write(tmp_path)
    for rank_id in (0, 1):
        path = paths.rank_events(rank_id)
        path.write_text(path.read_text().replace('"loss": 2', '"loss": "nan", "was": 2'))

    assert math.isnan(samples(parse_openmetrics(metrics_text(JobStore(tmp_path))))["launcher_job_loss", "bcdfg-made"])


def test_a_job_that_has_ended_is_read_once(store: JobStore) -> None:
    scrapes = Scrapes(store)
    first = samples(parse_openmetrics(scrapes.text()))
    for rank_id in (0, 1):
        for job in (ENDED, RUNS):
            paths = JobPaths(root=store.root / job, attempt=2 if job == ENDED else 1)
            with paths.rank_events(rank_id).open("a") as file:
                file.write(text([lines(Made(from_step=8, steps=1), rank_id)[-1]]))
    again = samples(parse_openmetrics(scrapes.text()))

    assert first["launcher_job_step", RUNS] < again["launcher_job_step", RUNS] == 9
    assert again["launcher_job_step", ENDED] == 8


def test_a_damaged_folder_leaves_the_others(store: JobStore) -> None:
    (store.root / RUNS / "plan.json").write_text('{"ranks": [{"rank_id": []}]}')
    found = samples(parse_openmetrics(metrics_text(store)))

    assert found["launcher_job_state", RUNS, "unreadable"] == 1
    assert found["launcher_job_step", ENDED] == 8


def test_no_jobs_are_no_metrics(tmp_path: Path) -> None:
    assert metrics_text(JobStore(tmp_path / "none")) == "# EOF\n"


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["metrics", *words])
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_the_command_prints_and_writes(store: JobStore, tmp_path: Path) -> None:
    folder = ("--jobs-dir", str(store.root))
    assert run(*folder).stdout.endswith("# EOF\n")
    run("--textfile", str(tmp_path / "launcher.prom"), *folder)
    assert "launcher_job_tokens_total{" in (tmp_path / "launcher.prom").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--serve", ":x"), "write :9555"),
        (("--serve", ":70000"), "write :9555"),
        (("--serve", ":1", "--textfile", "a"), "exclude each other"),
        (("--every", "5"), "--every goes with --textfile"),
    ],
)
def test_what_does_not_go_is_said(words: tuple[str, ...], said: str) -> None:
    assert said in run(*words, code=2).stderr


def test_a_folder_that_cannot_be_written_is_named(store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert "cannot write" in run("--textfile", str(tmp_path / "file" / "a"), code=5).stderr


TOKEN = "a-token-of-some-length"


@contextmanager
def served(store: JobStore, token: str | None = None) -> Iterator[Callable[..., tuple[int, str | None, bytes]]]:
    """Ask a server of the metrics of ``store``: method, path and headers, for status, type and body."""
    listener = listen("127.0.0.1", 0)

    def ask(method: str, path: str, **headers: str) -> tuple[int, str | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=10)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        found = answer.status, answer.getheader("Content-Type"), answer.read()
        connection.close()
        return found

    app = application(lambda: metrics_text(store), token, lambda _: None)
    with serving(app, listener, Patience(most=8, request_s=10.0, answer_s=10.0)):
        yield ask


def test_metrics_are_served(store: JobStore) -> None:
    with served(store) as ask:
        status, kind, text = ask("GET", "/metrics")
        assert (status, kind) == (200, CONTENT_TYPE)
        assert samples(parse_openmetrics(text.decode()))["launcher_job_step", ENDED] == 8
        assert ask("HEAD", "/metrics") == (200, CONTENT_TYPE, b"")
        assert ask("GET", "/other")[0] == 404
        assert ask("POST", "/metrics")[0] == 405
        # A web site whose name resolves to this address.
        assert ask("GET", "/metrics", Host="evil.example")[0] == 403


def test_a_server_with_a_token_asks_for_it(store: JobStore) -> None:
    with served(store, TOKEN) as ask:
        assert ask("GET", "/metrics")[0] == 401
        assert ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}", Host="node7:9555")[0] == 200


def test_other_machines_need_a_token() -> None:
    assert "--serve 0.0.0.0 can be reached from other machines" in run("--serve", "0.0.0.0:0", code=2).stderr


def test_a_port_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        answer = run("--serve", f":{port}", code=5)

    assert f"cannot listen on 127.0.0.1:{port}" in answer.stderr
    assert "give another --serve" in answer.stderr


def test_repairs_have_their_cause(tmp_path: Path) -> None:
    failed = Made(steps=4, ended=28.0, reason="SIGKILL", failed_at=24.0, found_at=24.5)
    MadeJob(attempts=(failed, Made(began=30.0, from_step=2, steps=4, ended=60.0))).write(tmp_path)
    told = [
        line for line in metrics_text(JobStore(tmp_path)).splitlines() if line.startswith("launcher_job_mean_repair")
    ]

    assert told == ['launcher_job_mean_repair_seconds{job="bcdfg-made",cause="SIGKILL"} 26']
