"""The rooms of the package and what each may import. ``python -m tests.architecture`` prints them.

A room is a folder below ``launcher/``: the longest entry of ``FLOORS`` that a module's name begins with. What a module
imports inside functions counts as what it imports at its top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "launcher"

# From the top floor down: a room imports rooms that stand below it, and none above.
FLOORS = (
    "cli",
    "cli.output",
    "cli.options",
    "api",
    "sweeps",
    "control",
    "observe",
    "supervise",
    "schedulers",
    "worker",
    "doctor",
    "plan",
    "engines",
    "inference",
    "checkpoint",
    "data",
    "jobs",
    "cluster",
    "runspec",
    "models",
    "upstream",
    "common",
    "errors",
)
# Only these may import the frameworks, and inside functions only: importing them costs seconds and hundreds of MB.
HEAVY = ("mindspore", "mindformers", "transformers", "torch")
MAY_IMPORT_HEAVY = ("worker", "inference", "upstream")
FLAT = {"__init__", "__main__", "errors", "api"}


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target``: a module of this package, or the first name of another package."""

    module: str
    target: str
    line: int
    lazy: bool


def modules() -> dict[str, Path]:
    """Every module by its dotted name below ``launcher``; the package itself is "" ."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str | None:
    """The room of a module; None for the package itself and ``__main__``."""
    fits = [room for room in FLOORS if module == room or module.startswith(f"{room}.")]
    return max(fits, key=len, default=None)


def imports_of(module: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """What ``module`` imports, lazily too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        for name in _targets(node, known):
            yield Import(module, name, node.lineno, id(node) in lazy)  # type: ignore[attr-defined]


def _targets(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        first, _, rest = name.partition(".")
        if first != "launcher":
            yield f"!{first}"
        elif rest in known:
            yield rest
        else:
            yield rest.rpartition(".")[0]


def all_imports() -> list[Import]:
    known = modules()
    return [found for module, path in known.items() for found in imports_of(module, path, known)]


def own(imports: list[Import]) -> list[Import]:
    """Imports of this package's modules by others of it."""
    return [item for item in imports if not item.target.startswith("!") and item.target != item.module]


def arrows(imports: list[Import]) -> set[tuple[str, str]]:
    """(room, room that it imports)."""
    pairs = {(room_of(item.module), room_of(item.target)) for item in own(imports)}
    return {(a, b) for a, b in pairs if a and b and a != b}


def upward(imports: list[Import]) -> list[Import]:
    """Imports of a room that stands above."""

    def is_up(item: Import) -> bool:
        here, there = room_of(item.module), room_of(item.target)
        return here is not None and there is not None and FLOORS.index(there) < FLOORS.index(here)

    return [item for item in own(imports) if is_up(item)]


def circles(imports: list[Import]) -> list[list[str]]:
    """Groups of modules that import each other in a loop. A package's ``__init__`` counts as a module."""
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for item in own(imports):
        graph[item.module].add(item.target)
    reach = {name: _reached(name, graph) for name in graph}
    loops = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    return sorted(sorted(loop) for loop in loops)


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += graph[name]
    return seen


def report() -> str:
    """Rooms from the top down with what each imports, and the counts."""
    imports = all_imports()
    pairs = arrows(imports)
    rooms = [room for room in FLOORS if any(room_of(module) == room for module in modules())]
    lines = [f"{room:13} -> {', '.join(b for b in FLOORS if (room, b) in pairs)}" for room in rooms]
    lines += [f"UP {item.module}:{item.line} -> {item.target}" for item in upward(imports)]
    lines += [f"CIRCLE {', '.join(circle)}" for circle in circles(imports)]
    counts = f"upward {len(upward(imports))}, circles {len(circles(imports))}"
    return "\n".join([*lines, f"rooms {len(rooms)}, arrows {len(pairs)}, {counts}"])


if __name__ == "__main__":
    print(report())
