"""The board in a real browser, Debian's chromium without a window: ``make test-web``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.boards import ENDED, RUNS, make_jobs, make_sweep, served_board
from support.job_folders import Made, MadeJob, lines, text

from launcher import jobs
from launcher.jobs import JobPaths

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-web installs playwright")
pytestmark = pytest.mark.web
# Where the pictures of the documentation go, if they are to be made.
PICTURES = os.environ.get("LAUNCHER_PICTURES")


@dataclass(kw_only=True)
class Viewer:
    """A page on a board, with all that went wrong on it and all that it asked for."""

    page: Any
    paths: JobPaths
    root: Path
    port: int
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self, path: str) -> None:
        # Streams never end: the network is never idle.
        self.page.goto(self.address + path, wait_until="domcontentloaded")

    def shown(self) -> list[str]:
        """Return the ids in the list, from above."""
        return [str(row.get_attribute("data-job")) for row in self.page.locator("#jobs tbody tr").all()]

    def add_step(self, step: int) -> None:
        for rank_id in (0, 1):
            with self.paths.rank_events(rank_id).open("a") as file:
                file.write(text([lines(Made(from_step=step - 1, steps=1), rank_id)[-1]]))


@pytest.fixture
def viewer(browser: Any, tmp_path: Path) -> Iterator[Viewer]:
    paths = make_jobs(tmp_path)
    with served_board(tmp_path) as (port, _):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        page = context.new_page()
        page.set_default_timeout(30_000)
        made = Viewer(page=page, paths=paths, root=tmp_path, port=port)
        page.on("console", lambda said: made.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: made.errors.append(str(error)))
        page.on("request", lambda request: made.asked.append(request.url))
        yield made
        context.close()
    assert made.errors == []
    assert [url for url in made.asked if not url.startswith((made.address, "data:"))] == []


def test_jobs_appear_and_move_on(viewer: Viewer) -> None:
    viewer.open("/")
    row = viewer.page.locator(f"tr[data-job={RUNS}]")
    sync_api.expect(row).to_contain_text("40 %")
    sync_api.expect(row.locator("svg.spark path")).to_have_count(1)
    assert viewer.shown() == [RUNS, ENDED]
    viewer.add_step(5)
    sync_api.expect(row).to_contain_text("50 %")
    MadeJob(job_id="ccccc-new").write(viewer.root)
    sync_api.expect(viewer.page.locator("tr[data-job=ccccc-new]")).to_be_visible()
    if PICTURES:
        viewer.page.screenshot(path=Path(PICTURES) / "board.png")


def test_a_view_is_in_the_address_and_survives_a_refresh(viewer: Viewer) -> None:
    viewer.open("/")
    page = viewer.page
    page.get_by_label("succeeded").check(force=True)
    sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(1)
    assert viewer.shown() == [ENDED]
    assert page.url.endswith("?state=succeeded")
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(1)
    assert page.get_by_label("succeeded").is_checked()
    page.get_by_label("Search").fill("nothing")
    sync_api.expect(page.locator("#none")).to_have_text("No jobs fit.")


def test_columns_sort_by_keyboard(viewer: Viewer) -> None:
    viewer.open("/")
    page = viewer.page
    sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Job", exact=True).focus()
    page.keyboard.press("Enter")
    assert viewer.shown() == [ENDED, RUNS]
    assert page.locator("th[data-key=job_id]").get_attribute("aria-sort") == "ascending"


def test_ticked_jobs_are_compared(viewer: Viewer) -> None:
    viewer.open("/")
    page = viewer.page
    for job in (RUNS, ENDED):
        page.get_by_label(f"Compare {job}").check()
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(page.get_by_label(f"Compare {ENDED}")).to_be_checked()
    page.get_by_role("link", name="Compare").click()
    sync_api.expect(page.get_by_role("heading", name="2 jobs")).to_be_visible()
    page.get_by_role("link", name="All jobs").click()
    sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(2)


def test_sweeps_are_one_click_away(viewer: Viewer) -> None:
    make_sweep(viewer.root)
    viewer.open("/")
    page = viewer.page
    page.get_by_role("link", name="Sweeps").click()
    page.get_by_role("link", name="cdfgh-tries").click()
    sync_api.expect(page.locator("svg.parallel polyline.best")).to_have_count(1)
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / "board-sweep.png")
    page.get_by_role("cell").get_by_role("link", name=ENDED).click()
    sync_api.expect(page.get_by_role("heading", name=ENDED)).to_be_visible()


def curve(page: Any) -> str:
    """Return the path of the loss."""
    return str(page.locator(".chart path.line").first.get_attribute("d"))


def test_curves_grow_and_keep_their_view(viewer: Viewer) -> None:
    viewer.open(f"/jobs/{RUNS}")
    page = viewer.page
    sync_api.expect(page.locator("#link")).to_have_text("live")
    assert curve(page).count("L") == 3
    page.get_by_label("Logarithmic").check()
    viewer.add_step(5)
    five_points = re.compile("^M[^L]*(L[^L]*){4}$")
    sync_api.expect(page.locator(".chart path.line").first).to_have_attribute("d", five_points)
    assert page.get_by_label("Logarithmic").is_checked()
    page.locator(".controls label", has_text="Tokens").click()
    page.wait_for_url("**?axis=tokens&logarithmic=")
    page.reload(wait_until="domcontentloaded")
    sync_api.expect(page.get_by_label("Logarithmic")).to_be_checked()
    assert page.get_by_label("Tokens", exact=True).is_checked()
    sync_api.expect(page.locator("[data-part=head]")).to_contain_text("5 of 10 steps")
    sync_api.expect(page.locator("#ranks tbody tr")).to_have_count(2)
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / "board-job.png")


def test_a_failure_is_shown_when_it_comes(viewer: Viewer) -> None:
    viewer.open(f"/jobs/{RUNS}")
    record = jobs.JobRecord.from_json(viewer.paths.record.read_text())
    verdict = {"reason": "died", "text": {"en": "rank 1 <died>"}}
    sync_api.expect(viewer.page.locator("#link")).to_have_text("live")
    jobs.write_record(viewer.paths, replace(record, state=jobs.FAILED, verdict=verdict))
    sync_api.expect(viewer.page.locator("pre.verdict")).to_have_text("rank 1 <died>")


def test_logs_are_followed_and_filtered(viewer: Viewer) -> None:
    viewer.open(f"/jobs/{RUNS}")
    page = viewer.page
    said = page.get_by_role("log")
    sync_api.expect(said).to_have_text("one\nTwo\nERROR bad")
    page.get_by_label("Lines that contain").fill("two")
    sync_api.expect(said).to_have_text("Two")
    with viewer.paths.rank_log(0).open("a") as file:
        file.write("two more\n")
    sync_api.expect(said).to_have_text("Two\ntwo more")
    page.wait_for_url("**?contains=two")
    page.reload(wait_until="domcontentloaded")
    assert page.get_by_label("Lines that contain").input_value() == "two"
    page.get_by_label("Log of").select_option("rank 1")
    sync_api.expect(said).to_have_text("No lines.")
    page.wait_for_url("**?log=rank+1*")


def test_every_control_has_a_name(viewer: Viewer) -> None:
    for path in ("/", f"/jobs/{RUNS}"):
        viewer.open(path)
        sync_api.expect(viewer.page.locator("#link")).to_have_text("live")
        nameless = viewer.page.evaluate(
            """() => [...document.querySelectorAll("a, button, input, select, svg[role=img], pre[tabindex]")]
            .filter((one) => one.getClientRects().length && !(one.getAttribute("aria-label") || one.textContent.trim()
                || [...(one.labels || [])].some((label) => label.textContent.trim())))
            .map((one) => one.outerHTML)"""
        )
        assert nameless == []


def test_the_page_comes_back_after_the_server(browser: Any, tmp_path: Path) -> None:
    make_jobs(tmp_path)
    page = browser.new_page()
    with served_board(tmp_path) as (port, _):
        page.goto(f"http://127.0.0.1:{port}/?q=runs", wait_until="domcontentloaded")
        sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(1)
    sync_api.expect(page.locator("#link")).to_have_text(re.compile("not connected"), timeout=15_000)
    MadeJob(job_id="ccccc-runs").write(tmp_path)
    with served_board(tmp_path, port=port):
        sync_api.expect(page.locator("#link")).to_have_text("live", timeout=20_000)
        sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(2)
        page.close()


def test_four_hundred_jobs_are_quick(browser: Any, tmp_path: Path) -> None:
    for number in range(400):
        MadeJob(job_id=f"b{number:04}-made").write(tmp_path)
    with served_board(tmp_path) as (port, _):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/", wait_until="domcontentloaded")
        sync_api.expect(page.locator("#jobs tbody tr")).to_have_count(400, timeout=60_000)
        sync_api.expect(page.locator("svg.spark path")).to_have_count(400, timeout=180_000)
        drawn = page.evaluate(
            """() => { const box = document.getElementById("search"), began = performance.now();
            box.value = "b03"; box.dispatchEvent(new Event("input", { bubbles: true }));
            document.body.getBoundingClientRect(); return performance.now() - began; }"""
        )
        assert page.locator("#jobs tbody tr").count() == 100
        assert drawn < 1000, json.dumps(drawn)
        page.close()
