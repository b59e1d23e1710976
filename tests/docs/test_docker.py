"""The Dockerfiles: built and run where a Docker daemon answers, else held to rules of hadolint's."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return (INSTRUCTION, the rest), continued lines joined."""
    text = re.sub(r"\\\n\s*", "", "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#")))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_rules_of_hadolint(file: Path) -> None:
    found = instructions(file)
    words = [word for word, _ in found]
    (base,) = [rest for word, rest in found if word == "FROM"]
    runs = [rest for word, rest in found if word == "RUN"]
    installs = [run for run in runs if "apt-get install" in run]

    assert ":latest" not in base
    assert ":" in base or base == "${CANN_IMAGE}"  # DL3006: a tag
    assert all("--no-install-recommends" in run and "--yes" in run for run in installs)  # DL3014, DL3015
    assert all("apt-get update" in run and "rm -rf /var/lib/apt/lists" in run for run in installs)  # DL3009
    assert all("--no-cache-dir" in run for run in runs if "pip install" in run)  # DL3042
    assert not [run for run in runs if re.search(r"\b(sudo|cd) ", run)]  # DL3004, DL3003
    assert "ADD" not in words  # DL3020
    assert all(rest.startswith("[") for word, rest in found if word in ("CMD", "ENTRYPOINT"))  # DL3025
    assert all(rest.startswith("/") for word, rest in found if word == "WORKDIR")  # DL3000
    assert words.count("CMD") == words.count("ENTRYPOINT") == 1  # DL4003, DL4004
    assert words.index("COPY") > words.index("RUN")  # layers that change seldom come first


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_all_that_the_wheel_is_made_of_is_copied_and_nothing_else_is_sent(file: Path) -> None:
    copied = [source for word, rest in instructions(file) if word == "COPY" for source in rest.split()[:-1]]
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md", "LICENSE"}
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]

    assert set(copied) == needed
    assert all(any(fnmatch.fnmatch(source, pattern) for pattern in sent) for source in copied)
    assert set(sent) == needed


def test_the_cpu_image_is_built_and_answers(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers here")
    build = [docker, "build", "--quiet", "--file", str(ROOT / "docker" / "cpu.Dockerfile"), str(ROOT)]
    image = subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip()
    run = [docker, "run", "--rm", image]
    try:
        assert (
            "launcher, version"
            in subprocess.run([*run, "--version"], check=True, capture_output=True, text=True).stdout
        )
        submit = ["submit", "--cards", "2", "--dry-run"]
        assert "msrun" in subprocess.run([*run, *submit], check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([docker, "rmi", "--force", image], check=True, capture_output=True)
