"""What a user would pick instead of us: peers of the benchmarks from PyPI, each in an environment of its own.

An environment is made on first use in build/peers, which takes minutes and up to 2 GB, and is kept until its pinned
packages change. ``python tests/benchmarks/peers.py [NAME...]`` makes them without measuring anything.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "peers"
LIMIT_S = 3600.0


class PeerError(Exception):
    """An environment could not be made: a benchmark says so and goes on without it."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Pinned ``packages``; of the first one's own requirements those in ``without`` are left out.

    ``empty``: modules that it imports and does not use for what we ask; they are there, with nothing in them.
    ``check``: an import that has to work in the environment.
    """

    name: str
    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    check: str

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """Return the interpreter of the environment, which is made if it is not there. Raises PeerError."""
        python, mark = self.folder / "bin" / "python", self.folder / "installed"
        wanted = "\n".join((*self.packages, *self.without, *self.empty))
        if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
            return python
        print(f"making {self.folder}: {', '.join(self.packages)}", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._run(sys.executable, "-m", "venv", self.folder)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        if self.without:
            self._run(*pip, "--no-deps", self.packages[0])
            self._run(*pip, *self.packages[1:], *self._requirements(python))
        else:
            self._run(*pip, *self.packages)
        for name in self.empty:
            place = self._run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
            Path(place, f"{name}.py").touch()
        self._run(python, "-c", self.check)
        mark.write_text(wanted, encoding="utf-8")
        return python

    def _requirements(self, python: Path) -> Sequence[str]:
        name = self.packages[0].partition("==")[0]
        code = f"import importlib.metadata as m; print('\\n'.join(m.requires({name!r})))"
        plain = (line for line in self._run(python, "-c", code).splitlines() if ";" not in line)
        return [line for line in plain if not line.startswith(self.without)]

    def _run(self, *argv: object) -> str:
        try:
            done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, timeout=LIMIT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{self.name} cannot be installed: {error}") from error
        if done.returncode:
            last = (done.stderr.strip() or "nothing was said").splitlines()[-1]
            raise PeerError(f"{self.name} cannot be installed: {last}")
        return done.stdout


# torch 2.13.0 as in the project's own tests.
TORCH = Peer(
    name="torch",
    packages=("torch==2.13.0", "transformers==5.24.0", "peft==0.21.2", "accelerate==1.15.0", "sentencepiece==0.2.1"),
    check="import torch, transformers, peft, accelerate",
)
# torchvision and torchaudio load beside torch's CUDA builds only (5 GB). Finetuning on text does not need them; it
# imports torchaudio for its clips of sound.
LLAMA_FACTORY = Peer(
    name="llamafactory",
    packages=("llamafactory==0.9.5", "torch==2.13.0", "transformers==5.6.0", "peft==0.18.1", "datasets==4.0.0"),
    without=("torchvision", "torchaudio"),
    empty=("torchaudio",),
    check="import llamafactory.train.tuner",
)
DATASETS = Peer(
    name="datasets",
    packages=("datasets==5.2.0", "sentencepiece==0.2.1"),
    check="import datasets, sentencepiece",
)
PEERS = {peer.name: peer for peer in (TORCH, LLAMA_FACTORY, DATASETS)}


def main() -> None:
    for name in sys.argv[1:] or PEERS:
        print(f"{name}: {PEERS[name].python}", flush=True)


if __name__ == "__main__":
    main()
