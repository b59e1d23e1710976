"""One model over several Ascend cards: a configuration a rank, msrun's command, and the answers that come back.

Rendered and started as training is (``launcher.plan``, ``launcher.engines``), in predict mode: model parallel over
all cards, sliced by MindFormers from the whole merged weights. Not yet run on Ascend; a CPU host cannot run it, as
MindSpore has no model parallel there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.checkpoint.folder import WEIGHTS
from launcher.cluster import KINDS, Cluster
from launcher.engines.base import EngineJob, Program
from launcher.engines.msrun import Msrun
from launcher.errors import CheckpointError, HostError, JobCancelled, JobFailed, SpecError
from launcher.inference.network import network_config
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Answer, Prepared, Session
from launcher.inference.sources import Model
from launcher.jobs import JobPaths
from launcher.processes import ProcessId, stop, tree
from launcher.rank_table import render_rank_table
from launcher.render import RenderedFile, environment, render, write_atomic

WORKER = ("-m", "launcher.inference.rank")
QUESTIONS, ANSWERS = "questions.json", "answers.jsonl"
GRACE_S = 5.0
_POLL_S = 0.2
_LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class CardsPlan:
    """Every file and the command of one call, decided without touching anything."""

    paths: JobPaths
    files: tuple[RenderedFile, ...]
    program: Program

    def describe(self) -> str:
        """All of it, for people."""
        lines = [f"would write into {self.paths.root}", *(f"  {file.path}" for file in self.files)]
        lines += ["would run", f"  {self.program.command}"]
        for file in self.files:
            if file.path != QUESTIONS:
                lines += ["", f"--- {file.path}", file.text.rstrip()]
        return "\n".join(lines)


def refuse_what_cards_cannot(*, real: bool, dry_run: bool, output: Path | None) -> None:
    """Raises HostError on a CPU host but for a dry run, SpecError for --output."""
    if not real and not dry_run:
        raise HostError(
            "--cards needs Ascend cards; MindSpore cannot split a model on CPU",
            hint="leave --cards out, or add --dry-run to see what would be run",
        )
    if output is not None:
        raise SpecError("--output does not go with --cards", hint="use --format jsonl > FILE")


def plan_cards(
    *, session: Session, prepared: Sequence[Prepared], spec: GenerationSpec, cluster: Cluster, root: Path, port: int,
    program: str,
) -> CardsPlan:  # fmt: skip
    """Raises SpecError when the cards cannot share the model, CheckpointError when its weights are not in one file."""
    model, paths = session.model, JobPaths(root=root)
    weights = whole_weights(model)
    check_cards(model, cluster)
    env = environment()
    shared = {
        "num_ranks": cluster.num_devices,
        "output_dir": str(root / "output"),
        "weights": str(weights),
        "strategy_file": str(root / "strategy" / "ckpt_strategy.ckpt"),
        "vocab_size": model.spec.vocab_size,
        "model_config": network_config(model, "Ascend", session.batch_size, bfloat16=_bfloat16(cluster)),
    }
    files = [render_rank_table(env, cluster)]
    files += [
        render(env, "predict.yaml.j2", f"ranks/rank_{rank.rank_id}.yaml", rank=rank, **shared)
        for rank in cluster.ranks()
    ]
    files.append(RenderedFile(path=QUESTIONS, text=_questions(session, prepared, spec)))
    job = EngineJob(
        paths=paths,
        num_ranks=cluster.num_devices,
        target="Ascend",
        address=cluster.hosts[0].address,
        port=port,
        rank_table=str(root / files[0].path),
        visible=cluster.hosts[0].visible,
        program=program,
        worker=WORKER,
        env={"RUN_MODE": "predict"},
    )
    (started,) = Msrun().programs(job)
    return CardsPlan(paths=paths, files=tuple(files), program=started)


def _bfloat16(cluster: Cluster) -> bool:
    return cluster.kind is None or KINDS[cluster.kind].bfloat16


def whole_weights(model: Model) -> Path:
    """The file that MindFormers slices. Raises CheckpointError when the model is not in one by MindFormers' names."""
    folder = model.where if model.where.is_dir() else model.where.parent
    file = model.where if model.where.is_file() else folder / WEIGHTS
    if not file.is_file() or not (folder / "launcher_model.json").is_file() or " + " in model.name:
        raise CheckpointError(
            f"--cards needs merged weights in one file, {model.name} has none",
            hint=f"launcher merge-ckpt {model.name.split(' + ')[0]}, or launcher convert-ckpt",
        )
    return file.absolute()


def check_cards(model: Model, cluster: Cluster) -> None:
    """Raises SpecError when heads do not divide among the cards, or the cards are on several hosts."""
    cards, spec = cluster.num_devices, model.spec
    if len(cluster.hosts) > 1:
        raise SpecError(f"--cards {cards} are on {len(cluster.hosts)} hosts; one is meant", hint="give fewer")
    wrong = [
        f"{name} {count}"
        for name, count in (("num_heads", spec.num_heads), ("n_kv_heads", spec.kv_heads))
        if count % cards
    ]
    if wrong:
        raise SpecError(f"--cards {cards} does not divide the model's {' and '.join(wrong)}", hint="give fewer cards")


def _questions(session: Session, prepared: Sequence[Prepared], spec: GenerationSpec) -> str:
    record = {
        "spec": asdict(spec),
        "batch_size": session.batch_size,
        "context": session.model.context,
        "pad_id": session.model.spec.pad_token_id,
        "ends": sorted(session.ends),
        "tokenizer": str(Path(str(session.model.tokenizer)).absolute()),
        "rows": [{"id": item.question.id, "prompt": item.question.shown, "ids": list(item.ids)} for item in prepared],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def carry_out(plan: CardsPlan, *, interrupted: Callable[[], bool] = bool) -> list[Answer]:
    """Write the plan's files, run its command, and read the answers of rank 0; the folder goes when all went well.

    Raises JobFailed with the end of the log when a rank failed, JobCancelled when ``interrupted`` says so.
    """
    paths = plan.paths
    for file in plan.files:
        write_atomic(paths.root / file.path, file.text)
    paths.logs.mkdir(parents=True, exist_ok=True)
    code = _run(plan, interrupted)
    answers = paths.root / ANSWERS
    if code != 0 or not answers.is_file():
        raise JobFailed(f"asking on several cards failed ({code}):\n{_log_end(paths)}", hint=f"look into {paths.logs}")
    found = [Answer(**json.loads(line)) for line in answers.read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(paths.root, ignore_errors=True)
    return found


def _run(plan: CardsPlan, interrupted: Callable[[], bool]) -> int:
    command = plan.program.command
    with (plan.paths.logs / "engine.log").open("wb") as log:
        try:
            process = subprocess.Popen(
                command.argv, env={**os.environ, **command.env}, cwd=plan.paths.root, stdout=log, stderr=log
            )
        except OSError as error:
            raise HostError(f"cannot start {command.argv[0]}: {error.strerror}", hint="launcher doctor") from error
        try:
            return _wait(process, interrupted)
        finally:
            if process.poll() is None:
                stop(tree(ProcessId.of_pid(process.pid)), grace_s=GRACE_S)
                process.wait()


def _wait(process: subprocess.Popen[bytes], interrupted: Callable[[], bool]) -> int:
    while True:
        try:
            return process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if interrupted():
                raise JobCancelled("stopped", signum=signal.SIGINT) from None


def _log_end(paths: JobPaths) -> str:
    for log in (paths.rank_log(0), paths.logs / "engine.log"):
        if log.is_file() and (lines := log.read_text(encoding="utf-8", errors="replace").splitlines()):
            return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])
    return "  no log"


def new_root(jobs_dir: Path) -> Path:
    """A folder for one call, beside the jobs. Raises HostError when it cannot be made."""
    try:
        jobs_dir.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=jobs_dir.absolute(), prefix=".infer-"))
    except OSError as error:
        raise HostError(f"cannot write into {jobs_dir}: {error.strerror}", hint="give another --jobs-dir") from error
