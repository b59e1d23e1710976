"""The seam: no room but ``schedulers`` knows one of them by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import architecture

from launcher.schedulers import registry

BACKENDS = {f"schedulers.{name}" for name in (*registry.names(), "given")}
# Names of schedulers and of their programs; what a user may read in a command's help is no string of these alone.
WORDS = re.compile(r"\b(slurm|kubernetes|volcano|sbatch|srun|scancel|kubectl)\b", re.IGNORECASE)
NAMES = {"ssh", "slurm", "kubernetes", "hosts", "here", "given"}


def elsewhere() -> dict[str, Path]:
    return {module: path for module, path in architecture.modules().items() if not module.startswith("schedulers")}


def test_no_other_room_imports_one_of_them() -> None:
    known = architecture.modules()
    found = [item for module, path in known.items() for item in architecture.imports_of(module, path, known)]
    outside = [item for item in found if item.target in BACKENDS and not item.module.startswith("schedulers")]

    assert outside == []


def strings(path: Path) -> Iterator[str]:
    """Every string of a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_no_other_room_knows_their_names() -> None:
    said = {(module, text) for module, path in elsewhere().items() for text in strings(path) if WORDS.search(text)}
    compared = {
        (module, node.lineno)
        for module, path in elsewhere().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in NAMES for part in (node.left, *node.comparators))
    }

    assert said == set()
    assert compared == set()
