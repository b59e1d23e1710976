"""Rows of 2,000 mixed samples, token for token and mask for mask those of transformers and of FastChat."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.data_tools import make_hugging_face, make_sentencepiece

from launcher.data.info import read_info
from launcher.data.mindrecord import read_row
from launcher.data.mindrecord_header import header_rows, read_header
from launcher.data.options import PreprocessOptions
from launcher.data.preprocess import preprocess
from launcher.data.reading import DataSource
from launcher.data.sample import problems

SAMPLES = 2000
LENGTH = 1000
Turns = list[dict[str, Any]]

# As Qwen2.5's own writes tools, calls and results; and it says itself what is generated.
WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '\n# Tools\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content }}"
    '{% for call in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = WITH_TOOLS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TOOLS = [{"type": "function", "function": {"name": "calculate", "parameters": {"type": "object", "properties": {}}}}]


def call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "calculate", "arguments": arguments}}


def pairs(rng: random.Random, count: int) -> list[tuple[str, str]]:
    found = list(problems(count, rng.randrange(99)))
    return [(problem.question, "\n".join(problem.steps) + rng.choice(("", " ", "\n"))) for problem in found]


def conversation(rng: random.Random, said: list[tuple[str, str]]) -> Turns:
    turns: Turns = [{"role": "system", "content": "简短。"}] if rng.random() < 0.3 else []
    for question, answer in rng.sample(said, rng.randint(1, 3)):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def with_calls(rng: random.Random, said: list[tuple[str, str]]) -> Turns:
    question, answer = rng.choice(said)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [call({"sum": [rng.randint(1, 99), "二"]})]},
        {"role": "tool", "content": f"= {rng.randint(1, 99)}"},
        {"role": "assistant", "content": answer},
    ]


def write(folder: Path, rng: random.Random, *, tools: bool) -> list[Turns]:
    """Write 2,000 samples as csv, parquet and jsonl; return them as transformers takes them, in order."""
    said = pairs(rng, 400)
    single = [rng.choice(said) for _ in range(500)]
    many = [conversation(rng, said) for _ in range(1000 if tools else 1500)]
    called = [with_calls(rng, said) for _ in range(500)] if tools else []
    with (folder / "a.csv").open("w", encoding="gb18030", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *single])
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": turns} for turns in many]), folder / "b.parquet"
    )
    records = [{"tools": TOOLS, "messages": turns} for turns in called]
    (folder / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    alone = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in single]
    return [*alone, *many, *called]


def rows(folder: Path, template: str, tokenizer: Path, names: tuple[str, ...]) -> list[tuple[list[int], list[bool]]]:
    wanted = PreprocessOptions(
        source=tuple(DataSource(path=str(folder / name)) for name in names),
        tokenizer=tokenizer,
        target=folder / "t.mindrecord",
        seq_length=LENGTH,
        template=template,
    )
    info, _ = preprocess(wanted, force=True)
    assert info.counts["truncated"] == 0
    assert info.rows == SAMPLES
    assert read_info(info.path) is not None
    found = []
    for row in range(header_rows(read_header(info.path) or {})):
        values = read_row(info.path, row)
        used = int(np.nonzero((values["input_ids"] != 0) | (values["labels"] != -100))[0][-1]) + 1
        found.append((values["input_ids"][:used].tolist(), (values["labels"][:used] != -100).tolist()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", [WITH_TOOLS, UNMARKED], ids=["marked", "unmarked"])
def test_rows_are_those_of_transformers(tmp_path: Path, source: str) -> None:
    from transformers import PreTrainedTokenizerFast

    make_hugging_face(tmp_path / "tokenizer.json", "bytes")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": source}))
    samples = write(tmp_path, random.Random(3), tools=True)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    found = rows(tmp_path, "own", tmp_path / "tokenizer.json", ("a.csv", "b.parquet", "c.jsonl"))
    for turns, (ids, in_loss) in zip(samples, found, strict=True):
        tools = TOOLS if any(turn["role"] == "tool" for turn in turns) else None
        expected = theirs.apply_chat_template(
            turns,
            tools=tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            chat_template=WITH_TOOLS,
        )
        assert ids == expected["input_ids"]
        assert in_loss == [bool(flag) for flag in expected["assistant_masks"]]


@pytest.mark.slow
def test_rows_are_those_of_fastchat(tmp_path: Path) -> None:
    theirs = pytest.importorskip("fastchat.train.train", reason="fschat is not installed")
    from transformers import LlamaTokenizer

    model = make_sentencepiece(tmp_path / "tokenizer.model")
    known = LlamaTokenizer(str(model), legacy=True, model_max_length=LENGTH + 1)
    known.pad_token = known.unk_token
    samples = [
        [turn for turn in turns if turn["role"] != "system"] for turns in write(tmp_path, random.Random(4), tools=False)
    ]
    names = {"user": "human", "assistant": "gpt"}
    told = [[{"from": names[turn["role"]], "value": turn["content"]} for turn in turns] for turns in samples]
    records = [{"conversations": turns} for turns in told]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = rows(tmp_path, "vicuna", model, ("all.jsonl",))
    expected = theirs.preprocess(told, known)
    for number, (ids, in_loss) in enumerate(found):
        assert ids == expected["input_ids"][number][: len(ids)].tolist()
        assert in_loss == (expected["labels"][number][: len(ids)] != -100).tolist()
