"""One checkpoint file: its tensors, their byte ranges, and reads by rows.

Everything is read with pread: a file that shrinks meanwhile gives an error, never a crash, and only the requested
bytes are held in memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from launcher.checkpoint import ckpt, safetensors_format
from launcher.checkpoint.dtypes import Array, numpy_dtype
from launcher.checkpoint.entries import CKPT, DamagedFile, Entry, Index, damaged, format_of
from launcher.errors import CheckpointError


class TensorFile:
    """An open checkpoint file of either format; use it in a ``with`` statement. Reads are safe in several threads."""

    def __init__(self, path: Path, index: Index | None = None) -> None:
        """Open ``path``. ``index``: what is in a file of another format, which is then not read.

        Raises CheckpointError when it is missing, damaged, encrypted or of neither format.
        """
        self.path = path
        self.format = format_of(path) if index is None else ""
        try:
            # Without waiting: a named pipe is no checkpoint.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is no file", hint="give a .ckpt or .safetensors file")
            self.size, self.mtime_ns, self.inode = status.st_size, status.st_mtime_ns, status.st_ino
            read_index = ckpt.read_index if self.format == CKPT else safetensors_format.read_index
            self.index: Index = read_index(self) if index is None else index
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self.index.entries

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Read exactly ``nbytes`` bytes at ``offset``. Raises CheckpointError when the file ends or the disk fails."""
        try:
            data = os.pread(self.fd, nbytes, offset)
        except OSError as error:
            raise self._unreadable(error) from error
        return data if len(data) == nbytes else self._pread_rest(data, offset, nbytes)

    def _pread_rest(self, data: bytes, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        buffer[: len(data)] = data
        self._fill(memoryview(buffer)[len(data) :], offset + len(data))
        return bytes(buffer)

    def read_into(self, entry: Entry, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes of ``entry``, beginning at its byte ``start``."""
        for offset, nbytes in self.spans(entry, start, len(out)):
            self._fill(out[:nbytes], offset)
            out = out[nbytes:]

    def spans(self, entry: Entry, start: int, nbytes: int) -> list[tuple[int, int]]:
        """Locate ``nbytes`` bytes of ``entry`` from its byte ``start`` on: (offset in the file, bytes), in order."""
        found = []
        for offset, length in entry.extents:
            if start < length and nbytes > 0:
                part = min(length - start, nbytes)
                found.append((offset + start, part))
                nbytes -= part
                start += part
            start -= length
        return found

    def _fill(self, out: memoryview, offset: int) -> None:
        while len(out):
            try:
                count = os.preadv(self.fd, [out], offset)
            except OSError as error:
                raise self._unreadable(error) from error
            if count == 0:
                raise damaged(self.path, f"it ends at byte {offset}")
            out, offset = out[count:], offset + count

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot read {self.path}: {error.strerror}", hint="look at the disk it is on")

    def array(self, name: str) -> Array:
        """Read the whole tensor ``name``, in its own shape and dtype. Raises KeyError when there is none."""
        entry = self.entries[name]
        out = np.empty(entry.shape, numpy_dtype(entry.dtype))
        if out.nbytes:
            self.read_into(entry, 0, byte_view(out))
        return out


def byte_view(array: Array) -> memoryview:
    """View a C-contiguous ``array`` as bytes, writable when it is. Works for bfloat16, which has no buffer format."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def is_whole(path: Path) -> bool:
    """Return whether ``path`` is valid in its format: the test of resume, merge-ckpt and --list for a whole checkpoint.

    Its tensors are not read. Raises CheckpointError when it cannot be read.
    """
    try:
        with TensorFile(path):
            return True
    except DamagedFile:
        return False
