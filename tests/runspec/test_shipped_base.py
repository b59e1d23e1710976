"""The spec that begins with the shipped base finds it from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.runspec.checking import load_spec

BASE = Path(__file__).resolve().parents[2] / "configs" / "bases" / "tiny_cpu"
NAMED = "configs/bases/tiny_cpu/model.safetensors"


def test_the_shipped_base_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    spec = load_spec("tiny_math")

    for path in (spec.model.checkpoint, spec.model.tokenizer, spec.data.train):
        assert isinstance(path, str)
        assert Path(path).is_absolute()
        assert Path(path).is_file()


def test_a_base_of_the_same_name_in_the_working_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / NAMED
    own.parent.mkdir(parents=True)
    own.write_bytes(b"")

    assert load_spec("tiny_math").model.checkpoint == str(own)


def test_what_is_not_shipped_stays_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_MODEL__CHECKPOINT", "configs/bases/none.safetensors")

    assert load_spec("tiny_math").model.checkpoint == "configs/bases/none.safetensors"


def test_the_base_is_small() -> None:
    assert 1_000_000 < (BASE / "model.safetensors").stat().st_size <= 4_000_000
