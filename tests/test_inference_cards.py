"""One model over several cards: what is written and run, and the way from the command to the answers.

No Ascend here: ranks are stood in for by a program that takes msrun's place in the command.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from inference_tools import CONTEXT, make_model

from launcher.data.messages import Message
from launcher.engines.base import Command
from launcher.errors import CheckpointError, HostError, JobCancelled, JobFailed, LauncherError, SpecError
from launcher.inference import cards
from launcher.inference.network import network_config, sixteen_bits
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Answer, Question, Session
from launcher.inference.sources import find_model
from launcher.jobs import JobPaths
from launcher.planning import imagined_cluster


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = make_model(tmp_path_factory.mktemp("cards") / "model", n_kv_heads=4)
    return Session(find_model(str(folder), folder))


def plan(session: Session, root: Path, *, num: int = 2, kind: str = "A2") -> cards.CardsPlan:
    questions = [Question(id=name, messages=(Message("user", "苹果"),)) for name in ("a", "b")]
    return cards.plan_cards(
        session=session, prepared=session.prepare(questions), spec=GenerationSpec(stop=("#",)),
        cluster=imagined_cluster(num, kind), root=root, port=8118, program="/opt/msrun",
    )  # fmt: skip


def test_each_rank_gets_its_configuration_and_msrun_its_command(session: Session, tmp_path: Path) -> None:
    found = plan(session, tmp_path)
    texts = {file.path: file.text for file in found.files}
    first, second = (yaml.safe_load(texts[f"ranks/rank_{rank}.yaml"]) for rank in (0, 1))
    model = first["model"]["model_config"]

    assert [*texts] == ["rank_table.json", "ranks/rank_0.yaml", "ranks/rank_1.yaml", "questions.json"]
    assert first["run_mode"] == "predict"
    assert first["parallel_config"]["model_parallel"] == 2
    assert first["load_checkpoint"] == str(session.model.where / "model.safetensors")
    assert (first["context"]["device_id"], second["context"]["device_id"]) == (0, 1)
    assert (model["use_past"], model["use_flash_attention"], model["is_dynamic"]) == (True, True, True)
    assert (model["compute_dtype"], model["seq_length"]) == ("bfloat16", CONTEXT)
    assert model["num_blocks"] * model["block_size"] >= CONTEXT * model["batch_size"]
    argv = found.program.command.argv
    assert argv[:2] == ("/opt/msrun", "--worker_num=2")
    assert argv[-4:] == ("python", "-m", "launcher.inference.rank", str(tmp_path))
    assert found.program.command.env["ASCEND_RT_VISIBLE_DEVICES"] == "0,1"
    assert found.paths.rank_config(1) == tmp_path / "ranks" / "rank_1.yaml"
    assert [*tmp_path.iterdir()] == []
    for part in ("ranks/rank_1.yaml", "--worker_num=2", "model_parallel: 2"):
        assert part in found.describe()


def test_cards_without_bfloat16_compute_in_float16(session: Session, tmp_path: Path) -> None:
    text = next(file.text for file in plan(session, tmp_path, kind="910").files if file.path.endswith("rank_0.yaml"))

    assert yaml.safe_load(text)["model"]["model_config"]["compute_dtype"] == "float16"
    assert [sixteen_bits(name, bfloat16=True) for name in ("float16", "bfloat16", "float32")] == [
        "float16", "bfloat16", "bfloat16",
    ]  # fmt: skip


def test_on_ascend_the_network_is_built_for_its_kernels_and_on_cpu_for_what_is_there(session: Session) -> None:
    ascend, cpu = (network_config(session.model, device, 4) for device in ("Ascend", "CPU"))

    for key in ("use_past", "use_flash_attention", "fused_rms_norm"):
        assert (ascend[key], cpu[key]) == (True, False)
    assert (ascend["batch_size"], cpu["compute_dtype"]) == (4, "float32")


def test_what_cards_cannot_share_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--cards 3 does not divide the model's num_heads 4 and n_kv_heads 4"):
        plan(session, tmp_path, num=3)
    with pytest.raises(SpecError, match="on 2 hosts"):
        plan(session, tmp_path, num=16)
    folded = replace(session.model, where=tmp_path)
    with pytest.raises(CheckpointError, match="--cards needs merged weights in one file"):
        cards.whole_weights(folded)
    with pytest.raises(HostError, match="MindSpore cannot split a model on CPU"):
        cards.refuse_what_cards_cannot(real=False, dry_run=False, output=None)
    with pytest.raises(SpecError, match="--output does not go with --cards"):
        cards.refuse_what_cards_cannot(real=True, dry_run=False, output=tmp_path)


_ANSWERS = """
import json, os, sys
from pathlib import Path
root = Path(sys.argv[1])
asked = json.loads((root / "questions.json").read_text())
print("speaking", os.environ["ASCEND_RT_VISIBLE_DEVICES"], flush=True)
{body}
"""
_GOOD = """
lines = [{"id": row["id"], "prompt": row["prompt"], "text": "t", "prompt_tokens": len(row["ids"]), "new_tokens": 1,
          "finish": "stop", "seconds": 0.1} for row in asked["rows"]]
(root / "answers.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


def run(session: Session, root: Path, body: str, **options: Any) -> list[Answer]:
    """Carry a plan out with ``body`` in place of msrun and its ranks."""
    found = plan(session, root)
    program = (sys.executable, "-c", _ANSWERS.replace("{body}", body), str(root))
    command = Command(argv=program, env=found.program.command.env)
    return cards.carry_out(replace(found, program=replace(found.program, command=command)), **options)


def test_answers_come_back_and_nothing_stays(session: Session, tmp_path: Path) -> None:
    root = cards.new_root(tmp_path / "jobs")
    answers = run(session, root, _GOOD)

    assert [(answer.id, answer.prompt, answer.text) for answer in answers] == [("a", "苹果", "t"), ("b", "苹果", "t")]
    assert not root.exists()


@pytest.mark.parametrize("body", ["sys.exit(3)", "pass"])
def test_a_rank_that_fails_is_shown_with_the_end_of_its_log(session: Session, tmp_path: Path, body: str) -> None:
    with pytest.raises(JobFailed) as caught:
        run(session, tmp_path / "run", body)

    assert "speaking 0,1" in caught.value.message
    assert JobPaths(root=tmp_path / "run").logs.is_dir()


def test_ctrl_c_stops_the_ranks(session: Session, tmp_path: Path, no_survivors: str) -> None:
    with pytest.raises(JobCancelled):
        run(session, tmp_path / no_survivors, "import time; time.sleep(600)", interrupted=lambda: True)


def test_a_program_that_is_not_there_is_named(session: Session, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot start /opt/msrun"):
        cards.carry_out(plan(session, tmp_path / "run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(LauncherError, match="cannot write into"):
        cards.new_root(tmp_path / "file")


def test_questions_hold_all_that_a_rank_needs(session: Session, tmp_path: Path) -> None:
    asked = json.loads(next(file.text for file in plan(session, tmp_path).files if file.path == "questions.json"))

    assert asked["spec"]["stop"] == ["#"]
    assert asked["ends"] == [2]
    assert Path(asked["tokenizer"]).is_absolute()
    assert [row["id"] for row in asked["rows"]] == ["a", "b"]
