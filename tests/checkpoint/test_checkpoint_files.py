"""Checkpoint and strategy files: read as written, and refused when they are not what they say."""

from __future__ import annotations

import json
import os
import random
import re
import tracemalloc
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.checkpoint_sets import corpus, llama, read, write

from launcher.checkpoint import ckpt
from launcher.checkpoint.compare import check_crc
from launcher.checkpoint.dtypes import CKPT_NAMES, Array
from launcher.checkpoint.halves import HalfCaster
from launcher.checkpoint.layout import LayoutError, boxes, positions, whole_shape
from launcher.checkpoint.strategy import Layout, read_strategy, write_strategy
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.wire import BYTES, tag, varint
from launcher.errors import CheckpointError


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    arrays: dict[str, Array] = {
        f"t.{name}": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        for name in CKPT_NAMES
    }
    arrays["scalar"] = np.array(3.5, np.float32)
    found = read(write(tmp_path / f"a{suffix}", arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_safetensors_library_and_ours_read_each_other(tmp_path: Path) -> None:
    arrays = llama()
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "ms"})
    ours = write(tmp_path / "ours.safetensors", arrays)
    for found in (read(tmp_path / "theirs.safetensors"), load_file(ours)):
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in arrays.items()
        }


def test_a_tensor_in_several_values_is_joined(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = tmp_path / "a.ckpt"
    parts = [whole[:1], whole[1:3], whole[3:]]
    path.write_bytes(b"".join(ckpt.frame("w", "float32", (4, 3), part.nbytes) + part.tobytes() for part in parts))
    with TensorFile(path) as file:
        assert len(file.entries["w"].extents) == 3
        assert (file.array("w") == whole).all()
        spans = file.spans(file.entries["w"], 8, 20)
        assert [nbytes for _, nbytes in spans] == [4, 16]


def test_crc_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", {"w": np.ones(3, np.float32)})
    body = path.read_bytes()
    path.write_bytes(body + b"crc_num" + zlib.crc32(body).to_bytes(10, "big"))
    with TensorFile(path) as file:
        assert check_crc(file)
    flipped = bytearray(path.read_bytes())
    flipped[len(body) - 1] ^= 1
    path.write_bytes(flipped)
    with TensorFile(path) as file, pytest.raises(CheckpointError, match=r"a\.ckpt is damaged: its CRC"):
        check_crc(file)


def test_crc_of_safetensors_is_checked(tmp_path: Path) -> None:
    array = np.ones(3, np.float32)
    crc = zlib.crc32(array.tobytes(), zlib.crc32(b"w"))
    with TensorFile(write(tmp_path / "a.safetensors", {"w": array}, {"crc_num": str(crc)})) as file:
        assert check_crc(file)
    wrong = write(tmp_path / "b.safetensors", {"w": array}, {"crc_num": str(crc ^ 1)})
    with TensorFile(wrong) as file, pytest.raises(CheckpointError, match="CRC"):
        check_crc(file)


def _value(content: bytes) -> bytes:
    return varint(tag(1, BYTES)) + varint(len(content)) + content


_HOSTILE_CKPT = {
    "empty": b"",
    "text": b"hello, this is no checkpoint",
    "giant length": varint(tag(1, BYTES)) + varint(1 << 62) + b"x" * 50,
    "endless varint": b"\x0a" + b"\xff" * 60,
    "no content": _value(varint(tag(1, BYTES)) + varint(1) + b"w"),
    "encrypted": (0x7F3A5ED8).to_bytes(4, "little") + bytes(100),
    "path": ckpt.frame("../../etc/passwd", "float32", (1,), 4) + bytes(4),
    "absolute": ckpt.frame("/etc/passwd", "float32", (1,), 4) + bytes(4),
    "short": ckpt.frame("w", "float32", (4, 4), 64) + bytes(63),
    "wrong size": ckpt.frame("w", "float32", (4, 4), 8) + bytes(8),
    "vast shape": ckpt.frame("w", "float32", (1 << 40, 1 << 40), 8) + bytes(8),
    "twice": (ckpt.frame("w", "float32", (1,), 4) + bytes(4) + ckpt.frame("v", "float32", (1,), 4) + bytes(4)) * 2,
}


@pytest.mark.parametrize("case", _HOSTILE_CKPT)
def test_hostile_ckpt_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(_HOSTILE_CKPT[case])
    _refused(path)


def _header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tensor(begin: int, end: int, shape: list[object], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


_HOSTILE_SAFETENSORS = {
    "empty": b"",
    "huge header": (1 << 63).to_bytes(8, "little") + b"{}",
    "not json": _header(b"{nope"),
    "deep json": _header(b"[" * 100_000),
    "a list": _header([]),
    "beyond the end": _header({"w": _tensor(0, 400, [100])}, bytes(4)),
    "overlap": _header({"w": _tensor(0, 8, [2]), "v": _tensor(4, 12, [2])}, bytes(12)),
    "gap": _header({"w": _tensor(0, 4, [1]), "v": _tensor(8, 12, [1])}, bytes(12)),
    "tail": _header({"w": _tensor(0, 4, [1])}, bytes(12)),
    "negative": _header({"w": _tensor(-4, 0, [1])}, bytes(4)),
    "bool shape": _header({"w": _tensor(0, 4, [True])}, bytes(4)),
    "unknown dtype": _header({"w": _tensor(0, 4, [1], "F99")}, bytes(4)),
    "vast shape": _header({"w": _tensor(0, 4, [1 << 62, 1 << 62])}, bytes(4)),
    "path": _header({"../w": _tensor(0, 4, [1])}, bytes(4)),
    "surrogate": _header(b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
}


@pytest.mark.parametrize("case", _HOSTILE_SAFETENSORS)
def test_hostile_safetensors_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(_HOSTILE_SAFETENSORS[case])
    _refused(path)


def _refused(path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=str(path)), TensorFile(path):
            pass
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_random_damage_gives_an_error_or_the_same_index(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", llama(lora=False))
    sound = path.read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        try:
            read(path)
        except CheckpointError as error:
            assert str(path) in error.message  # noqa: PT017 - either outcome is right


def test_a_missing_file_and_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        TensorFile(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"there is no .*/a\.bin"):
        TensorFile(tmp_path / "a.bin")
    (tmp_path / "a.bin").touch()
    with pytest.raises(CheckpointError, match="does not have the name of a checkpoint"):
        TensorFile(tmp_path / "a.bin")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    for name in ("pipe.ckpt", "folder.ckpt"):
        with pytest.raises(CheckpointError, match="is no file"):
            TensorFile(tmp_path / name)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", {"w": np.ones(1000, np.float32)})
    with TensorFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(100)
        with pytest.raises(CheckpointError, match="it ends at byte 100"):
            file.array("w")


# ------------------------------------------------------------------------------------------------ many like files


def test_ranks_with_equal_headers_share_their_index(tmp_path: Path) -> None:
    """What is left of a merge's memory at hundreds of ranks, though each header has its own checksum."""
    for suffix in (".ckpt", ".safetensors"):
        one, two = (
            write(tmp_path / f"{rank}{suffix}", llama(seed=rank), {"crc_num": str(4_000_000_000 + rank)})
            for rank in (0, 1)
        )
        with TensorFile(one) as first, TensorFile(two) as second:
            assert first.entries is second.entries
            assert second.array("lm_head.weight").tobytes() == llama(seed=1)["lm_head.weight"].tobytes()
            if suffix == ".safetensors":
                assert [file.index.crc for file in (first, second)] == [4_000_000_000, 4_000_000_001]
                assert second.index.metadata == {"crc_num": "4000000001"}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_byte_of_a_header_counts_though_a_like_file_was_read(tmp_path: Path, suffix: str) -> None:
    good = write(tmp_path / f"good{suffix}", {"a.weight": np.ones((4, 6), np.float32)}, {"format": "ms"})
    data, said = good.read_bytes(), _said_of(good)
    for place in range(len(data) - 96):  # all but the values
        path = tmp_path / f"{place}{suffix}"
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert _said_of(good) == said
        assert _said_of(path) != said


def _said_of(path: Path) -> str:
    try:
        with TensorFile(path) as file:
            (entry,) = file.entries.values()
            return f"{entry.name} {entry.dtype} {entry.shape} {dict(file.index.metadata)}"
    except CheckpointError as error:
        return error.message


@pytest.mark.parametrize(
    "header",
    [
        '{"__metadata__":{"a":"b"},"w":}',
        '{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"c":"d"}}',
        '{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        '{"__metadata__":[1],"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"__metadata__":{"a":"b"}}',
        '{"__metadata__":"' + "x" * 70_000 + '","w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    ],
)
def test_metadata_at_the_head_of_a_header_are_read_as_json_says(tmp_path: Path, header: str) -> None:
    """With a space before the metadata, they are not told apart from the rest: both ways have to agree."""
    said = []
    for text in (header + " ", " " + header):
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(4))
        said.append(_said_of(path).replace(f"char {len(header) - 1}", "here").replace(f"char {len(header)}", "here"))
    one, two = (re.sub(r"column \d+ \(.*", "", text) for text in said)
    assert one == two


# ------------------------------------------------------------------------------------------------ casts


def test_every_half_widens_as_numpy_does() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    for chosen in (halves, halves[np.isfinite(halves)]):
        out = np.empty(chosen.size, np.float32)
        HalfCaster(65536).widen(chosen, out)
        assert out.tobytes() == chosen.astype(np.float32).tobytes()


def test_floats_narrow_as_numpy_does_ties_included() -> None:
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (finite[1:] + finite[:-1]) / 2
    below, above = (np.nextafter(middle, np.float32(side)) for side in (-1e9, 1e9))
    noise = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    values = np.concatenate([finite, middle, below, above, noise, noise * 1e-6, noise * 1e3])
    for chosen in (values, -values, np.append(values, [np.inf, np.nan, 7e4]).astype(np.float32)):
        out = np.empty(chosen.size, np.float16)
        HalfCaster(chosen.size).narrow(chosen.copy(), out)
        with np.errstate(over="ignore"):
            assert out.tobytes() == chosen.astype(np.float16).tobytes()


# ------------------------------------------------------------------------------------------------ strategies


def test_the_real_strategy_says_optimizer_parallel() -> None:
    stages = read_strategy(corpus("dp2mp2opt") / "strategy" / "ckpt_strategy_rank_0.ckpt")
    layout = stages[0]["model.layers.0.attention.wq.weight"]
    assert (layout.device_matrix, layout.tensor_map) == ((2, 2), ((0,), ()))
    assert (layout.opt_step, layout.opt_size) == (2, -1)


_LAYOUTS = st.builds(
    Layout,
    device_matrix=st.just((2, 3, 2)),
    tensor_map=st.sampled_from([((), ()), ((0,), ()), ((2, 1), (0,)), ((), (0, 2)), ((1,), (2,))]),
    opt_step=st.integers(0, 12),
    opt_size=st.sampled_from([-1, 0, 2]),
    field=st.integers(0, 3),
)


@given(layout=_LAYOUTS, stage=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_strategy_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, layout: Layout, stage: int) -> None:
    path = tmp_path_factory.mktemp("s") / "s.ckpt"
    path.write_bytes(write_strategy(stage, {"model.a": layout, "model.b": layout}))
    assert read_strategy(path) == {stage: {"model.a": layout, "model.b": layout}}


def test_json_strategies_and_merged_ones(tmp_path: Path) -> None:
    item = {
        "dev_matrix": [4],
        "tensor_map": [0, -1],
        "field": 0,
        "opt_weight_shard_step": 0,
        "opt_weight_shard_size": 0,
    }
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"parallel_layout_item": {"0-w": item, "1-v": {**item, "tensor_map": [[-1], [0]]}}}))
    stages = read_strategy(path)
    assert stages[0]["w"].tensor_map == ((0,), ())
    assert stages[1]["v"].tensor_map == ((), (0,))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 40, b"random bytes that are no message", write_strategy(0, {}), b"\x18\x05", b"\x1a\x02\x08\x01"],
)
def test_a_wrong_strategy_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no strategy file"):
        read_strategy(path)


@pytest.mark.parametrize(
    "item",
    [
        {},
        [],
        {"dev_matrix": [2], "tensor_map": [5]},
        {"dev_matrix": ["2"], "tensor_map": []},
        {"dev_matrix": [0], "tensor_map": []},
    ],
)
def test_a_wrong_json_strategy_is_refused(tmp_path: Path, item: object) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"parallel_layout_item": {"w": item}}))
    with pytest.raises(CheckpointError, match="no strategy file"):
        read_strategy(path)


# ------------------------------------------------------------------------------------------------ layouts


@given(layout=_LAYOUTS.filter(lambda layout: not layout.field))
@settings(max_examples=60, deadline=None)
def test_slices_cover_the_tensor_exactly(layout: Layout) -> None:
    try:
        shape = whole_shape(layout, (2, 2))
        found = {boxes(layout, device, shape)[0] for device in range(layout.num_devices)}
    except LayoutError:
        return
    count = np.zeros(shape, int)
    for box in found:
        count[tuple(slice(at, at + size) for at, size in zip(box.start, box.size, strict=True))] += 1
    assert (count == 1).all()


def test_positions_by_hand() -> None:
    """device_matrix (dp 2, mp 2): the inner axis is 0. Axis 0 cut by mp, then by the optimizer among the dp copies."""
    layout = Layout(device_matrix=(2, 2), tensor_map=((0,), ()), opt_step=2, opt_size=-1)
    starts = [boxes(layout, device, (8, 3))[0].start[0] for device in range(4)]
    assert starts == [0, 4, 2, 6]
    assert [position.opt_index for position in positions(layout)] == [0, 0, 1, 1]


def test_fields_by_hand() -> None:
    """Two devices, two fields of two rows each: device 0 has the first row of each field."""
    layout = Layout(device_matrix=(2,), tensor_map=((0,), ()), field=2)
    found = [[(box.start[0], box.row) for box in boxes(layout, device, (4, 3))] for device in (0, 1)]
    assert found == [[(0, 0), (2, 1)], [(1, 0), (3, 1)]]


def test_uneven_rows_by_hand() -> None:
    layout = Layout(device_matrix=(2,), tensor_map=((0,), ()), split_rows=(5, 2))
    assert whole_shape(layout, (5, 3)) == (7, 3)
    assert [boxes(layout, device, (7, 3))[0].start for device in (0, 1)] == [(0, 0), (5, 0)]
