"""Who holds the others up: by times written as data, and by jobs whose ranks wait for each other for real."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import synced
from support.job_folders import BEGAN, SPEC, Made, MadeJob

from launcher.cli.output import live
from launcher.cli.output.show import status_json
from launcher.cli.output.status import status
from launcher.jobs import RUNNING, JobStore
from launcher.jobs.events import EventWriter, HostSample
from launcher.observe import stragglers as module
from launcher.observe.history import History
from launcher.observe.host_signs import host_signs
from launcher.observe.openmetrics import metrics_text
from launcher.observe.report import make_report
from launcher.observe.stragglers import Stragglers
from launcher.observe.summary import stragglers
from launcher.observe.words import is_translated, words

Delay = Callable[[int, int], float]
# The others differ a little, each in turn.
NOISE_S = 0.002


def made(
    *,
    late: Delay = lambda rank, step: 0.0,
    waits: Callable[[int, int], dict[str, float]] = lambda rank, step: {},
    clock: Callable[[int], float] = lambda rank: 0.0,
    steps: int = 30,
    **more: Any,
) -> MadeJob:
    """A job of steps of a second. ``late``: seconds after the begin of the step at which a rank enters it."""

    def fields(rank_id: int, step: int) -> dict[str, Any]:
        entered = BEGAN + 19 + step + late(rank_id, step) + NOISE_S * ((rank_id + step) % 4) + clock(rank_id)
        own = {"begun": round(entered, 4), "input_s": 0.001, "core_wait_s": 0.01, "time": BEGAN + 19.9 + step}
        return {**own, "time": own["time"] + clock(rank_id), **waits(rank_id, step)}

    attempt = Made(steps=steps, more=fields, saves=more.pop("saves", ()))
    return MadeJob(cards=more.pop("cards", 4), steps=steps, state=RUNNING, attempts=(attempt,), **more)


def judge(folder: Path, **options: Any) -> Stragglers:
    return stragglers(made(**options).history(folder))


def test_ranks_that_are_last_in_turn_are_no_suspects(tmp_path: Path) -> None:
    found = judge(tmp_path)

    assert (found.suspects, found.is_judged) == ((), True)
    assert found.to_dict()["said"] == "No rank stands out in the newest 29 steps."


def test_who_is_late_for_its_rows_is_named_with_the_evidence(tmp_path: Path) -> None:
    found = judge(
        tmp_path,
        late=lambda rank, step: 0.18 * (rank == 2 and step != 7),
        waits=lambda rank, step: {"input_s": 0.16} if rank == 2 else {},
    )

    assert found.to_dict() == {
        "steps": 29,
        "suspects": [{
            "ranks": [2], "host": "node2", "device": "2", "cause": "input", "lost_share": pytest.approx(0.18, abs=0.02),
            "last_share": pytest.approx(0.97, abs=0.03), "late_s": pytest.approx(0.18, abs=0.01),
            "waits": {"input": {"own_s": 0.16, "others_s": 0.001}, "core": {"own_s": 0.01, "others_s": 0.01}},
            "evidence": "rank 2 (node2) comes last in 97 % of steps, 180 ms after the median; it waits "
                        "160 ms a step for input, the others 1 ms",
        }],
        "said": "rank 2 (node2) comes last in 97 % of steps, 180 ms after the median; it waits 160 ms a "
                "step for input, the others 1 ms. Look at what reads its rows: the disk or mount of the data on that "
                "host, and its data workers.",
        "signs": [],
    }  # fmt: skip


def test_nothing_it_waited_for_explains_it(tmp_path: Path) -> None:
    (suspect,) = judge(tmp_path, late=lambda rank, step: 0.3 * (rank == 1)).suspects

    assert (suspect.rank_ids, suspect.cause) == ((1,), "unexplained")


def test_a_rank_that_waits_for_a_core_is_named_though_it_enters_steps_in_time(tmp_path: Path) -> None:
    (suspect,) = judge(tmp_path, waits=lambda rank, step: {"core_wait_s": 0.4 if rank == 3 else 0.1}).suspects

    assert (suspect.rank_ids, suspect.cause, suspect.arrivals) == ((3,), "core", None)


def test_readings_of_core_waits_may_be_rare(tmp_path: Path) -> None:
    """On a host with thousands of threads a reading covers many steps; NaN stands for no reading."""
    rare = lambda rank, step: {"core_wait_s": (4.0 if rank == 3 else 0.1) if step % 10 == rank else None}  # noqa: E731
    found = judge(tmp_path, steps=61, waits=rare)

    assert [(suspect.rank_ids, suspect.cause) for suspect in found.suspects] == [((3,), "core")]


def test_two_long_pauses_are_no_habit(tmp_path: Path) -> None:
    assert not judge(tmp_path, late=lambda rank, step: 9.0 * (rank == 1 and step in (11, 23))).suspects


def test_three_of_twenty_are(tmp_path: Path) -> None:
    (suspect,) = judge(tmp_path, steps=21, late=lambda rank, step: 1.5 * (rank == 1 and step in (5, 11, 17))).suspects

    assert suspect.rank_ids == (1,)


def test_what_costs_little_is_not_worth_a_word(tmp_path: Path) -> None:
    assert not judge(tmp_path, late=lambda rank, step: 0.05 * (rank == 1)).suspects


def test_clocks_of_hosts_that_differ_do_not_make_a_suspect(tmp_path: Path) -> None:
    assert not judge(tmp_path, clock=lambda rank: 37.0 * rank).suspects


def test_clocks_of_hosts_that_differ_do_not_hide_one(tmp_path: Path) -> None:
    (suspect,) = judge(tmp_path, clock=lambda rank: -37.0 * rank, late=lambda rank, step: 0.3 * (rank == 3)).suspects

    assert suspect.rank_ids == (3,)


def placed(hosts: str) -> dict[str, Any]:
    return {"plan": {"ranks": [{"rank_id": n, "host": host, "device_id": 0} for n, host in enumerate(hosts)]}}


def test_a_host_all_of_whose_ranks_are_late_is_named(tmp_path: Path) -> None:
    found = judge(tmp_path, late=lambda rank, step: 0.3 * (rank in (2, 3)), **placed("aabb"))

    assert [suspect.rank_ids for suspect in found.suspects] == [(2, 3)]
    assert found.to_dict()["said"].startswith("host b (ranks 2-3) is late in 100 % of steps, 29")


def test_ranks_are_compared_with_those_of_their_stage(tmp_path: Path) -> None:
    """The first stage ends last, and begins last."""
    stages = {"spec": {**SPEC, "parallel": {"mode": "semi_auto", "pipeline_stage": 2}}}
    late: Delay = lambda rank, step: 0.4 * (rank < 2)  # noqa: E731

    assert not judge(tmp_path / "a", late=late, **stages).suspects
    assert judge(tmp_path / "b", late=late).suspects
    assert judge(tmp_path / "c", late=late, cards=2, **stages).to_dict()["said"].startswith("Each stage")


def test_slow_saves_are_named_by_the_newest_ones(tmp_path: Path) -> None:
    job = made(steps=30, saves=range(3, 30, 3))
    paths = job.write(tmp_path)
    file = paths.rank_events(1)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if line["event"] == "save" and "seconds" in line:
            line["seconds"] = 0.9
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (suspect,) = stragglers(history_of(tmp_path)).suspects

    assert (suspect.rank_ids, suspect.cause) == ((1,), "save")
    assert suspect.to_dict()["evidence"] == "rank 1 (node1): it takes 900 ms to save, the others 250 ms"


def history_of(root: Path) -> History:
    from launcher.observe.history import read_history

    return read_history(*JobStore(root).get("last"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cards": 1}, "One rank waits for nobody."),
        ({"steps": 6}, "Too early to tell who is slow: 5 of 10 steps are done."),
        (
            {"waits": lambda rank, step: {"begun": None}},
            "Its ranks do not tell when they enter a step (an earlier version of launcher).",
        ),
        (
            {"waits": lambda rank, step: {"begun": 9.0}},
            "Its ranks do not tell when they enter a step (an earlier version of launcher).",
        ),
        ({"steps": 0}, "Too early to tell who is slow: 0 of 10 steps are done."),
    ],
)
def test_why_none_is_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    found = judge(tmp_path, **options)

    assert (found.to_dict()["said"], found.is_judged) == (said, False)


# ------------------------------------------------------------------------------------------------ where it is shown


def test_status_report_page_json_and_metrics_name_the_suspect(tmp_path: Path) -> None:
    job = made(late=lambda rank, step: 0.3 * (rank == 1), waits=lambda rank, step: {"input_s": 0.3 * (rank == 1)})
    paths, record = job.write(tmp_path), job.make_record()
    who = "rank 1 (node1) comes last in 100 % of steps, 302 ms after the median"

    assert f"slow      {who}; it waits 300 ms a step for input, the others 0 ms. Look at" in status(paths, record)
    assert who in live.page(paths, record)
    assert "slow: input" in live.page(paths, record)
    page = make_report([history_of(tmp_path)], "en")
    assert page.count(who) == 2
    assert page.count('<tr class="slow">') == 1
    assert "rank 1 (node1) 在 100 % 的步中最后到达" in make_report([history_of(tmp_path)], "zh")
    (told,) = json.loads(status_json(paths, record))
    assert told["stragglers"]["suspects"][0]["ranks"] == [1]
    assert told["ranks"][1]["late_s"] == pytest.approx(0.3, abs=0.005)
    metrics = metrics_text(JobStore(tmp_path)).splitlines()
    labels = 'job="bcdfg-made",rank="1",host="node1",device="1"'
    assert [line.split("} ")[0] for line in metrics if line.startswith("launcher_rank_slow{")] == [
        f'launcher_rank_slow{{{labels},cause="input"'
    ]
    assert any(line.startswith(f"launcher_rank_late_seconds{{{labels}}} 0.3") for line in metrics)


def test_status_is_silent_until_there_is_something_to_say(tmp_path: Path) -> None:
    job = made(steps=5)

    assert "slow  " not in status(job.write(tmp_path), job.make_record())


# ------------------------------------------------------------------------------------------------ ranks that run


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["input", "core", "save"])
def test_a_slow_rank_is_named_within_20_steps(tmp_path: Path, fault: str) -> None:
    """On a machine that others use a busy core may be no worse than the rest, so that is tried again."""
    found = [synced.judged(synced.run(tmp_path / str(number), fault)) for number in range(1)]
    while not found[-1].suspects and fault == "core" and len(found) < 3:
        found.append(synced.judged(synced.run(tmp_path / str(len(found)), fault)))

    assert [(suspect.rank_ids, suspect.cause) for suspect in found[-1].suspects] == [((2,), fault)]
    assert found[-1].steps == 20


@pytest.mark.slow
def test_a_healthy_run_has_no_suspect(tmp_path: Path) -> None:
    assert not synced.judged(synced.run(tmp_path / "x", "none")).suspects


# ------------------------------------------------------------------------------------------------ signs on hosts


def card(device_id: int, **own: Any) -> dict[str, Any]:
    return {"device_id": device_id, "health": "OK", "temperature_c": 60.0, "power_w": 300.0, **own}


def sample(*cards: dict[str, Any], steal: float | None = 0.0, **more: Any) -> HostSample:
    return HostSample(host="node0", steal=steal, cards=cards, **more)


CALM = [card(n, ecc_errors=2, link_errors=5) for n in range(4)]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([sample(*CALM), sample(*CALM, steal=0.09)], []),
        ([sample(steal=None), sample(*[{"device_id": 0}], steal=None)], []),
        (
            [sample(steal=0.2), sample(steal=0.3, throttled=0.5)],
            [
                "Host node0: 25 % of its CPU time goes to other virtual machines (steal).",
                "Host node0: the CPU limit of its container holds threads up for 0.50 s a second (cgroup cpu.stat).",
            ],
        ),
        ([sample(*CALM[1:], card(0, temperature_c=79.0))], []),
        (
            [sample(*CALM[1:], card(0, temperature_c=96.0, health="Alarm"))],
            [
                "Card 0 of host node0: npu-smi says Alarm.",
                "Card 0 of host node0: 96 °C, the median of the cards is 60 °C.",
            ],
        ),
        (
            [sample(*CALM[1:], card(0, power_w=200.0))],
            ["Card 0 of host node0: 200 W, the median of the cards is 300 W: it may hold its clock down."],
        ),
        (
            [sample(*CALM), sample(*CALM[1:], card(0, ecc_errors=3, link_errors=9), time=90.0)],
            [
                "Card 0 of host node0: 1 more uncorrectable memory errors in 1:30.",
                "Card 0 of host node0: 4 more damaged packets on its link in 1:30.",
            ],
        ),
    ],
)
def test_what_stands_out_on_a_host_is_said(samples: list[HostSample], said: list[str]) -> None:
    assert [sign.said(words("en")) for sign in host_signs({0: samples})] == said
    assert all(re.search("[一-鿿]", sign.said(words("zh"))) for sign in host_signs({0: samples}))


def test_signs_are_read_from_the_attempt_and_shown(tmp_path: Path) -> None:
    job = made()
    paths, record = job.write(tmp_path), job.make_record()
    with EventWriter(paths.host_events(0), None) as events:
        events.report(sample(steal=0.4))

    said = "Host node0: 40 % of its CPU time goes to other virtual machines (steal)."
    assert f"slow      {said}" in status(paths, record)
    assert make_report([history_of(tmp_path)], "en").count(said) == 2
    assert stragglers(history_of(tmp_path)).to_dict()["signs"] == [said]


def test_every_sentence_is_translated() -> None:
    said = [value for name, value in vars(module).items() if name.lstrip("_").isupper() and isinstance(value, str)]
    tables = [value for name, value in vars(module).items() if name in ("ADVICE", "_WAITS")]

    assert len(said) == 8
    assert [t for t in [*said, *(t for table in tables for t in table.values())] if not is_translated(t)] == []
