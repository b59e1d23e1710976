"""EleutherAI's lm-eval against a server in this process, on a task made here.

lm-eval brings a hundred packages, so it is in no extra: where LAUNCHER_LM_EVAL names a Python that has it and
transformers (`make test-lm-eval`), or this one has it, its ``local-completions`` asks; what it finds is computed here
from the logits of whole rows.
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
from support import exam_files
from support.data_tools import make_hugging_face
from support.model_servers import Running, quick_model, running, served

from launcher.data.exams import find_exam
from launcher.inference.evaluation import answers_to
from launcher.inference.exams import Asked, asked_of

PYTHON = os.environ.get("LAUNCHER_LM_EVAL") or (sys.executable if importlib.util.find_spec("lm_eval") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="no lm-eval: make test-lm-eval, or LAUNCHER_LM_EVAL=PYTHON"),
]
CONTEXT = 640
TASKS = ("local_choice", "local_generate", "local_mmlu", "local_gsm8k")
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
# As lm-eval's own mmlu and gsm8k are, on files of ours.
MMLU = """
task: local_mmlu
dataset_path: parquet
dataset_kwargs: {data_files: {test: FOLDER/test-00000-of-00001.parquet, dev: FOLDER/dev-00000-of-00001.parquet}}
test_split: test
fewshot_split: dev
fewshot_config: {sampler: first_n}
num_fewshot: 2
description: "The following are multiple choice questions (with answers) about abstract algebra.\\n\\n"
output_type: multiple_choice
doc_to_text: "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc}]
"""
GSM8K = """
task: local_gsm8k
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl, train: FOLDER/train.jsonl}}
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
num_fewshot: 1
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer that transformers loads."""
    root = tmp_path_factory.mktemp("lm_eval")
    model = quick_model(root / "model", vocab_size=1000, seq_length=CONTEXT)
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
    exam_files.mmlu_parquet(root / "mmlu")
    exam_files.gsm8k(root / "gsm8k")
    places = {
        "choice": (CHOICE, root / "data.jsonl"), "generate": (GENERATE, root / "data.jsonl"),
        "mmlu": (MMLU, root / "mmlu" / "abstract_algebra"), "gsm8k": (GSM8K, root / "gsm8k"),
    }  # fmt: skip
    for name, (text, place) in places.items():
        (tasks / f"{name}.yaml").write_text(text.replace("FILE", str(place)).replace("FOLDER", str(place)))
    with running([served("tiny", folder)]) as server:
        arguments = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={folder},max_length={CONTEXT}"
        argv = [str(PYTHON), "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
        argv += ["--include_path", str(tasks), "--tasks", ",".join(TASKS), "--batch_size", "4"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "TOKENIZERS_PARALLELISM": "false"}
        env |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [*argv, "--output_path", str(root / "out"), "--log_samples"],
            env=env, cwd=root, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        samples = {}
        for task in TASKS:
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


def exam(folder: Path) -> list[Asked]:
    found = find_exam(folder)
    assert found is not None
    return asked_of(found, 5, chat=False)


def test_eval_puts_mmlu_in_the_same_words(folder: Path, found: tuple[Running, dict[str, list[Any]]]) -> None:
    server, samples = found
    for number, one in enumerate(exam(folder.parent / "mmlu")):
        (sample,) = (sample for sample in samples["local_mmlu"] if sample["doc_id"] == number)
        prompt = str(one.after(2).text)
        assert {call["arg_0"] for call in sample["arguments"].values()} == {prompt}
        scores = [float(score) for ((score, _),) in sample["resps"]]
        assert np.allclose(scores, [log_likelihood(server, prompt, f" {letter}")[0] for letter in "ABCD"], atol=1e-4)
        assert sample["acc"] == ("ABCD"[int(np.argmax(scores))] == one.right)


def test_eval_puts_gsm8k_in_the_same_words(folder: Path, found: tuple[Running, dict[str, list[Any]]]) -> None:
    server, samples = found
    asked = exam(folder.parent / "gsm8k")
    # lm-eval puts no bos token first.
    prompts = [server.session.tokenizer.encode(str(one.after(1).text), start=True) for one in asked]
    answers = list(answers_to(server.session, prompts, 12, stop=("Question:",)))
    for number, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        (sample,) = (sample for sample in samples["local_gsm8k"] if sample["doc_id"] == number)
        assert sample["arguments"]["gen_args_0"]["arg_0"] == one.after(1).text
        assert sample["resps"] == [[answer]]
