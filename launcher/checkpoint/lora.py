"""The scale of LoRA's B A for each weight, from the adapter_config.json of MindFormers or peft.

peft 0.21, tuners/lora/layer.py (update_layer) and utils/other.py (get_pattern_key).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import CheckpointError
from launcher.models.registry import hf_modules

# Keys of peft that change what the adapters mean, or add weights that no LoRA of MindFormers has.
_NOT_PLAIN = (
    *("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora", "layer_replication", "modules_to_save"),
    *("trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
    *("kasa_config", "arrow_config", "monteclora_config", "velora_config"),
)
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """alpha and rank of the adapters, with exceptions for weights whose name ends in a match of a pattern (a regex).

    rank_stabilized: the scale is alpha / sqrt(rank), not alpha / rank.
    """

    alpha: float
    rank: int
    rank_stabilized: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _alpha(self.alpha)
        _rank(self.rank)

    def rank_of(self, weight: str) -> int:
        """Return r of the adapters of ``weight``, by MindFormers' name."""
        return _by_pattern(self.rank_pattern, weight, self.rank)

    def scale_of(self, weight: str) -> float:
        """Return the scale of B A for ``weight``."""
        rank = self.rank_of(weight)
        alpha = _by_pattern(self.alpha_pattern, weight, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def unused_pattern(self, weights: Iterable[str]) -> str:
        """Return a pattern that matches none of ``weights``, or "" when all match."""
        found = list(weights)
        patterns = (*self.alpha_pattern, *self.rank_pattern)
        return next((key for key in patterns if not any(_matches(key, weight) for weight in found)), "")


def _by_pattern(patterns: Mapping[str, _Value], weight: str, default: _Value) -> _Value:
    return next((value for key, value in patterns.items() if _matches(key, weight)), default)


def _matches(pattern: str, weight: str) -> bool:
    """Return whether ``pattern`` matches the module name of ``weight`` in MindFormers or in transformers."""
    module = weight.removesuffix(".weight")
    return any(re.match(rf"(.*\.)?({pattern})$", name) for name in (module, *hf_modules(module)))


def read_lora(path: Path) -> LoraConfig:
    """Read the settings in an adapter_config.json.

    Raises CheckpointError when it lacks alpha or r, or is not for plain LoRA.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = LoraConfig(
            alpha=_alpha(config["lora_alpha"]),
            rank=_rank(config["r"]),
            rank_stabilized=bool(config.get("use_rslora")),
            alpha_pattern={_regex(key): _alpha(value) for key, value in _pattern(config, "alpha_pattern")},
            rank_pattern={_regex(key): _rank(value) for key, value in _pattern(config, "rank_pattern")},
        )
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{path}: r and lora_alpha are missing or wrong: {error}", hint="mend it") from error
    _check_plain(path, config)
    return found


def only_scale(scales: Mapping[str, float]) -> float | None:
    """Return the single value of ``scales``; None when there are none or several."""
    found = set(scales.values())
    return found.pop() if len(found) == 1 else None


def recorded_scale(scales: Mapping[str, float]) -> float | dict[str, float] | None:
    """Return ``scales`` for merge.json: a single value, one per weight, or None."""
    return only_scale(scales) if len(set(scales.values())) < 2 else dict(scales)


def scales_text(scales: Mapping[str, float]) -> str:
    """List the distinct values of ``scales`` in a sentence."""
    return ", ".join(f"{scale:g}" for scale in sorted(set(scales.values())))


def read_single_scale(path: Path) -> float:
    """Read the single scale of all adapters from adapter_config.json. Raises CheckpointError when there are several."""
    found = read_lora(path)
    if found.alpha_pattern or found.rank_pattern:
        raise CheckpointError(
            f"{path} gives weights different scales (alpha_pattern, rank_pattern)",
            hint="fold the adapter into its base with peft (merge_and_unload), and use that",
        )
    return found.scale_of("")


def _alpha(value: Any) -> float:
    if not 0 < float(value) < 1e9:
        raise ValueError(f"lora_alpha {value}")
    return float(value)


def _rank(value: Any) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"r {value}")
    return int(value)


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r}: {error}") from error
    return pattern


def _pattern(config: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{key} is {pattern!r}, not an object")
    return pattern.items()


def _check_plain(path: Path, config: Mapping[str, Any]) -> None:
    odd = {key: config[key] for key in _NOT_PLAIN if config.get(key)}
    odd |= {"bias": config["bias"]} if config.get("bias", "none") not in (None, "none") else {}
    odd |= {"peft_type": config["peft_type"]} if str(config.get("peft_type") or "LORA").upper() != "LORA" else {}
    if odd:
        said = ", ".join(f"{key}: {json.dumps(value)[:60]}" for key, value in odd.items())
        raise CheckpointError(
            f"{path} is not of plain LoRA: {said}", hint="merge it with the library that trained it (peft)"
        )
