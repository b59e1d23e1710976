"""``launcher docs``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from launcher.cli import main
from launcher.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_topics_are_listed_and_pages_printed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mine.md").write_text("# Of the user")
    listed = CliRunner().invoke(main, ["docs"]).output
    assert {line.split()[0] for line in listed.splitlines()[1:-1]} == {
        page.stem for page in (ROOT / "docs").glob("*.md") if ".zh" not in page.name
    }
    for topic in ("jobs", "jobs.md", "docs/jobs.md"):
        assert CliRunner().invoke(main, ["docs", topic]).output == (ROOT / "docs" / "jobs.md").read_text()


def test_a_chinese_page_is_printed_where_there_is_one() -> None:
    assert CliRunner().invoke(main, ["docs", "ascend-quickstart", "--lang", "zh"]).output.startswith("# 昇腾")
    other = CliRunner().invoke(main, ["docs", "jobs", "--lang", "zh"])
    assert "there is no Chinese page on jobs" in other.output
    assert "# Jobs" in other.output


def test_the_page_of_a_command_is_the_one_that_the_readme_names() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    pages = {
        word: found[1]
        for row in rows
        if (found := re.search(r"\(docs/([\w-]+)\.md[^)]*\) \|$", row))
        for word in re.findall(r"`(?:launcher )?([\w-]+)`", row.split("|")[1])
    }
    assert set(pages) == set(COMMANDS) - {"node"}
    for command, page in pages.items():
        assert CliRunner().invoke(main, ["docs", command]).output == (ROOT / "docs" / f"{page}.md").read_text(), command


def test_a_page_that_there_is_not_is_an_error_with_the_nearest() -> None:
    result = CliRunner().invoke(main, ["docs", "check-points"])
    assert result.exit_code == 2
    assert "hint: launcher docs checkpoints" in result.output
