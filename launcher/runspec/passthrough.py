"""Settings of MindFormers' YAML without a key of the launcher: added to the rendered text, never replacing any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from launcher.errors import SpecError


def with_passed_through(text: str, extra: Mapping[str, Any]) -> str:
    """Return the YAML ``text`` with ``extra`` added. Raises SpecError for a key that has another value already."""
    if not extra:
        return text
    values = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
    clashes = [".".join(keys) for keys in _clashes(values, extra)]
    # MindSpore refuses the one beside optimizer_level, which the text sets; no estimate or split follows the other.
    owned = ("gradient_accumulation_shard", "optimizer_weight_shard_size")
    if any(_names(extra, "parallel", "parallel_optimizer_config", key) for key in owned):
        clashes.append("parallel.parallel_optimizer_config")
    if clashes:
        raise SpecError(
            f"mindformers: the launcher sets {', '.join(clashes)} itself",
            hint="use the launcher's own key for it: launcher config show SPEC prints them all",
        )
    return yaml.safe_dump(_merged(values, extra), allow_unicode=True, sort_keys=False)


def _names(values: Any, *keys: str) -> bool:
    """Return True if ``values`` has a value at ``keys``."""
    for key in keys:
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _clashes(values: Any, extra: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not (isinstance(values, Mapping) and isinstance(extra, Mapping)):
        if values != extra:
            yield keys
        return
    for key in extra:
        if key in values:
            yield from _clashes(values[key], extra[key], (*keys, str(key)))


def _merged(values: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in extra.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
