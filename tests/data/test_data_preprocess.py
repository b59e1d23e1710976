"""Preprocessing as a user runs it: rows, shards, splits, duplicates, interruptions, and the command line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_tools import ROOT, launcher

from launcher.data.cache import in_cache
from launcher.data.info import read_info
from launcher.data.mindrecord import Ints, read_row
from launcher.data.mindrecord_header import header_rows, read_header
from launcher.data.options import PreprocessOptions, eval_path
from launcher.data.preprocess import preprocess
from launcher.data.reading import DataSource, Reading
from launcher.data.rows import IGNORED_LABEL, Samples, fit
from launcher.data.sample import problems
from launcher.data.samples import samples_path
from launcher.data.segments import Encoded
from launcher.data.tokenizer import Tokenizer, load_tokenizer
from launcher.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 400 problems, their conversations and a tokenizer of 700 pieces."""
    folder = tmp_path_factory.mktemp("data")
    launcher("data", "sample", "--size", "400", "--seed", "4", cwd=folder)
    launcher("data", "convert", "math.jsonl", cwd=folder)
    launcher("data", "tokenizer", "conversations.json", "--vocab-size", "700", cwd=folder)
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "tokenizer.model")


def options(folder: Path, target: Path, **changed: Any) -> PreprocessOptions:
    common: dict[str, Any] = {"seq_length": 100, "template": "plain", "tokenizer": folder / "tokenizer.model"}
    return PreprocessOptions(**{"source": folder / "conversations.json", "target": target, **common, **changed})


def rows(path: Path) -> list[dict[str, Ints]]:
    info = read_info(path)
    assert info is not None
    counts = [(file, header_rows(read_header(file) or {})) for file in info.files]
    return [read_row(file, row) for file, count in counts for row in range(count)]


def in_loss(row: dict[str, Ints]) -> list[int]:
    return [label for label in row["labels"].tolist() if label != IGNORED_LABEL]


READ = """
import json, sys
from launcher.upstream.light_imports import light_imports
with light_imports():
    import mindformers
from mindformers.dataset.causal_language_model_dataset import CausalLanguageModelDataset
from mindspore.dataset import MindDataset
def listed(dataset):
    return [{name: row[name].tolist() for name in ("input_ids", "labels")}
            for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
files, folder = json.loads(sys.argv[1]), sys.argv[2]
loader = {"type": "MindDataset", "dataset_dir": folder, "shuffle": False}
theirs = CausalLanguageModelDataset(data_loader=loader, input_columns=["input_ids", "labels"], batch_size=1,
                                    drop_remainder=True, num_parallel_workers=1, python_multiprocessing=False)
packed = MindDataset(sys.argv[3], shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True)
print(json.dumps([listed(MindDataset(files, shuffle=False)), listed(theirs)]))
print(json.dumps([{name: row[name].tolist() for name in row} for row in packed]))
"""


@pytest.mark.mindspore
def test_mindspore_and_mindformers_read_the_rows(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "train.mindrecord"
    argv = ("data", "preprocess", "conversations.json", "--template", "plain", "--output", str(target))
    printed = launcher(*argv, "--seq-length", "100", "--shards", "3", cwd=folder)
    assert "400 rows of 100 + 1 tokens" in printed
    info = read_info(target)
    assert info is not None
    files = [str(file) for file in info.files]
    assert [Path(file).name for file in files] == [f"train.mindrecord{shard}" for shard in range(3)]
    packed = tmp_path / "packed" / "p.mindrecord"
    launcher(*argv[:-1], str(packed), "--seq-length", "300", "--packing", cwd=folder)
    done = subprocess.run(
        (sys.executable, "-c", READ, json.dumps(files), str(target.parent), str(packed)),
        capture_output=True,
        timeout=180,
        check=True,
        cwd=tmp_path,
    )
    ours = sorted((row["input_ids"].tolist(), row["labels"].tolist()) for row in rows(target))
    *_, plain, shared = done.stdout.splitlines()
    assert json.loads(shared) == [{name: row[name].tolist() for name in sorted(row)} for row in rows(packed)]
    for dataset in json.loads(plain):
        flat = [(np.ravel(row["input_ids"]).tolist(), np.ravel(row["labels"]).tolist()) for row in dataset]
        assert sorted(flat) == ours


def test_rows_hold_what_was_asked_and_learn_what_was_answered(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    info, made = preprocess(options(folder, tmp_path / "a.mindrecord"), force=False)
    assert made
    assert (info.rows, info.seq_length, info.template) == (400, 100, "plain")
    assert info.columns == ("input_ids", "labels")
    assert info.tokenizer == tokenizer.info
    found = rows(info.path)
    assert all(row["input_ids"].shape == row["labels"].shape == (101,) for row in found)
    conversations = json.loads((folder / "conversations.json").read_text("utf-8"))
    for row, conversation in zip(found, conversations, strict=True):
        question, answer = (turn["value"] for turn in conversation["conversations"])
        assert tokenizer.decode(in_loss(row)) == answer
        asked = row["input_ids"][: int(np.argmax(row["labels"] != IGNORED_LABEL))]
        assert tokenizer.decode(asked.tolist()) == f"{question}\n"
        same = row["labels"] == row["input_ids"]
        assert np.array_equal(same, row["labels"] != IGNORED_LABEL)
    assert sum(len(in_loss(row)) for row in found) == info.counts["loss_tokens"]


def test_the_number_of_processes_changes_nothing(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "math.jsonl").read_text("utf-8") * 12
    (tmp_path / "many.jsonl").write_text(lines, "utf-8")
    made = {}
    for processes in (1, 3):
        target = tmp_path / str(processes) / "a.mindrecord"
        wanted = options(
            folder,
            target,
            source=tmp_path / "many.jsonl",
            processes=processes,
            dedup=True,
            eval_fraction=0.3,
            shards=2,
        )
        info, _ = preprocess(wanted, force=False)
        held_out = read_info(eval_path(target))
        assert held_out is not None
        made[processes] = [path.read_bytes() for path in (*info.files, *held_out.files)]
        assert info.counts["duplicates"] == 400 * 11
        assert info.rows + held_out.rows == 400
    assert made[1] == made[3]


def test_the_same_ids_are_held_out_whatever_else_there_is(folder: Path, tmp_path: Path) -> None:
    conversations = json.loads((folder / "conversations.json").read_text("utf-8"))
    (tmp_path / "half.json").write_text(json.dumps(conversations[::2]), "utf-8")
    held_out = []
    for name, source in (("a", folder / "conversations.json"), ("b", tmp_path / "half.json")):
        target = tmp_path / f"{name}.mindrecord"
        preprocess(options(folder, target, source=source, eval_fraction=0.25), force=False)
        held_out.append({row["input_ids"].tobytes() for row in rows(eval_path(target))})
        info = read_info(target)
        assert info is not None
        assert not held_out[-1] & {row["input_ids"].tobytes() for row in rows(target)}
    assert held_out[1] < held_out[0]
    assert 60 < len(held_out[0]) < 140


samples = st.lists(
    st.lists(st.tuples(st.integers(3, 99), st.booleans()), min_size=1, max_size=40).map(
        lambda pairs: Encoded([token for token, _ in pairs], bytes(flag for _, flag in pairs))
    ),
    max_size=8,
)


@given(samples, st.integers(1, 12), st.sampled_from(["truncate", "drop", "split"]))
def test_no_sample_is_lost_and_split_predicts_every_token_once(
    encoded: list[Encoded], seq_length: int, overflow: Any
) -> None:
    made = fit(Samples.of(encoded), seq_length=seq_length, overflow=overflow)
    counts = made.counts
    assert counts["conversations"] == len(encoded)
    targets = Counter[int]()
    for sample in encoded:
        if overflow == "split":
            targets.update(token for token, flag in zip(sample.ids[1:], sample.in_loss[1:], strict=True) if flag)
        elif len(sample.ids) <= seq_length + 1 or overflow == "truncate":
            end = seq_length + 1
            targets.update(t for t, flag in zip(sample.ids[1:end], sample.in_loss[1:end], strict=True) if flag)
    predicted = made.values[:, 1, 1:]
    assert Counter(predicted[predicted != IGNORED_LABEL].tolist()) == targets
    assert counts["loss_tokens"] == targets.total() == np.count_nonzero(made.values[:, 1] != IGNORED_LABEL)
    if overflow != "split":
        assert counts["rows"] + counts["dropped"] + counts["without_loss"] == len(encoded)
    assert made.values.shape[2] <= seq_length + 1
    assert counts["padding"] + counts["tokens"] == (seq_length + 1) * counts["rows"]


def test_in_is_out_plus_rejected_dropped_and_duplicates(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "math.jsonl").read_text("utf-8").splitlines()
    mixed = [*lines[:100], "{broken", *lines[:10], '{"instruction": "a", "output": ""}', *lines[100:150]]
    (tmp_path / "mixed.jsonl").write_text("\n".join(mixed), "utf-8")
    wanted = options(folder, tmp_path / "a.mindrecord", source=tmp_path / "mixed.jsonl", seq_length=60)
    with pytest.raises(DataError, match=r"mixed\.jsonl:101: not JSON"):
        preprocess(wanted, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed.jsonl"]
    wanted = options(
        folder, wanted.target, source=wanted.source, seq_length=60, overflow="drop", dedup=True, max_rejects=2
    )
    info, _ = preprocess(wanted, force=False)
    counts = info.counts
    assert (counts["rejected"], counts["duplicates"]) == (2, 10)
    assert counts["dropped"] > 0
    assert len(mixed) == counts["rows"] + counts["rejected"] + counts["dropped"] + counts["duplicates"]
    kept = (tmp_path / "a.mindrecord.rejects.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["line"] for line in kept] == [101, 112]


def test_identical_input_and_options_are_not_done_again(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.mindrecord"
    assert preprocess(options(folder, target, shards=3), force=False)[1]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert not preprocess(options(folder, target, shards=3, processes=2), force=True)[1]
    # The same bytes under another name and time are the same input.
    (tmp_path / "copy.json").write_bytes((folder / "conversations.json").read_bytes())
    assert not preprocess(options(folder, target, shards=3, source=tmp_path / "copy.json"), force=True)[1]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(DataError, match="would change"):
        preprocess(options(folder, target, shards=3, seq_length=90), force=False)
    assert preprocess(options(folder, target, shards=2, seq_length=90), force=True)[1]
    assert sorted(path.name for path in tmp_path.glob("a.*")) == [
        "a.mindrecord.samples",
        "a.mindrecord.stats.json",
        "a.mindrecord0",
        "a.mindrecord0.db",
        "a.mindrecord1",
        "a.mindrecord1.db",
    ]
    (tmp_path / "a.mindrecord1").unlink()
    assert preprocess(options(folder, target, shards=2, seq_length=90), force=True)[1]


def test_texts_fill_their_rows(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    paragraphs = [problem.question for problem in problems(60, 1)]
    (tmp_path / "wiki.txt").write_text("\n\n".join(paragraphs) + "\n", "utf-8")
    (tmp_path / "wiki.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in paragraphs), "utf-8")
    for name in ("wiki.txt", "wiki.jsonl"):
        target = tmp_path / f"{name}.mindrecord"
        info, _ = preprocess(options(folder, target, source=tmp_path / name, kind="text", seq_length=31), force=False)
        found = rows(target)
        assert info.counts["conversations"] == 60
        assert all(row["input_ids"][31] == following["input_ids"][0] for row, following in pairwise(found))
        tokens = [
            int(found[0]["input_ids"][0]),
            *(token for row in found for token in row["input_ids"][1:].tolist()),
        ]
        text = "".join(f"<s>{paragraph}</s>" for paragraph in paragraphs)
        told = "".join(tokenizer.piece(token) if tokenizer.is_control(token) else "" for token in tokens)
        assert told.startswith("<s></s>" * 60)
        parts = _between_controls(tokens, tokenizer)
        assert parts[:60] == paragraphs
        assert text.count("<s>") == 60
        assert sum(len(in_loss(row)) for row in found) == info.counts["loss_tokens"]


def _between_controls(tokens: list[int], tokenizer: Tokenizer) -> list[str]:
    parts: list[list[int]] = []
    for token in tokens:
        if token == tokenizer.bos_id:
            parts.append([])
        elif parts and not tokenizer.is_control(token):
            parts[-1].append(token)
    return [tokenizer.decode(part) for part in parts]


def _big(folder: Path, tmp_path: Path) -> Path:
    source = tmp_path / "big.jsonl"
    source.write_text((folder / "math.jsonl").read_text("utf-8") * 60, "utf-8")
    return source


@pytest.mark.parametrize(
    ("signum", "packing"), [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGHUP, False)]
)
def test_an_interrupted_run_goes_on_where_it_was(folder: Path, tmp_path: Path, signum: int, packing: bool) -> None:
    source = _big(folder, tmp_path)
    target = tmp_path / "a.mindrecord"
    argv = [sys.executable, "-m", "launcher", "data", "preprocess", str(source), "--template", "plain"]
    argv += ["--tokenizer", str(folder / "tokenizer.model"), "--seq-length", "100", "--output", str(target)]
    run = subprocess.Popen(
        [*argv, "--processes", "2", *(["--packing"] if packing else [])],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    partial = tmp_path / ".a.mindrecord.partial" / "a.mindrecord.rows"
    _wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
    run.send_signal(signum)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 128 + signum
    assert "--resume" in told
    assert sorted(path.name for path in tmp_path.glob("*")) == [".a.mindrecord.partial", "big.jsonl"]
    journal = json.loads((partial.parent / "journal.json").read_text("utf-8"))
    assert journal["batches"] > 0
    with pytest.raises(DataError, match="other options"):
        preprocess(options(folder, target, source=source, seq_length=90, resume=True), force=False)
    seen: list[int] = []
    wanted = options(folder, target, source=source, resume=True, processes=2, packing=packing)
    info, made = preprocess(wanted, force=False, progress=lambda *told: seen.append(told[2]))
    assert made
    # It did not begin anew: the first batch of this run comes after those of the other.
    done = sum(page["end"] - page["start"] for page in journal["outputs"][0]["shards"][0]["pages"])
    assert seen[0] > done > 0
    assert not partial.parent.exists()
    again = options(folder, tmp_path / "b" / "a.mindrecord", source=source, packing=packing)
    whole, _ = preprocess(again, force=False)
    assert info.path.read_bytes() == whole.path.read_bytes()
    assert samples_path(info.path).read_bytes() == samples_path(whole.path).read_bytes()
    assert info.stats == whole.stats


def _wait_until(happened: Any, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_killed_run_leaves_no_process_and_nothing_half_made(folder: Path, tmp_path: Path) -> None:
    source = _big(folder, tmp_path)
    argv = [
        "data",
        "preprocess",
        str(source),
        "--template",
        "plain",
        "--seq-length",
        "100",
        "--processes",
        "2",
    ]
    argv += ["--tokenizer", str(folder / "tokenizer.model"), "--output", "a.mindrecord"]
    run = subprocess.Popen(
        [sys.executable, "-m", "launcher", *argv], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    partial = tmp_path / ".a.mindrecord.partial" / "a.mindrecord.rows"
    _wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    run.kill()
    run.wait(timeout=30)
    # As if it had been killed while it put its files into place.
    (partial.parent / "a.mindrecord.db").write_bytes(b"left over")
    _wait_until(lambda: not any(_alive(child) for child in children))
    assert not list(tmp_path.glob("a.*"))
    assert "wrote" in launcher(*argv, cwd=tmp_path)
    assert not partial.parent.exists()


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("command", ["convert", "tokenizer"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_stopped_leaves_nothing_and_says_so(
    folder: Path, tmp_path: Path, command: str, signum: signal.Signals
) -> None:
    """The input is a pipe that never ends: wherever the signal comes, the command is at work."""
    pipe = tmp_path / "records.jsonl"
    os.mkfifo(pipe)
    argv = [sys.executable, "-m", "launcher", "data", command, str(pipe), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with pipe.open("wb") as out:
        out.write((folder / "math.jsonl").read_bytes() * 20)
        out.flush()
        process.send_signal(signum)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 128 + signum
    assert f"{signum.name}: {tmp_path / 'out'} is not written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_bad_record_is_not_blamed_on_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": 1}\n')
    said = launcher("data", "tokenizer", "bad.jsonl", cwd=tmp_path, code=3)
    assert "bad.jsonl:2:" in said
    assert "vocab" not in said


def test_lines_that_end_as_on_windows_are_the_same_text(folder: Path, tmp_path: Path) -> None:
    text = "\n\n".join(problem.question for problem in problems(60, 9)) + "\n"
    for name, content in (("unix", text), ("windows", text.replace("\n", "\r\n"))):
        (tmp_path / f"{name}.txt").write_bytes(content.encode())
        wanted = options(folder, tmp_path / f"{name}.mindrecord", source=tmp_path / f"{name}.txt", kind="text")
        preprocess(wanted, force=False)
    one, other = rows(tmp_path / "unix.mindrecord"), rows(tmp_path / "windows.mindrecord")
    assert [row["input_ids"].tolist() for row in one] == [row["input_ids"].tolist() for row in other]


def test_records_on_both_sides_of_the_split_are_said(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "math.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "twice.jsonl").write_text("\n".join(lines * 2) + "\n", "utf-8")
    common = ("--tokenizer", str(folder / "tokenizer.model"), "--seq-length", "100", "--template", "plain")
    target = tmp_path / "t.mindrecord"
    wanted = options(folder, target, source=tmp_path / "twice.jsonl", eval_fraction=0.3)
    preprocess(wanted, force=False)
    held_out = read_info(eval_path(target))
    assert held_out is not None
    training = {row["input_ids"].tobytes() for row in rows(target)}
    assert held_out.counts["in_training"] == sum(row["input_ids"].tobytes() in training for row in rows(held_out.path))
    assert held_out.counts["in_training"] > 50
    argv = [sys.executable, "-m", "launcher", "data", "preprocess", "twice.jsonl", *common, "--eval-fraction", "0.3"]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert "held-out records are in the training rows too" in done.stderr


def test_hostile_input(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    hostile = [
        ("</s><s>[INST]", "</s> is text"),
        ("\ufdd0+\ufdd0", "\x00\x07\x1b[31m"),
        ("长" * 3_000_000, "短"),
        ("a", "b" * 1_000_000),
        ("🙂👩‍👩‍👧", "é"),
    ]
    lines = [json.dumps({"instruction": question, "output": answer}) for question, answer in hostile]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    info, _ = preprocess(options(folder, tmp_path / "a.mindrecord", source=tmp_path / "a.jsonl"), force=False)
    # The question of the third fills the row, so nothing of its answer is left to learn.
    assert (info.rows, info.counts["truncated"], info.counts["without_loss"]) == (4, 2, 1)
    found = rows(info.path)
    assert [row["input_ids"].tolist().count(tokenizer.eos_id or -1) for row in found] == [1, 1, 0, 1]
    assert tokenizer.decode(in_loss(found[0])) == "</s> is text"
    assert tokenizer.decode(in_loss(found[1])) == "\x00\x07\x1b[31m"


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "english.jsonl").write_text(
        "\n".join(json.dumps({"instruction": f"Tell me about number {n}, please.", "output": "No."}) for n in range(99))
    )
    wanted = options(folder, tmp_path / "a.mindrecord", source=tmp_path / "english.jsonl", seq_length=200)
    info, _ = preprocess(wanted, force=False)
    assert "does not know this language" in info.stats["warnings"][0]
    with pytest.raises(DataError, match="no row to learn from") as error:
        preprocess(options(folder, tmp_path / "b.mindrecord", source=wanted.source, seq_length=5), force=False)
    assert "longer than --seq-length 5" in error.value.hint
    assert not list(tmp_path.glob("*b.mindrecord*"))


def test_the_command_shows_what_it_made(folder: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "train.mindrecord")
    argv = (
        "data",
        "preprocess",
        "math.jsonl",
        "--template",
        "plain",
        "--seq-length",
        "50",
        "--output",
        target,
    )
    printed = launcher(*argv, "--eval-fraction", "0.1", cwd=folder)
    assert "cut at the end" in printed
    assert "held out:" in printed
    assert "length in tokens: median" in printed
    assert launcher(*argv, "--eval-fraction", "0.1", cwd=folder).startswith("unchanged")
    assert "would change" in launcher(*argv, cwd=folder, code=3)
    shown = launcher("data", "show", target, "--row", "2", cwd=folder)
    assert "题目：" in shown
    assert "-100  <s>" in shown
    assert "has no row 400" in launcher("data", "show", target, "--row", "400", cwd=folder, code=3)
    assert "USER: 题目" in launcher("data", "templates", "vicuna", cwd=folder)
    row = json.loads(launcher("data", "show", target, "--row", "2", "--format", "json", cwd=folder))
    assert (row["row"], row["tokens"][0]["label"]) == (2, -100)
    assert len(row["tokens"]) + row["padding"] == int(shown.split(": ")[1].split()[0])
    (vicuna,) = json.loads(launcher("data", "templates", "vicuna", "--format", "json", cwd=folder))
    assert any(part["in_loss"] for part in vicuna["example"])


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    source = str(folder / "conversations.json")
    assert "no tokenizer at" in launcher("data", "preprocess", source, cwd=tmp_path, code=3)
    argv = ("data", "preprocess", source, "--tokenizer", str(folder / "tokenizer.model"))
    assert "there are" in launcher(*argv, "--template", "vicunia", cwd=tmp_path, code=3)
    assert "needs the token" in launcher(*argv, "--template", "chatml", cwd=tmp_path, code=3)
    missing = launcher("data", "preprocess", "no.json", "--tokenizer", argv[-1], cwd=tmp_path, code=3)
    assert "cannot read no.json" in missing
    assert "no dataset a.mindrecord" in launcher("data", "show", "a.mindrecord", cwd=tmp_path, code=3)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.model").write_text("{}")
    for name, message in (("a.json", "not a tokenizer.json"), ("a.model", "not a SentencePiece model")):
        assert message in launcher("data", "preprocess", source, "--tokenizer", name, cwd=tmp_path, code=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.model"]


def test_an_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "math.jsonl").write_text("mine")
    assert "--force" in launcher("data", "sample", "--size", "3", cwd=tmp_path, code=3)
    assert (tmp_path / "math.jsonl").read_text() == "mine"
    assert "wrote" in launcher("data", "sample", "--size", "3", "--force", cwd=tmp_path)
    assert "unchanged" in launcher("data", "sample", "--size", "3", cwd=tmp_path)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from("ab"), min_size=0, max_size=6))
def test_duplicates_are_those_that_came_before(tmp_path_factory: pytest.TempPathFactory, letters: list[str]) -> None:
    from launcher.data.encode import Encoder, duplicates
    from launcher.data.records import Source
    from launcher.data.templates import get_template

    path = tmp_path_factory.mktemp("dup") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": letter, "output": "x"}) for letter in ["z", *letters]))
    encoder = Encoder(
        tokenizer=None,  # type: ignore[arg-type] # it is not asked for anything
        template=get_template("plain"),
        seq_length=9,
        overflow="drop",
        eval_fraction=0,
    )
    kept = [bool(flag) for chunk in duplicates(encoder, Source(path), processes=1) for flag in chunk]
    assert kept == [True, *(letter not in letters[:place] for place, letter in enumerate(letters))]


def test_a_cache_finds_the_same_rows_again(folder: Path, tmp_path: Path) -> None:
    wanted = options(folder, Path("train.mindrecord"))
    first = in_cache(wanted, tmp_path).target
    assert first.parent.parent == tmp_path
    (tmp_path / "copy.json").write_bytes((folder / "conversations.json").read_bytes())
    again = in_cache(options(folder, wanted.target, source=tmp_path / "copy.json"), tmp_path).target
    assert again == first
    assert in_cache(options(folder, wanted.target, seq_length=90), tmp_path).target != first
    assert not first.parent.exists()


def test_errors_keep_their_hint_on_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(DataError("what", hint="type this")))  # noqa: S301 - our own
    assert (error.message, error.hint) == ("what", "type this")


def test_texts_that_would_be_lost_stop_a_run_before_its_rows(folder: Path, tmp_path: Path) -> None:
    record = {"instruction": "Add 1 and 2.", "input": "", "output": "3", "system_prompt": "Be brief.", "score": 3}
    (tmp_path / "a.jsonl").write_text((json.dumps(record) + "\n") * 3, encoding="utf-8")
    for dedup in (False, True):
        wanted = options(folder, tmp_path / "t.mindrecord", source=tmp_path / "a.jsonl", dedup=dedup)
        with pytest.raises(DataError, match=r"system_prompt \(in 3 of 3 records, such as 'Be brief\.'"):
            preprocess(wanted, force=False)
    source = DataSource(path=str(tmp_path / "a.jsonl"), reading=Reading(ignore=("system_prompt",)))
    info, _ = preprocess(options(folder, tmp_path / "t.mindrecord", source=(source,)), force=False)
    assert info.stats["fields"]["unread"] == {"system_prompt": 3, "score": 3}


@pytest.mark.parametrize("part", ["train.mindrecord", "train.eval.mindrecord"])
def test_a_copy_that_breaks_off_is_refused_and_made_again_with_force(folder: Path, tmp_path: Path, part: str) -> None:
    wanted = options(folder, tmp_path / "train.mindrecord", eval_fraction=0.1)
    preprocess(wanted, force=False)
    whole = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(whole[:50_000])
    with pytest.raises(DataError, match=rf"{part} breaks off: it has 50,000 bytes") as caught:
        preprocess(wanted, force=False)
    assert "--force" in caught.value.hint
    with pytest.raises(DataError, match="breaks off"):
        read_info(tmp_path / part)
    assert preprocess(wanted, force=True)[1]
    assert (tmp_path / part).read_bytes() == whole
    # Nothing lies behind the last page: a byte less is noticed.
    (tmp_path / part).write_bytes(whole[:-1])
    with pytest.raises(DataError, match="breaks off"):
        read_info(tmp_path / part)
