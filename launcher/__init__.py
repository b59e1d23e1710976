"""From a raw JSON dataset to a model that answers, on Ascend cards or a laptop.

``launcher.submit``, ``job``, ``list_jobs``, ``load`` and ``report`` are those of ``launcher.api``, which is imported
when one of them is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from launcher.api import Job, LoadedModel, job, list_jobs, load, report, submit

__all__ = ["Job", "LoadedModel", "job", "list_jobs", "load", "report", "submit"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from launcher import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
