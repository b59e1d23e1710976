"""The folders of templates and configs: the user's working folder first, then the checkout or the wheel, then packages
that add templates.

The wheel carries both folders below ``launcher/_data`` (see pyproject.toml). An editable install and a checkout
have them beside the package instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# The group of entry points in which packages offer files: name = package, whose folder is laid out as templates/ is.
_GROUPS = {"templates": "launcher.templates"}


def search_path(kind: str) -> list[Path]:
    """Return the existing folders for files of ``kind`` ("templates" or "configs"), in order of precedence."""
    candidates = (Path.cwd() / kind, _PACKAGE.parent / kind, _PACKAGE / "_data" / kind, *_of_packages(kind))
    return list(dict.fromkeys(folder for folder in candidates if folder.is_dir()))


def shipped(kind: str) -> Path:
    """Return the folder ``kind`` that came with this version, whatever the working folder has."""
    beside = _PACKAGE.parent / kind
    return beside if (_PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir() else _PACKAGE / "_data" / kind


@cache
def _of_packages(kind: str) -> tuple[Path, ...]:
    """Return the folders of installed packages that offer files of ``kind``, by the names of their entry points."""
    if kind not in _GROUPS:
        return ()
    from importlib import metadata, util  # 30 ms

    entries = metadata.entry_points(group=_GROUPS[kind])
    specs = [util.find_spec(entry.value) for entry in sorted(entries, key=lambda entry: entry.name)]
    return tuple(Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ())


def find(kind: str, name: str) -> Path | None:
    """Return the file ``name`` of ``kind``, or None. ``name`` may be in a subfolder but never above."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        return None
    return next((folder / name for folder in search_path(kind) if (folder / name).is_file()), None)


def names(kind: str, suffix: str) -> list[str]:
    """Return the names of all files of ``kind`` that end in ``suffix``, without it, sorted."""
    return sorted(set(_stems(kind, suffix)))


def _stems(kind: str, suffix: str) -> Iterator[str]:
    for folder in search_path(kind):
        for path in folder.glob(f"*{suffix}"):
            yield path.name.removesuffix(suffix)


def cache_root() -> Path:
    """Return the folder for cached data: $LAUNCHER_CACHE, or ``launcher`` in the user's cache folder."""
    named = os.environ.get("LAUNCHER_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "launcher"


def user_config_file() -> Path:
    """Return the file of the user's own settings, which need not exist: $XDG_CONFIG_HOME/launcher/config.yaml."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "launcher" / "config.yaml"
