"""Several models by name: how they are named, and the command that serves them, with models computed in numpy."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from support.checkpoint_sets import launcher
from support.model_servers import make_adapter, quick_model, served

from launcher.errors import SpecError
from launcher.inference.server.served import check_names, split_adapter, split_named


def test_a_model_is_named_and_may_have_an_adapter(tmp_path: Path) -> None:
    assert split_named("a.b-1=jobs/x=y") == ("a.b-1", "jobs/x=y")
    assert split_adapter("last") == ("last", None)
    assert split_adapter("/models/llama+last") == ("/models/llama", "last")
    (tmp_path / "c+b").mkdir()
    assert split_adapter(str(tmp_path / "c+b")) == (str(tmp_path / "c+b"), None)


@pytest.mark.parametrize("text", ["last", "=last", "a=", "a/b=last", "a b=last"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not NAME=MODEL"):
        split_named(text)


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = quick_model(tmp_path / "model")
    check_names([served("a", folder, asked_as="a"), served("b", folder)])
    with pytest.raises(SpecError, match="two models are called last"):
        check_names([served("a", folder, asked_as="last"), served("last", folder)])


def test_base_adapter_and_another_model_are_served_side_by_side(tmp_path: Path) -> None:
    base, other = quick_model(tmp_path / "base"), quick_model(tmp_path / "other", rms_norm_eps=0.5)
    adapter, log = make_adapter(tmp_path / "adapter"), tmp_path / "log"
    argv = [sys.executable, "-m", "launcher", "serve", str(base), "--port", "0"]
    argv += ["--model", f"apart={base}+{adapter}", "--model", f"other={other}"]
    env = {name: value for name, value in os.environ.items() if name != "LAUNCHER_TOKEN"}
    with log.open("wb") as stderr:
        process = subprocess.Popen(argv, stderr=stderr, env=env, cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while not (found := re.search(r"base, apart, other answer on (http://\S+)/v1", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        with httpx.Client(base_url=found[1], trust_env=False, timeout=60) as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base", "apart", "other"]
            asked = [
                {"model": name, "prompt": "苹果", "max_tokens": 8} for name in ("base", "apart", "other", str(base))
            ]
            answers = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in asked]
        assert len(set(answers[:3])) == 3
        assert answers[3] == answers[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_second_model_that_is_none_is_said_before_any_is_loaded(tmp_path: Path) -> None:
    base = quick_model(tmp_path / "base")
    for text, code, expected in (("last", 2, "--model last is not NAME=MODEL"), ("a=nope", 6, "no job 'nope'")):
        done = launcher("serve", base, "--port", "0", "--model", text, cwd=tmp_path)
        assert (done.returncode, expected in done.stderr) == (code, True)
