"""The follower beside real jobs: who is told, what a hanging receiver costs, and that nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.job_folders import Made, MadeJob
from support.receivers import HttpServer, serving
from support.supervised import Supervised, marked, wait_until

from launcher import jobs
from launcher.jobs import JobRecord
from launcher.observe import follower
from launcher.runspec.sections import NotifySpec

WAIT = "step(1)\nposition.enter(2)\ntime.sleep(600)\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("LAUNCHER_LANG", "en")
    with serving(HttpServer()) as found:
        monkeypatch.setenv("HOOK", f"{found.url}/s3cret")
        yield found
        found.let_go.set()


def job(tmp_path: Path, program: str, mark: str, *trackers: str, **keys: Any) -> Supervised:
    made = Supervised(root=tmp_path / "job", program=program, mark=mark, ranks=1)
    made.root.mkdir()
    target = {"to": "slack", "url_env": "HOOK", "tries": 1, **keys}
    spec = {"notify": [target], "observe": {"trackers": trackers}}
    (made.root / "spec.json").write_text(json.dumps(spec))
    return made


def followers(mark: str) -> list[Any]:
    return [process for process in marked(mark) if "launcher.observe.follower" in process.cmdline()]


def everything_in(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def losses(events: Any, supervised: Supervised) -> list[int]:
    """Return the steps whose loss TensorBoard finds."""
    folder = supervised.root / "tensorboard" / "rank_0"
    if not folder.is_dir():
        return []
    read = events.EventAccumulator(str(folder))
    read.Reload()
    return [one.step for one in read.Scalars("loss")] if "loss" in read.Tags()["scalars"] else []


def test_the_end_is_told_once_and_the_secret_is_nowhere(tmp_path: Path, no_survivors: str, server: HttpServer) -> None:
    supervised = job(tmp_path, "ready(); step(1)", no_survivors)
    record = supervised.run()

    assert (record.state, server.bodies) == (jobs.SUCCEEDED, [{"text": "job succeeded"}])
    assert supervised.supervisor_log() == ""
    assert "s3cret" not in everything_in(supervised.root)


def test_a_failure_is_told_with_its_verdict_to_those_of_the_users_settings_too(
    tmp_path: Path, no_survivors: str, server: HttpServer
) -> None:
    settings = tmp_path / "config" / "launcher" / "config.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"notify:\n  - to: webhook\n    url: {server.url}/plain\n    when: [failure]\n")
    job(tmp_path, "raise ValueError('no luck')", no_survivors).run()

    by_path = {path: body for path, _, body in server.requests}
    assert by_path["/s3cret"]["text"].startswith("job failed\nrank 0 failed first")
    assert (by_path["/plain"]["occasion"], by_path["/plain"]["state"]) == ("failure", "failed")


def test_a_killed_supervisor_is_told_and_nothing_is_left(tmp_path: Path, no_survivors: str, server: HttpServer) -> None:
    supervised = job(tmp_path, WAIT, no_survivors).start()
    record = supervised.wait_for_pids()
    assert record.supervisor is not None
    os.kill(record.supervisor.pid, signal.SIGKILL)

    assert supervised.end().state == jobs.LOST
    assert server.bodies[0]["text"].startswith("job was lost\n")
    assert marked(no_survivors) == []


def test_a_killed_guard_leaves_no_follower(tmp_path: Path, no_survivors: str, server: HttpServer) -> None:
    supervised = job(tmp_path, WAIT, no_survivors).start()
    record = supervised.wait_for_pids()
    wait_until(lambda: followers(no_survivors), "the follower")
    assert record.guard is not None
    os.kill(record.guard.pid, signal.SIGKILL)
    assert supervised.guard is not None
    supervised.guard.wait()

    wait_until(lambda: not marked(no_survivors), "all processes to end")
    assert [body["text"].splitlines()[0] for body in server.bodies] == ["job was cancelled"]


def test_a_killed_follower_is_no_matter_for_the_job(tmp_path: Path, no_survivors: str, server: HttpServer) -> None:
    supervised = job(tmp_path, WAIT, no_survivors).start()
    supervised.wait_for_pids()
    wait_until(lambda: followers(no_survivors), "the follower")
    followers(no_survivors)[0].kill()

    assert supervised.stop().state == jobs.CANCELLED
    assert server.bodies == []


def test_a_receiver_that_hangs_is_one_line_and_does_not_hold_up_the_record(
    tmp_path: Path, no_survivors: str, server: HttpServer
) -> None:
    server.hangs.set()
    supervised = job(tmp_path, "ready(); step(1)", no_survivors, timeout_s=2.0).start()
    wait_until(lambda: server.requests, "the notice")
    seen = time.monotonic()

    assert supervised.record().state == jobs.SUCCEEDED
    supervised.end()
    assert time.monotonic() - seen < 20
    line = "follower: slack (notify of the spec) was not told of the end: 127.0.0.1: timed out\n"
    assert supervised.supervisor_log() == line


def test_trackers_are_told_beside_the_job_and_one_that_fails_is_one_line(
    tmp_path: Path, no_survivors: str, server: HttpServer
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    supervised = job(tmp_path, "ready(); step(1); step(2)", no_survivors, "tensorboard", "no-such-tracker")
    record = supervised.run()

    assert record.state == jobs.SUCCEEDED
    line = "follower: tracker no-such-tracker is dropped: there is no tracker 'no-such-tracker'\n"
    assert supervised.supervisor_log() == line
    assert server.bodies == [{"text": "job succeeded"}]
    assert losses(events, supervised) == [1, 2]


HANGS = """
import time

class Hangs:
    def begin(self, run, first_step):
        (run.folder / "hangs").touch()
        time.sleep(600)
"""


def test_a_tracker_that_hangs_holds_up_neither_the_job_nor_another_tracker(
    tmp_path: Path, no_survivors: str, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin = tmp_path / "plugin"
    about = plugin / "hangs-1.dist-info"
    about.mkdir(parents=True)
    (plugin / "hangs.py").write_text(HANGS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hangs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[launcher.trackers]\nhangs = hangs:Hangs\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")]))
    supervised = job(tmp_path, "ready(); step(1); step(2)", no_survivors, "hangs", "tensorboard").start()
    wait_until(lambda: (supervised.root / "hangs").exists(), "the tracker to hang")

    wait_until(lambda: supervised.record().is_final, "the job's end")
    assert supervised.record().state == jobs.SUCCEEDED
    wait_until(lambda: server.requests, "the notice")
    wait_until(lambda: losses(events, supervised) == [1, 2], "the other tracker")
    followers(no_survivors)[0].kill()  # it gives up by itself after 40 seconds
    supervised.end()


def test_one_that_hangs_holds_up_no_other_and_is_dropped(tmp_path: Path) -> None:
    lines: list[str] = []
    paths = MadeJob(attempts=(Made(ended=30.0),)).write(tmp_path)
    end_of_job, guards_end = os.pipe()
    os.close(guards_end)
    let_go, seen = threading.Event(), []

    def hang(record: JobRecord, *, last: bool) -> None:
        let_go.wait(30)

    def note(record: JobRecord, *, last: bool) -> None:
        seen.append((record.state, last))

    told = [follower.Told("hanging", hang), follower.Told("other", note)]
    follower.follow(paths, told, end_of_job, last_words_s=0.2, tell=lines.append)
    let_go.set()
    os.close(end_of_job)

    assert seen == [(jobs.SUCCEEDED, True)]
    assert lines == ["hanging dropped: not done 0.2 s after the job's end"]


def test_a_job_that_its_scheduler_goes_on_with_has_no_end_to_tell(tmp_path: Path) -> None:
    record = {"host": ""}
    paths = MadeJob(state=jobs.PLANNED, attempts=(Made(steps=2),), record=record).write(tmp_path)
    end_of_job, guards_end = os.pipe()
    os.close(guards_end)
    sent: list[Any] = []
    target = NotifySpec.model_validate({"to": "slack", "url_env": "HOOK"})
    notifier = follower.Notifier(
        name="slack", target=target, paths=paths, attempt=1, send=lambda _target, notice: sent.append(notice)
    )
    follower.follow(paths, [follower.Told("slack", notifier.look)], end_of_job, last_words_s=10)
    os.close(end_of_job)

    assert sent == []
