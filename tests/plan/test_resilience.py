"""Switches of MindSpore's and HCCL's own fault tolerance: rendered where their needs are met, else refused."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.cluster.model import Cluster
from launcher.errors import SpecError
from launcher.plan.resilience import check_resilience, resilience_environment
from launcher.runspec.checking import load_spec
from launcher.runspec.sections import RunSpec


def spec(data_parallel: int = 2, **resilience: Any) -> RunSpec:
    """The shipped spec of 8 cards, with a norm to watch."""
    values = load_spec("llama_7b_lora").model_dump(mode="json")
    values["resilience"] = resilience
    values["parallel"] |= {"mode": "semi_auto", "data_parallel": data_parallel}
    values["training"]["max_grad_norm"] = 1.0
    values["mindformers"] = {"monitor_config": {"monitor_on": True, "global_norm_spike_threshold": 3.0}}
    return RunSpec.model_validate(values)


def ascend(kind: str) -> Cluster:
    return Cluster(target="Ascend", kind=kind, hosts=())


def check(asked: RunSpec, cluster: Cluster, *, mindio: bool = True) -> None:
    check_resilience(asked, cluster, here=True, is_installed=lambda _: mindio)


def test_what_is_asked_for_becomes_variables() -> None:
    asked = spec(tft=["TRE", "UCE"], hccl_retry={"times": 3})
    check(asked, ascend("A3"))

    expected = {
        "MS_ENABLE_TFT": "{TRE:1,UCE:1}",
        "HCCL_OP_RETRY_ENABLE": "L1:1,L2:1",
        "HCCL_OP_RETRY_PARAMS": "MaxCnt:3,HoldTime:5000,IntervalTime:1000",
    }
    assert resilience_environment(asked.resilience) == expected
    assert resilience_environment(spec().resilience) == {}


def test_without_mindio_here_other_hosts_may_have_it() -> None:
    check_resilience(spec(tft=["TSP"]), ascend("A2"), here=False, is_installed=lambda _: None)


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (spec(tft=["TTP"]), "A2", "ends all ranks then"),
        (spec(tft=["ARF"]), "A2", "ends all ranks when one has died"),
        (spec(data_parallel=1, tft=["UCE"]), "A2", "parallel.data_parallel 2 or more"),
        (spec(hccl_retry={}), "A2", "on A3 only, and these cards are A2"),
        (spec(tft=["TRE"]).model_copy(update={"mindformers": {}}), "A2", "global_norm_spike_threshold"),
    ],
)
def test_what_cannot_work_is_refused(asked: RunSpec, kind: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        check(asked, ascend(kind))


def test_other_refusals() -> None:
    no_norm = spec(tft=["TRE"])
    no_norm = no_norm.model_copy(update={"training": no_norm.training.model_copy(update={"max_grad_norm": None})})
    with pytest.raises(SpecError, match=r"with training\.max_grad_norm only"):
        check(no_norm, ascend("A2"))
    with pytest.raises(SpecError, match="mindio_ttp is not installed here"):
        check(spec(tft=["HCCE"]), ascend("A2"), mindio=False)
    sections: tuple[dict[str, Any], ...] = ({"tft": ["TRE"]}, {"hccl_retry": {}})
    for section in sections:
        with pytest.raises(SpecError, match=r"resilience\.\w+ needs Ascend cards"):
            check(spec(**section), Cluster(target="CPU", hosts=()))
