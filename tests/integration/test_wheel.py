"""A wheel, installed into a fresh environment outside the checkout, runs the main job to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from support.shop import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.mindspore


def run(*argv: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    result = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 0, f"{argv}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_templates_configs_and_sample_inventories(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())

    for folder in ("templates", "configs", "rank_tables", "docs"):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"launcher/_data/{folder}/{path.relative_to(ROOT / folder)}" in inside
    assert not [name for name in inside if name.startswith(("tests/", "jobs/"))]


def test_the_main_job_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """The environment is new; only what the wheel depends on is lent to it, by path, from this one."""
    environment = tmp_path / "env"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (Path(site) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    msrun_folder = Path(sys.executable).parent
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"LAUNCHER_CACHE": str(tmp_path / "cache"), "PATH": f"{msrun_folder}:{env['PATH']}"}
    work = tmp_path / "work"
    work.mkdir()
    launcher = environment / "bin" / "launcher"

    where = run(python, "-c", "import launcher; print(launcher.__file__)", cwd=work, env=env)
    assert where.startswith(str(environment))
    few = ("--set", "training.steps=40")  # of 100: enough for the answer
    job_id = run(launcher, "submit", "--cards", "2", *few, cwd=work, env=env).split()[-1]
    assert job_id.endswith("-tiny_math")
    assert "21 with LoRA" in run(launcher, "merge-ckpt", "last", cwd=work, env=env)
    asked = "题目：小明有4盒铅笔，每盒3个，又买5个，一共几个？"
    answer = run(launcher, "infer", "last", "--prompt", asked, "--max-new-tokens", "24", cwd=work, env=env)
    assert answer == "4×3=12\n12+5=17\n答案：17\n"
    assert [path.name for path in work.iterdir()] == ["jobs"]
