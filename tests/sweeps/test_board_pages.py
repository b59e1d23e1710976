"""Sweeps on the board, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.boards import ENDED, TOKEN, make_jobs, make_sweep, served_board

from launcher.sweeps.record import RUNNING


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    make_jobs(folder)
    make_sweep(folder)
    make_sweep(folder, "dfghj-runs", RUNNING)
    damaged = make_sweep(folder, "fghjk-damaged")
    damaged.record.write_text("{")
    return folder


@pytest.fixture(scope="module")
def port(root: Path) -> Iterator[int]:
    with served_board(root) as (port, _):
        yield port


def get(port: int, path: str, **headers: str) -> Any:
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, trust_env=False)


def test_the_list_of_jobs_leads_to_the_sweeps_where_there_are_some(port: int, tmp_path: Path) -> None:
    assert '<a href="/sweeps" id="sweeps">' in get(port, "/").text
    with served_board(tmp_path) as (empty, _):
        assert "/sweeps" not in get(empty, "/").text
        assert "No sweeps yet." in get(empty, "/sweeps").text


def test_the_list_has_each_sweep_with_its_best(port: int) -> None:
    page = get(port, "/sweeps").text
    assert '<span class="state unreadable">unreadable</span>' in page
    assert '<a href="/sweeps/cdfgh-tries">' in page
    assert "<td>2/3</td><td>loss 1.25</td>" in page
    assert f'<a href="/jobs/{ENDED}">{ENDED}</a>' in page
    assert "fghjk-damaged/sweep.json is missing or damaged" in page
    assert 'http-equiv="refresh"' in page


def test_a_sweep_has_its_table_and_its_plot(port: int) -> None:
    page = get(port, "/sweeps/cdfgh-tries").text
    assert page.count("<polyline") == 3
    assert f'<a href="/jobs/{ENDED}">{ENDED}</a>' in page
    assert "worse &lt;than&gt; others" in page
    assert '<a href="/sweeps">' in page
    assert 'http-equiv="refresh"' not in page
    assert 'http-equiv="refresh"' in get(port, "/sweeps/dfghj-runs").text


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/sweeps/none", 404, "there is no sweep"),
        ("/sweeps/..%2f..%2fetc", 404, "there is no"),
        ("/sweeps/fghjk-damaged", 500, "is missing or damaged"),
    ],
)
def test_what_there_is_not(port: int, path: str, status: int, said: str) -> None:
    answer = get(port, path)
    assert (answer.status_code, said in answer.text) == (status, True)


def test_a_board_with_a_token_shows_sweeps_to_who_has_it(root: Path) -> None:
    with served_board(root, TOKEN, "zh") as (port, _):
        assert get(port, "/sweeps").status_code == get(port, "/sweeps/cdfgh-tries").status_code == 401
        assert "参数扫描列表" in get(port, "/sweeps", Authorization=f"Bearer {TOKEN}").text
