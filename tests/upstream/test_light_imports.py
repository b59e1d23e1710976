"""MindFormers imported without what a training run does not use, and those packages used all the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mindspore

PROGRAM = """
import json, sys
from launcher.upstream.light_imports import light_imports
with light_imports():
    import mindspore
with light_imports():  # those of an earlier block are put off still
    import mindformers
absent = [name for name in ("torch", "scipy.stats", "pandas", "aiohttp") if name not in sys.modules]
from mindformers.core.metric import metric
from mindformers.dataset.dataloader import hf_dataloader
smooth = metric.SmoothingFunction().method3
score = metric.sentence_bleu([["a", "b", "c", "d"]], ["a", "b", "c", "d"], smoothing_function=smooth)
rows = hf_dataloader.datasets.Dataset.from_dict({"n": list(range(6))})
mine = hf_dataloader.split_dataset_by_node(rows, rank=1, world_size=2)
try:
    hf_dataloader.datasets.no_such_name
except AttributeError as error:
    said = str(error)
import datasets
print(json.dumps([absent, score, mine["n"][:], said, isinstance(mine, datasets.Dataset), mindformers.__version__]))
"""


def test_what_is_put_off_is_there_when_it_is_used() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)

    absent, score, rows, said, is_dataset, version = json.loads(result.stdout.splitlines()[-1])
    if version != "1.9.0":
        pytest.skip(f"not tried with mindformers {version}")
    assert absent == ["torch", "scipy.stats", "pandas", "aiohttp"]
    assert score == 1.0
    assert rows == [3, 4, 5]
    assert "no_such_name" in said
    assert is_dataset
