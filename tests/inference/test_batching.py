"""Rows that join and leave a batch between two tokens, and the queue that lets them. Models are computed in numpy.

Alone, a row is answered by ``Session.run`` as by ``launcher infer``; that is the oracle.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.inference_tools import CONTEXT, alike, prompts
from support.model_servers import quick_model, running, served

from launcher.common.host_memory import available_memory
from launcher.common.http.access import RequestError
from launcher.errors import LauncherError
from launcher.inference.batching import Batch, Memory
from launcher.inference.cached import Cache, CachedDecoder
from launcher.inference.decoding import CANCELLED, FAILED, LENGTH, Row
from launcher.inference.numpy_network import NumpyNetwork, load
from launcher.inference.paged import PagedDecoder, PagedMemory
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.formats import Piece
from launcher.inference.server.protocol import Settings, parse_text
from launcher.inference.server.queue import Task, TaskQueue
from launcher.inference.server.served import Served
from launcher.inference.session import Question, Session
from launcher.inference.slots import MOST_SLOTS, cache_bytes, default_slots
from launcher.inference.sources import find_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_model(tmp_path_factory.mktemp("batching") / "model")


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return Session(find_model(str(folder), folder.parent / "jobs"), batch_size=3)


@pytest.fixture(scope="module")
def network(session: Session) -> NumpyNetwork:
    return load(session.model)


class Network:
    """The part of MindFormers' network that ``PagedMemory`` needs. Blocks hold tokens, in place of keys and values."""

    def __init__(self, network: NumpyNetwork, slots: int) -> None:
        blocks = -(-CONTEXT // 16)
        self.config = SimpleNamespace(block_size=16, num_blocks=blocks * slots)
        self.decoder = CachedDecoder(network)
        self.memory = np.full(blocks * slots * 16, -1)
        self.shapes: set[tuple[int, ...]] = set()
        self.is_dynamic = False

    def set_dynamic_inputs(self) -> None:
        self.is_dynamic = True

    def forward(
        self, *, input_ids: Any, valid_length_each_example: Any, block_tables: Any, slot_mapping: Any, prefill: bool,
        use_past: bool,
    ) -> tuple[Any, None]:  # fmt: skip
        assert (use_past, self.is_dynamic, slot_mapping.size) == (True, True, input_ids.size)
        if not prefill:
            self.shapes.add((*input_ids.shape, *block_tables.shape, *slot_mapping.shape))
        self.memory[slot_mapping] = input_ids.reshape(-1)
        found = []
        for table, length in zip(block_tables, valid_length_each_example, strict=True):
            row = self.memory.reshape(-1, 16)[table].reshape(-1)[:length]
            found.append(self.decoder.all_logits(row[None].astype(np.int32))[0, -1])
        return np.array(found), None


def rows_of(session: Session, count: int, seed: int = 1) -> list[Row]:
    """Rows of all kinds: lengths, sampling, stop texts, log probabilities, answers and continuations."""
    chosen = random.Random(seed)
    found = []
    for number, text in enumerate(prompts(count)):
        spec = GenerationSpec(
            max_new_tokens=chosen.randint(1, 40), temperature=chosen.choice([0, 0, 0.8, 1.5]), seed=number,
            top_k=chosen.choice([0, 20]), top_p=chosen.choice([1.0, 0.9]),
            repetition_penalty=chosen.choice([1.0, 1.3]), stop=chosen.choice([(), ("1", "的")]),
        )  # fmt: skip
        (prepared,) = session.prepare([Question(id=str(number), text=text * chosen.choice([1, 1, 2]))])
        found.append(session.row(prepared, spec, continued=number % 2 == 0, top=chosen.choice([None, 0, 3])))
    return found


def drive(batch: Batch, rows: Sequence[Row], seed: int) -> None:
    """Let ``rows`` join in their order at random moments, several at a time."""
    chosen, waiting = random.Random(seed), list(rows)
    while waiting or batch.rows:
        count = min(batch.free, len(waiting), chosen.choice([0, 0, 1, 3]))
        if count:
            batch.join([waiting.pop(0) for _ in range(count)])
        batch.step()
        assert batch.free >= 0


def assert_same(found: Sequence[Row], expected: Sequence[Row]) -> None:
    for row, alone in zip(found, expected, strict=True):
        assert (row.new_tokens, row.transcript.text, row.finish) == (
            alone.new_tokens,
            alone.transcript.text,
            alone.finish,
        )
        assert [score.token for score in row.scores] == [score.token for score in alone.scores]
        assert [[token for token, _ in score.top] for score in row.scores] == [
            [token for token, _ in score.top] for score in alone.scores
        ]
        ours, theirs = ([score.logprob for score in item.scores] for item in (row, alone))
        assert np.allclose(np.array(ours, float), np.array(theirs, float), atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cached", "paged"])
def test_an_answer_in_changing_company_is_the_one_alone(
    session: Session, network: NumpyNetwork, kind: str, seed: int
) -> None:
    alone, together = (rows_of(session, 25, seed) for _ in range(2))
    for row in alone:
        session.run([row])
    paged = Network(network, 5)
    batch = PagedDecoder(paged, pad_id=0).batch(5) if kind == "paged" else CachedDecoder(network).batch(5)
    drive(batch, together, seed)

    assert_same(together, alone)
    assert len({row.finish for row in together}) > 1
    # One shape whoever has joined: a graph with fixed shapes is compiled once.
    assert paged.shapes == ({(5, 1, 5, 6, 5)} if kind == "paged" else set())


def test_the_cache_holds_no_more_columns_than_the_longest_row_needs(session: Session, network: NumpyNetwork) -> None:
    """A row that stays while hundreds come and go."""
    cache = Cache(network)
    batch = Batch(cache, 3)
    for start in range(0, 60, 4):
        rows = rows_of(session, 4, start)
        drive(batch, rows, start)
    row, short = rows_of(session, 1)[0], rows_of(session, 20)
    row.limit = CONTEXT - len(row.prompt)
    row.ends, row.spec, row.transcript._stop = frozenset(), GenerationSpec(), ()
    batch.join([row])
    while batch.rows:
        if short and batch.free:
            batch.join([short.pop()])
        batch.step()
        assert cache._part.columns <= 2 * CONTEXT
    assert len(row.prompt) + len(row.new_tokens) == CONTEXT
    assert cache._part.columns == 0


def test_a_cancelled_row_leaves_before_the_next_token(session: Session, network: NumpyNetwork) -> None:
    gone = threading.Event()
    first, second = rows_of(session, 2)
    first.cancelled, first.limit, first.ends, first.transcript._stop = gone.is_set, 50, frozenset(), ()
    batch = CachedDecoder(network).batch(1)
    batch.join([first])
    batch.step()
    count = len(first.new_tokens)
    gone.set()
    batch.drop_cancelled()

    assert (first.finish, len(first.new_tokens), batch.free) == (CANCELLED, count, 1)
    batch.join([second])
    assert len(second.new_tokens) + len(second.scores) >= 1


class Faulty:
    """A memory that fails when a prompt has the token 7, or when ``broken``."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.broken = False
        self.lengths: list[list[int]] = []
        self.keep, self.clear = memory.keep, memory.clear

    def join(self, prompts: Sequence[Sequence[int]]) -> Any:
        self.lengths.append([len(prompt) for prompt in prompts])
        if any(7 in prompt for prompt in prompts):
            raise MemoryError("a prompt with a 7")
        return self.memory.join(prompts)

    def step(self, tokens: Sequence[int]) -> Any:
        if self.broken:
            raise RuntimeError("broken")
        return self.memory.step(tokens)


@pytest.fixture(params=["cached", "paged"])
def faulty(request: pytest.FixtureRequest, network: NumpyNetwork) -> Faulty:
    paged = Network(network, 5)
    return Faulty(PagedMemory(paged, slots=5, pad_id=0) if request.param == "paged" else Cache(network))


def test_what_goes_wrong_with_one_row_ends_no_other(session: Session, faulty: Faulty) -> None:
    alone, together = (rows_of(session, 5) for _ in range(2))
    for row in alone[:3]:
        session.run([row])

    def fail(_: str) -> None:
        raise KeyError("the reader")

    together[3].on_text = fail
    together[4].prompt = [5, 7]
    batch = Batch(faulty, 5)
    batch.join(together)
    while batch.rows:
        batch.step()

    assert_same(together[:3], alone[:3])
    assert [row.finish for row in together[3:]] == [FAILED, FAILED]
    assert [type(row.error) for row in together[3:]] == [KeyError, MemoryError]


def test_a_step_that_fails_ends_its_rows_and_the_next_ones_are_answered(session: Session, faulty: Faulty) -> None:
    alone, failing, later = (rows_of(session, 4)[1:] for _ in range(3))
    for row in alone:
        session.run([row])
    for row in failing:
        row.limit, row.ends, row.transcript._stop = 50, frozenset(), ()
    batch = Batch(faulty, 5)
    batch.join(failing)
    faulty.broken = True
    batch.step()
    assert {(row.finish, str(row.error)) for row in failing} == {(FAILED, "broken")}

    faulty.broken = False
    drive(batch, later, 1)
    assert_same(later, alone)


def test_short_prompts_are_read_together_and_do_not_wait_for_long_ones(session: Session, faulty: Faulty) -> None:
    rows = rows_of(session, 5)
    for row, length in zip(rows, (90, 5, 60, 70, 20), strict=True):
        row.prompt, row.limit = [5] * length, 2
    Batch(faulty, 5).join(rows)

    assert faulty.lengths == [[5, 20, 60], [70, 90]]


def test_what_goes_wrong_alone_is_raised(session: Session) -> None:
    (row,) = rows_of(session, 1)

    def fail(_: str) -> None:
        raise ValueError("first line\nsecond line")

    row.on_text = fail
    with pytest.raises(LauncherError, match=r"the model could not be run: first line$"):
        session.run([row])


# ------------------------------------------------------------------------------------------------ the queue


class Asked:
    """Tasks of a queue that is driven by hand. ``order``: the names of tasks as pieces of them come."""

    def __init__(self, folder: Path, batch_size: int, *, most_waiting: int = 100) -> None:
        self.served = served("model", folder, batch_size=batch_size)
        self.queue = TaskQueue(most_waiting=most_waiting)
        self.order: list[str] = []
        self.pieces: dict[str, list[Piece | None]] = {}

    def ask(self, name: str, served: Served | None = None, **values: Any) -> Task:
        body = {"model": "model", "prompt": f"苹果{name}", "max_tokens": 3, **values}
        completion = parse_text(body, Settings(defaults=GenerationSpec(), most_tokens=100))
        chosen = served or self.served
        self.pieces[name] = []

        def deliver(piece: Piece | None) -> None:
            self.order.append(name)
            self.pieces[name].append(piece)

        task = Task(
            served=chosen, completion=completion, prepared=chosen.prepare(completion),
            deadline=time.monotonic() + 60, deliver=deliver,
        )  # fmt: skip
        for row in task.rows:
            row.ends = frozenset()
        self.queue.put(task)
        return task

    def turns(self, count: int = 100) -> None:
        for _ in range(count):
            self.queue.turn()


def test_requests_wait_in_order_and_join_as_soon_as_a_slot_is_free(folder: Path) -> None:
    asked = Asked(folder, 2)
    tasks = [asked.ask(name, max_tokens=count) for name, count in (("a", 9), ("b", 3), ("c", 3), ("d", 3))]
    asked.queue.turn()
    assert (asked.queue.running, asked.queue.waiting) == (2, 2)
    asked.queue.turn()
    assert [len(task.rows[0].new_tokens) for task in tasks] == [3, 3, 0, 0]
    asked.queue.turn()
    assert [len(task.rows[0].new_tokens) for task in tasks] == [4, 3, 2, 0]
    asked.turns()

    assert list(dict.fromkeys(asked.order)) == ["a", "b", "c", "d"]
    assert all(task.rows[0].finish == LENGTH and task.error is None for task in tasks)
    assert all(pieces[-1] is None for pieces in asked.pieces.values())
    assert (asked.queue.running, asked.queue.waiting) == (0, 0)


def test_requests_that_come_at_once_wait_only_where_no_slot_is_free(folder: Path) -> None:
    """Before the model has had a turn too, when none of them has its slot yet."""
    asked = Asked(folder, 2, most_waiting=1)
    for name in ("a", "b", "c"):
        asked.ask(name, max_tokens=9)
    assert asked.queue.waiting == 1
    for _ in range(2):
        with pytest.raises(RequestError, match="too many requests are waiting"):
            asked.ask("d")
        asked.queue.turn()
        assert (asked.queue.running, asked.queue.waiting) == (2, 1)
    asked.turns()
    assert [pieces[-1:] for pieces in asked.pieces.values()] == [[None], [None], [None], []]


def test_a_client_that_leaves_frees_its_slots_for_the_next_token(folder: Path) -> None:
    asked = Asked(folder, 2)
    first = asked.ask("first", n=4, max_tokens=50)
    second = asked.ask("second")
    asked.turns(3)
    before = [len(row.new_tokens) for row in first.rows]
    assert (second.taken, asked.queue.waiting) == (0, 1)
    first.left.set()
    asked.queue.turn()

    assert [len(row.new_tokens) for row in first.rows] == before == [4, 4, 0, 0]
    assert (second.taken, len(second.rows[0].new_tokens)) == (1, 2)
    asked.turns()
    assert second.rows[0].finish == LENGTH
    assert (asked.queue.running, asked.queue.waiting) == (0, 0)


def test_time_that_is_up_frees_slots_too(folder: Path) -> None:
    asked = Asked(folder, 1)
    first, second, third = (asked.ask(name, max_tokens=50) for name in "abc")
    asked.turns(2)
    first.deadline = third.deadline = 0.0
    asked.queue.turn()

    assert (first.rows[0].finish, first.timed_out, asked.pieces["a"][-1]) == (CANCELLED, True, None)
    assert (second.taken, third.taken, third.error) == (1, 0, "it waited too long")


def test_an_error_in_a_request_ends_all_of_it_and_no_other(folder: Path) -> None:
    asked = Asked(folder, 8)
    good, bad, echo = asked.ask("good"), asked.ask("bad", n=3), asked.ask("echo", echo=True, logprobs=1)

    class Broken(list[int]):
        def __iter__(self) -> Iterator[int]:
            raise ValueError("no tokens\nat all")

    bad.rows[1].prompt = Broken([5])
    echo.rows[0].prompt = [5, 10_000]
    asked.turns(2)

    assert good.error is None
    assert len(good.rows[0].new_tokens) == 3
    assert bad.error == "the model could not be run: no tokens"
    assert echo.error is not None
    assert echo.error.startswith("the model could not be run: index 10000")
    assert [pieces.count(None) for pieces in asked.pieces.values()] == [1, 1, 1]
    asked.turns(2)
    assert (asked.queue.running, asked.queue.waiting) == (0, 0)
    assert len(asked.ask("later").rows) == 1
    asked.turns()
    assert asked.pieces["later"][-1] is None


def test_models_take_turns(folder: Path, tmp_path: Path) -> None:
    asked = Asked(folder, 1)
    other = served("other", quick_model(tmp_path / "other", rms_norm_eps=0.5), batch_size=1)
    first, waiting = asked.ask("a", max_tokens=20), asked.ask("b", max_tokens=20)
    second = asked.ask("c", other, max_tokens=20)
    asked.turns(5)

    assert [len(task.rows[0].new_tokens) for task in (first, waiting, second)] == [6, 0, 6]


def test_a_server_that_ends_tells_all_whom_it_owes_an_answer(folder: Path) -> None:
    asked = Asked(folder, 2)
    tasks = [asked.ask("done", max_tokens=1), asked.ask("running", n=2, max_tokens=50), asked.ask("waiting")]
    asked.turns(3)
    asked.queue.stopping.set()
    asked.queue.run()

    assert [task.error for task in tasks] == [None, *["the server is shutting down"] * 2]
    assert [row.finish for task in tasks for row in task.rows] == [LENGTH, *[CANCELLED] * 3]
    assert [pieces.count(None) for pieces in asked.pieces.values()] == [1, 1, 1]
    assert (asked.queue.running, asked.queue.waiting) == (0, 0)
    with pytest.raises(RequestError, match="shutting down"):
        asked.ask("late")


# ------------------------------------------------------------------------------------------------ the server


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    found: list[Any] = [None] * len(calls)

    def call(place: int) -> None:
        time.sleep(random.random() / 5)
        found[place] = calls[place]()

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_clients_at_once_get_what_each_gets_alone(folder: Path, tmp_path: Path) -> None:
    other = quick_model(tmp_path / "other", rms_norm_eps=0.5)
    with running([served("model", folder, batch_size=5), served("other", other, batch_size=2)]) as server:
        chosen = random.Random(4)
        asked: list[dict[str, Any]] = [
            {
                "model": chosen.choice(["model", "model", "other"]), "prompt": text,
                "max_tokens": chosen.randint(1, 30), "temperature": chosen.choice([0, 1.2]),
                "seed": chosen.randint(0, 9),
                "n": chosen.choice([1, 1, 3]), "logprobs": chosen.choice([None, 0, 2]),
                "echo": chosen.choice([False, True]), "stop": chosen.choice([None, ["1"]]),
            }
            for text in prompts(24)
        ]  # fmt: skip
        alone = [server.post("/v1/completions", **body)["choices"] for body in asked]
        together = in_threads([lambda body=body: server.post("/v1/completions", **body) for body in asked])  # type: ignore[misc]
        now = server.get("/metrics").text

    for answer, expected in zip(together, alone, strict=True):
        assert alike(answer["choices"], expected)
    assert "launcher_serve_running_requests 0" in now
    assert "launcher_serve_waiting_requests 0" in now


# ------------------------------------------------------------------------------------------------ how many


def test_the_default_of_slots_follows_from_memory_and_context(session: Session) -> None:
    model = session.model
    each = 2 * 2 * 2 * 12 * CONTEXT * 4
    assert cache_bytes(model, on_cpu=True) == each == 2 * cache_bytes(model, on_cpu=False)

    def slots(available: int | None, models: int = 1, *, on_cpu: bool = True) -> int:
        return default_slots(model, on_cpu=on_cpu, available=available, models=models)

    assert slots(4 * each * 10) == 10
    assert slots(4 * each * 10, models=2) == 5
    assert [slots(0), slots(1 << 40), slots(None), slots(0, on_cpu=False)] == [1, MOST_SLOTS, MOST_SLOTS, 8]


def test_available_memory_is_the_hosts_or_what_a_container_has_left(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       200 kB\nMemAvailable:   100 kB\n")
    assert available_memory(tmp_path) == 100 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/a\n4:memory:/b\n")
    for folder, limit, used in (("sys/fs/cgroup/a", "memory.max", "memory.current"),):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / limit).write_text("max\n")
        (tmp_path / folder / used).write_text("4000\n")
        assert available_memory(tmp_path) == 100 * 1024
        (tmp_path / folder / limit).write_text("9000\n")
        assert available_memory(tmp_path) == 5000
    (tmp_path / "sys/fs/cgroup/memory/b").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/b/memory.limit_in_bytes").write_text("3000\n")
    (tmp_path / "sys/fs/cgroup/memory/b/memory.usage_in_bytes").write_text("4000\n")
    assert available_memory(tmp_path) == 0
