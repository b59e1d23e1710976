"""Mixing sources: exact parts, the same whatever the order, the processes or the cards; and what is held out."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_tools import launcher, make_sentencepiece

from launcher.data.estimate import estimate
from launcher.data.info import read_info
from launcher.data.mindrecord import Ints, read_row
from launcher.data.mindrecord_header import header_rows, read_header
from launcher.data.mixture import Sizes, interleaved, parsed_weights, passes, times
from launcher.data.options import Mix, PreprocessOptions, eval_path
from launcher.data.preprocess import preprocess
from launcher.data.reading import DataSource
from launcher.data.rows import IGNORED_LABEL
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import DataError

sources = st.lists(
    st.tuples(
        st.lists(st.integers(1, 50), min_size=1, max_size=40).map(lambda sizes: np.array(sizes, dtype=np.int64)),
        st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.5]),
    ),
    min_size=1,
    max_size=4,
)
mixes = st.builds(
    Mix, by=st.sampled_from(["samples", "tokens"]), until=st.sampled_from(["all", "first"]), seed=st.integers(0, 9)
)


def sizes_for(mix: Mix, sizes: Sizes) -> Sizes:
    return np.ones_like(sizes) if mix.by == "samples" else sizes


@given(sources, mixes)
def test_sources_have_their_parts_and_no_record_is_preferred(found: list[tuple[Sizes, float]], mix: Mix) -> None:
    sizes, weights = [sizes_for(mix, own) for own, _ in found], [weight for _, weight in found]
    often = times(sizes, weights, mix)
    totals = [int(own.sum()) for own in sizes]
    ratios = [total / Fraction(weight) for total, weight in zip(totals, weights, strict=True)]
    scale = max(ratios) if mix.until == "all" else min(ratios)
    for own, count, weight in zip(sizes, often, weights, strict=True):
        assert count.max() - count.min() <= 1
        assert count.min() >= 1 if mix.until == "all" else count.max() <= 1
        wanted = scale * Fraction(weight)
        # As near as whole records come: half of the largest.
        assert abs(int((own * count).sum()) - wanted) <= Fraction(int(own.max()), 2)
    expected = passes(totals, weights, mix)
    given_ = [int((own * count).sum()) / total for own, count, total in zip(sizes, often, totals, strict=True)]
    assert given_ == pytest.approx(
        expected, abs=max(int(own.max()) / total for own, total in zip(sizes, totals, strict=True))
    )


@given(sources, mixes)
def test_the_draw_depends_on_the_seed_and_the_source_alone(found: list[tuple[Sizes, float]], mix: Mix) -> None:
    sizes, weights = [sizes_for(mix, own) for own, _ in found], [weight for _, weight in found]
    again = times(sizes, weights, mix)
    assert all(np.array_equal(a, b) for a, b in zip(times(sizes, weights, mix), again, strict=True))
    # Weights are parts: all of them doubled are the same mixture.
    doubled = times(sizes, [2 * weight for weight in weights], mix)
    assert all(np.array_equal(a, b) for a, b in zip(doubled, again, strict=True))


def test_another_seed_takes_other_records() -> None:
    sizes = [np.ones(100, dtype=np.int64), np.ones(30, dtype=np.int64)]
    first = times(sizes, [1, 1], Mix(until="first", seed=1))[0]
    assert first.sum() == 30
    assert not np.array_equal(first, times(sizes, [1, 1], Mix(until="first", seed=2))[0])


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4))
def test_streams_advance_together(streams: list[list[int]]) -> None:
    order = list(interleaved(streams))
    assert Counter(order) == Counter({n: len(stream) for n, stream in enumerate(streams) if stream})
    totals = [sum(stream) for stream in streams]
    largest = [max(stream, default=0) for stream in streams]
    done, places = [0] * len(streams), [0] * len(streams)
    for chosen in order:
        done[chosen] += streams[chosen][places[chosen]]
        places[chosen] += 1
        parts = [(d / t, m / t) for d, t, m in zip(done, totals, largest, strict=True) if t]
        spread = max(part for part, _ in parts) - min(part for part, _ in parts) if parts else 0
        assert spread <= 2 * max((step for _, step in parts), default=0) + 1e-9


@pytest.mark.parametrize("text", ["5,x", "5,-1", "0", "inf", "nan", ","])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="no list of positive numbers"):
        parsed_weights(text)


# ------------------------------------------------------------------------------------------------ as rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources whose answers tell source and record: 60 short, 20 long, 30 of middle length; and a tokenizer."""
    folder = tmp_path_factory.mktemp("mix")
    make_sentencepiece(folder / "tokenizer.model")
    for name, count, length in (("a", 60, 2), ("b", 20, 12), ("c", 30, 5)):
        rows = [{"question": f"{name}?", "answer": f"{name}{n} " + "x " * length} for n in range(count)]
        if name == "b":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "b.parquet")
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


FILES = ("a.jsonl", "b.parquet", "c.jsonl")


def options(
    folder: Path, target: Path, weights: tuple[float | None, ...] = (None,) * 3, **changed: Any
) -> PreprocessOptions:
    given_ = tuple(DataSource(path=str(folder / name), weight=w) for name, w in zip(FILES, weights, strict=True))
    common: dict[str, Any] = {"seq_length": 64, "template": "plain", "tokenizer": folder / "tokenizer.model"}
    return PreprocessOptions(**{"source": given_, "target": target, **common, **changed})


def answers(path: Path, tokenizer: Path) -> list[str]:
    info = read_info(path)
    assert info is not None
    rows: list[dict[str, Ints]] = [
        read_row(file, row) for file in info.files for row in range(header_rows(read_header(file) or {}))
    ]
    known = load_tokenizer(tokenizer)
    return [known.decode([n for n in row["labels"].tolist() if n != IGNORED_LABEL]).split()[0] for row in rows]


@pytest.mark.parametrize("by", ["samples", "tokens"])
@pytest.mark.parametrize("until", ["all", "first"])
def test_rows_have_the_parts_that_were_asked_for(folder: Path, tmp_path: Path, by: Any, until: Any) -> None:
    made = []
    for processes in (1, 2):
        wanted = options(
            folder,
            tmp_path / str(processes) / "t.mindrecord",
            (5, 3, 1),
            mix=Mix(by=by, until=until),
            processes=processes,
        )
        info, _ = preprocess(wanted, force=False)
        made.append(info.path.read_bytes())
    assert made[0] == made[1]
    told = info.stats["sources"]
    found = Counter(answer[0] for answer in answers(info.path, wanted.tokenizer))
    assert [found[name] for name in "abc"] == [source["samples"] for source in told]
    assert [source["weight"] for source in told] == [5, 3, 1]
    parts = [source[by] for source in told]
    assert parts[0] / sum(parts) == pytest.approx(5 / 9, abs=0.03)
    assert parts[1] / sum(parts) == pytest.approx(3 / 9, abs=0.03)
    often = Counter(answers(info.path, wanted.tokenizer))
    for name, count in (("a", 60), ("b", 20), ("c", 30)):
        own = [often[f"{name}{n}"] for n in range(count)]
        assert max(own) - min(own) <= 1
        assert min(own) >= 1 if until == "all" else max(own) == 1
    assert info.stats["formats"] == {"question/answer": 110}


def test_no_weights_is_every_record_once(folder: Path, tmp_path: Path) -> None:
    info, _ = preprocess(options(folder, tmp_path / "t.mindrecord"), force=False)
    assert answers(info.path, folder / "tokenizer.model") == [
        f"{name}{n}" for name, count in (("a", 60), ("b", 20), ("c", 30)) for n in range(count)
    ]
    assert [source["samples"] for source in info.stats["sources"]] == [60, 20, 30]
    assert sum(source["share"] for source in info.stats["sources"]) == pytest.approx(1)


def test_what_is_held_out_is_trained_on_in_no_pass(folder: Path, tmp_path: Path) -> None:
    wanted = options(folder, tmp_path / "t.mindrecord", (5, 3, 1), eval_fraction=0.2)
    info, _ = preprocess(wanted, force=False)
    held_out = answers(eval_path(info.path), wanted.tokenizer)
    trained = answers(info.path, wanted.tokenizer)
    assert len(held_out) == len(set(held_out)) > 8
    assert {answer[0] for answer in held_out} == set("abc")
    assert set(held_out).isdisjoint(trained)
    assert len(set(held_out) | set(trained)) == 110
    # The same records whatever the weights.
    other, _ = preprocess(options(folder, tmp_path / "u.mindrecord", eval_fraction=0.2), force=False)
    assert sorted(answers(eval_path(other.path), wanted.tokenizer)) == sorted(held_out)


def test_duplicates_across_sources_are_counted_and_dropped(folder: Path, tmp_path: Path) -> None:
    twice = (DataSource(path=str(folder / "a.jsonl")), DataSource(path=str(folder / "a.jsonl")))
    info, _ = preprocess(options(folder, tmp_path / "t.mindrecord", source=twice), force=False)
    assert (info.rows, info.counts["repeated"], info.counts["duplicates"]) == (120, 60, 0)
    info, _ = preprocess(options(folder, tmp_path / "d.mindrecord", source=twice, dedup=True), force=False)
    assert (info.rows, info.counts["repeated"], info.counts["duplicates"]) == (60, 0, 60)
    weighted = tuple(DataSource(path=source.path, weight=1) for source in twice)
    info, _ = preprocess(options(folder, tmp_path / "w.mindrecord", source=weighted), force=False)
    assert (info.rows, info.counts["repeated"]) == (120, 60)
    with pytest.raises(DataError, match=r"a\.jsonl gives nothing to train on"):
        preprocess(options(folder, tmp_path / "x.mindrecord", source=weighted, dedup=True), force=False)


def test_cache_keys_tell_mixtures_apart(folder: Path, tmp_path: Path) -> None:
    from launcher.data.preprocess import fingerprint

    base: dict[str, Any] = {"target": tmp_path / "t.mindrecord", "folder": folder}
    keys = [
        fingerprint(options(**base, **changed))
        for changed in (
            {},
            {"weights": (5, 3, 1)},
            {"weights": (5, 3, 2)},
            {"weights": (5, 3, 1), "mix": Mix(seed=1)},
            {"weights": (5, 3, 1), "mix": Mix(by="tokens")},
            {"train_on": "last"},
            {"dedup": True},
        )
    ]
    assert len(set(keys)) == len(keys)


def test_an_estimate_of_small_sources_is_exact(folder: Path, tmp_path: Path) -> None:
    for weights, mix in (((None,) * 3, Mix()), ((5, 3, 1), Mix(by="tokens")), ((5, 3, 1), Mix(until="first"))):
        wanted = options(folder, tmp_path / f"{mix.by}{mix.until}.mindrecord", weights, mix=mix)
        told = estimate(wanted)
        info, _ = preprocess(wanted, force=False)
        for ours, made in zip(told, info.stats["sources"], strict=True):
            assert ours["estimated_from"] is None
            assert ours["samples"] == pytest.approx(made["samples"], abs=1)
            assert ours["share"] == pytest.approx(made["share"], abs=0.02)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_an_estimate_of_a_large_source_says_what_it_rests_on(folder: Path, tmp_path: Path, name: str) -> None:
    import csv
    import gzip

    rows = [{"question": f"q{n}", "answer": "x " * (n % 9 + 1)} for n in range(6000)]
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith("csv"):
        with path.open("w") as file:
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        path.write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    (told,) = estimate(options(folder, tmp_path / "t.mindrecord", source=path))
    assert told["estimated_from"] == 1000
    assert told["samples"] == pytest.approx(6000, rel=0.06)


def test_a_bad_record_stops_an_estimate_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": ""}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: answer: the answer is empty"):
        estimate(options(folder, tmp_path / "t.mindrecord", source=tmp_path / "a.jsonl"))


# ------------------------------------------------------------------------------------------- too long, train on


TURNS = {
    "conversations": [
        {"from": "human", "value": "first?"},
        {"from": "gpt", "value": "one"},
        {"from": "human", "value": "second?"},
        {"from": "gpt", "value": "two"},
    ]
}


@pytest.mark.parametrize(
    ("train_on", "learnt"), [("all", "one two"), ("last", "two"), ("prompt", "first? one second? two")]
)
def test_what_is_in_the_loss(folder: Path, tmp_path: Path, train_on: Any, learnt: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(TURNS))
    wanted = options(folder, tmp_path / "t.mindrecord", source=tmp_path / "a.jsonl", train_on=train_on)
    info, _ = preprocess(wanted, force=False)
    row = read_row(info.path, 0)
    known = load_tokenizer(folder / "tokenizer.model")
    labels = [label for label in row["labels"].tolist() if label != IGNORED_LABEL]
    plain = [label for label in labels if not known.is_control(label)]
    assert known.decode(plain).replace(" ", "").replace("\n", "") == learnt.replace(" ", "")
    assert labels[-1] == known.eos_id


def test_too_long_is_an_error_when_asked_for(folder: Path, tmp_path: Path) -> None:
    wanted = options(folder, tmp_path / "t.mindrecord", seq_length=20, overflow="error")
    with pytest.raises(DataError, match=r"b\.parquet: row 1: \d+ tokens, and a row has 21; 20 such samples") as error:
        preprocess(wanted, force=False)
    assert "--too-long cut, drop or split" in error.value.hint
    needed = int(error.value.hint.split()[1])
    info, _ = preprocess(options(folder, wanted.target, seq_length=needed, overflow="error"), force=False)
    assert info.rows == 110


def test_more_than_one_cut_sample_in_a_hundred_is_a_warning(folder: Path, tmp_path: Path) -> None:
    info, _ = preprocess(options(folder, tmp_path / "t.mindrecord", seq_length=20), force=False)
    assert info.counts["truncated"] == 20
    (warning,) = [text for text in info.stats["warnings"] if "longer than" in text]
    assert warning.startswith("18.2% of the samples are longer than seq_length 20; seq_length ")
    needed = int(warning.split("seq_length ")[2].split()[0])
    enough, _ = preprocess(options(folder, tmp_path / "u.mindrecord", seq_length=needed), force=False)
    assert enough.counts["truncated"] <= 1
    assert not [text for text in enough.stats["warnings"] if "longer than" in text]


@pytest.mark.slow
def test_the_command_mixes_and_says_the_parts(folder: Path, tmp_path: Path) -> None:
    argv = ("data", "preprocess", *FILES, "--template", "plain", "--seq-length", "20")
    target = str(tmp_path / "t.mindrecord")
    told = launcher(*argv, "--weights", "5,3,1", "--mix-by", "tokens", "-o", target, cwd=folder)
    assert "  a.jsonl: " in told
    assert " passes" in told
    assert "b.parquet: 20 samples" in told or "passes" in told
    assert "cut at the end; " in told
    assert "tokens in the loss are lost" in told
    told = launcher(*argv, "--weights", "5,3", "-o", target, cwd=folder, code=3)
    assert "--weights has 2 numbers for 3 sources" in told
    told = launcher(*argv, "--overflow", "drop", "--force", "-o", target, cwd=folder)
    assert "20 too long and left out" in told
    told = launcher(*argv, "--too-long", "error", "--force", "-o", target, cwd=folder, code=3)
    assert "b.parquet: row 1: " in told
