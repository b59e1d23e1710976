"""Models from Python: one whose network is computed in numpy, with random weights."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from support.inference_tools import CONTEXT, make_model

import launcher
from launcher.errors import CheckpointError, DataError, JobError, SpecError

ASKED = ["苹果和梨", "3个苹果", "小明有5个梨"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model", family="qwen3", head_dim=12)


def test_prompts_and_conversations_are_answered_in_their_order(folder: Path) -> None:
    model = launcher.load(folder)
    answers = model.generate(ASKED, max_new_tokens=6)

    assert [answer.prompt for answer in answers] == ASKED
    assert all(0 < answer.new_tokens <= 6 for answer in answers)
    talk = [{"role": "user", "content": ASKED[0]}]
    assert model.generate([talk], max_new_tokens=6)[0].text == answers[0].text
    assert model.generate(ASKED[0], max_new_tokens=6)[0].text == answers[0].text
    assert model.generate(ASKED[0], max_new_tokens=6, raw=True)[0].prompt_tokens < answers[0].prompt_tokens
    told = [{"role": "system", "content": "短"}, *talk]
    assert (
        model.generate(ASKED[:1], max_new_tokens=6, system="短")[0].text
        == model.generate([told], max_new_tokens=6)[0].text
    )
    longer = [*talk, {"role": "assistant", "content": "3"}, {"role": "user", "content": "再来"}]
    assert model.generate([longer], max_new_tokens=1)[0].prompt_tokens > answers[0].prompt_tokens
    assert model.generate([], max_new_tokens=6) == []


def test_settings_are_those_of_infer(folder: Path) -> None:
    model = launcher.load(folder)
    drawn = [model.generate(ASKED[0], temperature=1.5, seed=seed, max_new_tokens=8)[0].text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    whole = model.generate(ASKED[0], max_new_tokens=8)[0].text
    (stopped,) = model.generate(ASKED[0], max_new_tokens=8, stop=whole[2])
    assert (stopped.text, stopped.finish) == (whole[: whole.index(whole[2])], "stop")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"temprature": 1}, "there is no setting temprature; did you mean temperature?"),
        ({"temperature": -1}, "temperature: input should be greater than or equal to 0, got -1"),
        ({"top_p": 0, "max_new_tokens": 0}, "max_new_tokens: input should be greater than or equal to 1, got 0"),
        ({"seed": -1}, "seed is a whole number from 0, got -1"),
    ],
)
def test_settings_that_infer_refuses_are_refused(folder: Path, setting: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        launcher.load(folder).generate(ASKED, **setting)


def test_what_cannot_be_answered_is_raised(folder: Path, tmp_path: Path) -> None:
    model = launcher.load(folder)
    with pytest.raises(DataError, match="prompt 1 is empty"):
        model.generate(["苹果", " "])
    with pytest.raises(DataError, match=f"longer than the context of {CONTEXT} tokens"):
        model.generate("苹果" * CONTEXT)
    with pytest.raises(SpecError, match="raw prompts are texts"):
        model.generate([[{"role": "user", "content": "苹果"}]], raw=True)
    with pytest.raises(JobError, match="there are no jobs"):
        launcher.load(jobs_dir=tmp_path)
    with pytest.raises(CheckpointError):
        launcher.load(tmp_path)


def test_threads_ask_one_after_another(folder: Path) -> None:
    model = launcher.load(folder)
    expected = [answer.text for answer in model.generate(ASKED, max_new_tokens=6)]
    found: dict[int, str] = {}

    def ask(place: int) -> None:
        found[place] = model.generate(ASKED[place], max_new_tokens=6)[0].text

    asking = [threading.Thread(target=ask, args=(place,)) for place in range(len(ASKED))]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert [found[place] for place in range(len(ASKED))] == expected
