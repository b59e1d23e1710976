"""Notices: what robots, mail servers and programs are sent, what is tried again, and what no message may hold."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import hmac
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import ValidationError
from support.receivers import HttpServer, SmtpServer, serving

from launcher import jobs
from launcher.jobs import JobPaths, JobRecord
from launcher.observe import notices
from launcher.observe.notices import Notice
from launcher.observe.notify import NotSent, missing_secrets, send
from launcher.runspec.sections import NotifySpec

NOTICE = Notice(
    occasion="failure", title="abc-x failed", job_id="abc-x", name="x", state="failed", attempt=2,
    reason='ValueError: "no" <luck>', verdict='rank 1 failed first: ValueError: "no" <luck>', host="h", folder="/x",
)  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(HttpServer()) as found:
        yield found
        found.let_go.set()


def target(to: str, **keys: Any) -> NotifySpec:
    return NotifySpec.model_validate({"to": to, **keys})


def told(server: HttpServer, to: str, answer: str, path: str = "/hook/KEY", **keys: Any) -> tuple[str, Any]:
    """Send the notice; return the path and body that arrived."""
    server.answers = [(200, answer)]
    environ = {"URL": server.url + path, "SIGN": "s3cret"}
    send(target(to, url_env="URL", **keys), NOTICE, environ=environ)
    path, _, body = server.requests[-1]
    return path, body


def test_a_webhook_gets_all_fields_or_its_own_body(server: HttpServer) -> None:
    send(target("webhook", url=server.url), NOTICE)
    assert server.bodies[-1] == NOTICE.fields()
    assert server.bodies[-1]["text"] == f"abc-x failed\n{NOTICE.verdict}"

    body = {"title": "$job_id: $state", "blocks": [{"text": "${reason}"}], "cost": "$$5", "n": 1}
    environ = {"TOKEN": "t0ken"}
    send(target("webhook", url=server.url, body=body, secret_env="TOKEN"), NOTICE, environ=environ)
    _, headers, got = server.requests[-1]
    assert got == {"title": "abc-x: failed", "blocks": [{"text": NOTICE.reason}], "cost": "$5", "n": 1}
    assert headers["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("to", ["feishu", "lark"])
def test_feishu_is_signed_with_time_and_key_as_the_key(server: HttpServer, to: str) -> None:
    path, body = told(server, to, '{"code": 0}', secret_env="SIGN")
    key = f"{body['timestamp']}\ns3cret".encode()
    assert path == "/hook/KEY"
    assert body["sign"] == base64.b64encode(hmac.new(key, digestmod=hashlib.sha256).digest()).decode()
    assert (body["msg_type"], body["content"]) == ("text", {"text": NOTICE.text})


def test_dingtalk_is_signed_in_the_address(server: HttpServer) -> None:
    path, body = told(server, "dingtalk", '{"errcode": 0}', "/robot/send?access_token=KEY", secret_env="SIGN")
    query = parse_qs(urlsplit(path).query)
    wanted = hmac.new(b"s3cret", f"{query['timestamp'][0]}\ns3cret".encode(), hashlib.sha256).digest()
    assert (query["access_token"], query["sign"]) == (["KEY"], [base64.b64encode(wanted).decode()])
    assert body == {"msgtype": "text", "text": {"content": NOTICE.text}}


def test_wecom_and_slack(server: HttpServer) -> None:
    assert told(server, "wecom", '{"errcode": 0}')[1] == {"msgtype": "text", "text": {"content": NOTICE.text}}
    assert told(server, "slack", "ok")[1] == {"text": NOTICE.text.replace("<", "&lt;").replace(">", "&gt;")}


def test_a_long_verdict_is_cut_where_a_robot_takes_less_and_says_so(server: HttpServer) -> None:
    server.answers = [(200, '{"errcode": 0}')]
    send(target("wecom", url_env="URL"), replace(NOTICE, verdict="长" * 5000), environ={"URL": server.url})
    text = server.bodies[-1]["text"]["content"]
    assert len(text.encode()) <= 2048
    assert text.endswith("长\n... (launcher status abc-x)")


def failure(server: HttpServer, to: str = "slack", tries: int = 3, timeout_s: float = 10.0) -> tuple[str, list[float]]:
    """Return the error of a notice that is not sent, and the seconds that were waited between tries."""
    waited: list[float] = []
    one = target(to, url_env="URL", tries=tries, timeout_s=timeout_s)
    with pytest.raises(NotSent) as error:
        send(one, NOTICE, environ={"URL": f"{server.url}/KEY"}, sleep=waited.append)
    assert "KEY" not in error.value.message
    return error.value.message, waited


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(server: HttpServer) -> None:
    server.answers = [(503, ""), (429, ""), (200, "ok")]
    send(target("slack", url_env="URL"), NOTICE, environ={"URL": server.url}, sleep=lambda _: None)
    assert len(server.requests) == 3

    for status, waits in ((500, [1.0, 2.0]), (404, []), (302, [])):
        server.answers = [(status, "")]
        assert failure(server) == (f"127.0.0.1 answers HTTP {status}", waits)


def test_a_robot_that_refuses_with_200_has_not_been_told(server: HttpServer) -> None:
    server.answers = [(200, '{"code": 19021, "msg": "sign match fail KEY"}')]
    assert failure(server, "feishu") == ("127.0.0.1 refuses it with code 19021", [1.0, 2.0])
    server.answers = [(200, "<html>log in</html>")]
    assert failure(server, "wecom") == ("127.0.0.1 answers what no wecom robot does", [])


def test_a_server_that_hangs_or_is_not_there_costs_its_time_and_no_more(server: HttpServer) -> None:
    server.hangs.set()
    assert failure(server, timeout_s=0.1) == ("127.0.0.1: timed out", [1.0, 2.0])
    with serving(HttpServer()) as other:
        pass
    assert failure(other, tries=1)[0] == "127.0.0.1: Connection refused"


def test_a_secret_that_cannot_be_read_is_said_by_its_place(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("https://example.com/KEY\n")
    assert missing_secrets(target("slack", url_file=str(key))) == ""
    assert missing_secrets(target("slack", url_env="NONE"), {}) == "the environment variable NONE is not set"
    assert missing_secrets(target("slack", url_file=f"{key}2")) == f"cannot read {key}2: No such file or directory"
    key.write_text("KEY")
    assert missing_secrets(target("slack", url_file=str(key))) == f"{key} holds no http(s) address"


def test_an_email_and_a_mail_server_that_is_busy_at_first() -> None:
    notice = replace(NOTICE, title="训练失败", verdict="第 1 行\n.\n第 3 行")
    with serving(SmtpServer()) as server:
        server.refusals = ["451 later"]
        one = target("email", smtp=server.address, tls="none", sender="a@x.org", recipients=["b@x.org", "c@x.org"])
        send(one, notice, sleep=lambda _: None)
        letter = email.message_from_bytes(
            server.letters[-1].replace("\n..", "\n.").encode(), policy=email.policy.default
        )
        assert (letter["Subject"], letter["From"], letter["To"]) == ("训练失败", "a@x.org", "b@x.org, c@x.org")
        assert "第 1 行\n.\n第 3 行" in letter.get_content()
        assert len(server.recipients) == 2

        server.refusals = ["550 KEY"]
        with pytest.raises(NotSent, match=r"^127.0.0.1 answers SMTP 550$"):
            send(one, notice)
        with pytest.raises(NotSent, match="SMTPNotSupportedError"):
            send(one.model_copy(update={"tls": "starttls", "tries": 1}), notice)


def test_a_program_gets_arguments_and_json_and_no_shell(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2] + '|' + sys.stdin.read())"
    send(target("command", command=[sys.executable, "-c", code, str(out), "$job_id; $reason"]), NOTICE)
    argument, _, given = out.read_text().partition("|")
    assert argument == f"abc-x; {NOTICE.reason}"
    assert json.loads(given) == NOTICE.fields()


def test_a_program_that_fails_or_hangs(tmp_path: Path) -> None:
    def error(*command: str, timeout_s: float = 10.0) -> str:
        with pytest.raises(NotSent) as found:
            send(target("command", command=command, tries=1, timeout_s=timeout_s), NOTICE)
        return found.value.message

    assert error("false") == "false ended with 1"
    assert error("sleep", "60", timeout_s=0.1) == "sleep took longer than 0.1 s"
    assert error(str(tmp_path)) == f"cannot run {tmp_path}: Permission denied"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"to": "slack"}, "to slack needs one of url_env and url_file"),
        ({"to": "slack", "url": "https://x/KEY"}, "url of slack holds its key"),
        ({"to": "webhook", "url": "ftp://x"}, "url must begin with http"),
        ({"to": "webhook", "url": "https://me:pw@x"}, "without a user or password"),
        ({"to": "webhook", "url": "http://x", "body": {"a": ["$jobid"]}}, r"\$jobid is no placeholder"),
        ({"to": "webhook", "url": "http://x", "secret_env": "A", "secret_file": "b"}, "exclude each other"),
        ({"to": "slack", "url_file": "key"}, "url_file must be a full path"),
        ({"to": "command", "command": ["./tell"]}, "command must begin with"),
        ({"to": "command"}, "to command needs command"),
        ({"to": "command", "command": ["a"], "url_env": "A"}, "url_env is not used by command"),
        ({"to": "email", "smtp": "x"}, "to email needs smtp, sender and recipients"),
        ({"to": "wecom", "url_env": "A", "secret_env": "B"}, "secret_env is not used by wecom"),
    ],
)
def test_a_target_that_cannot_be_told_is_refused(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        NotifySpec.model_validate(keys)


def test_a_target_reads_back_with_every_default_written_out() -> None:
    one = target("feishu", url_env="A")
    assert NotifySpec.model_validate(one.model_dump(mode="json")) == one


def record(**changes: Any) -> JobRecord:
    made = JobRecord(
        job_id="abc-x", name="x", state=jobs.RUNNING, created=jobs.now(), host="h", cards=1, target="CPU", versions={}
    )
    return replace(made, **changes)


def test_an_end_a_failure_and_restarts_are_told_in_the_readers_language(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path)
    assert notices.end(paths, record(), "en") is None
    verdict = {"reason": "it fell", "text": {"en": "rank 1 fell; launcher logs JOB", "zh": "rank 1 倒下"}}
    english = notices.end(paths, record(state=jobs.FAILED, verdict=verdict), "en")
    chinese = notices.end(paths, record(state=jobs.FAILED, verdict=verdict), "zh")
    done = notices.end(paths, record(state=jobs.SUCCEEDED), "en")
    assert english is not None
    assert chinese is not None
    assert done is not None
    assert (english.occasion, english.text) == ("failure", "abc-x failed\nrank 1 fell; launcher logs abc-x")
    assert chinese.text == "abc-x 失败\nrank 1 倒下"
    assert (done.occasion, done.text) == ("end", "abc-x succeeded")
    assert [one.is_for(("failure",)) for one in (english, done)] == [True, False]
    assert [one.is_for(("end",)) for one in (english, done)] == [True, True]

    entries = tuple({"attempt": n, "restarted": n != 2, "reason": f"reason {n}"} for n in (1, 2, 3))
    found = list(notices.restarts(paths, record(attempt=4, earlier=entries), 1, "en"))
    assert [(one.attempt, one.text) for one in found] == [(4, "abc-x was restarted: attempt 4\nreason 3")]
