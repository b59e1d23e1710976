"""Packages without the imports of their __init__, for uses that need only one module of a big package."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def package_folder(name: str, tried: str) -> Path | None:
    """Return the folder of the installed package ``name``; None if it is imported already or not version ``tried``."""
    if name in sys.modules or _version(name) != tried:
        return None
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def put_bare(name: str, folder: Path) -> types.ModuleType:
    """Make ``name`` an empty package over ``folder``: its __init__ never runs, its modules are found as usual."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    package.__spec__.submodule_search_locations = [str(folder)]
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)
    return package


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
