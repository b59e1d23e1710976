"""Check of the job's plan: what ``launcher plan`` would refuse, or find tight."""

from __future__ import annotations

from launcher.cluster.model import Cluster
from launcher.doctor.findings import Finding, failed, passed, warned
from launcher.errors import SpecError
from launcher.plan.degrees import resolve_defaults
from launcher.plan.memory import GIB
from launcher.runspec.sections import RunSpec

_ADVICE = "launcher plan SPEC shows the parts; more model_parallel, recompute, or a shorter seq_length need less"


def check_plan(spec: RunSpec, cluster: Cluster) -> Finding:
    """Check that model, settings and cards fit together, and a card's memory suffices by estimate."""
    try:
        resolved = resolve_defaults(spec, cluster)
    except SpecError as error:
        return failed("plan", error.message, error.hint or "launcher plan SPEC")
    degrees, need = resolved.degrees, resolved.memory
    split = f"{degrees.data_parallel} x {degrees.model_parallel} x {degrees.pipeline_stage}"
    least, most = need.band
    if need.pool_gib is None:
        return passed("plan", f"data x model x pipeline: {split}; {need.pool / GIB:.1f} GiB a rank by estimate")
    what = f"{split}; {least:.1f} to {most:.1f} GiB a rank by estimate, of {need.pool_gib:.1f}"
    if need.verdict == "does not fit":
        return failed("plan", f"memory: {what}: does not fit", _ADVICE)
    if need.verdict == "tight":
        return warned("plan", f"memory: {what}: tight", _ADVICE)
    return passed("plan", f"data x model x pipeline: {what}")
