"""The chat page and the metrics of a server in this process; the page in a browser is in tests/web."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.model_servers import Running, quick_model, running, served

from launcher.common.openmetrics import CONTENT_TYPE
from launcher.inference.server.http import Limits

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_model(tmp_path_factory.mktemp("page") / "model")


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    with running([served('say "a"', folder), served("b", folder)], limits=Limits(timeout_s=20)) as found:
        yield found


def figures(server: Running) -> dict[tuple[str, ...], float]:
    answer = server.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_metrics_count_requests_tokens_and_time(server: Running) -> None:
    ask: dict[str, Any] = {"model": "b", "prompt": [[5, 6, 7], [8]]}
    server.post("/v1/completions", **ask, max_tokens=4)
    server.post("/v1/completions", **ask, max_tokens=1, stream=False)
    for wrong in ({"temperature": 9}, {"prompt": [9999]}, {"model": "third"}):
        assert "error" in server.post("/v1/completions", **{**ask, **wrong})
    found = figures(server)

    assert found["launcher_serve_requests_total", "b", "answered"] == 2
    assert found["launcher_serve_requests_total", "b", "refused"] == 2
    assert found["launcher_serve_requests_total", "", "refused"] == 1
    assert found["launcher_serve_requests_total", 'say "a"', "answered"] == 0
    assert found["launcher_serve_prompt_tokens_total", "b"] == 8
    assert found["launcher_serve_answer_tokens_total", "b"] == 10
    assert found["launcher_serve_first_token_seconds_count", "b"] == 2
    assert found["launcher_serve_first_token_seconds_bucket", "b", "+Inf"] == 2
    whole, first = (found[f"launcher_serve_{name}_seconds_sum", "b"] for name in ("answer", "first_token"))
    assert whole >= first > 0
    assert found["launcher_serve_waiting_requests",] == 0


def test_a_page_runs_its_own_script_and_asks_this_server_alone(folder: Path) -> None:
    with running([served("a", folder)], token=TOKEN) as server:
        answer = server.get("/")
        policy, page = answer.headers["content-security-policy"], answer.text

        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert "unsafe" not in policy
        for tag in ("script", "style"):
            (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert re.findall(r"https?://|innerHTML|\son\w+=|\sstyle=", page) == []
        assert TOKEN not in page
        # The page holds no secret; what it asks for does.
        assert [server.get(path).status_code for path in ("/metrics", "/v1/models")] == [401, 401]


def test_another_sites_name_for_this_machine_gets_no_page(folder: Path) -> None:
    with running([served("a", folder)]) as server:
        found = httpx.get(server.url, headers={"Host": "evil.example"}, trust_env=False)
        assert found.status_code == 403


def test_each_text_of_the_page_is_in_chinese_too() -> None:
    from launcher.inference.server.page import chat_page

    page = chat_page().decode()
    texts = page.partition("const zh = {")[2].partition("};")[0]
    chinese = {*re.findall(r'"([^"]+)": "', texts)}
    asked = {*re.findall(r'data-say="([^"]+)"', page), *re.findall(r'say\("([^"]+)"\)', page)}
    assert asked == chinese
