"""merge-ckpt, split-ckpt and convert-ckpt as a user meets them: jobs, folders, output, exit codes."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint_sets import MODEL, folded, launcher, llama, read, write, write_job, write_ranks, write_shards

from launcher.checkpoint.split import SplitPlan
from launcher.checkpoint.stream import load_adapters
from launcher.common.folders import check_target
from launcher.common.sizes import size_text
from launcher.data.templates import get_template
from launcher.errors import CheckpointError, HostError
from launcher.inference.evaluation import candidates
from launcher.inference.sources import Given, find_model
from launcher.models.names import GLOBAL_STEP
from launcher.runspec.sections import ModelSpec

HF_CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
HF_CONFIG |= {"num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 40}
WO = "model.layers.1.attention.wo.weight"


def _job(root: Path, *, state: str = "succeeded", steps: tuple[str, ...] = ("1_2", "1_10")) -> Path:
    tokenizer = root / "tokenizer.model"
    tokenizer.write_bytes(b"pieces")
    paths = write_job(root / "jobs" / "abcde-t", state=state, tokenizer=tokenizer)
    for number, step in enumerate(steps):
        arrays = llama(seed=number)
        arrays[GLOBAL_STEP] = np.array([100 + number], np.int32)
        for rank in (0, 1):
            write(paths.checkpoints / f"rank_{rank}" / f"launcher_rank_{rank}-{step}.safetensors", arrays)
    return paths.root


def test_a_job_is_merged_for_infer(tmp_path: Path) -> None:
    root = _job(tmp_path)
    spec = json.loads((root / "spec.json").read_text())
    (root / "spec.json").write_text(json.dumps({**spec, "generation": {"temperature": 0.5}}))
    done = launcher("merge-ckpt", "last", "--jobs-dir", tmp_path / "jobs")
    assert done.returncode == 0, done.stderr
    assert "step 101 of abcde-t" in done.stdout
    assert f'Next: launcher infer --jobs-dir {tmp_path}/jobs last --prompt "..."' in done.stdout
    merged = root / "merged"
    names = ["launcher_model.json", "merge.json", "model.safetensors", "tokenizer.model"]
    assert sorted(path.name for path in merged.iterdir()) == names
    described = json.loads((merged / "launcher_model.json").read_text())
    assert ModelSpec.model_validate(described["model"]).hidden_size == MODEL["hidden_size"]
    assert get_template(described["template"]).name == "vicuna"
    assert described["precision"]["compute"] == "float32"
    assert described["generation"] == {"temperature": 0.5}
    assert (merged / "tokenizer.model").read_bytes() == b"pieces"
    assert abs(read(merged / "model.safetensors")[WO] - folded(llama(seed=1), WO)).max() < 1e-6
    assert json.loads((merged / "merge.json").read_text())["step"] == 101
    again = launcher("merge-ckpt", "abc", "--jobs-dir", tmp_path / "jobs")
    assert again.stdout == f"already merged: {merged} (step 101)\n"


def test_another_step_of_a_job(tmp_path: Path) -> None:
    root = _job(tmp_path)
    listed = launcher("merge-ckpt", root, "--list")
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["100", "1_2"], ["101", "1_10"]]
    assert launcher("merge-ckpt", root).returncode == 0
    other = launcher("merge-ckpt", root, "--step", "100")
    assert other.returncode == 4
    assert "step 101 there, 100 here" in other.stderr
    assert "--force" in other.stderr
    assert launcher("merge-ckpt", root, "--step", "100", "--force").returncode == 0


def test_an_incomplete_step_is_listed_as_such(tmp_path: Path) -> None:
    root = _job(tmp_path)
    (root / "checkpoint" / "rank_1" / "launcher_rank_1-1_10.safetensors").unlink()
    listed = launcher("merge-ckpt", root, "--list")
    assert "no: rank 1 missing" in listed.stdout
    merged = launcher("merge-ckpt", root)
    assert "skipped 1_10: rank 1 lacks it" in merged.stdout
    assert "step 100 of" in merged.stdout
    record = json.loads((root / "merged" / "merge.json").read_text())
    assert record["skipped"] == [{"moment": "1_10", "missing_ranks": [1], "damage": ""}]


# ------------------------------------------------------------------------------------------------ jobs that go on


@pytest.mark.parametrize("state", ["planned", "starting", "running", "stopping"])
def test_of_a_job_that_has_not_ended_the_newest_complete_step_is_merged(tmp_path: Path, state: str) -> None:
    root = _job(tmp_path, state=state)
    done = launcher("merge-ckpt", root)
    assert done.returncode == 0, done.stderr
    assert f"note   abcde-t is {state}: step 101 is its newest complete one" in done.stdout
    again = launcher("merge-ckpt", root)
    assert f"note: abcde-t is {state}: step 101 is its newest complete one" in again.stdout
    older = launcher("merge-ckpt", root, "--step", "100", "--force")
    assert f"note   abcde-t is {state}: this is step 100" in older.stdout


def _newest(root: Path, rank: int) -> Path:
    return root / "checkpoint" / f"rank_{rank}" / f"launcher_rank_{rank}-1_10.safetensors"


def test_a_step_that_is_being_written_is_not_taken(tmp_path: Path) -> None:
    root = _job(tmp_path, state="running")
    _newest(root, 1).write_bytes(_newest(root, 1).read_bytes()[:-100])
    done = launcher("merge-ckpt", root)
    assert "abcde-t is running: step 100 is its newest complete one" in done.stdout
    assert "skipped 1_10: " in done.stdout


def test_a_job_that_has_saved_nothing_yet_says_so(tmp_path: Path) -> None:
    root = _job(tmp_path, state="running")
    for file in (root / "checkpoint" / "rank_1").iterdir():
        file.unlink()
    done = launcher("merge-ckpt", root)
    assert done.returncode == 4
    assert "abcde-t is running: no step in" in done.stderr
    assert "hint: launcher status abcde-t, and again after a save" in done.stderr


def test_a_model_of_a_running_job_is_of_one_step(tmp_path: Path) -> None:
    """Merged models of earlier are left aside; what the job saves later does not mix in; it is said."""
    root = _job(tmp_path, state="running")
    assert launcher("merge-ckpt", root, "--step", "100").returncode == 0
    model = find_model("abcde-t", tmp_path / "jobs")
    assert model.notes[0] == "abcde-t is running: this is step 101, the newest that is complete"
    base, adapted, merged = candidates(["abcde-t"], tmp_path / "jobs", Given())
    for rank in (0, 1):
        newer = _newest(root, rank)
        shutil.copy(newer.with_name(f"launcher_rank_{rank}-1_2.safetensors"), str(newer).replace("1_10", "2_1"))

    with ExitStack() as stack:
        weights = model.open(stack).weights[WO]
        assert weights.fold is not None
        lora_a, scaled_b = load_adapters(weights.fold)
        assert np.abs(weights.whole.read() + scaled_b @ lora_a - folded(llama(seed=1), WO)).max() < 1e-6
    assert {one.model.moment for one in (base, adapted, merged)} == {(1, 10)}
    assert find_model("abcde-t", tmp_path / "jobs").moment == (2, 1)
    _newest(root, 0).unlink()
    with ExitStack() as stack, pytest.raises(CheckpointError, match="abcde-t is running: step 1_10 is not complete"):
        model.open(stack)


def test_steps_come_and_go_while_a_running_job_is_read(tmp_path: Path) -> None:
    root = _job(tmp_path, state="running")
    contents = [_newest(root, rank).read_bytes() for rank in (0, 1)]
    done = threading.Event()

    def train() -> None:
        """Save a step on one rank after the other, not at once, and keep eight."""
        for step in itertools.count(11):
            for rank, content in enumerate(contents):
                with _newest(root, rank).with_name(f"launcher_rank_{rank}-1_{step}.safetensors").open("wb") as file:
                    file.write(content[:9000])
                    file.flush()
                    done.wait(0.03)
                    file.write(content[9000:])
            for rank in (0, 1):
                _newest(root, rank).with_name(f"launcher_rank_{rank}-1_{step - 8}.safetensors").unlink(missing_ok=True)
            if done.wait(0.1):
                return

    writer = threading.Thread(target=train)
    writer.start()
    try:
        found = [find_model("last", tmp_path / "jobs").moment]
        while len(set(found)) < 4:
            found.append(find_model("last", tmp_path / "jobs").moment)
    finally:
        done.set()
        writer.join()
    moments = [moment for moment in found if moment]
    assert moments == sorted(moments)
    assert len(moments) == len(found)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 3, "lora": {"alpha": 1, "r": 0}}'])
def test_a_job_whose_spec_is_damaged(tmp_path: Path, content: str) -> None:
    root = _job(tmp_path)
    (root / "spec.json").write_text(content)
    done = launcher("merge-ckpt", root)
    assert done.returncode == 6
    assert "spec.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"model": {"hidden_size": "x"}}', '{"model_type": "gpt2"}'])
def test_a_config_that_describes_no_model(tmp_path: Path, content: str) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    (tmp_path / "config.json").write_text(content)
    done = launcher("merge-ckpt", folder, "--config", tmp_path / "config.json")
    assert done.returncode == 4
    assert "config.json does not describe a model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "hf", "--no-fold"),
        ("--format", "peft", "--with-optimizer"),
        ("--format", "hf", "--file-format", "ckpt"),
        ("--step", "soon"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    done = launcher("merge-ckpt", folder, *options)
    assert done.returncode == 2
    assert "does not go with" in done.stderr or "is no step" in done.stderr
    assert not (folder / "merged").exists()


def test_what_options_say_of_a_job_counts(tmp_path: Path) -> None:
    root = _job(tmp_path)
    (tmp_path / "other.model").write_bytes(b"others")
    assert launcher("merge-ckpt", root, "--tokenizer", tmp_path / "other.model").returncode == 0
    assert (root / "merged" / "tokenizer.model").read_bytes() == b"others"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    before = sorted(tmp_path.rglob("*"))
    done = launcher("merge-ckpt", folder, "--dry-run")
    assert done.returncode == 0
    assert "needs" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_the_working_folder(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", llama(), SplitPlan(data_parallel=2))
    done = launcher("merge-ckpt", "set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "set" / "merged" / "model.safetensors").is_file()


def test_tensors_of_no_known_kind_are_named(tmp_path: Path) -> None:
    folder = write_ranks(tmp_path / "set", {"rank_0/a.ckpt": {**llama(), "mystery": np.zeros(3)}})
    assert "leave  mystery" in launcher("merge-ckpt", folder).stdout


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("merge-ckpt", "nowhere/at/all"), 4, "no folder"),
        (("merge-ckpt", "nojob"), 6, "no job"),
        (("merge-ckpt", ".", "--max-shard-size", "huge"), 2, "is no size"),
        (("split-ckpt", "none.ckpt", "-o", "x"), 4, "cannot read none.ckpt"),
        (("convert-ckpt", "none", "-o", "x"), 4, "no file or folder none"),
    ],
)
def test_wrong_input_gives_one_line_and_a_hint(tmp_path: Path, argv: tuple[str, ...], code: int, words: str) -> None:
    done = launcher(*argv, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_split_and_merge_back_by_hand(tmp_path: Path) -> None:
    arrays = llama(lora=False)
    write(tmp_path / "whole.safetensors", arrays)
    options = ("--dp", "2", "--mp", "2", "--pp", "2", "--optimizer-parallel")
    split = launcher("split-ckpt", tmp_path / "whole.safetensors", "-o", tmp_path / "shards", *options)
    assert split.returncode == 0, split.stderr
    assert len(list((tmp_path / "shards").glob("rank_*"))) == 8
    merged = launcher("merge-ckpt", tmp_path / "shards", "--with-optimizer")
    assert merged.returncode == 0, merged.stderr
    found = read(tmp_path / "shards" / "merged" / "model.safetensors")
    assert all(found[name].tobytes() == arrays[name].tobytes() for name in found)
    again = launcher("split-ckpt", tmp_path / "whole.safetensors", "-o", tmp_path / "shards")
    assert again.returncode == 4
    assert "exists" in again.stderr


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("/proc/x", 5, "cannot write in /proc: "),
        ("/dev/null/x", 4, "/dev/null is a file"),
        ("a" * 300, 5, ": File name too long"),
        ("file", 4, "file (is a file|exists)"),
    ],
)
@pytest.mark.parametrize("command", ["merge", "split"])
def test_an_output_that_cannot_be_gives_a_plain_message(
    tmp_path: Path, output: str, code: int, words: str, command: str
) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(data_parallel=2))
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    source = {"merge": folder, "split": tmp_path / "set-whole.safetensors"}[command]
    done = launcher(f"{command}-ckpt", source, "-o", output, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert re.search(words, done.stderr)
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_clears_away_what_was_begun(tmp_path: Path, signum: signal.Signals) -> None:
    large = {**MODEL, "hidden_size": 1024, "intermediate_size": 2048, "vocab_size": 4000}
    folder = write_shards(tmp_path / "set", llama(large, dtype="float16"), SplitPlan(model_parallel=2))
    before = sorted(tmp_path.iterdir())
    for _ in range(5):  # the merge may be done before the signal comes
        command = [sys.executable, "-m", "launcher", "merge-ckpt", str(folder), "-o", str(tmp_path / "out")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not list(tmp_path.glob(".out.part-*/*")):
                pass
            process.send_signal(signum)
            _, said = process.communicate(timeout=60)
        if process.returncode:
            break
        shutil.rmtree(tmp_path / "out")
    assert process.returncode == 128 + signum
    assert said == f"error: {signum.name}: {tmp_path / 'out'} is not written\n  hint: run the same command again\n"
    assert sorted(tmp_path.iterdir()) == before


def test_merging_imports_no_heavy_library(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", llama(), SplitPlan(model_parallel=2))
    code = (
        "import sys\nfrom launcher.cli.app import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'mindspore', 'mindformers', 'transformers', 'torch', 'pydantic', 'rich'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, "merge-ckpt", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("option", "made_by"),
    [
        (("--max-shard-size", "1MB"), ("merge-ckpt", "set")),
        (("--format", "peft", "--max-shard-size", "1MB"), ("merge-ckpt", "set")),
        (("--file-format", "ckpt"), ("convert-ckpt", "base")),
        (("--max-shard-size", "1MB"), ("convert-ckpt", "hf")),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, option: tuple[str, ...], made_by: tuple[str, str]
) -> None:
    write_shards(tmp_path / "set", llama(), SplitPlan(data_parallel=2))
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    layouts = {"mindspore": "base", "hf": "hf"}
    for layout, folder in layouts.items():
        argv = ("set", "--format", layout, "-o", folder, "--config", "config.json")
        assert launcher("merge-ckpt", *argv, cwd=tmp_path).returncode == 0
    done = launcher(*made_by, *option, "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "hint: leave it out" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_split_takes_and_what_not(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", llama(), SplitPlan(data_parallel=2))
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    for layout in ("mindspore", "hf"):
        argv = ("set", "--format", layout, "-o", layout, "--config", "config.json")
        assert launcher("merge-ckpt", *argv, cwd=tmp_path).returncode == 0
    done = launcher("split-ckpt", "mindspore", "--mp", "2", "-o", "shards", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "shards").glob("rank_*")) == ["rank_0", "rank_1"]
    for source in ("hf", "hf/model.safetensors"):
        done = launcher("split-ckpt", source, "--mp", "2", "-o", "out", cwd=tmp_path)
        assert done.returncode == 4
        assert "launcher convert-ckpt makes such a file" in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_small_disk_is_spoken_of_in_its_own_units(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    with pytest.raises(HostError, match=r"has [\d.]+ [GM]B free, the result needs [\d.]+ GB"):
        check_target(tmp_path / "out", usage.total * 2)
    assert [size_text(size) for size in (40_000, 2_100_000, 16_060_000_000)] == ["0.04 MB", "2.10 MB", "16.06 GB"]


def test_a_folder_that_cannot_be_looked_into(tmp_path: Path) -> None:
    """A path through a name that is too long fails at the same place as one without permission, also for root."""
    for command in (("merge-ckpt", "a" * 300), ("infer", "a" * 300, "--prompt", "x")):
        done = launcher(*command, cwd=tmp_path)
        assert done.returncode == 6, done.stderr
        assert done.stderr.startswith("error: cannot read aaa")
        assert "hint: " in done.stderr


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (("--file-format", "ckpt", "-o", "out"), "out"),
        (("--no-fold", "-o", "out"), "out/base.safetensors --adapter out"),
    ],
)
def test_how_a_model_is_asked_goes_with_every_merge_of_a_job(
    tmp_path: Path, options: tuple[str, ...], asked: str
) -> None:
    _job(tmp_path)
    done = launcher("merge-ckpt", "last", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'Next: launcher infer {asked} --prompt "..."' in done.stdout
    assert {"launcher_model.json", "tokenizer.model"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_base_and_adapters_apart_are_no_merged_model_of_the_job(tmp_path: Path) -> None:
    root = _job(tmp_path)
    assert launcher("merge-ckpt", "last", "--no-fold", cwd=tmp_path).returncode == 0
    model = find_model("last", tmp_path / "jobs")
    assert model.where == root
    assert model.notes == ("abcde-t is not merged: folded in memory from step 101",)


def test_a_job_that_trained_on_since_it_was_merged_says_so(tmp_path: Path) -> None:
    root = _job(tmp_path, steps=("1_2",))
    assert launcher("merge-ckpt", "last", cwd=tmp_path).returncode == 0
    assert find_model("last", tmp_path / "jobs").notes == ()
    arrays = {**llama(seed=1), GLOBAL_STEP: np.array([200], np.int32)}
    for rank in (0, 1):
        assert find_model("last", tmp_path / "jobs").notes == ()  # a step that not every rank has is no step
        write(root / "checkpoint" / f"rank_{rank}" / f"launcher_rank_{rank}-1_99.safetensors", arrays)
    model = find_model("last", tmp_path / "jobs")
    assert model.where == root / "merged"
    assert model.notes == ("abcde-t was merged at step 100, it has step 200 now: launcher merge-ckpt abcde-t --force",)
    shutil.rmtree(root / "checkpoint")
    assert find_model("last", tmp_path / "jobs").notes == ()


def test_a_folder_of_base_and_adapters_apart_names_its_base(tmp_path: Path) -> None:
    _job(tmp_path)
    assert launcher("merge-ckpt", "last", "--no-fold", "-o", "apart", cwd=tmp_path).returncode == 0
    for argv in (("infer", "apart", "--prompt", "x"), ("convert-ckpt", "apart", "-o", "out")):
        done = launcher(*argv, cwd=tmp_path)
        assert done.returncode == 4
        assert "give the base, apart/base.safetensors; infer takes --adapter apart" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "max|merged - (W + s B A)| = "), (("--no-fold",), "max|merged - W| = ")],
)
def test_what_was_checked_is_what_was_written(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    write_shards(tmp_path / "set", llama(), SplitPlan(data_parallel=2))
    done = launcher("merge-ckpt", "set", "--dtype", "bfloat16", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
