"""Templates are strict, results are read back, writes are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.common import resources
from launcher.common.rendering import environment, render, to_json, write_atomic
from launcher.errors import LauncherError


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The templates folder of a user's working folder."""
    (tmp_path / "templates").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "templates"


def test_a_template_in_the_working_folder_wins(templates: Path) -> None:
    (templates / "rank_table.json.j2").write_text('{"mine": {{ value | json }}}')

    assert render(environment(), "rank_table.json.j2", "x.json", value="é").text == '{"mine": "é"}'


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("{{ missing }}", "x.json", "'missing' is undefined"),
        ("{% if %}", "x.json", "template mine.j2:1"),
        ("{", "x.json", "does not give a valid x.json"),
        ("a: [", "x.yaml", "does not give a valid x.yaml"),
    ],
)
def test_a_template_that_is_wrong_is_named(templates: Path, text: str, path: str, expected: str) -> None:
    (templates / "mine.j2").write_text(text)
    with pytest.raises(LauncherError) as caught:
        render(environment(), "mine.j2", path)

    assert expected in str(caught.value)
    assert str(templates) in caught.value.hint


def test_a_template_that_is_missing_is_named(templates: Path) -> None:
    with pytest.raises(LauncherError, match=r"template none\.j2"):
        render(environment(), "none.j2", "x.json")


def test_strings_are_json_without_surrogate_escapes() -> None:
    assert to_json('名前 🙂 "x" \n') == '"名前 🙂 \\"x\\" \\n"'


def test_a_write_replaces_the_whole_file_with_usual_permissions(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.json"
    write_atomic(target, "one")
    write_atomic(target, b"two")

    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["b.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "kept").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomic(target, "x")

    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_shipped_files_are_found_and_nothing_above_them() -> None:
    assert resources.find("templates", "rank.yaml.j2")
    assert resources.find("templates", "../README.md") is None
    assert resources.find("templates", "/etc/passwd") is None
    assert "tiny_cpu" in resources.names("configs", ".yaml")
