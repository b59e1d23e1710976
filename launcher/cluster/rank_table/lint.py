"""The linter of rank tables, which reports every problem at once: ``check_file`` and ``check_text``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.cluster.rank_table.lint_v1 import lint_v1
from launcher.cluster.rank_table.lint_v2 import lint_v2
from launcher.cluster.rank_table.problems import Report
from launcher.cluster.rank_table.reading import parse_document, read_document
from launcher.cluster.rank_table.values import string

VERSIONS = ("1.0", "1.2", "2.0")
_OLD_OR_OTHER = {
    "1.1": 'version "1.1" is for heterogeneous HCCL, which MindSpore does not use',
    "2": 'write "2.0" for a 950',
    "1": 'write "1.0"',
}


def check_file(path: Path) -> Report:
    """Return every finding about the file at ``path``. Never raises because of its contents."""
    return load_table(path)[1]


def check_text(text: str, name: str = "rank_table.json") -> Report:
    """Return every finding about a table that is not on disk."""
    report = Report(name=name)
    document = parse_document(text.encode("utf-8", "surrogatepass"), report)
    if document is not None:
        lint(document, report)
    return report


def load_table(path: Path) -> tuple[Any, Report]:
    """Return the JSON document at ``path`` (None if it is not JSON) and every finding about it."""
    report = Report(name=str(path))
    document = read_document(path, report)
    if document is not None:
        lint(document, report)
    return document, report


def lint(document: Any, report: Report) -> None:
    """Add every finding about ``document`` to ``report``."""
    if not isinstance(document, dict):
        report.add("E_TYPE", "$", document, "a rank table is an object")
        return
    if is_legacy(document):
        report.version = "legacy"
        report.add("W_LEGACY", "$.group_list", document["group_list"], "no version, and group_list for server_list")
        return
    report.version = _version(document, report)
    if report.version == "2.0" or (report.version not in VERSIONS and "rank_list" in document):
        lint_v2(document, report)
    else:
        lint_v1(document, report)


def is_legacy(document: dict[str, Any]) -> bool:
    """Return True for one of the two old templates without ``version`` ("lab" and "cloud")."""
    return "version" not in document and "group_list" in document and "server_list" not in document


def _version(document: dict[str, Any], report: Report) -> str | None:
    version = string(report, document, "version", "$")
    if version is not None and version not in VERSIONS:
        report.add("E_VERSION", "$.version", version, _OLD_OR_OTHER.get(version, ""))
    if "prefill_device_list" in document:
        report.add(
            "N_FOREIGN",
            "$.prefill_device_list",
            detail="this is vllm-ascend's file for splitting prefill and decode",
        )
    return version
