"""Write tensors into a checkpoint file in one pass: copied inside the kernel where no arithmetic is needed, else in
blocks of rows by a few threads with a few MiB of memory each, whatever the size of the model.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from launcher.checkpoint import ckpt, safetensors_format
from launcher.checkpoint.dtypes import Array, item_size, numpy_dtype, quantized
from launcher.checkpoint.entries import CKPT, damaged
from launcher.checkpoint.halves import HalfCaster, plain_cast
from launcher.checkpoint.tensorfile import byte_view
from launcher.checkpoint.tensors import Fold, Output
from launcher.errors import CheckpointError, HostError

OnBytes = Callable[[int], None]

# More than four wait for the disk, or for each other.
NUM_THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
# A block is what one thread holds at a time; a tile is what stays in its second-level cache during arithmetic.
BLOCK_BYTES = 4 << 20
_COPY_BYTES = 32 << 20
_TILE_ITEMS = 1 << 17
_PRODUCT_TILES = 4
# Twice the bits of the smallest number that is not finite.
_NOT_FINITE = {"float16": 0xF800, "bfloat16": 0xFF00, "float32": 0xFF000000, "float64": 0xFFE0000000000000}
_NO_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM}
# What copy_file_range says when two file systems cannot do it among themselves.
_NO_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows [start, stop) of ``output``, which lie at ``offset`` in the new file."""

    output: Output
    start: int
    stop: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """The planned bytes of a file: ``literals`` (offset, bytes) between the tensors of ``chunks``."""

    literals: tuple[tuple[int, bytes], ...]
    chunks: tuple[Chunk, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A planned file of a result: its name, its tensors, and its bytes."""

    name: str
    outputs: tuple[Output, ...]
    bytes: FilePlan


def planned(name: str, outputs: Sequence[Output], file_format: str, made_for: str) -> PlannedFile:
    """Plan the file ``name`` with ``outputs``. ``made_for``: the "format" in the metadata of safetensors."""
    plan = plan_file(outputs, file_format, {"format": made_for})
    return PlannedFile(name=name, outputs=tuple(outputs), bytes=plan)


def plan_file(outputs: Sequence[Output], file_format: str, metadata: Mapping[str, str]) -> FilePlan:
    """Plan the place of every byte in a file of ``file_format``."""
    if file_format == CKPT:
        return _plan_ckpt(outputs)
    # Wide elements first, as the safetensors library sorts them: every tensor is aligned then.
    ordered = sorted(outputs, key=lambda output: (-item_size(output.dtype), output.name))
    described = ((output.name, output.dtype, output.shape, output.nbytes) for output in ordered)
    header = safetensors_format.header_bytes(described, metadata)
    chunks, offset = [], len(header)
    for output in ordered:
        chunks.append(Chunk(output=output, start=0, stop=output.whole.rows, offset=offset))
        offset += output.nbytes
    return FilePlan(literals=((0, header),), chunks=tuple(chunks), size=offset)


def _plan_ckpt(outputs: Sequence[Output]) -> FilePlan:
    literals, chunks, offset = [], [], 0
    for output in outputs:
        # Cut where save_checkpoint cuts; max(), because a tensor without elements still needs its frame.
        rows = max(1, ckpt.SLICE_BYTES // max(1, output.row_bytes))
        for start in range(0, max(1, output.whole.rows), rows):
            stop = min(start + rows, output.whole.rows)
            nbytes = (stop - start) * output.row_bytes
            head = ckpt.frame(output.name, output.dtype, output.shape, nbytes)
            literals.append((offset, head))
            chunks.append(Chunk(output=output, start=start, stop=stop, offset=offset + len(head)))
            offset += len(head) + nbytes
    return FilePlan(literals=tuple(literals), chunks=tuple(chunks), size=offset)


def write_file(path: Path, plan: FilePlan, on_bytes: OnBytes) -> None:
    """Write the new file ``path``, without syncing. ``on_bytes`` is called with bytes written, from several threads.

    Raises HostError when the disk is full or the file may not be written, CheckpointError when a source is damaged.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            _reserve(fd, plan.size)
            for offset, literal in plan.literals:
                _write(fd, memoryview(literal), offset)
            _run(fd, list(_blocks(plan.chunks)), on_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", hint="make room, or give another --output") from error


def _reserve(fd: int, size: int) -> None:
    """Reserve ``size`` bytes of disk at once: a full disk fails early, and writing costs half as much on ext4.

    Calls fallocate(2) directly: os.posix_fallocate writes every page where a file system (NFS) cannot reserve.
    """
    if sys.platform == "linux":
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if fallocate(fd, 0, 0, size) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_RESERVE:
            raise OSError(code, os.strerror(code))
    os.truncate(fd, size)


def _blocks(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    for chunk in chunks:
        output = chunk.output
        limit = _COPY_BYTES if _is_moved(output) else BLOCK_BYTES
        # A row costs the widest of its forms: in the new file, in the source, and in float32 while adapters are added.
        in_float32 = output.whole.row_items * 4 if output.fold or output.unquantized is not output else 1
        wide = max(output.row_bytes, output.whole.row_bytes, in_float32, 1)
        rows = max(1, limit // wide)
        for start in range(chunk.start, chunk.stop, rows):
            yield Chunk(
                output=output,
                start=start,
                stop=min(start + rows, chunk.stop),
                offset=chunk.offset + (start - chunk.start) * output.row_bytes,
            )


def _is_moved(output: Output) -> bool:
    """Return whether the kernel can copy the bytes: unchanged, consecutive, and not checked to be finite."""
    whole = output.whole
    return output.is_copy and not output.must_be_finite and all(whole.is_wide(piece) for piece in whole.pieces)


def _run(fd: int, blocks: list[Chunk], on_bytes: OnBytes) -> None:
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    stop, lock, adapters = threading.Event(), threading.Lock(), _Adapters()
    pending = iter(blocks)

    def work() -> None:
        worker = _Worker(fd, adapters)
        while not stop.is_set():
            with lock:
                # In file order from one queue, so that threads mostly work on one weight and share its adapters.
                block = next(pending, None)
            if block is None:
                return
            on_bytes(worker.write(block))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            futures = [pool.submit(work) for _ in range(NUM_THREADS)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Also after Ctrl-C: leaving the pool waits for its threads, which would otherwise finish the file first.
            stop.set()
        for future in futures:
            future.result()


class _Adapters:
    """The adapters of the current weight in float32, shared by threads: lora_a (r, in), scale * lora_b (out, r)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Fold | None = None
        self._value: tuple[Array, Array] | None = None

    def get(self, fold: Fold) -> tuple[Array, Array]:
        with self._lock:
            # Loaded while the lock is held: the other threads need the same adapters next and would read them again.
            if self._value is None or self._key is not fold:
                self._value = load_adapters(fold)
                self._key = fold
            return self._value


def load_adapters(fold: Fold) -> tuple[Array, Array]:
    """Return lora_a (r, in) and scale * lora_b (out, r) in float32."""
    lora_b = fold.lora_b.read().astype(np.float32)
    lora_b *= np.float32(fold.scale)
    return fold.lora_a.read().astype(np.float32), lora_b


class _Worker:
    """The writer of one thread, with buffers that are reused for each block."""

    def __init__(self, fd: int, adapters: _Adapters) -> None:
        self._fd = fd
        self._adapters = adapters
        self._caster = HalfCaster(_TILE_ITEMS)
        self._buffers: dict[str, Array] = {}

    def write(self, block: Chunk) -> int:
        """Write ``block`` and return the number of bytes."""
        output = block.output
        if _is_moved(output):
            self._copy(block)
        else:
            self._compute(block)
        return (block.stop - block.start) * output.row_bytes

    def _copy(self, block: Chunk) -> None:
        whole = block.output.whole
        for piece, begin, end, row in whole.parts(block.start, block.stop):
            offset = block.offset + (begin - block.start) * whole.row_bytes
            for source, nbytes in piece.file.spans(piece.entry, row * whole.row_bytes, (end - begin) * whole.row_bytes):
                copy_range(piece.file.fd, source, self._fd, offset, nbytes, piece.file.path)
                offset += nbytes

    def _compute(self, block: Chunk) -> None:
        output, whole, rows = block.output, block.output.whole, block.stop - block.start
        source = self._buffer("source", rows * whole.row_items, whole.dtype)
        scratch = self._buffer("scratch", whole.scratch_bytes(rows), "uint8")
        whole.read_rows(block.start, block.stop, source.reshape(rows, *whole.shape[1:]), scratch)
        made = output.unquantized
        if not made.is_copy:
            source = self._convert(made, source, block.start, rows)
        if made.must_be_finite:
            self._check_finite(replace(block, output=made), source)
        if made is not output:
            source = quantized(source.reshape(rows, -1))
        _write(self._fd, byte_view(source), block.offset)

    def _check_finite(self, block: Chunk, values: Array) -> None:
        """Raise CheckpointError when one of ``values`` is infinite or NaN: when its exponent is all ones."""
        dtype = block.output.dtype
        bits = values.view(f"uint{8 * item_size(dtype)}")
        doubled = self._buffer("doubled", min(bits.size, _TILE_ITEMS), str(bits.dtype))
        for first in range(0, bits.size, _TILE_ITEMS):
            part = bits[first : first + _TILE_ITEMS]
            # Twice the bits: the sign is gone, and the exponent is in front.
            if np.add(part, part, out=doubled[: part.size]).max() >= _NOT_FINITE[dtype]:
                raise _not_finite(block, values)

    def _convert(self, output: Output, source: Array, start: int, rows: int) -> Array:
        if output.fold is None and not _via_float32(output):
            result = self._buffer("result", source.size, output.dtype)
            plain_cast(source, result)
            return result
        # In place when the element type stays: a tile is read before it is written.
        result = source if output.dtype == output.whole.dtype else self._buffer("result", source.size, output.dtype)
        items = output.whole.row_items
        step = max(1, _TILE_ITEMS // max(1, items))
        tile = self._buffer("tile", step * items, "float32")
        factors = self._adapters.get(output.fold) if output.fold else None
        for first in range(0, rows, step):
            last = min(first + step, rows)
            part = tile[: (last - first) * items]
            self._widen(source[first * items : last * items], part)
            if factors is not None:
                np.add(part, self._delta(factors, start, first, rows, step), out=part)
            self._narrow(part, result[first * items : last * items])
        return result

    def _delta(self, factors: tuple[Array, Array], start: int, first: int, rows: int, step: int) -> Array:
        """Return rows [first, first + step) of scale * B A of the block that begins at row ``start``.

        Computes the products of several tiles at once, because BLAS packs lora_a anew for each call.
        """
        items, many = factors[0].shape[1], step * _PRODUCT_TILES
        delta = self._buffer("delta", min(many, rows) * items, "float32").reshape(-1, items)
        # The first tile of each group computes the product; the later tiles take their rows from the buffer.
        begin = first // many * many
        if first == begin:
            end = min(begin + many, rows)
            np.matmul(factors[1][start + begin : start + end], factors[0], out=delta[: end - begin])
        return delta[first - begin : min(first - begin + step, rows - begin)].reshape(-1)

    def _widen(self, source: Array, out: Array) -> None:
        # The caster's scratch holds one tile: a single row that is larger goes through numpy.
        if source.dtype == np.float16 and source.size <= _TILE_ITEMS:
            self._caster.widen(source, out)
        else:
            plain_cast(source, out)

    def _narrow(self, source: Array, out: Array) -> None:
        if out.dtype == np.float16 and source.size <= _TILE_ITEMS:
            self._caster.narrow(source, out)
        else:
            plain_cast(source, out)

    def _buffer(self, use: str, items: int, dtype: str) -> Array:
        nbytes = items * item_size(dtype)
        if use not in self._buffers or self._buffers[use].size < nbytes:
            self._buffers[use] = np.empty(nbytes, np.uint8)
        return self._buffers[use][:nbytes].view(numpy_dtype(dtype))


def _not_finite(block: Chunk, values: Array) -> CheckpointError:
    output = block.output
    with np.errstate(invalid="ignore"):
        count = np.count_nonzero(~np.isfinite(values.astype(np.float64)))
    paths = {str(piece.file.path) for piece, *_ in output.whole.parts(block.start, block.stop)}
    hint = "training diverged or the file is damaged: take an earlier step"
    if output.dtype != output.whole.dtype:
        hint = f"a value is too large for {output.dtype} (--dtype float32 keeps it), or {hint}"
    return CheckpointError(
        f"{output.name} has {count} values that are not finite in {output.dtype}, "
        f"in rows {block.start} to {block.stop - 1} ({', '.join(sorted(paths))})",
        hint=hint,
    )


def _via_float32(output: Output) -> bool:
    """Return whether a cast through float32 tiles is exact: from or to float16, the other side at most float32."""
    pair = {output.dtype, output.whole.dtype}
    return "float16" in pair and pair <= {"float16", "bfloat16", "float32"}


def copy_range(source_fd: int, source: int, target_fd: int, target: int, nbytes: int, path: Path) -> None:
    """Copy ``nbytes`` from ``source`` in one file to ``target`` in another. ``path`` names the source in errors."""
    while nbytes:
        count = _copy_some(source_fd, source, target_fd, target, nbytes)
        if count == 0:
            raise damaged(path, f"it ends at byte {source}")
        source, target, nbytes = source + count, target + count, nbytes - count


def _copy_some(source_fd: int, source: int, target_fd: int, target: int, nbytes: int) -> int:
    try:
        return os.copy_file_range(source_fd, target_fd, nbytes, source, target)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    data = os.pread(source_fd, min(nbytes, 1 << 18), source)
    _write(target_fd, memoryview(data), target)
    return len(data)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        # Linux writes at most 2 GiB per call, and less on a disk that fills up.
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
