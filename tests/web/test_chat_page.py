"""The chat page of ``launcher serve`` in a real browser: ``make test-web``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from support.model_servers import Running, quick_model, running, served

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-web installs playwright")
pytestmark = pytest.mark.web
PICTURES = os.environ.get("LAUNCHER_PICTURES")
TOKEN = "0123456789abcdef-token"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("chat")
    return quick_model(root / "base", seq_length=512), quick_model(root / "tuned", seq_length=512, rms_norm_eps=0.5)


@pytest.fixture(scope="module")
def server(folders: tuple[Path, Path]) -> Iterator[Running]:
    with running([served("base", folders[0]), served("tuned", folders[1])]) as found:
        yield found


@contextmanager
def page_of(browser: Any, server: Running, *, expected: int = 0, **context: Any) -> Iterator[Any]:
    """The page, which must have no errors (but ``expected`` ones) and ask nobody else."""
    opened = browser.new_context(viewport={"width": 1100, "height": 700}, **{"locale": "en-US", **context})
    page, errors, asked = opened.new_page(), [], []
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    try:
        yield page
    finally:
        opened.close()
    assert len(errors) == expected, errors
    assert [url for url in asked if not url.startswith((server.url, "data:"))] == []


def late(route: Any) -> None:
    sleep(0.5)
    route.continue_()


def column(page: Any, name: str) -> Any:
    return page.locator(f"section[data-model={name}]")


def test_two_models_answer_side_by_side_each_in_its_own_conversation(browser: Any, server: Running) -> None:
    with page_of(browser, server) as page:
        page.get_by_role("textbox").last.fill("苹果和梨")
        page.keyboard.press("Enter")
        for name in ("base", "tuned"):
            sync_api.expect(column(page, name).locator(".note")).to_contain_text("8 tokens")
        texts = [column(page, name).locator(".turn").last.inner_text() for name in ("base", "tuned")]
        page.get_by_role("textbox").last.fill("<b>two\nlines</b>")
        page.get_by_role("button", name="Send").click()
        sync_api.expect(column(page, "base").locator(".note").last).to_contain_text("tokens")
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / "chat.png")
        messages = [
            {"role": "user", "content": "苹果和梨"},
            {"role": "assistant", "content": texts[0]},
            {"role": "user", "content": "<b>two\nlines</b>"},
        ]
        expected = server.post("/v1/chat/completions", model="base", messages=messages)

        assert texts[0] != texts[1]
        assert column(page, "base").locator(".turn").last.text_content() == expected["choices"][0]["message"]["content"]
        assert column(page, "base").locator(".user").last.text_content() == "<b>two\nlines</b>"
        page.get_by_label("tuned").uncheck()
        assert not column(page, "tuned").is_visible()
        page.get_by_role("button", name="New conversation").click()
        assert page.locator(".turn").count() == 0


def test_an_answer_is_stopped_and_settings_count(browser: Any, server: Running) -> None:
    with page_of(browser, server) as page:
        page.get_by_text("Settings").click()
        page.get_by_label("Most tokens").fill("480")
        page.get_by_label("Temperature").fill("2")
        page.get_by_role("textbox").last.fill("苹果")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop").click()
        sync_api.expect(column(page, "base").locator(".note")).to_have_text("stopped")
        page.get_by_label("Most tokens").fill("3")
        page.get_by_role("textbox").last.fill("苹果")
        page.keyboard.press("Enter")
        sync_api.expect(column(page, "base").locator(".note").last).to_contain_text("cut at the limit")


def test_a_refusal_is_said_in_the_conversation(browser: Any, server: Running) -> None:
    with page_of(browser, server, expected=2) as page:  # the browser itself says that it got 400 twice
        page.get_by_role("textbox").last.fill("苹果" * 600)
        page.keyboard.press("Enter")
        sync_api.expect(column(page, "base").locator(".error")).to_contain_text("longer than the context of 512 tokens")


def test_the_page_speaks_chinese_and_is_dark_where_the_browser_is(browser: Any, server: Running) -> None:
    with page_of(browser, server, locale="zh-CN", color_scheme="dark") as page:
        sync_api.expect(page.get_by_role("button", name="发送")).to_be_visible()
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert int(red) < 60


def test_a_page_asks_for_the_token_of_its_server(browser: Any, folders: tuple[Path, Path]) -> None:
    # Refused once without a token and once with a wrong one.
    with (
        running([served("base", folders[0])], token=TOKEN) as server,
        page_of(browser, server, expected=2) as page,
    ):
        page.get_by_label("Token of this server").fill("wrong")
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("alert")).to_have_text("the token is missing or wrong")
        page.get_by_label("Token of this server").fill(TOKEN)
        # The answer to the right token comes late, and somebody clicks twice: no question is lost, no model doubled.
        page.route("**/v1/models", late)
        page.get_by_role("button", name="Enter").dblclick()
        page.get_by_role("textbox").last.fill("苹果")
        page.keyboard.press("Enter")
        sync_api.expect(column(page, "base").locator(".note")).to_contain_text("tokens")


def test_a_page_says_that_its_server_does_not_answer(browser: Any, server: Running) -> None:
    with page_of(browser, server, expected=1) as page:
        page.route("**/v1/models", lambda route: route.abort())
        page.reload()
        sync_api.expect(page.get_by_role("main")).to_contain_text("The server does not answer")
        sync_api.expect(page.get_by_role("button", name="Send")).to_be_disabled()
