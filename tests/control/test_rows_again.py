"""A job whose rows are gone, as the cache may be emptied at any time, is resumed with the same rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launcher.control import prepare, start
from launcher.errors import DataError, JobError, Note
from launcher.jobs import JobPaths
from launcher.plan.inputs import make_rows_again


def planned(folder: Path, *sets: str) -> JobPaths:
    run = prepare.complete(
        prepare.prepare("tiny_cpu", cards=1, checkpoint=None, port=None, jobs_dir=folder / "jobs", sets=sets)
    )
    start.write_job(run.plan)
    return run.plan.paths


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_rows_of_the_cache_are_made_again_as_they_were(tmp_path: Path, cache: Path) -> None:
    paths = planned(tmp_path, "data.sample={size: 64, seed: 1}")
    rows = Path(json.loads(paths.plan.read_text())["dataset"])
    before = rows.read_bytes()
    make_rows_again(paths)  # there is nothing to do
    shutil.rmtree(cache)

    with pytest.warns(Note, match="are gone: making 64 sample rows"):
        make_rows_again(paths)

    assert rows.read_bytes() == before


def test_rows_that_cannot_be_made_as_they_were_stop_the_resume(tmp_path: Path, cache: Path) -> None:
    raw = tmp_path / "my.jsonl"
    records = [{"question": f"{number}+1=?", "answer": str(number + 1)} for number in range(40)]
    raw.write_text("\n".join(map(json.dumps, records)))
    paths = planned(tmp_path, "data.sample={size: 64, seed: 1}")
    own = Path(json.loads(paths.plan.read_text())["tokenizer"])
    shutil.copy(own, tmp_path / "tokenizer.model")
    paths = planned(tmp_path, "data.sample=null", "data.train=my.jsonl", "model.tokenizer=tokenizer.model")
    shutil.rmtree(cache)

    raw.write_text(raw.read_text() + "\n" + json.dumps({"question": "1+1=?", "answer": "2"}))
    with pytest.raises(DataError, match="which is gone; what it was made of has changed"):
        make_rows_again(paths)
    raw.unlink()
    with pytest.raises(DataError, match=r"cannot be made again: dataset my\.jsonl does not exist") as raised:
        make_rows_again(paths)
    assert f"launcher submit --from {paths.job_id}" in raised.value.hint
    paths.spec.write_text("{")
    with pytest.raises(JobError, match="cannot read what"):
        make_rows_again(paths)
