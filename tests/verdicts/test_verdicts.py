"""What the verdict makes of the corpus may not fall below these floors; ``score.py --wrong`` says where it errs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "integration" / "faults"))

import known_table
import score
from condense import CLASSES
from corpus import CONTROL, FRESH, OWN, Case, load
from faults import FAULTS
from score import HELD_OUT, TUNED

from launcher.jobs.verdict import EN, ZH
from launcher.supervise.known_errors import KNOWN_ERRORS, KnownError

DOCS = Path(__file__).parents[2] / "docs"

# Known from CANN's documents, or from our own tests, only.
WITHOUT_CASE = {"EI0008", "EI0009", "EI0010", "suspect remote", "loss is not a number", "no kernel"}

FLOORS = {TUNED: 0.99, HELD_OUT: 0.95, FRESH: 0.95}


@pytest.mark.parametrize("half", FLOORS)
def test_classes_of_public_texts(half: str) -> None:
    assert score.macro_f1(score.of(half)) >= FLOORS[half], score.wrong(half)


def test_our_own_faults_are_named_with_their_rank() -> None:
    assert score.wrong(OWN) == []


def test_our_own_faults_are_told_as_they_were_when_they_happened() -> None:
    for answer in score.of(OWN):
        fault = FAULTS[answer.case.id.rpartition("-")[0]]
        assert fault.text in (str(answer.found.verdict.text[EN]) if answer.found.verdict else ""), answer.case.id


@pytest.mark.parametrize("half", FLOORS)
def test_the_rank_that_said_it_first_is_named(half: str) -> None:
    assert score.rank_accuracy(score.of(half)) == 1.0, score.wrong(half)


def test_no_false_alarms() -> None:
    assert [answer.case.id for answer in score.of(CONTROL) if answer.false_alarm] == []
    assert score.wrong(CONTROL) == []


def test_the_corpus_is_large_and_sourced() -> None:
    cases = load()
    assert len({case.id for case in _unlike(CONTROL)}) >= 200
    assert len({case.expected for case in _unlike(CONTROL)}) >= 20
    assert len({(case.group, case.id) for case in cases}) == len(cases)
    assert all(case.source.startswith("https://") for case in cases if case.group not in (OWN, CONTROL))


def _unlike(group: str) -> list[Case]:
    return [case for case in load() if case.group != group]


def test_every_fault_is_recorded_with_every_engine() -> None:
    recorded = {case.id for case in load() if case.group == OWN}
    assert recorded == {f"{name}-{engine}" for name, fault in FAULTS.items() for engine in fault.engines}
    assert set(CLASSES) <= set(FAULTS)


def test_known_errors_have_names_of_their_own_and_the_page_counts_them() -> None:
    names = [known.name for known in KNOWN_ERRORS]
    assert sorted(names) == sorted(set(names))
    assert f"a table of {len(names)} known errors" in (DOCS / "supervision.md").read_text(encoding="utf-8")


def test_every_known_error_has_a_case() -> None:
    assert {known.name for known in KNOWN_ERRORS} - {case.expected for case in load()} == WITHOUT_CASE


@pytest.mark.parametrize("known", KNOWN_ERRORS, ids=lambda known: known.name)
def test_known_errors_say_what_to_do_in_both_languages(known: KnownError) -> None:
    for texts in (known.cause, known.fix):
        assert texts[EN].isascii()
        assert texts[ZH]


def test_the_pages_show_what_is_measured() -> None:
    for page, program, name, text in (
        ("supervision.md", "score", score.NAME, score.report()),
        ("troubleshooting.md", "known_table", known_table.NAME, known_table.table()),
    ):
        begin, end = score.marks(name)
        assert f"{begin}\n{text}\n{end}" in (DOCS / page).read_text(encoding="utf-8"), (
            f"{page} is out of date: .venv/bin/python tests/verdicts/{program}.py writes it"
        )
