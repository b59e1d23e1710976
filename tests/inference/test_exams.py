"""Published exams put to models: the words, the examples that fit, and the likeliest letter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import exam_files
from support.inference_tools import VOCAB
from support.model_servers import quick_model

from launcher.cli.app import main
from launcher.data.exams import Entry, Exam, find_exam
from launcher.data.sample import sample_lines
from launcher.data.tokenizer import train_tokenizer
from launcher.errors import DataError, SpecError
from launcher.inference.exams import STYLES, Asked, asked_of
from launcher.inference.letters import letters_of
from launcher.inference.quiz import exam_quiz
from launcher.inference.session import Session
from launcher.inference.sources import find_model


def exam_in(folder: Path) -> Exam:
    found = find_exam(folder)
    assert found is not None
    return found


def first(folder: Path, *, chat: bool = False) -> Asked:
    return asked_of(exam_in(folder), 1, chat=chat)[0]


def test_mmlu_is_put_as_its_authors_do(tmp_path: Path) -> None:
    asked = first(exam_files.mmlu(tmp_path))
    assert asked.after(1).text == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "How many legs has a spider?\nA. 4\nB. 6\nC. 8\nD. 10\nAnswer: C\n\n"
        "What is 2 + 3?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:"
    )
    assert str(asked.with_letter(0, "D").text).endswith("Answer: D")
    assert asked.right == "A"


def test_chinese_exams_name_their_subjects_in_chinese(tmp_path: Path) -> None:
    assert first(exam_files.ceval(tmp_path / "ceval")).after(1).text == (
        "以下是中国关于计算机网络考试的单项选择题，请选出其中的正确答案。\n\n"
        "How many legs has a spider?\nA. 4\nB. 6\nC. 8\nD. 10\n答案：C\n\n"
        "What is 2 + 3?\nA. 5\nB. 6\nC. 7\nD. 8\n答案："
    )
    assert first(exam_files.cmmlu(tmp_path / "cmmlu")).after(1).text == (
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：How many legs has a spider?\nA. 4\nB. 6\nC. 8\nD. 10\n答案是：C\n\n"
        "题目：What is 2 + 3?\nA. 5\nB. 6\nC. 7\nD. 8\n答案是："
    )
    own = first(exam_files.cmmlu(tmp_path / "own", "my_subject")).after(0).text
    assert str(own).startswith("以下是关于my subject的")


def test_gsm8k_shows_the_working(tmp_path: Path) -> None:
    asked = first(exam_files.gsm8k(tmp_path))
    problem, working = exam_files.PROBLEMS[0]
    assert asked.after(1).text == f"Question: {problem}\nAnswer: {working}\n\nQuestion: {problem}\nAnswer:"
    assert asked.right == "7"


def test_in_a_chat_examples_are_turns(tmp_path: Path) -> None:
    turns = first(exam_files.mmlu(tmp_path), chat=True).after(1).messages
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].content.startswith("The following are multiple choice questions")
    assert turns[1].content == "C"
    assert turns[2].content.endswith("Answer:")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = quick_model(tmp_path_factory.mktemp("exam") / "model", seq_length=480)
    return Session(find_model(str(folder), folder.parent / "jobs"))


def test_the_likeliest_letter_is_that_of_the_whole_rows(session: Session, tmp_path: Path) -> None:
    asked = asked_of(exam_in(exam_files.mmlu(tmp_path)), 5, chat=False)
    found = letters_of(session, [(one, 2) for one in asked])
    expected = []
    for one in asked:
        scores = []
        for letter in "ABCD":
            ids = session.encode(one.with_letter(2, letter))
            logits = session.all_logits(np.array([ids[:-1]], np.int32))[0, -1].astype(np.float64)
            scores.append(logits[ids[-1]] - np.log(np.exp(logits).sum()))
        expected.append("ABCD"[int(np.argmax(scores))])
    assert found == expected


def test_letters_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    folder = quick_model(tmp_path / "model")
    texts = [json.dumps(json.loads(line), ensure_ascii=False) for line in sample_lines(200, 1)]
    (folder / "tokenizer.model").unlink()
    train_tokenizer([*texts, *["LLaMA"] * 3000], folder / "tokenizer.model", vocab_size=VOCAB)
    entry = Entry(id="1", subject="s", question="q", choices=("a", "b", "c", "d"), answer="A")
    # With A what stands before it makes one token, and with the others none.
    style = replace(STYLES["mmlu"], head=lambda _: "", ask=lambda _: "LLaM", before="")
    session = Session(find_model(str(folder), tmp_path / "jobs"))
    with pytest.raises(DataError, match="no token for each of the letters A to D"):
        letters_of(session, [(Asked(entry=entry, examples=(), style=style, chat=False), 0)])


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["eval", *words])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def test_an_exam_by_two_models_side_by_side(session: Session, tmp_path: Path) -> None:
    root = exam_files.mmlu(tmp_path / "mmlu", ("abstract_algebra", "world_religions"))
    one = str(session.model.tokenizer.parent)  # type: ignore[union-attr]
    short = str(quick_model(tmp_path / "short", seq_length=150))
    found = json.loads(run(one, short, "--ask", str(root), "--format", "json"))

    assert (found["exam"], found["split"], found["examples"], found["score"]) == ("MMLU", "test", 2, "likelihood")
    assert found["asked"] == 6
    for model in found["models"]:
        counts = model["subjects"]
        assert [count for _, count in counts.values()] == [3, 3]
        assert sum(right for right, _ in counts.values()) == model["right"]
        assert model["mean_of_subjects"] == pytest.approx(model["right"] / 6)
    assert [model["with_fewer_examples"] for model in found["models"]] == [0, 6]
    assert all(answer["text"] in tuple("ABCD") for one in found["questions"] for answer in one["answers"])

    shown = run(one, short, "--ask", str(root), "--limit", "1").splitlines()
    assert shown[0] == f"{root}: MMLU test, 2 questions after 2 examples, right by likelihood"
    assert shown[1].split() == ["ROLE", "MODEL", "RIGHT", "SHARE", "SUBJECTS"]
    assert [line.split()[0] for line in shown[4:7]] == ["SUBJECT", "abstract_algebra", "world_religions"]
    assert "2 questions had fewer examples, as its context holds no more" in shown[7]


def test_generated_answers_and_chats(session: Session, tmp_path: Path) -> None:
    model = str(session.model.tokenizer.parent)  # type: ignore[union-attr]
    gsm8k = exam_files.gsm8k(tmp_path / "gsm8k")
    found = json.loads(run(model, "--ask", str(gsm8k), "--max-new-tokens", "6", "--format", "json"))
    assert (found["score"], found["examples"], found["asked"]) == ("number", 1, 2)
    assert [one["expected"] for one in found["questions"]] == ["7", "2,500"]
    mmlu = exam_files.mmlu(tmp_path / "mmlu")
    words = ("--ask", str(mmlu), "--chat", "--shots", "1", "--max-new-tokens", "4", "--format", "json")
    chat = json.loads(run(model, *words, "--template", "vicuna"))
    assert (chat["score"], chat["examples"]) == ("choice", 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--score", "number"), "--score is of --ask"),
        (("--shots", "0", "--chat"), "--shots and --chat are of --ask"),
        (("--window", "9"), "--window is of --perplexity"),
        (("--ask", "a", "--perplexity", "b"), "--ask and --perplexity both say what models are evaluated on"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], said: str) -> None:
    assert said in run("m", *words, code=2)


def test_what_only_exams_have(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "7"}\n')
    assert "has the shape of none" in run("m", "--ask", str(tmp_path / "a.jsonl"), "--shots", "2", code=2)
    exam = exam_in(exam_files.gsm8k(tmp_path / "gsm8k"))
    with pytest.raises(SpecError, match="--score likelihood compares letters"):
        exam_quiz(exam, judge="likelihood", examples=5, chat=False)
    words = ("--ask", str(tmp_path / "gsm8k"), "--exam", "gsm8k", "--columns", "question=q,answer=a")
    assert "of files that are no exam" in run("m", *words, code=2)
    alone = tmp_path / "alone" / "test.jsonl"
    alone.parent.mkdir()
    alone.write_text((tmp_path / "gsm8k" / "test.jsonl").read_text())
    assert any(
        "no train split lies beside it" in note
        for note in exam_quiz(exam_in(alone), judge=None, examples=5, chat=False).notes
    )
