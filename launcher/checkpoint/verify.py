"""Verify written files: read them again and compare them with their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.checkpoint.dtypes import FLOATS, Q8_0, Array, dequantized, numpy_dtype
from launcher.checkpoint.entries import SUFFIXES, Entry, Index, damaged
from launcher.checkpoint.stream import FilePlan, PlannedFile
from launcher.checkpoint.tensorfile import TensorFile, byte_view
from launcher.checkpoint.tensors import Output
from launcher.errors import CheckpointError

# A sample takes this many tensors of each kind (folded, cast, copied), and of each this many rows.
_SAMPLE_TENSORS = 4
_SAMPLE_ROWS = 32
_BLOCK_ITEMS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Verified:
    """``max_error``: the largest |written - (W + scale B A)|, computed in float64, among ``values`` values of
    ``tensors`` tensors; ``tolerance``: half a unit in the last place of the result's dtype at the largest of
    these values, plus the rounding error of float32 sums."""

    tensors: int
    values: int
    max_error: float
    tolerance: float
    full: bool


def verifying_bytes(row_items: int, *, full: bool) -> int:
    """Return an upper bound of ``verify_files``' memory for tensors with at most ``row_items`` elements per row."""
    items = max(_BLOCK_ITEMS if full else min(_BLOCK_ITEMS, _SAMPLE_ROWS * row_items), row_items)
    return 64 * items  # what was written and its source, and half a dozen arrays in float64


def verify_files(files: Mapping[Path, Sequence[Output]], *, full: bool) -> Verified:
    """Read ``files`` again. Raises CheckpointError when a name, a shape or a value is wrong."""
    return joined([_verify_file(path, outputs, full=full) for path, outputs in files.items()])


def verify_planned(files: Mapping[Path, PlannedFile], *, full: bool) -> Verified:
    """Read ``files`` again, each written as planned. Raises CheckpointError as ``verify_files`` does."""
    return joined([_verify_file(path, file.outputs, full=full, plan=file.bytes) for path, file in files.items()])


def joined(found: Sequence[Verified]) -> Verified:
    """Return what several verifications found, as one."""
    return Verified(
        tensors=sum(item.tensors for item in found),
        values=sum(item.values for item in found),
        max_error=max(item.max_error for item in found),
        tolerance=max(item.tolerance for item in found),
        full=all(item.full for item in found),
    )


def _verify_file(path: Path, outputs: Sequence[Output], *, full: bool, plan: FilePlan | None = None) -> Verified:
    checked = list(outputs if full else _sample(outputs))
    values, worst, allowed = 0, 0.0, 0.0
    # Of a format that is only written, what is where is known by the plan.
    with TensorFile(path, None if plan is None or path.suffix in SUFFIXES else _index_of(plan)) as file:
        _check_header(file, outputs)
        if plan is not None:
            _check_literals(file, plan)
        for output in checked:
            factors = _factors(output)
            for start, stop in _row_blocks(output, full=full):
                error, tolerance, count = _check_rows(file, output, factors, start, stop)
                worst, allowed, values = max(worst, error), max(allowed, tolerance), values + count
    return Verified(tensors=len(checked), values=values, max_error=worst, tolerance=allowed, full=full)


def _check_header(file: TensorFile, outputs: Sequence[Output]) -> None:
    wanted = {output.name: (output.dtype, output.shape) for output in outputs}
    written = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    if wanted != written:
        odd = next(iter(set(wanted.items()) ^ set(written.items())))
        raise damaged(file.path, f"it does not hold what was written: {odd[0]}")


def _index_of(plan: FilePlan) -> Index:
    entries = (
        Entry(
            name=chunk.output.name,
            dtype=chunk.output.dtype,
            shape=chunk.output.shape,
            extents=((chunk.offset, chunk.output.nbytes),),
        )
        for chunk in plan.chunks
    )
    return Index(entries={entry.name: entry for entry in entries})


def _check_literals(file: TensorFile, plan: FilePlan) -> None:
    """Check the size of the file, and all that is in it beside the tensors."""
    if file.size != plan.size:
        raise damaged(file.path, f"it has {file.size} bytes of {plan.size}")
    for offset, literal in plan.literals:
        if file.pread(offset, len(literal)) != literal:
            raise damaged(file.path, f"it does not hold what was written, near byte {offset}")


def _sample(outputs: Sequence[Output]) -> Iterator[Output]:
    kinds = (
        [output for output in outputs if output.fold],
        [output for output in outputs if not output.fold and not output.is_copy],
        [output for output in outputs if output.is_copy],
    )
    for group in kinds:
        step = max(1, len(group) // _SAMPLE_TENSORS)
        yield from group[::step]


def _row_blocks(output: Output, *, full: bool) -> Iterator[tuple[int, int]]:
    rows = output.whole.rows
    if full or rows <= _SAMPLE_ROWS:
        step = max(1, _BLOCK_ITEMS // max(1, output.whole.row_items))
        for start in range(0, rows, step):
            yield start, min(start + step, rows)
        return
    for number in range(_SAMPLE_ROWS):
        start = (rows - 1) * number // (_SAMPLE_ROWS - 1)
        yield start, start + 1


def _factors(output: Output) -> tuple[Array, Array] | None:
    if output.fold is None:
        return None
    return output.fold.lora_a.read().astype(np.float64), output.fold.lora_b.read().astype(np.float64)


def _check_rows(
    file: TensorFile, output: Output, factors: tuple[Array, Array] | None, start: int, stop: int
) -> tuple[float, float, int]:
    written = _written_rows(file, output, start, stop)
    source = _source_rows(output, start, stop)
    if output.is_copy:
        if written.tobytes() != source.tobytes():
            raise _wrong(file.path, output, start, "bytes that differ from the shards'")
        return 0.0, 0.0, written.size
    with np.errstate(over="ignore"):
        expected = source.astype(np.float64)
        slack = 0.0
        if factors is not None and output.fold is not None:
            delta = output.fold.scale * (factors[1][start:stop] @ factors[0])
            # Rounding of float32 products and sums: a few places, relative to the largest term.
            slack = 8 * 2.0**-24 * (np.abs(expected).max(initial=0) + np.abs(delta).max(initial=0))
            expected = expected + delta.reshape(expected.shape)
        return (*_error(file.path, output, written, expected, start, slack), written.size)


def _error(
    path: Path, output: Output, written: Array, expected: Array, start: int, slack: float
) -> tuple[float, float]:
    finite = np.isfinite(written.astype(np.float64))
    if not finite.all():
        raise _wrong(path, output, start, f"{np.count_nonzero(~finite)} values that are not finite in {output.dtype}")
    tolerance = _half_place(output.dtype, float(np.abs(expected).max(initial=0))) + slack
    error = float(np.abs(written.astype(np.float64) - expected).max(initial=0))
    if error > tolerance:
        raise _wrong(path, output, start, f"an error of {error:.3g}, tolerance {tolerance:.3g}")
    return error, tolerance


def _half_place(dtype: str, value: float) -> float:
    """Return half the distance between neighbours of ``dtype`` at ``value``."""
    if dtype == Q8_0:  # half a step of the largest number's block, and the rounding of its scale to float16
        return value / 127 * (0.5 + 127 * 2.0**-11)
    digits = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
    if dtype not in FLOATS:
        return 0.0
    least = {"float16": 2.0**-14, "bfloat16": 2.0**-126}.get(dtype, 2.0**-126)
    exponent = np.floor(np.log2(max(value, least)))
    return float(2.0 ** (exponent - digits[dtype] - 1))


def _written_rows(file: TensorFile, output: Output, start: int, stop: int) -> Array:
    is_quantized = output.unquantized is not output
    width = (output.row_bytes,) if is_quantized else output.shape[1:]
    rows = np.empty((stop - start, *width), np.uint8 if is_quantized else numpy_dtype(output.dtype))
    if rows.size:
        file.read_into(file.entries[output.name], start * output.row_bytes, byte_view(rows))
    return dequantized(rows) if is_quantized else rows


def _source_rows(output: Output, start: int, stop: int) -> Array:
    whole = output.whole
    rows = np.empty((stop - start, *whole.shape[1:]), numpy_dtype(whole.dtype))
    if rows.size:
        whole.read_rows(start, stop, rows, np.empty(whole.scratch_bytes(stop - start), np.uint8))
    return rows


def _wrong(path: Path, output: Output, start: int, what: str) -> CheckpointError:
    return CheckpointError(
        f"{output.name}, rows from {start} on: {what}", hint=f"{path.name} was not kept; merge an earlier --step"
    )


def check_architecture(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    hint: str = "the model is another one",
) -> None:
    """Raise CheckpointError, naming the first tensors, when names or shapes are not the architecture's."""
    wrong = [f"missing {name}" for name in expected if name not in found]
    wrong += [f"unknown {name}" for name in found if name not in expected]
    wrong += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        raise CheckpointError(
            f"the weights are not those of the model: {_first(wrong)}",
            hint=hint,
        )


def _first(wrong: Iterable[str]) -> str:
    items = list(wrong)
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")
