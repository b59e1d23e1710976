"""Events: each kind keeps what it says, and readers of another version are not lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.jobs.events import (
    Begin,
    Done,
    Error,
    Evaluation,
    Event,
    EventReader,
    EventWriter,
    Exit,
    Ready,
    Save,
    Step,
    from_json,
    last_held_out,
    last_step,
    read_last_events,
)

BLOCK = 1 << 16  # bytes that a reader asks for at a time

ALL = (
    Begin(time=1.5, rank_id=3, pid=7, started=1.0, ticks=9, boot="b"),
    Begin(time=1.5, pid=7, started=1.0),
    Ready(time=1.5, rank_id=3, mindspore="2", mindformers="1", from_step=4),
    Step(time=1.5, rank_id=3, step=1, loss=0.5, lr=0.1, overflow=True, grad_norm=2.0, step_s=0.25, memory_mib=12),
    Step(time=1.5, rank_id=3, step=1, loss="nan", step_s=0.25),
    Step(time=1.5, rank_id=3, step=1, step_s=0.25, loss_scale=1024.0, input_s=0.001, tokens=512),
    Evaluation(time=1.5, rank_id=3, step=1),
    Evaluation(time=1.5, rank_id=3, step=1, seconds=2.0),
    Evaluation(time=1.5, rank_id=3, step=1, loss=0.5, seconds=2.0),
    Save(time=1.5, rank_id=3, step=1),
    Save(time=1.5, rank_id=3, step=1, seconds=2.0),
    Error(time=1.5, rank_id=3, type="ValueError", message="m", traceback="t"),
    Done(time=1.5, rank_id=3),
    Exit(time=1.5, rank_id=3, code=-9),
)


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.kind)
def test_every_kind_goes_through_json(event: Event) -> None:
    assert from_json(json.loads(json.dumps(event.to_json()))) == event


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.kind)
def test_keys_of_another_version_are_passed_over(event: Event) -> None:
    assert from_json({**event.to_json(), "colour": "red"}) == event


def test_kinds_of_another_version_are_passed_over_and_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_text('{"time": 1, "rank_id": 0, "event": "pause"}\n{"time": 1, "rank_id": 0, "event": "done"}\n')
    reader = EventReader(path=path)
    assert list(reader.new()) == [Done(time=1, rank_id=0)]
    reader.close()
    assert reader.damaged == read_last_events(path).damaged == 0


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 1])
def test_all_that_is_new_comes_at_one_call_wherever_blocks_end(tmp_path: Path, size: int) -> None:
    path, line = tmp_path / "rank_0.jsonl", b'{"time": 1, "rank_id": 0, "event": "done"}'
    count, rest = divmod(max(size, len(line) + 1), len(line) + 1)
    path.write_bytes((line + b"\n") * (count - 1) + line + b" " * rest + b"\n")
    reader = EventReader(path=path)

    assert len(list(reader.new())) == count
    with path.open("ab") as file:
        file.write(line + b"\n" + line)
    assert len(list(reader.new())) == 1  # the last line is still being written
    reader.close()


def test_what_an_earlier_version_did_not_write_has_a_default() -> None:
    old = from_json({"time": 1.0, "rank_id": 0, "event": "step", "step": 2, "step_s": 0.5})
    assert old == Step(time=1.0, rank_id=0, step=2, step_s=0.5)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        '{"event": 3}',
        '{"event": "exit"}',
        '{"event": "step", "step": 1}',
        '{"event": "step", "step": "one", "step_s": 1}',
        '{"event": "begin", "pid": null, "started": 1}',
    ],
)
def test_damaged_lines_are_counted_and_hide_no_others(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rank_0.jsonl"
    path.write_text(f'{line}\n{{"time": 1, "rank_id": 0, "event": "done"}}\n')
    reader = EventReader(path=path)
    assert list(reader.new()) == [Done(time=1, rank_id=0)]
    reader.close()
    assert reader.damaged == 1
    assert read_last_events(path).damaged == 1


def test_what_has_only_begun_says_so_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    with EventWriter(path, 0) as events:
        events.report(Save(step=1))
        events.report(Evaluation(step=1))
        events.report(Evaluation(step=1, seconds=1.0))
    begun, evaluating, ended = (json.loads(line) for line in path.read_text().splitlines())
    assert "seconds" not in begun
    assert evaluating.keys() == {"time", "rank_id", "event", "step"}
    assert (ended["loss"], ended["seconds"], ended["rank_id"]) == (None, 1.0, 0)


def test_the_last_of_a_kind_is_found_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    known = [event for event in ALL if isinstance(event, Step | Evaluation)]
    lines = [json.dumps(event.to_json()) for event in (*known, *ALL)]
    path.write_text("\n".join([*lines, '{"event": "step", "step": 5', '{"time": 9.0, "event": "step", "ste']))

    assert last_step(path) == [event for event in ALL if isinstance(event, Step)][-1]
    assert last_held_out(path) == Evaluation(time=1.5, rank_id=3, step=1, loss=0.5, seconds=2.0)


@pytest.mark.parametrize("others", [0, 30, 300])
def test_the_last_step_is_found_however_much_follows_it(tmp_path: Path, others: int) -> None:
    path = tmp_path / "rank_0.jsonl"
    steps = [Step(time=1.0, rank_id=0, step=step, step_s=0.5, loss=1.0 / step) for step in range(1, 200)]
    saves = [Save(time=2.0, rank_id=0, step=199, seconds=0.5) for _ in range(others)]
    path.write_text("".join(json.dumps(event.to_json()) + "\n" for event in (*steps, *saves)))

    assert last_step(path) == steps[-1]
    # A line alone may be longer than what is read first.
    error = json.dumps({"time": 3.0, "rank_id": 0, "event": "error", "type": "E", "message": "x" * 9000})
    path.write_text(f"{path.read_text()}{error}\n")
    assert last_step(path) == steps[-1]


@pytest.mark.parametrize("text", ["", "\n", "no json\n", '{"event": "done"}\n', '{"event": "step"'])
def test_a_file_without_a_step_has_no_last_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)

    assert [last_step(tmp_path / "a"), last_held_out(tmp_path / "a"), last_step(tmp_path / "none")] == [None] * 3
