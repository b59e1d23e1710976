"""Casts between float16 and float32 by whole-array operations: bit for bit numpy's casts, several times as fast.

numpy 1.26 converts halves one element at a time. Here the exponent is moved by an exact multiplication with a power
of two, and rounding is done by adding and subtracting a number whose last place is the half's last place.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.checkpoint.dtypes import Array

_UP, _DOWN = np.float32(2.0**112), np.float32(2.0**-112)  # the exponent biases are 127 and 15
_SIGN_AND_MAGNITUDE = np.int32(-0x80000000 | 0x0FFFE000)
_EXPONENT = np.int32(0x7F800000)
_LEAST_EXPONENT = np.int32((127 - 14) << 23)  # below 2**-14 halves are denormal: their last place stays the same
_TO_MAGIC = np.int32(13 << 23 | 1 << 22)  # 1.5 * 2**13: adding it leaves ten bits of fraction
_SIGN = np.int32(-0x80000000)
_SHIFT_3, _SHIFT_13 = np.int32(1 << 3), np.int32(1 << 13)
_UPPER = 1 if sys.byteorder == "little" else 0
_SPECIAL = 0x7C00  # infinities and NaNs from here on
_GREAT_EXPONENT = (127 + 15) << 23


class HalfCaster:
    """Casts tiles of at most ``size`` elements; holds its own scratch memory, so create one per thread."""

    def __init__(self, size: int) -> None:
        self._ints = np.empty(size, np.int32)
        self._other = np.empty(size, np.int32)

    def widen(self, source: npt.NDArray[np.float16], out: npt.NDArray[np.float32]) -> None:
        """Do ``out[:] = source``; both of one axis and C-contiguous."""
        bits = source.view(np.int16)
        if np.bitwise_and(bits, _SPECIAL, out=self._other.view(np.int16)[: bits.size]).max(initial=0) == _SPECIAL:
            np.copyto(out, source)
            return
        wide = out.view(np.int32)
        np.copyto(wide, bits)
        np.multiply(wide, _SHIFT_13, out=wide)  # numpy has vector loops for products, not for shifts
        np.bitwise_and(wide, _SIGN_AND_MAGNITUDE, out=wide)
        np.multiply(out, _UP, out=out)

    def narrow(self, source: npt.NDArray[np.float32], out: npt.NDArray[np.float16]) -> None:
        """Do ``out[:] = source``, to nearest, ties to even; destroys ``source``. Both of one axis and C-contiguous."""
        magic, bits = self._ints[: source.size], source.view(np.int32)
        np.bitwise_and(bits, _EXPONENT, out=magic)
        if magic.max(initial=0) >= _GREAT_EXPONENT:  # it may become infinite, or is not finite: rare, so by numpy
            with np.errstate(over="ignore"):
                np.copyto(out, source, casting="same_kind")
            return
        np.maximum(magic, _LEAST_EXPONENT, out=magic)
        np.add(magic, _TO_MAGIC, out=magic)
        sign = self._other[: source.size]
        np.bitwise_and(bits, _SIGN, out=sign)
        floats = magic.view(np.float32)
        np.add(source, floats, out=source)
        np.subtract(source, floats, out=source)
        np.multiply(source, _DOWN, out=source)
        np.multiply(bits, _SHIFT_3, out=bits)  # moves the half into the upper sixteen bits, its sign out of them
        np.bitwise_or(bits, sign, out=bits)
        np.copyto(out.view(np.int16), bits.view(np.int16)[_UPPER::2])


def plain_cast(source: Array, out: Array) -> Any:
    """Do ``out[:] = source`` by numpy's own loops."""
    with np.errstate(over="ignore"):
        np.copyto(out, source, casting="unsafe")
