"""Reports: whole in one file, true in both languages, safe against what names and texts contain."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.data_tools import make_sentencepiece
from support.job_folders import SPEC, Made, MadeJob

from launcher import jobs
from launcher.data.info import stats_path
from launcher.data.options import PreprocessOptions, eval_path
from launcher.data.preprocess import preprocess
from launcher.data.reading import DataSource
from launcher.data.sample_set import SampleSet
from launcher.observe import facts
from launcher.observe.history import History, read_history
from launcher.observe.metrics import METRICS
from launcher.observe.report import make_report, phase_seconds
from launcher.observe.words import is_translated, words

PACKAGE = Path(facts.__file__).parent


class Page(HTMLParser):
    """The elements of a page, its text, and what is not closed."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def section(self, name: str) -> bool:
        return any(attributes.get("id") == name for tag, attributes in self.elements if tag == "section")


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def full_job(root: Path, job_id: str = "bcdfg-made") -> History:
    first = Made(ended=40.0, steps=6, reason="rank 1 <died>", saves=(4,), more=lambda rank, step: {"input_s": 0.1})
    second = Made(began=50.0, ended=80.0, from_step=4, steps=4, held_out=(6, 8), saves=(8,))
    origin = {"command": "launcher submit made --set name='a b'", "commit": "abc123+changes", "user": "me"}
    job = MadeJob(job_id=job_id, steps=8, attempts=(first, second), record={"origin": origin, "warnings": ("hot",)})
    history = job.history(root)
    merged = history.paths.merged
    merged.mkdir()
    (merged / "merge.json").write_text(json.dumps({
        "step": 8, "tensors": 30, "folded": 12,
        "verified": {"full": False, "values": 100, "max_error": 1e-8, "tolerance": 2e-7},
    }))  # fmt: skip
    (history.paths.root / "evaluation.json").write_text(json.dumps({
        "data": "held.mindrecord", "rows": 3,
        "models": [{"role": "base", "model": "x", "loss": 2.0, "perplexity": 7.389, "right": 1, "asked": 3}],
        "answers": [{"question": "1+1?", "expected": "2", "answers": [{"role": "base", "text": "</script>3"}]}],
    }))  # fmt: skip
    asked = {
        "data": "exam.jsonl", "score": "number", "asked": 3, "differing": 1, "questions_left_out": 1,
        "models": [{"role": "base", "model": "x", "right": 1}, {"role": "merged", "model": "x", "right": 2}],
        "questions": [question("7", (False, True)), question("8", (True, True))],
    }  # fmt: skip
    history.paths.answers.mkdir()
    (history.paths.answers / "exam-1.json").write_text(json.dumps(asked))
    return history


def question(number: str, right: tuple[bool, ...]) -> dict[str, Any]:
    answers = [
        {"role": "r", "model": "x", "text": f"a_{number}{place}", "right": one} for place, one in enumerate(right)
    ]
    return {"id": number, "question": f"<i>{number}?", "expected": number, "answers": answers}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_report_is_one_file_that_loads_nothing(tmp_path: Path, lang: str) -> None:
    text = make_report([full_job(tmp_path)], lang)
    page = Page(text)

    assert page.open == []
    assert not [attributes for _, attributes in page.elements if {"src", "href", "srcset"} & set(attributes)]
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text.replace("url(#", "")
    assert all(page.section(name) for name in ("curves", "ranks", "attempts", "checkpoints", "data", "evaluation",
                                               "asked", "merge", "setup"))  # fmt: skip


def test_a_report_says_what_the_job_did(tmp_path: Path) -> None:
    text = " ".join(" ".join(Page(make_report([full_job(tmp_path)], "en")).text).split())

    for said in (
        "All 8 steps are done.", "2 steps done again", "1.2500 from 8.2500", "Best held-out loss 1.1250 at step 8",
        "rank 1 <died>", "10.0 s later", "launcher submit made --set name='a b'", "abc123+changes",
        "/gone.mindrecord is gone or cannot be read", "100 samples · largest difference 1.0e-08, allowed 2.0e-07",
        "hot", "</script>3", "full-parameter finetuning", "2 ranks on CPU",
    ):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize(
    ("lang", "apart", "alike", "left"),
    [
        (
            "en",
            "Questions that models differ on",
            "Questions that all have right, or all wrong",
            "1 more questions are not",
        ),
        ("zh", "模型之间对错不一的题目", "全部答对或全部答错的题目", "另有 1 题未显示"),
    ],
)
def test_answers_to_questions_stand_side_by_side(tmp_path: Path, lang: str, apart: str, alike: str, left: str) -> None:
    text = " ".join(" ".join(Page(make_report([full_job(tmp_path)], lang)).text).split())
    # What the models differ on comes first, each answer under its model with a mark.
    places = [
        text.index(said) for said in ("1/3 33.3 %", "2/3 66.7 %", apart, "<i>7?", "✗ a_70 ✓ a_71", alike, "<i>8?", left)
    ]
    assert places == sorted(places)


def test_what_a_text_contains_cannot_leave_its_place(tmp_path: Path) -> None:
    verdict = {"reason": "x", "text": {"en": '</script><script>alert("1")</script><img src=x>'}}
    job = MadeJob(job_id="bcdfg-</script>", state=jobs.FAILED, record={"verdict": verdict, "name": "<b>"})
    page = Page(make_report([job.history(tmp_path)], "en"))

    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [tag for tag, _ in page.elements if tag in ("img", "b") and "src" in _]


def test_the_data_of_a_chart_are_the_job_s(tmp_path: Path) -> None:
    charts = {chart["key"]: chart["curves"] for chart in data_of(make_report([full_job(tmp_path)], "en"))["charts"]}
    loss, held_out = charts["loss"]

    assert loss["x"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert loss["mean"] == [8.25, 4.25, 2.91667, 2.25, 1.85, 1.58333, 1.39286, 1.25]
    assert loss["low"][0] == 8
    assert loss["time"] == [20, 21, 22, 23, 70, 71, 72, 73]
    assert loss["tokens"] == 32 * 96
    assert (held_out["x"], held_out["mean"], held_out["dots"]) == ([6, 8], [1.5, 1.125], True)
    assert "grad-norm" not in charts


def test_what_is_not_shown_is_said_with_the_reason(tmp_path: Path) -> None:
    text = " ".join(" ".join(Page(make_report([MadeJob().history(tmp_path)], "en")).text).split())

    assert "Not shown: Held-out perplexity (no held-out rows were evaluated" in text
    assert "Gradient norm (MindFormers computes it where gradients are clipped" in text


@pytest.mark.parametrize("state", [jobs.PLANNED, jobs.RUNNING, jobs.LOST, jobs.CANCELLED])
def test_a_job_without_steps_has_a_report_too(tmp_path: Path, state: str) -> None:
    history = MadeJob(state=state, attempts=(Made(steps=0),)).history(tmp_path)
    history.paths.rank_events(0).unlink()
    page = Page(make_report([history], "en"))

    expected = "No step is finished yet." if state in (jobs.PLANNED, jobs.RUNNING) else "No step was finished."
    assert expected in " ".join(page.text)
    assert not page.section("curves")


@pytest.mark.parametrize(
    ("second", "said"), [(Made(began=31.0, steps=0), "lost steps are not known yet"), (None, "no step lost")]
)
def test_lost_steps_are_told_when_they_are_known(tmp_path: Path, second: Made | None, said: str) -> None:
    """An attempt tells from which step it goes on when it is ready."""
    failed = Made(steps=4, ended=30.0, reason="SIGKILL")
    job = MadeJob(state=jobs.RUNNING, attempts=(failed, second) if second else (Made(steps=4),))
    paths = job.write(tmp_path)
    if second:
        for rank_id in range(job.cards):
            paths.rank_events(rank_id).write_text("")

    assert said in make_report([read_history(paths, job.make_record())], "en")


def test_of_many_ranks_those_that_wait_longest_are_shown(tmp_path: Path) -> None:
    attempt = Made(ended=30.0, more=lambda rank_id, step: {"input_s": 1.0 if rank_id == 37 else 0.001})
    text = make_report([MadeJob(cards=40, attempts=(attempt,)).history(tmp_path)], "en")

    assert "The 16 ranks that enter steps last, of 40." in text
    assert "node37" in text


def test_two_jobs_are_laid_over_each_other(tmp_path: Path) -> None:
    other = MadeJob(
        job_id="zzzzz-other",
        spec={**SPEC, "training": {"epochs": 3}},
        attempts=(Made(ended=30.0, loss=lambda rank_id, step: 4.0 / step),),
    )
    histories = [full_job(tmp_path), other.history(tmp_path)]
    text = make_report(histories, "en")
    page = Page(text)
    charts = {chart["key"]: chart["curves"] for chart in data_of(text)["charts"]}

    assert [curve["name"] for curve in charts["loss"]] == ["bcdfg-made", "zzzzz-other", "bcdfg-made Held-out loss"]
    assert page.section("results")
    assert "succeeded" not in Page(make_report(histories, "zh")).text
    assert page.section("differences")
    assert "training.epochs" in page.text


def test_the_time_of_training_is_without_saving_and_evaluating(tmp_path: Path) -> None:
    (attempt,) = MadeJob(attempts=(Made(ended=30.0, saves=(2, 4), held_out=(2,)),)).history(tmp_path).attempts

    assert phase_seconds(attempt) == {
        "start": 10.0, "compile": 10.0, "train": 2.0, "evaluate": 0.5, "save": 0.5, "stop": 7.0,
    }  # fmt: skip


def test_a_sample_row_is_decoded_with_what_is_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    made = SampleSet(size=200, seed=1, template="plain", vocab_size=700, seq_length=96)
    made.make()
    history = MadeJob(plan={"dataset": str(made.dataset)}).history(tmp_path)
    found = facts.datasets(history)["Training rows"]

    assert found.found
    assert found.rows
    assert [sample.row for sample in found.samples] == [0, found.rows // 2, found.rows - 1]
    assert any(part.in_loss for part in found.samples[0].parts)
    assert found.histogram
    assert "<mark>" in make_report([history], "en")


@pytest.mark.parametrize("weights", [(None, None), (3.0, 1.0)])
def test_the_sources_of_the_data_are_told_with_their_shares(
    tmp_path: Path, weights: tuple[float | None, float | None]
) -> None:
    tokenizer = make_sentencepiece(tmp_path / "tokenizer.model")
    for name, count in (("short", 30), ("long", 10)):
        rows = [{"question": f"{name} {n}?", "answer": "x " * (2 if name == "short" else 12)} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = tuple(
        DataSource(path=str(tmp_path / f"{name}.jsonl"), weight=weight)
        for name, weight in zip(("short", "long"), weights, strict=True)
    )
    options = PreprocessOptions(
        source=given, target=tmp_path / "t.mindrecord", seq_length=64, template="plain", tokenizer=tokenizer,
        eval_fraction=0.2,
    )  # fmt: skip
    info, _ = preprocess(options, force=False)
    split = eval_path(info.path)
    history = MadeJob(plan={"dataset": str(info.path), "evaluation": str(split)}).history(tmp_path)
    found, held_out = facts.datasets(history).values()
    page = " ".join(Page(make_report([history], "en")).text)

    short, long = found.sources
    assert [source.path for source in found.sources] == [one.path for one in given]
    assert short.share is not None
    assert long.share is not None
    assert short.share + long.share == pytest.approx(1)
    assert [source.samples for source in found.sources] == [one["samples"] for one in info.stats["sources"]]
    assert found.is_mixture == (weights[0] is not None)
    assert ("Passes" in page) == found.is_mixture
    assert f"{100 * short.share:.1f} %" in page
    assert held_out.rows
    assert held_out.sources == ()
    assert sum(count for _, count, _ in found.histogram) == info.counts["conversations"]


def test_held_out_rows_are_those_that_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    made = SampleSet(size=60, seed=2, template="plain", vocab_size=640, seq_length=96)
    made.make()
    # What evaluation.data names is raw; the plan names the rows that were made of it.
    spec = {**SPEC, "evaluation": {"data": "held.jsonl"}}
    history = MadeJob(spec=spec, plan={"evaluation": str(made.dataset)}).history(tmp_path)

    assert facts.datasets(history)["Held-out rows"].found


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"models": [{}]}', '{"models": [], "answers": [{"question": 1}]}', "\x00"]
)
def test_files_of_another_version_leave_their_section_out(tmp_path: Path, text: str) -> None:
    history = full_job(tmp_path)
    for file in (history.paths.evaluation, history.paths.merged / "merge.json"):
        file.write_text(text)
    page = Page(make_report([history], "en"))

    assert not page.section("evaluation")
    assert page.section("setup")


@pytest.mark.parametrize(
    "change",
    [
        {"models": []},
        {"asked": 0},
        {"differing": []},
        {"questions": [{"id": 1}]},
        {"questions": [question("1", (True,))]},
    ],
)
def test_answers_of_another_version_are_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    history = full_job(tmp_path)
    (file,) = history.paths.answers.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert not Page(make_report([history], "en")).section("asked")


def test_a_dataset_without_statistics_is_told_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    made = SampleSet(size=60, seed=2, template="plain", vocab_size=640, seq_length=96)
    made.make()
    stats_path(made.dataset).unlink()
    text = make_report([MadeJob(plan={"dataset": str(made.dataset)}).history(tmp_path)], "en")

    assert "No statistics lie beside this file." in text


# --------------------------------------------------------------------------------------------------------- words


def said() -> Iterator[str]:
    """Yield every text that code and templates of the room have said in the reader's language."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if isinstance(first, ast.Constant) and getattr(node, "func", None) and ast.unparse(node).startswith("say("):
                yield str(first.value)
    for path in (PACKAGE / "page").glob("*.j2"):
        yield from re.findall(r"""say\(["']((?:[^"'\\]|\\.)+)["'][,)]""", path.read_text(encoding="utf-8"))
    for metric in METRICS.values():
        yield from (text for text in (metric.title, metric.note) if text)
    yield from jobs.STATES


def test_every_text_of_a_page_is_translated() -> None:
    found = set(said())

    assert len(found) > 80
    assert [text for text in sorted(found) if not is_translated(text)] == []


def test_no_english_is_left_in_a_chinese_page(tmp_path: Path) -> None:
    histories = [full_job(tmp_path), MadeJob(job_id="zzzzz-other", spec={**SPEC, "data": {}}).history(tmp_path)]
    for chosen in (histories, histories[:1]):
        english, chinese = (
            {line.strip() for part in Page(make_report(chosen, lang)).text for line in part.splitlines()}
            for lang in ("en", "zh")
        )
        left = {text for text in english & chinese if re.search(r"[A-Za-z]{3}", text)}

        # What is the user's own, or has one name: ids, paths, commands, keys and values of the spec, versions, units.
        own = (
            r"zzzzz|bcdfg|/|launcher|rank 1 <died>|2026|^[\w.]+(: .*)?$|MiB$"
            r"|^(hot|me|elsewhere|node\d|msrun|local|base|x|held\..*|Rank|GiB|abc123.*|mindspore .*)$"
        )
        assert [text for text in sorted(left) if not re.search(own, text)] == []


def test_a_chinese_text_takes_the_same_values() -> None:
    text = "{done} of {total} steps are done, {left} left."

    assert words("zh")(text, done=1, total=2, left="3") == "已完成 1/2 步，预计还需 3。"
    assert words("en")(text, done=1, total=2, left="3") == "1 of 2 steps are done, 3 left."
