"""Reading of any bytes as a JSON document, as HCCL's parser (nlohmann::json) would read them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from launcher.cluster.rank_table.problems import Report, show_value

# Finding duplicate keys costs a call an object; beyond this size only a made-up file has that many.
_LARGEST_FOR_DUPLICATES = 32 << 20
# HCCL's own limit for version 2.0; the largest 1.x table there can be has 65,536 ranks and 15 MB.
_LARGEST_FILE = 1 << 30
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_document(path: Path, report: Report) -> Any:
    """Return the JSON value in the file at ``path``; None with E_READ or E_JSON in ``report`` if there is none."""
    try:
        # Before anything is read: HCCL would refuse it too, and it might not fit in memory.
        if path.stat().st_size > _LARGEST_FILE:
            report.add("E_JSON", "$", detail="the file is larger than 1 GiB, which HCCL refuses")
            return None
        if not path.is_file():
            report.add("E_READ", "$", detail="this is no regular file")
            return None
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        report.add("E_READ", "$", detail=getattr(error, "strerror", None) or str(error))
        return None
    # Noted and read all the same: everything else that is wrong is wanted too.
    if path.suffix != ".json":
        report.add("E_FILENAME", "$", path.name)
    return parse_document(raw, report)


def parse_document(raw: bytes, report: Report) -> Any:
    """Return the JSON value of ``raw``, or None with E_JSON in ``report``. JSON's own null gives E_JSON too."""
    text = _decode(raw, report)
    if text is None:
        return None
    try:
        value = _loads(text, report)
    except json.JSONDecodeError as error:
        report.add("E_JSON", "$", detail=_explain(text, error))
    except RecursionError:
        report.add("E_JSON", "$", detail="nested deeper than any rank table: hundreds of [ or { in one another")
    except ValueError as error:  # NaN, Infinity, or an integer of thousands of digits
        report.add("E_JSON", "$", detail=str(error).split(";")[0])
    else:
        if value is None:
            report.add("E_JSON", "$", detail="the file holds nothing but null")
        return value
    return None


def _decode(raw: bytes, report: Report) -> str | None:
    if raw.startswith(_UTF16_MARKS):
        report.add("E_JSON", "$", detail="this is UTF-16; save the file as UTF-8")
        return None
    try:
        # HCCL's parser skips a byte order mark too.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        report.add("E_JSON", "$", detail=f"line {line}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8")
        return None


def _loads(text: str, report: Report) -> Any:
    if len(text) > _LARGEST_FOR_DUPLICATES:
        return json.loads(text, parse_constant=_no_constant)
    doubled: dict[str, None] = {}

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        # The last of equal keys wins, as in HCCL's parser, so this is a note and no error.
        found = dict(items)
        if len(found) != len(items):
            counts = Counter(key for key, _ in items)
            doubled.update((name, None) for name, count in counts.items() if count > 1)
        return found

    value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=pairs)
    for name in doubled:
        report.add("N_DUP_KEY", "$", detail=f"key {show_value(name)} stands twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _explain(text: str, error: json.JSONDecodeError) -> str:
    """Return the place where parsing stopped, and the usual reason for the text there."""
    if not text.strip():
        return "the file is empty"
    rest = text[error.pos : error.pos + 40]
    near = text[max(error.pos - error.colno + 1, error.pos - 30) : error.pos + 30].split("\n")[0].strip()
    return f"line {error.lineno}, column {error.colno}: {_reason(text, rest, error)}; near {show_value(near)}"


def _reason(text: str, rest: str, error: json.JSONDecodeError) -> str:
    # Python's messages name the token that it expected; these are the mistakes that people make.
    before = text[max(0, error.pos - 40) : error.pos].rstrip()
    if rest.startswith(("//", "/*", "#")):
        return "a comment, which JSON does not have"
    if rest.startswith("..."):
        return "'...' in place of the entries left out"
    if (rest[:1] in "]}" and before.endswith(",")) or "trailing comma" in error.msg:
        return "a comma before a closing bracket"
    return error.msg[:1].lower() + error.msg[1:]
