"""School arithmetic word problems in Chinese, with worked solutions, in the schema of BELLE School Math.

The numbers are small so that a model of a few hundred thousand parameters can learn the form. Every draw goes
through ``random.Random.random``, the one method whose sequence Python promises to keep, so a size and a seed
give the same file on every machine; and a smaller dataset of the same seed is the beginning of a larger one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from launcher.errors import DataError

T = TypeVar("T")

_NAMES = ("小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小雨", "小林", "小梅", "小东", "小美")
# Chinese counts each kind of thing with its own word: (measure word, thing).
_GOODS = (
    ("支", "铅笔"),
    ("个", "本子"),
    ("块", "橡皮"),
    ("把", "尺子"),
    ("支", "钢笔"),
    ("支", "毛笔"),
    ("个", "书签"),
    ("盒", "彩笔"),
)
_FRUIT = ("苹果", "梨", "桃子", "橙子", "香蕉", "芒果")
_VEHICLES = ("汽车", "客车", "货车", "摩托车")
_CITIES = ("北京", "上海", "广州", "深圳", "武汉", "成都", "西安", "杭州", "南京", "长沙")
_TRIES_PER_ROW = 200


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem. ``kind`` names its template, ``steps`` are the lines of the solution."""

    kind: str
    question: str
    steps: tuple[str, ...]
    answer: int | str

    def record(self) -> dict[str, str]:
        """Return the problem in BELLE's schema: instruction, input, output."""
        lines = [f"{number}. {step}" for number, step in enumerate(self.steps, start=1)]
        output = "\n".join([*lines, f"答案：{self.answer}"])
        return {"instruction": f"题目：{self.question}", "input": "", "output": output}


class Dice:
    """Random draws that are the same on every machine and in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - arithmetic problems, not secrets

    def number(self, low: int, high: int) -> int:
        """Draw a whole number from ``low`` to ``high``, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.number(0, len(choices) - 1)]

    def two_names(self) -> tuple[str, str]:
        first = self.number(0, len(_NAMES) - 1)
        second = self.number(0, len(_NAMES) - 2)
        return _NAMES[first], _NAMES[second + (second >= first)]


Template = Callable[[Dice], tuple[str, tuple[str, ...], "int | str"]]
TEMPLATES: dict[str, Template] = {}


def _template(function: Template) -> Template:
    TEMPLATES[function.__name__.lstrip("_")] = function
    return function


def problems(size: int, seed: int, templates: Mapping[str, Template] = TEMPLATES) -> Iterator[Problem]:
    """Yield ``size`` distinct problems; the templates give about a million.

    Raises DataError when the templates do not give that many distinct ones.
    """
    dice, seen = Dice(seed), set[str]()
    for _ in range(size):
        problem = _unseen(dice, seen, templates)
        seen.add(problem.question)
        yield problem


def _unseen(dice: Dice, seen: set[str], templates: Mapping[str, Template]) -> Problem:
    kinds = tuple(templates)
    for _ in range(_TRIES_PER_ROW):
        kind = dice.pick(kinds)
        question, steps, answer = templates[kind](dice)
        if question not in seen:
            return Problem(kind=kind, question=question, steps=steps, answer=answer)
    raise DataError(f"the templates give no new problem after {len(seen)}", hint="ask for fewer with --size")


def sample_lines(size: int, seed: int) -> Iterator[str]:
    """Yield the dataset as JSON Lines, each with its newline."""
    for problem in problems(size, seed):
        yield json.dumps(problem.record(), ensure_ascii=False) + "\n"


def _step(label: str, expression: str, value: int | str, unit: str = "") -> str:
    return f"{label}：{expression} = {value}{unit}"


# --- shopping


@_template
def _total_price(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, (word, item), n, p = d.pick(_NAMES), d.pick(_GOODS), d.number(2, 20), d.number(2, 15)
    question = f"{name}买了{n}{word}{item}，每{word}{p}元，一共要付多少元？"
    return question, (_step("总价", f"{n} × {p}", n * p, "元"),), n * p


@_template
def _change(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, (word, item), n, p = d.pick(_NAMES), d.pick(_GOODS), d.number(2, 12), d.number(2, 8)
    paid = d.pick((100, 200))
    question = f"{name}带了{paid}元，买了{n}{word}{item}，每{word}{p}元，应找回多少元？"
    steps = (_step("花费", f"{n} × {p}", n * p, "元"), _step("找回", f"{paid} - {n * p}", paid - n * p, "元"))
    return question, steps, paid - n * p


@_template
def _two_goods(d: Dice) -> tuple[str, tuple[str, ...], int]:
    a, b, p, q = d.number(2, 9), d.number(2, 9), d.number(2, 12), d.number(2, 12)
    first = d.number(0, len(_GOODS) - 2)
    (word, item), (other_word, other) = _GOODS[first], _GOODS[first + 1]
    prices = f"{item}每{word}{p}元，{other}每{other_word}{q}元"
    question = f"{prices}，买{a}{word}{item}和{b}{other_word}{other}共需多少元？"
    steps = (
        _step(item, f"{a} × {p}", a * p, "元"),
        _step(other, f"{b} × {q}", b * q, "元"),
        _step("共需", f"{a * p} + {b * q}", a * p + b * q, "元"),
    )
    return question, steps, a * p + b * q


@_template
def _unit_price(d: Dice) -> tuple[str, tuple[str, ...], int]:
    fruit, n, p = d.pick(_FRUIT), d.number(2, 12), d.number(2, 15)
    question = f"{n}千克{fruit}卖{n * p}元，每千克{fruit}多少元？"
    return question, (_step("单价", f"{n * p} ÷ {n}", p, "元"),), p


@_template
def _discount(d: Dice) -> tuple[str, tuple[str, ...], int]:
    item, price, tenths = (
        d.pick(("书包", "外套", "球鞋", "台灯", "帽子", "雨伞")),
        10 * d.number(2, 30),
        d.number(5, 9),
    )
    question = f"一个{item}原价{price}元，现在打{tenths}折，现价多少元？"
    return (
        question,
        (_step("现价", f"{price} × {tenths} ÷ 10", price * tenths // 10, "元"),),
        price * tenths // 10,
    )


@_template
def _discount_saved(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, price, tenths = d.pick(_NAMES), 10 * d.number(2, 30), d.number(5, 9)
    now = price * tenths // 10
    question = f"{name}买一套原价{price}元的图书，打{tenths}折，比原价便宜多少元？"
    steps = (
        _step("现价", f"{price} × {tenths} ÷ 10", now, "元"),
        _step("便宜", f"{price} - {now}", price - now, "元"),
    )
    return question, steps, price - now


@_template
def _saving_money(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, start, week, weeks = d.pick(_NAMES), d.number(10, 60), d.number(2, 12), d.number(3, 12)
    question = f"{name}有{start}元，每周存{week}元，{weeks}周后一共有多少元？"
    total = start + week * weeks
    steps = (
        _step("存下", f"{week} × {weeks}", week * weeks, "元"),
        _step("一共", f"{start} + {week * weeks}", total, "元"),
    )
    return question, steps, total


# --- speed and distance


@_template
def _distance(d: Dice) -> tuple[str, tuple[str, ...], int]:
    vehicle, v, t = d.pick(_VEHICLES), 5 * d.number(6, 20), d.number(2, 9)
    question = f"一辆{vehicle}每小时行{v}千米，{t}小时行多少千米？"
    return question, (_step("路程", f"{v} × {t}", v * t, "千米"),), v * t


@_template
def _travel_time(d: Dice) -> tuple[str, tuple[str, ...], int]:
    vehicle, v, t = d.pick(_VEHICLES), 5 * d.number(6, 20), d.number(2, 9)
    start = d.number(0, len(_CITIES) - 2)
    question = f"{_CITIES[start]}到{_CITIES[start + 1]}的一段路长{v * t}千米，{vehicle}每小时行{v}千米，几小时行完？"
    return question, (_step("时间", f"{v * t} ÷ {v}", t, "小时"),), t


@_template
def _speed(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, v, t = d.pick(_NAMES), d.number(40, 90), d.number(3, 15)
    question = f"{name}{t}分钟走了{v * t}米，平均每分钟走多少米？"
    return question, (_step("速度", f"{v * t} ÷ {t}", v, "米"),), v


@_template
def _meeting(d: Dice) -> tuple[str, tuple[str, ...], int]:
    v, w, t = d.number(40, 80), d.number(40, 80), d.number(2, 6)
    a, b = d.two_names()
    question = f"{a}和{b}从两地同时相向而行，{a}每分钟走{v}米，{b}每分钟走{w}米，{t}分钟后相遇，两地相距多少米？"
    steps = (_step("速度和", f"{v} + {w}", v + w, "米"), _step("距离", f"{v + w} × {t}", (v + w) * t, "米"))
    return question, steps, (v + w) * t


@_template
def _catch_up(d: Dice) -> tuple[str, tuple[str, ...], int]:
    slow, gain, t = d.number(40, 60), d.number(5, 30), d.number(2, 9)
    a, b = d.two_names()
    question = f"{a}在{b}前面{gain * t}米，{a}每分钟走{slow}米，{b}每分钟走{slow + gain}米，{b}几分钟追上{a}？"
    steps = (
        _step("速度差", f"{slow + gain} - {slow}", gain, "米"),
        _step("时间", f"{gain * t} ÷ {gain}", t, "分钟"),
    )
    return question, steps, t


# --- work rates


@_template
def _work_days(d: Dice) -> tuple[str, tuple[str, ...], int]:
    per_day, days = d.number(5, 40), d.number(2, 12)
    thing = d.pick(("零件", "玩具", "椅子", "灯笼"))
    question = f"工厂要做{per_day * days}个{thing}，每天做{per_day}个，几天做完？"
    return question, (_step("天数", f"{per_day * days} ÷ {per_day}", days, "天"),), days


@_template
def _work_left(d: Dice) -> tuple[str, tuple[str, ...], int]:
    done, days, left = d.number(10, 50), d.number(2, 9), d.number(10, 200)
    total = done * days + left
    question = f"修一条{total}米的路，每天修{done}米，修了{days}天，还剩多少米？"
    steps = (
        _step("已修", f"{done} × {days}", done * days, "米"),
        _step("还剩", f"{total} - {done * days}", left, "米"),
    )
    return question, steps, left


@_template
def _work_together(d: Dice) -> tuple[str, tuple[str, ...], int]:
    v, w, t = d.number(3, 20), d.number(3, 20), d.number(2, 9)
    a, b = d.two_names()
    question = f"{a}每小时折{v}只纸鹤，{b}每小时折{w}只，两人一起折{(v + w) * t}只要几小时？"
    steps = (_step("每小时", f"{v} + {w}", v + w, "只"), _step("时间", f"{(v + w) * t} ÷ {v + w}", t, "小时"))
    return question, steps, t


@_template
def _work_fraction(d: Dice) -> tuple[str, tuple[str, ...], int]:
    # Two workers who need a and b days alone; the pairs whose common time is whole.
    a, b = d.pick(((3, 6), (4, 12), (6, 12), (10, 15), (12, 24), (20, 30), (6, 30), (15, 30), (8, 24), (20, 5)))
    first, second = d.two_names()
    days = a * b // (a + b)
    job = d.pick(("一项工程", "一批货物", "一块地", "一面墙"))
    question = f"{job}，{first}单独做要{a}天，{second}单独做要{b}天，两人合做要几天？"
    steps = (_step("时间", f"{a} × {b} ÷ ({a} + {b})", days, "天"),)
    return question, steps, days


# --- fractions and percentages


@_template
def _fraction_of(d: Dice) -> tuple[str, tuple[str, ...], int]:
    bottom = d.number(2, 9)
    top, unit = d.number(1, bottom - 1), d.number(2, 15)
    name, total = d.pick(_NAMES), bottom * unit
    question = f"一本书有{total}页，{name}看了全书的{top}/{bottom}，看了多少页？"
    return question, (_step("已看", f"{total} × {top} ÷ {bottom}", unit * top, "页"),), unit * top


@_template
def _fraction_left(d: Dice) -> tuple[str, tuple[str, ...], int]:
    bottom, unit = d.number(3, 9), d.number(2, 15)
    top = d.number(1, bottom - 1)
    total, used = bottom * unit, top * unit
    unit_name, what = d.pick((("米", "绳子"), ("千克", "大米"), ("升", "水"), ("米", "花布")))
    question = f"有{total}{unit_name}{what}，用去了{top}/{bottom}，还剩多少{unit_name}？"
    steps = (
        _step("用去", f"{total} × {top} ÷ {bottom}", used, unit_name),
        _step("还剩", f"{total} - {used}", total - used, unit_name),
    )
    return question, steps, total - used


@_template
def _fraction_whole(d: Dice) -> tuple[str, tuple[str, ...], int]:
    bottom, unit = d.number(2, 9), d.number(2, 15)
    top = d.number(1, bottom - 1)
    fruit = d.pick(_FRUIT)
    question = f"一筐{fruit}的{top}/{bottom}是{top * unit}个，这筐{fruit}有多少个？"
    return question, (_step("总数", f"{top * unit} ÷ {top} × {bottom}", unit * bottom, "个"),), unit * bottom


@_template
def _fraction_sum(d: Dice) -> tuple[str, tuple[str, ...], str]:
    bottom = d.pick((5, 7, 11, 13, 17, 19, 23, 29, 31))  # primes: the sum cannot be reduced
    whole = d.number(2, bottom - 1)
    top = d.number(1, whole - 1)
    question = f"{top}/{bottom}加{whole - top}/{bottom}的和是多少？"
    steps = (
        _step("分子", f"{top} + {whole - top}", whole),
        _step("和", f"{whole} ÷ {bottom}", f"{whole}/{bottom}"),
    )
    return question, steps, f"{whole}/{bottom}"


@_template
def _percent(d: Dice) -> tuple[str, tuple[str, ...], int]:
    total, percent = 20 * d.number(2, 40), 5 * d.number(1, 19)
    part = total * percent // 100
    question = f"学校有{total}名学生，其中{percent}%是女生，女生有多少名？"
    return question, (_step("女生", f"{total} × {percent} ÷ 100", part, "名"),), part


@_template
def _interest(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, money, rate, years = d.pick(_NAMES), 100 * d.number(2, 50), d.number(2, 5), d.number(1, 5)
    gain = money * rate * years // 100
    question = f"{name}存入银行{money}元，年利率{rate}%，存{years}年，利息是多少元？"
    return question, (_step("利息", f"{money} × {rate} ÷ 100 × {years}", gain, "元"),), gain


# --- shapes


@_template
def _rectangle_perimeter(d: Dice) -> tuple[str, tuple[str, ...], int]:
    w, extra = d.number(2, 30), d.number(1, 20)
    place = d.pick(("花坛", "操场", "菜地", "草坪"))
    question = f"长方形{place}长{w + extra}米，宽{w}米，周长是多少米？"
    return (
        question,
        (_step("周长", f"({w + extra} + {w}) × 2", (2 * w + extra) * 2, "米"),),
        (2 * w + extra) * 2,
    )


@_template
def _rectangle_area(d: Dice) -> tuple[str, tuple[str, ...], int]:
    w, extra = d.number(2, 20), d.number(1, 10)
    place = d.pick(("教室", "花坛", "房间", "菜地"))
    question = f"长方形{place}长{w + extra}米，宽{w}米，面积是多少平方米？"
    return question, (_step("面积", f"{w + extra} × {w}", (w + extra) * w, "平方米"),), (w + extra) * w


@_template
def _square_area(d: Dice) -> tuple[str, tuple[str, ...], int]:
    side, place = d.number(2, 30), d.pick(("桌面", "地砖", "手帕", "花坛", "画框", "菜地"))
    question = f"正方形{place}的周长是{side * 4}分米，面积是多少平方分米？"
    steps = (
        _step("边长", f"{side * 4} ÷ 4", side, "分米"),
        _step("面积", f"{side} × {side}", side * side, "平方分米"),
    )
    return question, steps, side * side


@_template
def _triangle_area(d: Dice) -> tuple[str, tuple[str, ...], int]:
    base, height = 2 * d.number(1, 15), d.number(2, 20)
    question = f"三角形的底是{base}厘米，高是{height}厘米，面积是多少平方厘米？"
    return (
        question,
        (_step("面积", f"{base} × {height} ÷ 2", base * height // 2, "平方厘米"),),
        base * height // 2,
    )


@_template
def _box_volume(d: Dice) -> tuple[str, tuple[str, ...], int]:
    a, b, c = d.number(2, 12), d.number(2, 10), d.number(2, 8)
    question = f"长方体水箱长{a}分米，宽{b}分米，高{c}分米，能装水多少升？"
    steps = (
        _step("底面积", f"{a} × {b}", a * b, "平方分米"),
        _step("容积", f"{a * b} × {c}", a * b * c, "升"),
    )
    return question, steps, a * b * c


# --- ages, averages, sharing


@_template
def _age_gap(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, age, gap, later = d.pick(_NAMES), d.number(5, 15), d.number(20, 35), d.number(1, 12)
    parent = d.pick(("爸爸", "妈妈"))
    question = f"{name}今年{age}岁，{parent}比{name}大{gap}岁，{later}年后{parent}多少岁？"
    steps = (
        _step("今年", f"{age} + {gap}", age + gap, "岁"),
        _step("以后", f"{age + gap} + {later}", age + gap + later, "岁"),
    )
    return question, steps, age + gap + later


@_template
def _age_times(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, age, times = d.pick(_NAMES), d.number(4, 15), d.number(3, 6)
    elder = d.pick(("爷爷", "奶奶", "外公", "外婆"))
    question = f"{elder}今年{age * times}岁，是{name}年龄的{times}倍，{elder}比{name}大多少岁？"
    steps = (
        _step("年龄", f"{age * times} ÷ {times}", age, "岁"),
        _step("相差", f"{age * times} - {age}", age * times - age, "岁"),
    )
    return question, steps, age * times - age


@_template
def _average_three(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, mean, x, y = d.pick(_NAMES), d.number(75, 90), d.number(-9, 5), d.number(-4, 5)
    a, b, c = mean + x, mean + y, mean - x - y
    question = f"{name}的语文考了{a}分，数学考了{b}分，英语考了{c}分，平均多少分？"
    steps = (_step("总分", f"{a} + {b} + {c}", 3 * mean, "分"), _step("平均", f"{3 * mean} ÷ 3", mean, "分"))
    return question, steps, mean


@_template
def _average_missing(d: Dice) -> tuple[str, tuple[str, ...], int]:
    name, mean, x = d.pick(_NAMES), d.number(70, 95), d.number(-5, 5)
    question = f"{name}两次测验平均{mean}分，第一次{mean + x}分，第二次多少分？"
    steps = (
        _step("总分", f"{mean} × 2", 2 * mean, "分"),
        _step("第二次", f"{2 * mean} - {mean + x}", mean - x, "分"),
    )
    return question, steps, mean - x


@_template
def _share_equally(d: Dice) -> tuple[str, tuple[str, ...], int]:
    fruit, people, each = d.pick(_FRUIT), d.number(2, 15), d.number(2, 15)
    question = f"老师把{people * each}个{fruit}平均分给{people}个同学，每人分几个？"
    return question, (_step("每人", f"{people * each} ÷ {people}", each, "个"),), each


@_template
def _share_rest(d: Dice) -> tuple[str, tuple[str, ...], int]:
    people, each = d.number(3, 12), d.number(2, 12)
    rest, fruit = d.number(1, people - 1), d.pick(_FRUIT)
    total = people * each + rest
    question = f"{total}个{fruit}分给{people}个小朋友，每人分{each}个，还剩几个？"
    steps = (
        _step("分掉", f"{people} × {each}", people * each, "个"),
        _step("还剩", f"{total} - {people * each}", rest, "个"),
    )
    return question, steps, rest


@_template
def _share_given(d: Dice) -> tuple[str, tuple[str, ...], int]:
    a, b = d.two_names()
    give, has = d.number(2, 20), d.number(5, 40)
    question = f"{a}有{has + 2 * give}张卡片，{b}有{has}张，{a}给{b}多少张，两人就一样多？"
    steps = (
        _step("相差", f"{has + 2 * give} - {has}", 2 * give, "张"),
        _step("给出", f"{2 * give} ÷ 2", give, "张"),
    )
    return question, steps, give


# --- temperature, counting, multiples


@_template
def _temperature_gap(d: Dice) -> tuple[str, tuple[str, ...], int]:
    city, high, low = d.pick(_CITIES), d.number(1, 20), d.number(1, 15)
    question = f"{city}某天最高气温{high}℃，最低气温零下{low}℃，这天温差是多少℃？"
    return question, (_step("温差", f"{high} + {low}", high + low, "℃"),), high + low


@_template
def _temperature_change(d: Dice) -> tuple[str, tuple[str, ...], int]:
    city, start, up, down = d.pick(_CITIES), d.number(5, 20), d.number(1, 12), d.number(1, 15)
    end = start + up - down
    question = f"{city}早上气温{start}℃，中午上升了{up}℃，晚上又下降了{down}℃，晚上多少℃？"
    steps = (
        _step("中午", f"{start} + {up}", start + up, "℃"),
        _step("晚上", f"{start + up} - {down}", end, "℃"),
    )
    return question, steps, end


@_template
def _times_more(d: Dice) -> tuple[str, tuple[str, ...], int]:
    n, times = d.number(3, 25), d.number(2, 6)
    animal, other = d.pick((("鸡", "鸭"), ("鹅", "鸭"), ("白兔", "灰兔"), ("山羊", "绵羊")))
    question = f"养殖场有{n}只{animal}，{other}的只数是{animal}的{times}倍，两种一共多少只？"
    steps = (
        _step(other, f"{n} × {times}", n * times, "只"),
        _step("一共", f"{n} + {n * times}", n + n * times, "只"),
    )
    return question, steps, n + n * times


@_template
def _rows_of_trees(d: Dice) -> tuple[str, tuple[str, ...], int]:
    gap, spaces = d.number(2, 10), d.number(4, 30)
    tree = d.pick(("杨树", "柳树", "松树", "桃树"))
    question = f"在{gap * spaces}米长的路一边种{tree}，每隔{gap}米种一棵，两端都种，要种多少棵？"
    steps = (
        _step("间隔", f"{gap * spaces} ÷ {gap}", spaces, "个"),
        _step("棵数", f"{spaces} + 1", spaces + 1, "棵"),
    )
    return question, steps, spaces + 1


@_template
def _legs(d: Dice) -> tuple[str, tuple[str, ...], int]:
    hens, rabbits = d.number(2, 20), d.number(2, 20)
    question = f"院子里有{hens}只鸡和{rabbits}只兔，一共有多少条腿？"
    steps = (
        _step("鸡腿", f"{hens} × 2", hens * 2, "条"),
        _step("兔腿", f"{rabbits} × 4", rabbits * 4, "条"),
        _step("一共", f"{hens * 2} + {rabbits * 4}", hens * 2 + rabbits * 4, "条"),
    )
    return question, steps, hens * 2 + rabbits * 4


@_template
def _boats(d: Dice) -> tuple[str, tuple[str, ...], int]:
    seats, full, rest = d.number(4, 8), d.number(3, 15), d.number(1, 3)
    people = seats * full + rest
    question = f"{people}人去划船，每条船坐{seats}人，至少要租几条船？"
    steps = (
        _step("余下", f"{people} - {seats} × {full}", rest, "人"),
        _step("船数", f"{full} + 1", full + 1, "条"),
    )
    return question, steps, full + 1
