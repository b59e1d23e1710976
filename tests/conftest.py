"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings
from support.oracles import TORCH, Child, torch_python
from support.shop import Trained, Workshop
from support.supervised import marked

ROOT = Path(__file__).resolve().parents[1]

# A machine with other work to do makes no test fail.
settings.register_profile("launcher", deadline=None)
settings.load_profile("launcher")


# Left out of `make test-fast`: tests that start jobs, and places where most tests run commands or take seconds.
SLOW_PLACES = {
    "integration", "schedulers", "docs", "semi_auto", "cli", "doctor", "control", "web", "test_data_preprocess.py",
    "test_checkpoint_oracles.py", "test_merging.py", "test_merge_inputs.py", "test_memory_published.py",
}  # fmt: skip
STARTS_JOBS = {"no_survivors", "workshop", "trained"}


# What tests share is made once in each worker of pytest-xdist that has one of them: a file goes whole to one. So do the
# tests that use ``trained``, and they begin first, as they take longest; those APART share little and take long.
TRAINED = (
    "tests/integration/test_main_path.py",
    "tests/integration/test_answers.py::test_every_source_of_one_model_gives_the_same_answers",
    "tests/integration/test_answers.py::test_a_job_is_no_adapter_of_what_was_merged_from_it",
    "tests/integration/test_answers.py::test_eval_compares_base_adapter_and_merged",
    "tests/integration/test_resume.py::test_a_graph_compiled_with_one_base_is_right_for_another",
)
INTEGRATION = "tests/integration/"
APART = (
    "tests/integration/faults/", "tests/integration/test_qwen.py", "tests/integration/test_resume.py",
    "tests/integration/test_training_oracles.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadgroup, by these lists: marks of the group do nothing with pytest 9.2 (pytest-xdist 3.8.0)."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(TRAINED):
                return "trained"
            return nodeid if nodeid.startswith(APART) else nodeid.partition("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            """The second worker begins at the end, where tests wait (schedulers, supervise); others compute then."""
            if node.gateway.id == "gw1":
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False  # by the number of tests, which would leave the longest for the end
    return ByWhatIsShared(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & STARTS_JOBS or SLOW_PLACES & set(item.path.parts) or item.get_closest_marker("mindspore"):
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (not item.nodeid.startswith(TRAINED), not item.nodeid.startswith(INTEGRATION)))


# They read sources, or compare what others measure with other programs: coverage would only make them slow.
UNMEASURED = (
    "tests/test_architecture.py", "tests/schedulers/test_seam.py", "tests/upstream/test_hints.py",
    "tests/data/test_data_oracles.py",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    plugin = item.config.pluginmanager.getplugin("_cov")
    controller = plugin.cov_controller if plugin and item.nodeid.startswith(UNMEASURED) else None
    if controller is None:
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


@pytest.fixture(scope="session", autouse=True)
def _supervising_processes_are_measured(pytestconfig: pytest.Config) -> None:
    """With --cov, supervised jobs of tests count too (support/supervised.py); of what runs MindSpore nothing does."""
    if pytestconfig.getoption("cov_source", None):
        os.environ["LAUNCHER_COVERAGE"] = str(ROOT / "pyproject.toml")
        os.environ["COVERAGE_FILE"] = str(ROOT / "build" / "coverage.data")


@pytest.fixture(scope="session", autouse=True)
def _child_processes_find_the_package() -> None:
    """Programs that tests start may run anywhere: they find this checkout's package all the same, compiled once."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parts = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_child_processes() -> None:
    """Where tests run in the background or under nohup, children would inherit that these signals are ignored."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def no_survivors() -> Iterator[str]:
    """A word that every process of a test has in its argv or environment; none with it may be left at the end."""
    mark = f"launcher-test-{os.urandom(6).hex()}"
    yield mark
    left = marked(mark)
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(scope="session")
def torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """torch, transformers and peft in a process of their own, or a skip."""
    child = Child(torch_python(), TORCH, tmp_path_factory.mktemp("torch"))
    yield child
    child.close()


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A folder with data and a tokenizer. Workers of one run of pytest-xdist find each other's compiled graphs."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "launcher-cache"
    return Workshop.made(tmp_path_factory.mktemp("workshop"), "train", "held_out", cache=cache)


# The base is trained and merged as a program of a user's would, LoRA by commands.
FROM_PYTHON = """
import json, sys
import launcher

notes = []
job = launcher.submit(sys.argv[1], cards=2, tags=["base"], changes={"training.seed": 42}, tell=notes.append)
begun = job.state
losses = []
job.wait(on_event=lambda event: losses.append(event.loss) if event.kind == "step" and event.rank_id == 0 else None)
merged = job.merge()
metrics = {name: list(column) for name, column in dict(job.metrics("loss", "step-time")).items()}
print(json.dumps({
    "id": job.id, "begun": begun, "state": job.state, "notes": notes, "losses": losses, "metrics": metrics,
    "merged": str(merged.folder), "same": [str(one.folder) for one in launcher.list_jobs(tags=["base"])],
}))
"""


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Trained:
    """One small model, trained once with real MindSpore on two ranks, for all tests that need one."""
    from_python = workshop.python(FROM_PYTHON, workshop.write_spec("base", lora=False, steps=6, epochs=1))
    base = workshop.job(from_python["id"])
    spec = workshop.write_spec("lora", lora=True, epochs=1, data="math.jsonl")  # raw: submit tokenizes it itself
    evaluation = ("--set", "evaluation.data=held_out.mindrecord", "--set", "evaluation.every_steps=8")
    lora = workshop.submit(spec, "--cards", "2", "--checkpoint", str(base.paths.merged), *evaluation)
    workshop.launcher("merge-ckpt", lora.record.job_id)
    lines = (workshop.folder / "math.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [yaml.safe_load(line)["instruction"] for line in lines[:3]]
    return Trained(workshop=workshop, base=base, lora=lora, questions=questions, from_python=from_python)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="make test-web installs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here")
    # What was costly to read, as the first of all is, rests for twenty times as long.
    sync_api.expect.set_options(timeout=30_000)
    with sync_api.sync_playwright() as playwright:
        # Root, as CI is, may not use the sandbox.
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
