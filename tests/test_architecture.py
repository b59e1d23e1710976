"""The house: rooms, the direction of every import between them, and where the heavy frameworks may be imported."""

from __future__ import annotations

from pathlib import Path

import architecture
import pytest


@pytest.fixture(scope="module")
def imports() -> list[architecture.Import]:
    return architecture.all_imports()


def test_every_module_has_a_room() -> None:
    """At the top of ``launcher/`` there are no flat modules but the four that are named."""
    homeless = [name for name in architecture.modules() if name and architecture.room_of(name) is None]
    flat = {path.stem for path in architecture.PACKAGE.glob("*.py")}

    assert homeless == ["__main__"]
    assert flat <= architecture.FLAT


def test_imports_go_down(imports: list[architecture.Import]) -> None:
    assert architecture.upward(imports) == []


def test_heavy_frameworks_are_imported_by_few_and_late(imports: list[architecture.Import]) -> None:
    heavy = [item for item in imports if item.target in {f"!{name}" for name in architecture.HEAVY}]
    elsewhere = [item for item in heavy if architecture.room_of(item.module) not in architecture.MAY_IMPORT_HEAVY]

    assert heavy
    assert [item for item in heavy if not item.lazy] == []
    assert elsewhere == []


def test_what_is_imported_in_a_function_counts(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from launcher.a import b, c\nimport numpy.linalg\n"
        "def f():\n    from launcher import a\n    import launcher.a.b\n"
    )
    known = {"": file, "a": file, "a.b": file}

    found = [(item.target, item.lazy) for item in architecture.imports_of("x", file, known)]

    assert sorted(found) == [("!numpy", False), ("a", False), ("a", True), ("a.b", False), ("a.b", True)]
