"""merge-ckpt --part: several processes write one result, killed and repeated ones too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_sets import MODEL, launcher, llama, write_ranks, write_shards

from launcher.checkpoint.merge import HF, Options, Source, plan_merge
from launcher.checkpoint.parts import Part, PartMerged, divide, merge_part, parts_folder
from launcher.checkpoint.split import SplitPlan
from launcher.errors import CheckpointError, SpecError

CUT = SplitPlan(model_parallel=2)
SHARD_BYTES = 4000  # which makes some fifteen files of the model
DESCRIBED = {"model": MODEL, "template": "vicuna", "precision": {"params": "float32", "compute": "float32"}}
# A part that is killed while it writes its second file.
KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[3:]
import test_parts
def on_progress(count, total, seen=[]):
    seen.append(count)
    if sum(seen) > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
test_parts.run_part(test_parts.Path(sys.argv[1]), test_parts.Path(sys.argv[2]), 2, on_progress=on_progress)
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text(json.dumps(DESCRIBED))
    return write_shards(tmp_path / "run", llama(), CUT)


def run_part(shards: Path, target: Path, number: int, count: int = 4, **more: Any) -> PartMerged:
    """One part in this process."""
    changed = {key: more.pop(key) for key in ("dtype", "step", "verify_full") if key in more}
    options = replace(Options(layout=HF, max_shard_bytes=SHARD_BYTES), **changed)
    with ExitStack() as stack:
        plan = plan_merge(Source(name="t", folder=shards, model=DESCRIBED), options, stack)
        return merge_part(plan, target, Part(number=number, count=count), **more)


def command(shards: Path, target: Path, *more: str) -> list[str]:
    given = ["--format", "hf", "--max-shard-size", "0.004MB", "--config", str(shards.parent / "model.json")]
    return ["merge-ckpt", str(shards), "-o", str(target), *given, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "merge.json"}


def test_four_processes_write_one_result_though_one_is_killed_and_repeated(tmp_path: Path, shards: Path) -> None:
    assert launcher(*command(shards, tmp_path / "alone")).returncode == 0
    target, parts = tmp_path / "out", tmp_path / "out.parts"
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    argvs = [["-m", "launcher", *command(shards, target, "--part", f"{number}/4")] for number in (1, 3, 4)]
    argvs.append(["-c", KILLED, str(shards), str(target), *tests])
    processes = [
        subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for argv in argvs
    ]
    said = [process.communicate(timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0, -9], said
    assert all("part 1/4 done: " in said[0][0] or "--part 2/4" in out for out, _ in said[:3])
    assert not target.exists()
    assert {path.name for path in parts.glob("part-*")} == {f"part-{number}-of-4.json" for number in (1, 3, 4)}
    assert len(list(parts.glob(".part-2-*"))) == 1  # what it was writing
    done = {path.name: path.stat().st_mtime_ns for path in (parts / "result").iterdir()}

    again = launcher(*command(shards, target, "--part", "2/4"))
    assert again.returncode == 0, again.stderr
    assert "1 file kept" in again.stdout
    assert f"wrote {target}: " in again.stdout
    assert contents(target) == contents(tmp_path / "alone")
    assert {name: (target / name).stat().st_mtime_ns for name in done} == done
    assert not parts.exists()
    assert not list(tmp_path.glob(".*"))
    alone, record = (json.loads((folder / "merge.json").read_text()) for folder in (tmp_path / "alone", target))
    assert {**record, "verified": 0, "source": 0} == {**alone, "verified": 0, "source": 0}
    assert record["verified"]["tensors"] == record["tensors"]  # each file's sample is all of the few that it has
    late = launcher(*command(shards, target, "--part", "3/4"))
    assert late.stdout == f"already merged: {target} (step 7)\n"


def test_parts_that_end_at_once_and_those_that_run_twice(tmp_path: Path, shards: Path) -> None:
    run_part(shards, tmp_path / "alone", 1, 1)
    expected = contents(tmp_path / "alone")
    for attempt in range(3):
        target = tmp_path / f"out{attempt}"
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda number: run_part(shards, target, number), (1, 2, 3, 1, 3, 2)))  # noqa: B023
            assert not any(part.merged for part in found)
            found = list(pool.map(lambda number: run_part(shards, target, number), (4, 3, 2, 1, 4, 3)))  # noqa: B023
        assert any(part.merged for part in found)
        assert contents(target) == expected
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {f"out{n}" for n in range(3)}


def test_a_done_part_is_recognised_and_a_damaged_file_of_it_is_written_again(tmp_path: Path, shards: Path) -> None:
    target = tmp_path / "out"
    first = run_part(shards, target, 1, verify_full=True)
    again = run_part(shards, target, 1)
    assert (again.written, again.kept) == ((), first.written)
    assert [part.number for part in again.missing] == [2, 3, 4]
    assert again.verified is not None
    result = parts_folder(target) / "result"
    cut, changed = (result / name for name in first.written[:2])
    cut.write_bytes(cut.read_bytes()[:-4])
    changed.write_bytes(changed.read_bytes()[:-4] + b"\0\0\x80\x3f")
    assert run_part(shards, target, 2).missing  # and part 1 is no longer done
    mended = run_part(shards, target, 1, verify_full=True)
    assert set(mended.written) == {cut.name, changed.name}


def test_a_part_whose_files_are_gone_is_not_done(tmp_path: Path, shards: Path) -> None:
    target = tmp_path / "out"
    one = run_part(shards, target, 1, 2)
    shutil.rmtree(parts_folder(target) / "result")
    assert [part.number for part in run_part(shards, target, 2, 2).missing] == [1]
    assert run_part(shards, target, 1, 2).written == one.written
    assert target.is_dir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "float16"}, "dtype not given there, 'float16' here"),
        ({"count": 3}, "4 parts there, 3 here"),
        ({"count": 100}, "4 parts there, 100 here"),
        ({"step": 8}, "step 7 there, 8 here"),
        ({"saved again": True}, "is another file than then, or has changed"),
    ],
)
def test_parts_of_another_merge_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    arrays = llama()
    later = {**llama(seed=1), "global_step": arrays["global_step"] + 1}
    run = write_ranks(tmp_path / "run", {"rank_0/a-1_7.safetensors": arrays, "rank_0/a-1_8.safetensors": later})
    given: dict[str, Any] = {"step": 7, **change}
    run_part(run, tmp_path / "out", 1, step=7)
    if given.pop("saved again", False):
        write_ranks(run, {"rank_0/a-1_7.safetensors": {**later, "global_step": arrays["global_step"]}})
    with pytest.raises(CheckpointError) as caught:
        run_part(run, tmp_path / "out", 2, **given)
    assert caught.value.message.startswith(f"{tmp_path}/out.parts is of another merge: ")
    assert said in caught.value.message
    assert f"rm -r {tmp_path}/out.parts" in caught.value.hint


def test_a_result_of_another_merge_is_refused_and_left(tmp_path: Path, shards: Path) -> None:
    run_part(shards, tmp_path / "out", 1, 1)
    before = contents(tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds another merge: dtype not given there, 'float16' here"):
        run_part(shards, tmp_path / "out", 1, dtype="float16")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["[]", "{", "", '{"parts": 4}'])
def test_a_folder_that_holds_no_plan_is_refused(tmp_path: Path, shards: Path, text: str) -> None:
    parts_folder(tmp_path / "out").mkdir()
    (parts_folder(tmp_path / "out") / "plan.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        run_part(shards, tmp_path / "out", 1)
    assert "out.parts" in caught.value.message
    assert "rm -r" in caught.value.hint


@pytest.mark.parametrize("text", ["{}", '{"verified": 3}', '{"verified": {"tensors": "many"}}', "no"])
def test_a_damaged_record_of_a_part_is_named(tmp_path: Path, shards: Path, text: str) -> None:
    run_part(shards, tmp_path / "out", 1, 2)
    record = parts_folder(tmp_path / "out") / "part-1-of-2.json"
    record.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        run_part(shards, tmp_path / "out", 2, 2)
    assert str(record) in caught.value.message
    assert "run that part again" in caught.value.hint
    record.unlink()
    assert run_part(shards, tmp_path / "out", 1, 2).merged


def test_files_are_divided_by_their_bytes(tmp_path: Path, shards: Path) -> None:
    with ExitStack() as stack:
        options = Options(layout=HF, max_shard_bytes=SHARD_BYTES)
        files = plan_merge(Source(name="t", folder=shards, model=DESCRIBED), options, stack).files
    parts = divide(files, 4)
    assert sorted(file.name for part in parts for file in part) == sorted(file.name for file in files)
    sizes = [sum(file.bytes.size for file in part) for part in parts]
    assert max(sizes) - min(sizes) <= max(file.bytes.size for file in files)
    with pytest.raises(SpecError, match=rf"the result has {len(files)} file\(s\), which {len(files) + 1} parts"):
        divide(files, len(files) + 1)


@pytest.mark.parametrize("part", ["0/4", "5/4", "x", "1/0", "", "1/99999"])
def test_what_is_no_part_is_refused(tmp_path: Path, part: str) -> None:
    done = launcher("merge-ckpt", tmp_path, "--part", part)
    assert done.returncode == 2
    assert f"{part!r} is no part; write 2/4 for the second of four" in done.stderr


def test_force_and_a_single_file_do_not_go_with_parts(tmp_path: Path, shards: Path) -> None:
    forced = launcher(*command(shards, tmp_path / "out", "--part", "1/2", "--force"))
    assert forced.returncode == 2
    assert "--force does not go with --part" in forced.stderr
    single = launcher("merge-ckpt", shards, "-o", tmp_path / "out", "--part", "1/2")
    assert single.returncode == 2
    assert "the result has 1 file(s), which 2 parts cannot share" in single.stderr
    assert "--format hf --max-shard-size" in single.stderr
    assert not (tmp_path / "out.parts").exists()


def test_a_dry_run_shows_the_files_of_the_part(tmp_path: Path, shards: Path) -> None:
    shown = [launcher(*command(shards, tmp_path / "out", "--part", f"{n}/2", "--dry-run")).stdout for n in (1, 2)]
    everything = launcher(*command(shards, tmp_path / "out", "--dry-run")).stdout
    lines = [{line for line in text.splitlines() if line.startswith("  write")} for text in (*shown, everything)]
    assert lines[0] | lines[1] == lines[2]
    assert not lines[0] & lines[1]
    assert not list(tmp_path.glob("out*"))
