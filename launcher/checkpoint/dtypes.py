"""Element types by the names that numpy, MindSpore's .ckpt and safetensors give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# mindspore 2.9.0, train/serialization.py, tensor_to_ms_type.
CKPT_NAMES = {
    "float16": "Float16",
    "bfloat16": "BFloat16",
    "float32": "Float32",
    "float64": "Float64",
    "int8": "Int8",
    "int16": "Int16",
    "int32": "Int32",
    "int64": "Int64",
    "uint8": "UInt8",
    "uint16": "UInt16",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "bool": "Bool",
}
# safetensors 0.8, src/tensor.rs, enum Dtype.
SAFETENSORS_NAMES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
FROM_CKPT = {theirs: ours for ours, theirs in CKPT_NAMES.items()}
FROM_SAFETENSORS = {theirs: ours for ours, theirs in SAFETENSORS_NAMES.items()}
# Of GGUF: blocks of 32 numbers, each of a float16 scale and 32 bytes.
Q8_0 = "q8_0"
Q8_0_ITEMS, _Q8_0_BYTES = 32, 34
FLOATS = ("float16", "bfloat16", "float32", "float64")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of ``name`` (a key of CKPT_NAMES); bfloat16 is ml_dtypes', imported on demand."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def item_size(name: str) -> int:
    """Return the bytes of one element of dtype ``name``."""
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def row_size(name: str, items: int) -> int:
    """Return the bytes of a row of ``items`` elements of dtype ``name``, or of Q8_0."""
    return items // Q8_0_ITEMS * _Q8_0_BYTES if name == Q8_0 else items * item_size(name)


def quantized(rows: Array) -> npt.NDArray[np.uint8]:
    """Return float32 ``rows`` (rows, items) as blocks of Q8_0 (rows, bytes), bit for bit as llama.cpp makes them."""
    import gguf

    found: npt.NDArray[np.uint8] = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    return found


def dequantized(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return ``rows`` of Q8_0 (rows, bytes) as numbers (rows, items)."""
    import gguf

    found: npt.NDArray[np.float32] = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    return found
