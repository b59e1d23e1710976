"""A Hugging Face folder as a base: converted once for MindFormers by streaming, then reused from a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.checkpoint.base import Base, check_folder
from launcher.checkpoint.compare import fingerprint
from launcher.checkpoint.huggingface import CONFIG, INDEX
from launcher.checkpoint.model_files import CKPT_WEIGHTS, WEIGHTS
from launcher.checkpoint.sharded import holds_shards
from launcher.checkpoint.tensorfile import TensorFile
from launcher.errors import CheckpointError, HostError
from launcher.models.names import embedding_in

if TYPE_CHECKING:
    from launcher.checkpoint.convert import Model

# Another number when what is made of a folder changes.
_VERSION = 1


def is_hugging_face(folder: Path) -> bool:
    """Return whether ``folder`` is a model of transformers that no command of the launcher wrote."""
    if not (folder / CONFIG).is_file() or holds_shards(folder):
        return False
    own = next((path for name in (WEIGHTS, CKPT_WEIGHTS) if (path := folder / name).is_file()), None)
    if own is None or (folder / INDEX).is_file():
        return True
    with TensorFile(own) as file:
        return embedding_in(file.entries) is None


@dataclass(frozen=True, kw_only=True)
class FolderBase:
    """A Hugging Face ``folder``, its model as ``base``, and the cache folder ``target`` for the converted model."""

    folder: Path
    target: Path
    base: Base

    @property
    def is_made(self) -> bool:
        """Return whether the folder has been converted."""
        return self.target.is_dir()

    def describe(self) -> str:
        """Describe the conversion and its target."""
        return f"converting the base {self.folder} to {self.target}"

    def make(self) -> None:
        """Convert the folder once: of several processes one converts and the others wait.

        Raises HostError when the disk is full or the cache cannot be written.
        """
        from launcher.checkpoint.convert import convert_once, open_model

        with ExitStack() as stack:
            try:
                convert_once(open_model(self.folder, None, stack), self.target)
            except HostError as error:
                raise HostError(error.message, hint="make room, or set LAUNCHER_CACHE to a folder elsewhere") from error

    def verify(self) -> None:
        """Compare every value of the converted model with the folder. Raises CheckpointError where one differs."""
        from launcher.checkpoint.convert import open_model, verify_converted

        try:
            with ExitStack() as stack:
                verify_converted(open_model(self.folder, None, stack), self.target)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base {self.target}, made of {self.folder}, differs from it: {error.message}",
                hint=f"rm -r {self.target}; the next launcher submit converts it again",
            ) from error


def folder_base(folder: Path, model: Mapping[str, Any], cache: Path) -> FolderBase:
    """Check the weights of ``folder`` against ``model``, the model section of a run spec; nothing is written.

    Only headers and samples of the weights are read. Raises CheckpointError with everything that differs.
    """
    from launcher.checkpoint.convert import open_model

    with ExitStack() as stack:
        opened = open_model(folder, None, stack)
        found = {name: (whole.shape, whole.dtype) for name, whole in opened.tensors.items()}
        target = cache / _key(opened)
    base = check_folder(folder, found, model)
    made = Base(path=target / WEIGHTS, dtypes=base.dtypes, notes=(*base.notes, f"base: made of {folder}"))
    return FolderBase(folder=folder, target=target, base=made)


def _key(opened: Model) -> str:
    """Return a hash that identifies the weights: file sizes, times, samples of every tensor, and the config.json."""
    files = sorted((file.path.name, file.size, file.mtime_ns, fingerprint(file)) for file in opened.files)
    text = json.dumps([_VERSION, files, opened.config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
