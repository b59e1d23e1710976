"""``make verdict-score``: what the verdict makes of the corpus, as Markdown.

Each class has precision / recall (number of cases).

usage: score.py [--wrong] [--update PAGE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from corpus import CONTROL, FRESH, OWN, Case, load  # noqa: E402
from replay import Found, ask  # noqa: E402

NAME = "verdict-score"
TUNED, HELD_OUT = "tuned", "held out"


@dataclass(frozen=True)
class Answer:
    """A case and what was made of it."""

    case: Case
    found: Found

    @property
    def right(self) -> bool:
        return self.case.expected == self.found.label

    @property
    def rank_right(self) -> bool:
        return self.case.rank == self.found.rank

    @property
    def false_alarm(self) -> bool:
        """Return True when a known error is named, or any failure, where there was none."""
        return self.found.known is not None or (self.case.rank is None and self.found.verdict is not None)


@dataclass(frozen=True)
class Score:
    """Precision and recall of one class; None where there is nothing to divide by."""

    label: str
    cases: int
    precision: float | None
    recall: float | None

    @property
    def f1(self) -> float:
        if not self.precision or not self.recall:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@cache
def answers() -> tuple[Answer, ...]:
    """Return the answers to all cases."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(Answer(case, ask(case, Path(folder) / case.group / case.id)) for case in load())


def of(*halves: str) -> list[Answer]:
    """Return the answers to the cases of the groups or halves."""
    return [answer for answer in answers() if answer.case.half in halves]


def by_class(asked: Iterable[Answer]) -> list[Score]:
    """Return the score of every class that is expected or found."""
    pairs = [(answer.case.expected, answer.found.label) for answer in asked]
    expected, found = Counter(e for e, _ in pairs), Counter(f for _, f in pairs)
    right = Counter(e for e, f in pairs if e == f)
    return [
        Score(label, expected[label], _share(right[label], found[label]), _share(right[label], expected[label]))
        for label in sorted({*expected, *found})
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def macro_f1(asked: Sequence[Answer]) -> float:
    """Return the mean F1 over the classes that are expected or found."""
    scores = by_class(asked)
    return sum(score.f1 for score in scores) / len(scores)


def rank_accuracy(asked: Sequence[Answer]) -> float:
    return sum(answer.rank_right for answer in asked) / len(asked)


# ------------------------------------------------------------------------------------------------ as text


def report() -> str:
    """Return the score as Markdown."""
    groups = (OWN, TUNED, HELD_OUT, FRESH)
    lines = ["| cases | number | classes | macro-F1 | rank right |", "|---|---|---|---|---|"]
    lines += [_summary(name, of(name)) for name in groups]
    controls = of(CONTROL)
    alarms = sum(answer.false_alarm for answer in controls)
    lines += ["", f"Negative controls: {len(controls)}, false alarms: {alarms}.", ""]
    lines += [f"| class | {' | '.join(groups)} |", f"|---|{'---|' * len(groups)}"]
    scores = {name: {score.label: score for score in by_class(of(name))} for name in groups}
    labels = sorted({label for found in scores.values() for label in found})
    lines += [f"| {label} | {' | '.join(_cell(scores[name].get(label)) for name in groups)} |" for label in labels]
    return "\n".join(lines)


def _summary(name: str, asked: Sequence[Answer]) -> str:
    classes = len({answer.case.expected for answer in asked})
    return f"| {name} | {len(asked)} | {classes} | {macro_f1(asked):.3f} | {rank_accuracy(asked):.1%} |"


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    precision = "-" if score.precision is None else f"{score.precision:.2f}"
    recall = "-" if score.recall is None else f"{score.recall:.2f}"
    return f"{precision} / {recall} ({score.cases})"


def wrong(*halves: str) -> list[str]:
    """Return a line for each case of ``halves`` that is answered wrongly."""
    return [
        f"{a.case.half}: {a.case.id}: {a.case.expected}, rank {a.case.rank}; found {a.found.label}, rank {a.found.rank}"
        for a in of(*halves)
        if not (a.right and a.rank_right)
    ]


def put_between(page: Path, name: str, text: str) -> None:
    """Put ``text`` into ``page``, between the two marks of ``name``."""
    begin, end = marks(name)
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def marks(name: str) -> tuple[str, str]:
    """Return the comments around what is put into a page."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wrong", action="store_true", help="list what is wrong, but for the half that is held out")
    parser.add_argument("--update", type=Path, help="put the score into this page")
    options = parser.parse_args()
    print(report())
    if options.wrong:
        print("\n".join(["", *wrong(OWN, TUNED, FRESH, CONTROL)]))
    if options.update:
        put_between(options.update, NAME, report())


if __name__ == "__main__":
    main()
