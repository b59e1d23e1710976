"""MindSpore's and HCCL's own means against faults: what they need, and the variables that switch them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

from launcher.cluster.model import Cluster
from launcher.errors import SpecError
from launcher.runspec.sections import ResilienceSpec, RunSpec

# mindspore 2.9.0, utils/utils.py (NEED_MINDIO) and train/callback/_train_fault_tolerance.py (get_optimizer_wrapper).
_NEED_MINDIO = ("UCE", "HCCE", "TSP")
_NEED_COPIES = ("UCE", "HCCE")
_MINDIO = "mindio_ttp"

# Survivors are needed after a rank's death, at which the launcher ends all ranks.
_REFUSED = {
    "TTP": "it saves a checkpoint after a rank has died, and the launcher ends all ranks then",
    "ARF": "it starts a single rank anew, and the launcher ends all ranks when one has died",
}


def check_resilience(
    spec: RunSpec, cluster: Cluster, *, here: bool, is_installed: Callable[[str], object] = find_spec
) -> None:
    """Raise SpecError where a switch of a resolved ``spec`` would not work, with the reason.

    ``here``: the ranks run on this host, so what is installed on it counts.
    """
    asked = spec.resilience
    if cluster.target == "CPU" and (asked.tft or asked.hccl_retry):
        key = "tft" if asked.tft else "hccl_retry"
        raise SpecError(f"resilience.{key} needs Ascend cards; this run is on CPU", hint=f"leave resilience.{key} out")
    if asked.hccl_retry and cluster.kind not in (None, "A3"):
        raise SpecError(
            f"resilience.hccl_retry: HCCL repeats collectives on A3 only, and these cards are {cluster.kind}",
            hint="leave resilience.hccl_retry out; --max-restarts starts the job again",
        )
    for name in asked.tft:
        if reason := _lack(name, spec, missing=here and not is_installed(_MINDIO)):
            hint = f"leave {name} out of resilience.tft; --max-restarts starts the job again from its checkpoint"
            raise SpecError(f"resilience.tft {name}: {reason}", hint=hint)


def _lack(name: str, spec: RunSpec, *, missing: bool) -> str | None:
    """Return the need of a switch that is not met."""
    if name in _REFUSED:
        return _REFUSED[name]
    if name in _NEED_MINDIO and missing:
        return f"it needs MindIO, and the package {_MINDIO} is not installed here"
    if name in _NEED_COPIES and (spec.parallel.data_parallel or 1) < 2:
        return "it copies weights from another rank that has the same: it needs parallel.data_parallel 2 or more"
    return _lack_of_norm(spec) if name == "TRE" else None


def _lack_of_norm(spec: RunSpec) -> str | None:
    """Return the setting without which MindFormers watches no norm (1.9.0, core/callback, global_norm_spike)."""
    if spec.training.max_grad_norm is None:
        return "it watches the gradient norm, which is computed with training.max_grad_norm only"
    monitor = spec.mindformers.get("monitor_config") or {}
    if not (isinstance(monitor, Mapping) and monitor.get("global_norm_spike_threshold")):
        return "it needs to know which norm is wrong: set mindformers.monitor_config.global_norm_spike_threshold"
    return None


def resilience_environment(asked: ResilienceSpec) -> dict[str, str]:
    """Return the variables of the ranks, the same on every one.

    L1 and L2 are collectives between hosts and between super pods, in which the links within a host are repeated too;
    L0, within one host, CANN does not repeat (environment reference, HCCL_OP_RETRY_ENABLE).
    """
    found = {}
    if asked.tft:
        found["MS_ENABLE_TFT"] = "{" + ",".join(f"{name}:1" for name in asked.tft) + "}"
    if retry := asked.hccl_retry:
        found["HCCL_OP_RETRY_ENABLE"] = "L1:1,L2:1"
        found["HCCL_OP_RETRY_PARAMS"] = (
            f"MaxCnt:{retry.times},HoldTime:{retry.hold_ms},IntervalTime:{retry.interval_ms}"
        )
    return found
