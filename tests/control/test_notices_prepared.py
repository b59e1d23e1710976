"""Targets of notices as a run is prepared: what is wrong or missing is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.control.prepare import prepare
from launcher.errors import SpecError

SLACK = '[{"to": "slack", "url_env": "NO_SUCH_HOOK"}]'


def remarks(tmp_path: Path, *sets: str) -> tuple[str, ...]:
    return prepare("tiny_cpu", cards=1, checkpoint=None, port=None, jobs_dir=tmp_path, sets=sets).remarks


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "launcher").mkdir()
    return tmp_path / "launcher" / "config.yaml"


def test_a_target_whose_address_is_not_there_is_said(tmp_path: Path, settings: Path) -> None:
    missing = "Notify: slack will not be told: the environment variable NO_SUCH_HOOK is not set."
    assert missing not in "".join(remarks(tmp_path))
    assert missing in "".join(remarks(tmp_path, f"notify={SLACK}"))
    settings.write_text(f"notify: {SLACK}\n")
    assert missing in "".join(remarks(tmp_path))


def test_settings_that_are_wrong_name_their_line(tmp_path: Path, settings: Path) -> None:
    settings.write_text("notify:\n  - to: slack\n    url_evn: HOOK\n")
    with pytest.raises(SpecError) as error:
        remarks(tmp_path)
    assert f"{settings}:3: unknown key notify.0.url_evn; did you mean url_env?" in error.value.message
