"""Questions with right answers from files, put to models; and what makes an answer right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.inference_tools import make_model
from support.job_folders import MadeJob

from launcher.cli.app import main
from launcher.data.reading import DataSource
from launcher.errors import DataError
from launcher.inference.judging import JUDGES, USABLE, letter
from launcher.inference.quiz import Graded, Item, Quiz, Results, read_quiz
from launcher.inference.session import Question
from launcher.observe import facts


@pytest.mark.parametrize(
    ("judge", "answer", "right", "expected"),
    [
        ("exact", "  Paris\n", "Paris", True),
        ("exact", "ｂｅｒｌｉｎ", "berlin", True),
        ("exact", "paris", "Paris", False),
        ("number", "3 + 4 = 7, so 1,250.50 元", "1250.5", True),
        ("number", "half: 1/2", "0.5", True),
        ("number", "12", "1.2", False),
        ("number", "none", "7", False),
        ("number", "1/0", "7", False),
        ("regex", "It is 42 km", r"\b4\d km", True),
        ("regex", "It is 52 km", r"\b4\d km", False),
        ("contains", "The capital is  BERLIN.", "is berlin", True),
        ("contains", "The capital is Bonn.", "Berlin", False),
        ("choice", "The answer is (B).", "B", True),
        ("choice", "答案：C", "C", True),
        ("choice", "A cat is no plant, so the answer is D", "D", True),
        ("choice", "b", "B", False),
        ("choice", "nothing", "B", False),
    ],
)
def test_what_is_right(judge: str, answer: str, right: str, expected: bool) -> None:
    assert JUDGES[judge](answer, right) is expected


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("C", "C"),
        ("(C) because", "C"),
        ("C. Berlin", "C"),
        ("A cat sat. Then B: no", "B"),
        ("answer: a", "A"),
        ("The answer is A because", "A"),
        ("The answer is a number", None),
        ("First A, then the answer is B. No: the answer is C", "C"),
        ("我选择 D。", "D"),
        ("I think so", None),
        ("DNA", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_chooses(text: str, chosen: str | None) -> None:
    assert letter(text) == chosen


@pytest.mark.parametrize(
    ("judge", "right"), [("number", "none"), ("number", "1/0"), ("regex", "("), ("choice", "seven"), ("contains", " ")]
)
def test_a_right_answer_that_nothing_could_meet_is_refused(tmp_path: Path, judge: str, right: str) -> None:
    assert not USABLE[judge](right)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": right}) + "\n")
    if right.strip():
        with pytest.raises(DataError, match=f"1 right answers that --score {judge} cannot use"):
            read_quiz(DataSource(path=str(file)), judge, None)


def test_questions_of_every_file_and_with_turns_before(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (item,) = read_quiz(DataSource(path=str(tmp_path / "a.jsonl")), "number", None).items
    assert [turn.content for turn in item.question.messages] == ["one?", "1", "two?"]
    assert item.right == "2"

    pq.write_table(pa.table({"question": ["a", "b", "c"], "answer": ["1", "2", "3"]}), tmp_path / "a.parquet")
    quiz = read_quiz(DataSource(path=str(tmp_path / "a.parquet")), "exact", 2)
    assert [(one.question.shown, one.right) for one in quiz.items] == [("a", "1"), ("b", "2")]
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError):
        read_quiz(DataSource(path=str(tmp_path / "none.jsonl")), "exact", None)


@pytest.mark.parametrize("words", [("--ask", "q.jsonl", "--data", "x"), ("--columns", "question=q")])
def test_options_that_do_not_go_together(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, ["eval", "m", *words]).exit_code == 2


def test_models_side_by_side(tmp_path: Path) -> None:
    """Two models of random weights; the right answers are what the first one says, so that it has all of them."""
    for name in ("one", "two"):
        make_model(tmp_path / name, family="qwen3", head_dim=8, tie_word_embeddings=name == "two")
    asked = [{"frage": f"how much is {number}?", "antwort": "7", "more": "x"} for number in range(3)]
    file = tmp_path / "asked.jsonl"

    def run(*words: str, form: str = "json") -> str:
        file.write_text("".join(json.dumps(one) + "\n" for one in asked))
        told = ("--columns", "question=frage,answer=antwort", "--ignore", "more", "--max-new-tokens", "5")
        done = CliRunner().invoke(main, ["eval", *words, "--ask", str(file), *told, "--format", form])
        assert done.exit_code == 0, done.output
        return done.stdout

    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    first = json.loads(run(one))
    for record, found in zip(asked, first["questions"], strict=True):
        record["antwort"] = found["answers"][0]["text"]
    again = json.loads(run(one, two, "--score", "exact", "-o", str(tmp_path / "out.json")))

    assert [model["right"] for model in again["models"]] == [3, 0]
    assert len(again["differing"]) == 3
    assert json.loads((tmp_path / "out.json").read_text()) == again
    shown = run(one, two, "--score", "exact", "--limit", "2", form="text").splitlines()
    assert shown[0] == f"{file}: 2 questions, right by exact"
    assert [line.split()[-3:] for line in shown[2:4]] == [["2/2", "100.0", "%"], ["0/2", "0.0", "%"]]
    assert shown[4].startswith("right for some models and wrong for others: 2 ")


def test_results_are_kept_for_the_reports_of_jobs(tmp_path: Path) -> None:
    history = MadeJob().history(tmp_path)
    items = tuple(Item(question=Question(id=str(number), text=f"q{number}"), right="7") for number in range(130))
    rights = (tuple(number % 10 == 0 for number in range(130)), (False,) * 130)
    graded = tuple(
        Graded(role="model", name=f"m{place}", answers=("7",) * 130, right=right) for place, right in enumerate(rights)
    )
    results = Results(quiz=Quiz(path=str(tmp_path / "exam.jsonl"), judge="number", items=items), graded=graded)
    assert facts.answers(history) == []
    for _ in range(2):  # asked again: the newest stays
        results.keep([history.record.job_id, str(tmp_path)], history.paths.root.parent)

    (kept,) = facts.answers(history)
    assert (kept["asked"], kept["differing"], kept["questions_left_out"], len(kept["questions"])) == (130, 13, 30, 100)
    assert [one["id"] for one in kept["questions"][:14]] == [*map(str, range(0, 130, 10)), "1"]
