"""EleutherAI's lm-eval against a server in this process, on a task made here.

lm-eval brings a hundred packages, so it is in no extra: where LAUNCHER_LM_EVAL names a Python that has lm_eval[api],
or this one has it, its ``local-completions`` asks; what it finds is computed here from the logits of whole rows.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.data_tools import make_hugging_face
from support.model_servers import Running, quick_model, running, served

PYTHON = os.environ.get("LAUNCHER_LM_EVAL") or (sys.executable if importlib.util.find_spec("lm_eval") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="no lm-eval: LAUNCHER_LM_EVAL=PYTHON, with lm_eval[api]"),
]
QUESTIONS = [
    {"question": "苹果3元，买6个要多少元？", "choices": ["18元", "9元", "3元", "二"], "answer": 0},
    {"question": "I love", "choices": ["Beijing", "company", "苹果和梨"], "answer": 2},
    {"question": "小红有15元", "choices": ["1", "15", "150"], "answer": 1},
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["##"], max_gen_toks: 7, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer that transformers loads."""
    root = tmp_path_factory.mktemp("lm_eval")
    model = quick_model(root / "model", vocab_size=1000)
    (model / "tokenizer.model").unlink()
    make_hugging_face(model / "tokenizer.json", "bytes")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(named))
    return model


@pytest.fixture(scope="module")
def found(folder: Path) -> Iterator[tuple[Running, dict[str, list[Any]]]]:
    """The server, and what lm-eval got for each question of each task."""
    root = folder.parent
    (root / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    tasks = root / "tasks"
    tasks.mkdir()
    for name, text in (("choice", CHOICE), ("generate", GENERATE)):
        (tasks / f"{name}.yaml").write_text(text.replace("FILE", str(root / "data.jsonl")))
    with running([served("tiny", folder)]) as server:
        arguments = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={folder},max_length=96,max_retries=1"
        argv = [str(PYTHON), "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
        argv += ["--include_path", str(tasks), "--tasks", "local_choice,local_generate", "--batch_size", "4"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "TOKENIZERS_PARALLELISM": "false"}
        env |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [*argv, "--output_path", str(root / "out"), "--log_samples"],
            env=env, cwd=root, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        samples = {}
        for task in ("local_choice", "local_generate"):
            (file,) = (root / "out").rglob(f"samples_{task}_*.jsonl")
            samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
        yield server, samples


def log_likelihood(server: Running, context: str, continuation: str) -> tuple[float, bool]:
    """By the logits of the whole row, without bos, as lm-eval asks; and whether it is the greedy continuation."""
    tokenizer = server.session.tokenizer
    ids = tokenizer.encode(context + continuation, start=True)
    begin = len(tokenizer.encode(context, start=True))
    logits = server.session.all_logits(np.array([ids], np.int32))[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.arange(begin - 1, len(ids) - 1)
    likeliest = bool((logits[places].argmax(-1) == ids[begin:]).all())
    return float(logprobs[places, ids[begin:]].sum()), likeliest


def test_log_likelihoods_are_those_of_the_model(found: tuple[Running, dict[str, list[Any]]]) -> None:
    server, samples = found
    right = 0
    for number, question in enumerate(QUESTIONS):
        (sample,) = (sample for sample in samples["local_choice"] if sample["doc_id"] == number)
        # lm-eval puts a space between the question and a choice.
        expected = [log_likelihood(server, question["question"], f" {choice}") for choice in question["choices"]]  # type: ignore[arg-type,attr-defined]
        got = [(float(score), str(greedy) == "True") for ((score, greedy),) in sample["resps"]]
        assert np.allclose([score for score, _ in got], [score for score, _ in expected], atol=1e-4)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        best = int(np.argmax([score for score, _ in expected]))
        assert sample["acc"] == (best == question["answer"])
        right += best == question["answer"]
    assert 0 <= right < len(QUESTIONS)


def test_generated_texts_are_the_models_own(found: tuple[Running, dict[str, list[Any]]]) -> None:
    server, samples = found
    for number, question in enumerate(QUESTIONS):
        (sample,) = (sample for sample in samples["local_generate"] if sample["doc_id"] == number)
        ids = server.session.tokenizer.encode(str(question["question"]), start=True)
        answer = server.post("/v1/completions", prompt=ids, max_tokens=7, temperature=0, stop=["##"])
        assert sample["resps"] == [[answer["choices"][0]["text"]]]
