"""Samples that share rows: what shares one, that none is lost or changed, and what is told of each."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_tools import launcher

from launcher.data import samples
from launcher.data.convert import read_conversations
from launcher.data.info import DatasetInfo, read_info
from launcher.data.mindrecord import Ints, read_row
from launcher.data.mindrecord_header import header_rows, read_header
from launcher.data.options import PreprocessOptions, eval_path
from launcher.data.packing import fill, part
from launcher.data.preprocess import preprocess
from launcher.data.rows import IGNORED_LABEL, Laid, OpenRows, Samples, fit, unpacked
from launcher.data.sample import sample_lines
from launcher.data.segments import Encoded
from launcher.data.stats import stats_of
from launcher.data.tokenizer import train_tokenizer
from launcher.errors import DataError
from launcher.inference.evaluation import read_rows
from launcher.upstream.packed_rows import SEAMS, masks, running_ends, seams_of

PROBLEMS = 2000


# ------------------------------------------------------------------------------------------------ the algorithm


def used(rows: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[piece] for piece in row) for row in rows]


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 50), st.integers(1, 9))
def test_every_piece_is_in_one_row_that_takes_it(lengths: list[int], capacity: int, most: int) -> None:
    rows = fill(lengths, capacity, most)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    assert all(1 <= len(row) <= most for row in rows)
    assert max(used(rows, lengths), default=0) <= capacity
    if most >= len(lengths):
        # Whatever fits into a row that is there goes there: two are never half empty.
        assert sum(2 * tokens <= capacity for tokens in used(rows, lengths)) <= 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_there_are_hardly_more_rows_than_the_fewest(lengths: list[int]) -> None:
    rows = fill(lengths, 12, 99)
    assert len(rows) <= 11 / 9 * fewest(lengths, 12) + 1


def fewest(lengths: list[int], capacity: int) -> int:
    """The fewest rows, tried out: each piece goes into each row that takes it, or into a new one."""

    def best(left: tuple[int, ...], rooms: tuple[int, ...]) -> int:
        if not left:
            return len(rooms)
        head, rest = left[0], left[1:]
        tried = {room for room in rooms if room >= head}
        found = [best(rest, without(rooms, room, head)) for room in tried]
        return min([*found, best(rest, (*rooms, capacity - head))])

    return best(tuple(sorted(lengths, reverse=True)), ())


def without(rooms: tuple[int, ...], room: int, length: int) -> tuple[int, ...]:
    at = rooms.index(room)
    return (*rooms[:at], room - length, *rooms[at + 1 :])


def test_pieces_of_similar_length_fill_rows_too_and_are_mixed() -> None:
    """Twelve of 160 leave 129 of 2,049 empty; twelve or thirteen of 137 to 194 need not."""
    lengths = np.random.default_rng(0).integers(137, 195, 1300).tolist()
    rows = fill(lengths, 2049, 127)
    assert len(rows) == -(-sum(lengths) // 2049)  # none could be left out
    assert all(len({lengths[piece] for piece in row}) > 3 for row in rows)


def test_a_piece_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="21 tokens do not fit into a row of 20"):
        fill([3, 21], 20, 9)


def test_the_emptiest_rows_stay_open_and_full_ones_never() -> None:
    lengths = [100] * 5 + [*range(50, 70)]
    closed, still_open = part([[piece] for piece in range(25)], lengths, 100)
    assert still_open == [[piece] for piece in range(5, 13)]
    assert closed == [[piece] for piece in (*range(5), *range(13, 25))]


# ------------------------------------------------------------------------------------------------ rows

ENCODED = st.lists(
    st.lists(st.tuples(st.integers(3, 99), st.booleans()), min_size=1, max_size=40).map(
        lambda pairs: Encoded([token for token, _ in pairs], bytes(flag for _, flag in pairs))
    ),
    max_size=30,
)


def all_rows(laid: Laid) -> list[dict[str, Ints]]:
    width = laid.values.shape[2]
    seq_length = int(laid.ends[0, -1]) if len(laid.ends) else 0
    padded = np.pad(laid.values, ((0, 0), (0, 0), (0, seq_length + 1 - width)))
    padded[:, 1, width:] = IGNORED_LABEL
    return [{"input_ids": row[0], "labels": row[1], SEAMS: ends} for row, ends in zip(padded, laid.ends, strict=True)]


def apart(encoded: list[Encoded], seq_length: int, overflow: Any) -> list[dict[str, Ints]]:
    """Rows of one sample each."""
    return all_rows(fit(Samples.of(encoded), seq_length=seq_length, overflow=overflow).laid)


def contents(rows: list[dict[str, Ints]]) -> Counter[tuple[bytes, bytes]]:
    return Counter((row["input_ids"].tobytes(), row["labels"].tobytes()) for row in rows)


@given(ENCODED, st.integers(4, 50), st.sampled_from(["truncate", "drop", "split"]))
def test_packed_rows_hold_the_very_rows_that_each_sample_would_fill(
    encoded: list[Encoded], seq_length: int, overflow: Any
) -> None:
    packed = fit(Samples.of(encoded), seq_length=seq_length, overflow=overflow, packed=True)
    waiting = OpenRows(seq_length)
    waiting.add(packed.open)
    rows = [*all_rows(packed.laid), *all_rows(waiting.rest())]
    assert contents([part for row in rows for part in unpacked(row)]) == contents(apart(encoded, seq_length, overflow))
    one_by_one = fit(Samples.of(encoded), seq_length=seq_length, overflow=overflow)
    for name in ("truncated", "dropped", "split", "without_loss", "lost_tokens"):
        assert packed.counts[name] == one_by_one.counts[name]
    for row in rows:
        ends = row[SEAMS].tolist()
        assert ends == sorted(ends)
        assert ends[-1] == seq_length
        assert len(ends) == seams_of(seq_length)
        # Nothing of one sample predicts the first token of the next.
        assert all(row["labels"][end] == IGNORED_LABEL for end in (0, *ends) if end < seq_length)


@pytest.mark.slow
@given(st.lists(ENCODED, max_size=6), st.integers(4, 12))
def test_samples_of_all_chunks_are_packed_and_a_resumed_run_packs_the_same(
    chunks: list[list[Encoded]], seq_length: int
) -> None:
    waiting, resumed = OpenRows(seq_length), OpenRows(seq_length)
    rows: list[dict[str, Ints]] = []
    expected: Counter[tuple[bytes, bytes]] = Counter()
    for chunk in chunks:
        packed = fit(Samples.of(chunk), seq_length=seq_length, overflow="split", packed=True)
        expected += contents(apart(chunk, seq_length, "split"))
        rows += all_rows(packed.laid)
        resumed = OpenRows.restored(seq_length, waiting.state())
        laid, again = waiting.add(packed.open), resumed.add(packed.open)
        assert (laid is None) == (again is None)
        if laid is not None and again is not None:
            assert laid.values.tobytes() == again.values.tobytes()
            assert laid.records.tobytes() == again.records.tobytes()
            rows += all_rows(laid)
    rows += all_rows(waiting.rest())
    assert contents([part for row in rows for part in unpacked(row)]) == expected
    assert waiting.rest().counts["rows"] == 0


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 2,000 problems and a tokenizer of 700 pieces."""
    folder = tmp_path_factory.mktemp("packing")
    (folder / "math.jsonl").write_text("".join(sample_lines(PROBLEMS, 4)), "utf-8")
    texts = [message.content for item in read_conversations(folder / "math.jsonl") for message in item.messages]
    train_tokenizer(texts[:600], folder / "tokenizer.model", vocab_size=700)
    return folder


def made(folder: Path, target: Path, **changed: Any) -> DatasetInfo:
    common: dict[str, Any] = {"seq_length": 2048, "template": "plain", "packing": True}
    wanted = PreprocessOptions(
        **{
            "source": folder / "math.jsonl",
            "tokenizer": folder / "tokenizer.model",
            "target": target,
            **common,
            **changed,
        }
    )
    return preprocess(wanted, force=True)[0]


def rows_of(path: Path) -> list[dict[str, Ints]]:
    info = read_info(path)
    assert info is not None
    (file,) = info.files
    return [read_row(file, row) for row in range(header_rows(read_header(file) or {}))]


@pytest.fixture(scope="module")
def dataset(folder: Path) -> DatasetInfo:
    return made(folder, folder / "train.mindrecord")


def test_rows_of_sample_data_are_97_percent_full(dataset: DatasetInfo) -> None:
    counts = dataset.counts
    assert counts["tokens"] / (counts["tokens"] + counts["padding"]) > 0.97
    assert dataset.columns == (SEAMS, "input_ids", "labels")
    assert counts["conversations"] == PROBLEMS
    found = rows_of(dataset.path)
    assert len(found) == dataset.rows
    assert sum(int((row["labels"] != IGNORED_LABEL).sum()) for row in found) == counts["loss_tokens"]


@pytest.mark.slow
def test_each_sample_is_in_one_row_and_its_line_is_known(folder: Path, dataset: DatasetInfo) -> None:
    """The rows of all samples apart, and those of the packed file, taken apart: the same, and by the same lines."""
    alone_info = made(folder, folder / "alone" / "a.mindrecord", packing=False)
    one_by_one = rows_of(alone_info.path)
    table, packed_table = (samples.read_samples(info.path) for info in (alone_info, dataset))
    assert table is not None
    assert packed_table is not None
    assert table["line"].tolist() == list(range(1, PROBLEMS + 1))
    expected = dict(zip(table["line"].tolist(), one_by_one, strict=True))
    lines = []
    for number, row in enumerate(rows_of(dataset.path)):
        records = samples.of_row(packed_table, number)
        for record, part_of_row in zip(records, unpacked(row), strict=True):
            assert all((part_of_row[name] == expected[int(record["line"])][name]).all() for name in part_of_row)
            lines.append(int(record["line"]))
    assert sorted(lines) == list(range(1, PROBLEMS + 1))


@pytest.mark.slow
def test_evaluation_takes_packed_rows_apart(folder: Path, dataset: DatasetInfo, tmp_path: Path) -> None:
    alone_info = made(folder, tmp_path / "a.mindrecord", packing=False)
    packed, apart = read_rows(dataset.path), read_rows(alone_info.path)
    assert {row.tobytes() for row in packed.ids} == {row.tobytes() for row in apart.ids}
    assert sorted(row.tobytes() for row in packed.labels) == sorted(row.tobytes() for row in apart.labels)
    assert len(read_rows(dataset.path, 7).ids) == 7


def test_the_number_of_processes_changes_no_packed_row(folder: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 3):
        target = tmp_path / str(processes) / "a.mindrecord"
        info = made(folder, target, seq_length=300, processes=processes, eval_fraction=0.3, dedup=True)
        tables = [samples.samples_path(path) for path in (target, eval_path(target))]
        found.append([path.read_bytes() for path in (*info.files, eval_path(target), *tables)])
    assert found[0] == found[1]


def test_texts_are_packed_apart_too(folder: Path, tmp_path: Path) -> None:
    texts = [f"{number} und {number + 1}" for number in range(50)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    info = made(folder, tmp_path / "t.mindrecord", source=tmp_path / "t.jsonl", kind="text", seq_length=100)
    parts = [part_of_row for row in rows_of(info.path) for part_of_row in unpacked(row)]
    assert len(parts) == 50
    assert all(part_of_row["input_ids"][0] == 1 for part_of_row in parts)


def test_what_is_left_out_and_cut_is_in_the_table(folder: Path, tmp_path: Path) -> None:
    for overflow, flag in (("drop", samples.NO_ROW), ("truncate", samples.CUT), ("split", samples.CUT)):
        target = tmp_path / f"{overflow}.mindrecord"
        info = made(folder, target, seq_length=50, overflow=overflow)
        table = samples.read_samples(target)
        assert table is not None
        whole = table[~samples.has(table, samples.CONTINUED)]
        assert len(whole) == PROBLEMS
        assert (samples.has(whole, flag) == (whole["tokens"] > 51)).all()
        assert int(table["in_loss"][~samples.has(table, samples.NO_ROW)].sum()) == info.counts["loss_tokens"]


def test_a_packed_row_is_shown_sample_by_sample(dataset: DatasetInfo) -> None:
    cwd, name = dataset.path.parent, dataset.path.name
    shown = launcher("data", "show", name, "--row", "1", cwd=cwd)
    assert f"row 1 of {dataset.rows}: 2049 tokens" in shown
    seams = [line for line in shown.splitlines() if line.startswith("── ")]
    assert seams[1].startswith("── 2  math.jsonl:")
    assert "-100" not in shown
    values = json.loads(launcher("data", "show", name, "--row", "1", "--format", "json", cwd=cwd))
    assert len(values["samples"]) == len(seams)
    lines = (cwd / "math.jsonl").read_text("utf-8").splitlines()
    for sample in values["samples"]:
        question = json.loads(lines[int(sample["place"].rpartition(":")[2]) - 1])["instruction"]
        pieces = "".join(token["piece"] for token in values["tokens"][sample["begin"] : sample["end"]])
        assert question.split("，")[0].replace(" ", "▁") in pieces


@pytest.mark.slow
def test_stats_tell_of_sources_long_samples_and_duplicates(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "math.jsonl").read_text("utf-8").splitlines()[:100]
    odd = json.dumps({"instruction": "题目：ʬ?", "output": "ʬ" * 90})
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, lines[6], odd]), "utf-8")
    made(folder, tmp_path / "m.mindrecord", source=tmp_path / "m.jsonl", seq_length=100)
    said = launcher("data", "stats", "m.mindrecord", cwd=tmp_path)
    assert "m.jsonl:101 is m.jsonl:7" in said
    assert "m.jsonl:102  cut" in said
    assert "single bytes of" in said
    found = json.loads(launcher("data", "stats", "m.mindrecord", "--format", "json", cwd=tmp_path))
    (source,) = found["sources"]
    assert (source["samples"], source["duplicates"], source["cut"]) == (102, 1, 1)
    assert found["longest"][0]["place"] == "m.jsonl:102"
    assert found["odd"][0]["place"] == "m.jsonl:102"
    assert found["packed"]
    (tmp_path / "m.mindrecord.samples").unlink()
    with pytest.raises(DataError, match="has no table of its samples"):
        stats_of(tmp_path / "m.mindrecord")
    assert "samples" in launcher("data", "show", "m.mindrecord", cwd=tmp_path)


# ------------------------------------------------------------------------------------------------ in the ranks


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_a_mask_shows_each_token_what_came_before_it_in_its_sample(rows: list[list[int]], data: st.DataObject) -> None:
    length = max(map(sum, rows)) + 1
    ends = np.array([[*np.cumsum(row), *[length] * (5 - len(row))] for row in rows], dtype=np.int32)
    tokens = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 3), min_size=length + 1, max_size=length + 1),
                min_size=len(rows),
                max_size=len(rows),
            )
        )
    )
    hidden = masks(tokens, ends, pad=0)
    assert hidden.shape == (len(rows), 1, length, length)
    for row, row_tokens, row_ends in zip(hidden[:, 0], tokens, ends, strict=True):
        sample = [int(sum(end <= place for end in row_ends)) for place in range(length)]
        for query in range(length):
            for key in range(length):
                seen = key <= query and sample[key] == sample[query] and row_tokens[key] != 0
                assert row[query, key] == (not seen)


def test_seams_count_through_the_rows_that_a_rank_computes_at_a_time() -> None:
    ends = np.array([[3, 8, 8], [8, 8, 8], [1, 2, 8], [5, 8, 8]], dtype=np.int32)
    assert running_ends(ends, 1).tolist() == [[3, 8, 8], [16, 16, 16], [17, 18, 24], [29, 32, 32]]
    assert running_ends(ends, 2).tolist() == [[3, 8, 8], [16, 16, 16], [1, 2, 8], [13, 16, 16]]
    assert running_ends(ends, 4).tolist() == ends.tolist()
