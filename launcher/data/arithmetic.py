"""Small arithmetic for the shipped base tiny_cpu: what it was trained on, and what LoRA teaches it in the demo.

The base gives the bare number of every problem; it has done sums, and has read worked examples, which begin with
another word. LoRA teaches it to write down the working of a problem of two steps when it is asked.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator

from launcher.data.sample import Dice
from launcher.errors import DataError

_NAMES = ("小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小雨", "小林", "小梅", "小东", "小美")
_THINGS = ("苹果", "梨", "桃子", "橙子", "糖果", "铅笔", "本子", "橡皮", "书签", "贴纸")
_MOST_FACTOR, _MOST_TERM = 6, 9
_MOST_PRODUCT = _MOST_FACTOR * _MOST_FACTOR
_DRILLS = 5
# One question in ten is never trained on: those whose checksum says so.
_HELD_OUT_ONE_IN = 10
_TRIES_PER_ROW = 1000

Pair = tuple[str, str]
Maker = Callable[[Dice], Pair]


def _sum(left: int, sign: str, right: int) -> tuple[str, int]:
    value = {"+": left + right, "-": left - right, "×": left * right}[sign]
    return f"{left}{sign}{right}={value}", value


def _term(dice: Dice, most: int) -> int:
    return dice.number(1, min(_MOST_TERM, most))


def _one_step(dice: Dice) -> Pair:
    """Return a problem of one step and its bare answer."""
    start = f"题目：{dice.pick(_NAMES)}有"
    thing, kind = dice.pick(_THINGS), dice.number(0, 2)
    if kind == 0:
        a, b = dice.number(2, _MOST_FACTOR), dice.number(2, _MOST_FACTOR)
        return f"{start}{a}盒{thing}，每盒{b}个，一共几个？", f"答案：{a * b}"
    a = dice.number(2, _MOST_PRODUCT)
    if kind == 1:
        b = _term(dice, _MOST_TERM)
        return f"{start}{a}个{thing}，又买{b}个，一共几个？", f"答案：{a + b}"
    b = _term(dice, a - 1)
    return f"{start}{a}个{thing}，送人{b}个，还剩几个？", f"答案：{a - b}"


def _two_steps(dice: Dice) -> Pair:
    """Return a problem of two steps with its working."""
    a, b = dice.number(2, _MOST_FACTOR), dice.number(2, _MOST_FACTOR)
    first, product = _sum(a, "×", b)
    more = dice.number(0, 1) == 0
    c = _term(dice, _MOST_TERM if more else product - 1)
    second, answer = _sum(product, "+" if more else "-", c)
    what = f"又买{c}个，一共几个" if more else f"送人{c}个，还剩几个"
    question = f"题目：{dice.pick(_NAMES)}有{a}盒{dice.pick(_THINGS)}，每盒{b}个，{what}？"
    return question, f"{first}\n{second}\n答案：{answer}"


def _example(dice: Dice) -> Pair:
    question, working = _two_steps(dice)
    return question.replace("题目", "例题"), working


def _bare_answer(dice: Dice) -> Pair:
    """Return a problem of two steps with the bare answer: asked in the words of LoRA, the base writes no working."""
    question, working = _two_steps(dice)
    return question, working.splitlines()[-1]


def _drill(dice: Dice) -> Pair:
    """Return a few bare sums."""
    return "口算", "\n".join(_random_sum(dice) for _ in range(_DRILLS))


def _random_sum(dice: Dice) -> str:
    sign = dice.pick("×+-")
    if sign == "×":
        return _sum(dice.number(2, _MOST_FACTOR), sign, dice.number(2, _MOST_FACTOR))[0]
    left = dice.number(2, _MOST_PRODUCT)
    return _sum(left, sign, _term(dice, _MOST_TERM if sign == "+" else left - 1))[0]


# What each kind of set holds; of several makers each row draws one.
KINDS: dict[str, tuple[Maker, ...]] = {
    "base": (_one_step, _one_step, _drill, _example, _bare_answer),
    "short": (_one_step,),
    "steps": (_two_steps,),
}


def is_held_out(question: str) -> bool:
    """Return whether ``question`` is one of those that no training set holds, as a problem or as an example."""
    return zlib.crc32(question.partition("：")[2].encode()) % _HELD_OUT_ONE_IN == 0


def arithmetic_lines(kind: str, size: int, seed: int, *, held_out: bool = False) -> Iterator[str]:
    """Yield ``size`` rows as JSON Lines; those of ``held_out`` are in no other set.

    They are distinct, except those that the base reads. Raises DataError when there are not that many.
    """
    dice, seen = Dice(seed), set[str]()
    for _ in range(size):
        question, answer = _drawn(dice, KINDS[kind], seen, held_out)
        if kind != "base":
            seen.add(question)
        yield json.dumps({"instruction": question, "input": "", "output": answer}, ensure_ascii=False) + "\n"


def _drawn(dice: Dice, makers: tuple[Maker, ...], seen: set[str], held_out: bool) -> Pair:
    for _ in range(_TRIES_PER_ROW):
        question, answer = dice.pick(makers)(dice)
        bare = "：" not in question
        if (bare or is_held_out(question) == held_out) and question not in seen:
            return question, answer
    raise DataError(f"there are no more than {len(seen)} such problems", hint="ask for fewer with --size")
