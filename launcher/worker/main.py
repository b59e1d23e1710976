"""The program of every rank: ``python -m launcher.worker JOB_FOLDER``. It is the only part that trains.

A rank reads its role from its environment, loads its own YAML, and reports through files in the job's folder (see
``launcher.jobs.events``): its start, each step, the error that ended it, or that everything was saved. Engines that
start ranks themselves do not report how one ended; there the process first forks, and the parent reports the exit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import resource
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.common.processes import ProcessId, die_with_parent
from launcher.common.signals import Forwarding
from launcher.jobs import JobPaths, first_of_last_stage, planned_steps
from launcher.jobs.events import Begin, Done, Error, Evaluation, EventWriter, Exit, Phase, Position, Ready, Save, Step
from launcher.jobs.log_writing import keep_small, stamp_lines, write_to
from launcher.upstream import held_out, old_optimizer, packed_rows, shifted_rows
from launcher.upstream.light_imports import light_imports
from launcher.worker.compiled import reuse_graphs
from launcher.worker.loading import Loads, watch_loads
from launcher.worker.standby import hand_over, is_taken_over
from launcher.worker.steps import StepClock, StepWatch

# Sent by the supervisor to a rank that makes no progress: write the stacks of all threads into the log.
STACKS_SIGNAL = signal.SIGUSR2

Train = Callable[[JobPaths, int, EventWriter], None]


@dataclass(frozen=True, kw_only=True)
class Role:
    """The role of this process. ``rank_id`` is None for MindSpore's scheduler."""

    rank_id: int | None
    engine: str

    @property
    def is_nested(self) -> bool:
        """Return True if our parent is the engine's own process and not the supervisor."""
        return self.engine == "msrun" or (self.engine == "mpirun" and self.rank_id is not None)


def role_of(environment: Mapping[str, str]) -> tuple[Role, dict[str, str]]:
    """Return this process's role, and the variables still to be set before mindspore is imported.

    Under mpirun Open MPI's variables give the rank. If there is a scheduler too (CPU), those of MindSpore's dynamic
    cluster are added.
    """
    engine = environment.get("LAUNCHER_ENGINE", "msrun")
    if environment.get("MS_ROLE") == "MS_SCHED":
        return Role(rank_id=None, engine=engine), {}
    rank = environment.get("OMPI_COMM_WORLD_RANK")
    if engine != "mpirun" or rank is None:
        return Role(rank_id=int(environment["RANK_ID"]), engine=engine), {}
    extra = {
        "RANK_ID": rank,
        "RANK_SIZE": environment["OMPI_COMM_WORLD_SIZE"],
        "DEVICE_ID": environment["OMPI_COMM_WORLD_LOCAL_RANK"],
    }
    if "MS_SCHED_HOST" in environment:
        extra |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank}
    return Role(rank_id=int(rank), engine=engine), extra


def main(job_folder: str, train: Train | None = None) -> None:
    """Run this process's rank of the job in ``job_folder``. Raises any error of training, after reporting it."""
    die_with_parent()
    role, extra = role_of(os.environ)
    os.environ.update(extra)
    if role.rank_id is not None and role.is_nested:
        hand_over(role.rank_id, job_folder)
    paths = JobPaths(root=Path(job_folder), attempt=int(os.environ.get("LAUNCHER_ATTEMPT", "1")))
    is_rank = role.rank_id is not None
    log = paths.log("scheduler") if role.rank_id is None else paths.rank_log(role.rank_id)
    # Before MindSpore is imported: messages of an import that fails must be in the rank's own log.
    write_to(log)
    stamp_lines()
    events_file = paths.scheduler_events if role.rank_id is None else paths.rank_events(role.rank_id)
    with EventWriter(events_file, role.rank_id) as events:
        if role.is_nested and not is_taken_over():
            # Before any thread exists: a fork keeps only the thread that calls it.
            report_exit(events)
        faulthandler.enable()
        faulthandler.register(STACKS_SIGNAL, all_threads=True)
        keep_small(log)
        events.report(Begin(**asdict(ProcessId.current())))
        try:
            (train or train_rank)(paths, role.rank_id, events) if is_rank else schedule(paths)  # type: ignore[arg-type]
        except BaseException as error:
            # Reported here, at once: the interpreter's own exit takes MindSpore another 2 to 5 seconds.
            events.report(Error(type=type(error).__name__, message=str(error), traceback=traceback.format_exc()))
            raise
        if is_rank:
            events.report(Done())


def report_exit(events: EventWriter) -> None:
    """Fork. The child returns and goes on; the parent reports the child's exit code, and ends in the same way."""
    child = os.fork()
    if child == 0:
        die_with_parent()
        return
    code = Forwarding(child, {number: number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}).wait()
    events.report(Exit(code=code))
    if code < 0:
        # The child has written its core dump; a second one of this process would say nothing.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    # Without exit handlers: those of the child have run, and this process has nothing of its own to end.
    os._exit(max(code, 0))


def schedule(paths: JobPaths) -> None:
    """Run MindSpore's scheduler, through which ranks find each other; msrun starts it with the ranks' own argv.

    A single rank never registers, so its scheduler would wait for ever; this returns at once then.
    """
    if int(os.environ.get("MS_WORKER_NUM", "1")) == 1:
        return
    if _is_on_cpu(paths):
        from launcher.upstream import cpu

        if cpu.be_scheduler():
            return
    from mindspore.communication import init

    init()


def _is_on_cpu(paths: JobPaths) -> bool:
    from launcher.plan.launch import read_launch

    try:
        return bool(read_launch(paths).target == "CPU")
    except (OSError, ValueError, TypeError, KeyError):
        return False


def train_rank(paths: JobPaths, rank_id: int, events: EventWriter) -> None:
    """Build the context, then finetune with the settings of the rank's YAML."""
    with light_imports():
        import mindformers
    import mindspore

    events.report(Phase(name="imported"))
    config = mindformers.MindFormerConfig(str(paths.rank_config(rank_id)))
    resume_from = checkpoint_to_resume(paths, rank_id)
    if resume_from:
        go_on_from(config, paths.resume, resume_from)
    mindformers.build_context(config)
    events.report(Phase(name="joined"))
    if config.context.device_target == "CPU":
        from launcher.upstream import cpu

        cpu.prepare_training(world_size=int(os.environ.get("RANK_SIZE", "1")))
        if not config.use_legacy:
            from launcher.upstream import cpu_mcore

            cpu_mcore.prepare_network()
    ran = reuse_graphs(paths, rank_id)
    # Before the trainer is built: MindFormers looks optimizers up by name then.
    old_optimizer.register()
    check_rows(config)
    begins_with = str(paths.resume / f"rank_{rank_id}" / resume_from) if resume_from else config.load_checkpoint
    # Before anything is loaded, so that no call is missed.
    loads = watch_loads(begins_with or "", resumed=bool(resume_from))
    done_steps = steps_in(paths.resume / f"rank_{rank_id}" / resume_from) if resume_from else 0
    versions = {"mindspore": mindspore.__version__, "mindformers": mindformers.__version__}
    events.report(Ready(**versions, from_step=done_steps))
    last_step = planned_steps(paths) or math.inf
    if done_steps >= last_step:
        return  # the attempt before was ended between its last checkpoint and its own end; MindSpore refuses 0 epochs
    progress = _progress_callback(events, paths, rank_id, done_steps, last_step, loads, ran)
    trainer = mindformers.Trainer(args=config, task="text_generation", callbacks=[progress])
    packed_rows.prepare(trainer.trainer, config)
    if not config.use_legacy:
        shifted_rows.shift_datasets(trainer.trainer)
    start_adapters_from_seed(trainer.trainer, config.seed)
    if config.do_eval:
        held_out.prepare(trainer.trainer, config)
    keep_strategies(paths, rank_id, resumed=resume_from is not None)
    trainer.finetune(finetune_checkpoint=config.load_checkpoint or False, resume_training=resume_from or False)


def go_on_from(config: Any, folder: Path, name: str) -> None:
    """Make MindFormers load this rank's own file in ``folder`` instead of the base in the rank's YAML.

    The file is this rank's part already. With auto_trans_ckpt on, mindformers 1.9.0 would need the strategy by which it
    was cut, after removing the job's strategy folder (utils/file_utils.py, clear_auto_trans_output). A rank that is
    alone would be refused a folder of rank folders (utils/load_checkpoint_utils.py, validate_config_with_file_mode),
    although all that follows takes it, and step and loss scale are read by a file's name from such a folder alone.
    """
    from mindformers.utils import load_checkpoint_utils

    if not config.use_parallel and hasattr(load_checkpoint_utils, "validate_config_with_file_mode"):
        load_checkpoint_utils.validate_config_with_file_mode = lambda *_arguments, **_options: None
    config.load_checkpoint, config.resume_training = str(folder), name
    config.load_ckpt_format = name.rpartition(".")[2]
    config.auto_trans_ckpt = False


def keep_strategies(paths: JobPaths, rank_id: int, *, resumed: bool) -> None:
    """Keep MindFormers from removing or overwriting the strategy files in the job's folder: the merge needs them.

    When MindFormers cuts a base, rank 0 empties that folder, including files that faster ranks have written by then
    (mindformers 1.9.0, trainer/trainer.py). A resumed rank writes its own into the attempt's folder: an attempt that
    dies while it compiles must not lose the strategies by which the checkpoints were cut.
    """
    import mindspore
    from mindformers.trainer import trainer

    if hasattr(trainer, "clear_auto_trans_output"):
        trainer.clear_auto_trans_output = lambda *_arguments, **_options: None
    if resumed and mindspore.get_auto_parallel_context("parallel_mode") == "semi_auto_parallel":
        file = paths.attempt_folder / "strategy" / f"ckpt_strategy_rank_{rank_id}.ckpt"
        file.parent.mkdir(exist_ok=True)
        mindspore.set_auto_parallel_context(strategy_ckpt_save_file=str(file))


def start_adapters_from_seed(trainer: Any, seed: int) -> None:
    """Make LoRA's A matrices depend on ``seed`` and their name only, not on the split of the model over ranks.

    In semi_auto mode mindformers 1.9.0 leaves the seed unset (trainer/trainer.py), and MindSpore fills each slice from
    a counter (common/tensor.py, init_data): the initial values would depend on the split and not on ``seed``. Set here,
    before the graph is compiled, a matrix is cut like any other weight. The distribution is mindpet's, HeUniform with
    slope sqrt(5): uniform within 1 / sqrt(in).
    """
    from launcher.models.names import LORA_A

    create = trainer.create_network

    def create_network(*arguments: Any, **options: Any) -> Any:
        network = create(*arguments, **options)
        for parameter in network.trainable_params():
            if parameter.name.endswith(LORA_A):
                _fill(parameter, seed)
        return network

    trainer.create_network = create_network


def _fill(parameter: Any, seed: int) -> None:
    from mindspore import Tensor

    parameter.set_data(Tensor(initial_adapter(parameter.name, parameter.shape, seed), parameter.dtype))


def initial_adapter(name: str, shape: tuple[int, ...], seed: int) -> Any:
    """Return the values with which LoRA's A matrix ``name`` begins, float32."""
    import numpy

    bound = 1 / math.sqrt(shape[-1])
    numbers = numpy.random.default_rng([seed, zlib.crc32(name.encode())])
    return numbers.uniform(-bound, bound, shape).astype(numpy.float32)


def checkpoint_to_resume(paths: JobPaths, rank_id: int) -> str | None:
    """Return the name of the file from which this attempt resumes, None when it starts from the beginning.

    MindFormers gets the name, because without one mindformers 1.9.0 looks for .ckpt files only (tools/resume_ckpt.py,
    check_last_timestamp_checkpoints).
    """
    folder = paths.resume / f"rank_{rank_id}"
    return next((path.name for path in folder.iterdir()), None) if folder.is_dir() else None


def steps_in(checkpoint: Path) -> int:
    """Return the number of optimizer steps, counted over the whole run, after which ``checkpoint`` was saved."""
    from mindspore import load_checkpoint

    form = "safetensors" if checkpoint.suffix == ".safetensors" else "ckpt"
    wanted = ("step_num", "global_step")
    scalars = load_checkpoint(str(checkpoint), choice_func=lambda name: name in wanted, format=form)
    value = scalars.get("step_num") or scalars["global_step"]
    return int(_number(value) or 0)


def go_on_counting(params: Any, step: int) -> None:
    """Make MindSpore continue counting steps from ``step``, also in the names of checkpoints.

    mindformers 1.9.0 counts from 1 again, writes that into names after another prefix (PREFIX_rank_0_1-1_4), and adds
    the earlier steps only in its logs and stored values, so that names of two attempts could not be compared.
    """
    params.cur_step_num = step
    params.initial_step = 0
    for callback in params.list_callback:
        if hasattr(callback, "_append_step_num"):
            # Private names of mindformers 1.9.0's CheckpointMonitor: it offers no other way.
            callback._append_step_num = 0
            callback._prefix = callback._exception_prefix
            callback._last_triggered_step = step


def report_evaluations(params: Any, events: EventWriter, clock: StepClock, parts: int | None = 1) -> None:
    """Make MindFormers' evaluation, which only logs its result, write an event when it begins and when it ends.

    ``parts``: see ``step_fields``; None on ranks whose loss has no meaning.
    """
    for callback in params.list_callback:
        if type(callback).__name__ == "EvalCallBack":
            callback.eval_func = _reported(callback.eval_func, params, events, clock, parts)


def _reported(
    evaluate: Callable[[], Any], params: Any, events: EventWriter, clock: StepClock, parts: int | None
) -> Callable[[], Any]:
    def run() -> Any:
        step, began = int(params.cur_step_num), time.monotonic()
        events.report(Evaluation(step=step))
        result = evaluate()
        loss = None if parts is None else eval_loss(result)
        events.report(Evaluation(step=step, loss=loss, seconds=round(time.monotonic() - began, 3)))
        clock.put_aside(time.monotonic() - began)
        return result

    return run


def report_saves(params: Any, events: EventWriter, clock: StepClock) -> None:
    """Make the saving of checkpoints, which may take longer than any step, write an event before and after."""
    for callback in params.list_callback:
        for name in ("save_checkpoint", "save_checkpoint_network"):  # mindformers 1.9.0, CheckpointMonitor
            if hasattr(callback, name):
                setattr(callback, name, _reported_save(getattr(callback, name), events, clock))


def _reported_save(save: Callable[[Any], None], events: EventWriter, clock: StepClock) -> Callable[[Any], None]:
    def run(params: Any) -> None:
        step, began = int(params.cur_step_num), time.monotonic()
        events.report(Save(step=step))
        save(params)
        events.report(Save(step=step, seconds=round(time.monotonic() - began, 3)))
        clock.put_aside(time.monotonic() - began)

    return run


def eval_loss(result: Any) -> float | None:
    """Return the loss in mindformers 1.9.0's {"PerplexityMetric": {"loss": 1.2, "PPL": 3.3}}; None without one."""
    metrics = result.values() if isinstance(result, dict) else ()
    return next((_number(m["loss"]) for m in metrics if isinstance(m, dict) and "loss" in m), None)


def check_rows(config: Any) -> None:
    """Raise ValueError when a dataset's first row is not one token longer than the model's seq_length.

    MindFormers fails only while it compiles, with a message about broadcasting. Datasets that the launcher made are
    checked before a process is spawned; this check is for others.
    """
    _check_first_row(config.train_dataset, config)
    if config.do_eval:
        _check_first_row(config.eval_dataset, config)


def _check_first_row(section: Any, config: Any) -> None:
    from mindspore.dataset import MindDataset

    (dataset,) = section.data_loader.dataset_files
    (column, *_) = section.input_columns
    rows = MindDataset([dataset], columns_list=[column], shuffle=False, num_samples=1)
    row = next(rows.create_dict_iterator(num_epochs=1, output_numpy=True))
    seq_length = config.model.model_config.seq_length
    if len(row[column]) != seq_length + 1:
        raise ValueError(
            f"{dataset} has rows of {len(row[column])} tokens; model.seq_length {seq_length} needs {seq_length + 1}"
        )


def _progress_callback(
    events: EventWriter,
    paths: JobPaths,
    rank_id: int,
    done_steps: int,
    last_step: float,
    loads: Loads,
    ran: Callable[[], None],
) -> Any:
    from mindspore.train.callback import Callback

    spec = json.loads(paths.spec.read_text(encoding="utf-8"))
    losses = LossCheck(spec["training"]["max_nan_steps"])
    parts = loss_parts(spec, rank_id, int(os.environ.get("RANK_SIZE", "1")))
    watch = StepWatch(Position(paths.rank_position(rank_id)))

    class Progress(Callback):  # type: ignore[misc]
        """The callback that writes one "step" event per step and ends the run after the spec's number of steps."""

        def on_train_begin(self, run_context: Any) -> None:
            loads.check()
            events.report(Phase(name="loaded"))
            if done_steps:
                go_on_counting(run_context.original_args(), done_steps)
            report_evaluations(run_context.original_args(), events, watch.clock, parts)
            report_saves(run_context.original_args(), events, watch.clock)

        def on_train_step_begin(self, run_context: Any) -> None:
            watch.enter(run_context.original_args().cur_step_num)

        def on_train_step_end(self, run_context: Any) -> None:
            params, waits = run_context.original_args(), watch.leave()
            fields = step_fields(params.cur_step_num, params.net_outputs, waits, parts)
            fields["tokens"] = tokens_in_loss(params.get("train_dataset_element"), spec["model"])
            events.report(Step(**fields))
            if params.cur_step_num == done_steps + 1:
                ran()
            # After the event: a run that ends for its loss shows that loss as its last step.
            losses.note(fields["step"], fields["loss"])
            if params.cur_step_num >= min(last_step, asked_to_stop_at(paths)):
                run_context.request_stop()

    return Progress()


class LossCheck:
    """The check that ends a run whose loss is not finite any more: such weights never recover, and cards are scarce."""

    def __init__(self, max_nan_steps: int) -> None:
        self._most, self._in_a_row = max_nan_steps, 0

    def note(self, step: int, loss: float | None) -> None:
        """Raise ArithmeticError after ``max_nan_steps`` steps in a row without a finite loss; never if it is 0."""
        self._in_a_row = 0 if loss is None or math.isfinite(loss) else self._in_a_row + 1
        if self._most and self._in_a_row >= self._most:
            raise ArithmeticError(f"loss is {loss} since step {step - self._in_a_row + 1}")


def asked_to_stop_at(paths: JobPaths) -> float:
    """Return the step after which the supervisor wants all ranks to save and end; infinity if it does not."""
    try:
        return int(paths.stop_at.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return math.inf


def loss_parts(spec: Mapping[str, Any], rank_id: int, num_ranks: int) -> int | None:
    """Return the number of batches over which the loss of a step is summed; None on ranks whose loss has no meaning.

    mindformers 1.9.0, core/callback (MFLossMonitor): in a pipeline only the last stage computes a loss, the sum over
    micro batches; gradient accumulation sums too.
    """
    stages = spec["parallel"]["pipeline_stage"]
    if rank_id < first_of_last_stage(num_ranks, stages):
        return None
    return int(spec["training"]["gradient_accumulation"]) * (
        int(spec["parallel"]["micro_batches"]) if stages > 1 else 1
    )


def step_fields(step: int, outputs: Any, waits: Mapping[str, Any], parts: int | None = 1) -> dict[str, Any]:
    """Return the fields of a step event. ``outputs``: the train cell's (loss, overflow, scale, learning rate, norm).

    ``waits``: from ``StepWatch.leave``. ``parts``: from ``loss_parts``; the loss of a step is the mean over them, and
    None if it is None.
    """
    loss, overflow, scale, learning_rate, norm = outputs[:5]
    total = None if parts is None else _number(loss)
    return {
        "step": int(step),
        "loss": None if total is None or parts is None else total / parts,
        "lr": _number(learning_rate),
        "overflow": bool(_number(overflow)),
        "grad_norm": _number(norm),
        "memory_mib": memory_mib(),
        "loss_scale": _number(scale),
        **waits,
    }


def tokens_in_loss(columns: Any, model: Mapping[str, Any]) -> int | None:
    """Return the tokens that the loss of a batch is the mean over; None where the batch never passes the host.

    ``columns``: input_ids and labels, (rows, seq_length + 1), a token's label in its own place; or, as mcore networks
    get them, (rows, seq_length), a token's label in the place of the one before. ``model``: that section of the spec.
    """
    from launcher.data.rows import IGNORED_LABEL

    try:
        ids, labels = (column.asnumpy() for column in columns[:2])
        if ids.shape[1] > model["seq_length"]:
            ids, labels = ids[:, :-1], labels[:, 1:]
        return int(((ids != model["pad_token_id"]) & (labels != IGNORED_LABEL)).sum())
    except Exception:  # a figure is never worth a failed step
        return None


def memory_mib() -> int:
    """Return the peak memory of this process in MiB: of the card on Ascend, resident in main memory on CPU."""
    if os.environ.get("ASCEND_RT_VISIBLE_DEVICES"):
        with contextlib.suppress(Exception):  # mindspore 2.6 and later; a figure is never worth a failed step
            import mindspore

            return int(mindspore.runtime.max_memory_reserved()) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _number(value: Any) -> float | None:
    if value is None:
        return None
    array = value.asnumpy() if hasattr(value, "asnumpy") else value
    return float(array if isinstance(array, (int, float)) else array.reshape(-1)[0])
