"""Servers in this process whose models are computed in numpy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save_file

from launcher.common.http.connections import Patience
from launcher.common.http.listening import listen, serving, url_of
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.http import Limits, Service, application
from launcher.inference.server.served import Served
from launcher.inference.server.server import opened
from launcher.inference.session import Session
from launcher.inference.sources import find_model
from support.inference_tools import MODEL, make_model


@dataclass(kw_only=True)
class Running:
    """A server that answers. ``log``: its lines."""

    service: Service
    url: str
    log: list[str] = field(default_factory=list)

    @property
    def session(self) -> Session:
        return self.service.models[0].session

    def post(self, path: str, **values: Any) -> Any:
        """The JSON of an answer; a refusal has an "error"."""
        body = {"model": self.service.models[0].name, **values}
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, trust_env=False).json()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60, trust_env=False)


def quick_model(folder: Path, **changes: Any) -> Path:
    """A Qwen3 of random weights, which is computed without MindSpore."""
    return make_model(folder, family="qwen3", head_dim=12, **changes)


def make_adapter(folder: Path) -> Path:
    """A LoRA adapter of large random weights for ``quick_model``, as peft writes it."""
    folder.mkdir()
    random, hidden, queries = np.random.default_rng(1), MODEL.hidden_size, 12 * MODEL.num_heads
    shapes = {"lora_A": (4, hidden), "lora_B": (queries, 4)}
    weights: dict[str, Any] = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{side}.weight": random.normal(0, 1, shape).astype(
            np.float32
        )
        for layer in range(MODEL.num_layers)
        for side, shape in shapes.items()
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def served(name: str, folder: Path, *, batch_size: int = 3, asked_as: str = "") -> Served:
    session = Session(find_model(str(folder), folder.parent / "jobs"), batch_size=batch_size)
    return Served(name=name, session=session, defaults=GenerationSpec(max_new_tokens=8), asked_as=asked_as)


@contextmanager
def running(models: Sequence[Served], token: str | None = None, limits: Limits | None = None) -> Iterator[Running]:
    """Serve inside the block."""
    service = opened(models, limits or Limits(), token=token)
    listener = listen("127.0.0.1", 0)
    found = Running(service=service, url=url_of(listener))
    thread = threading.Thread(target=service.queue.run)
    thread.start()
    try:
        with serving(application(service, found.log.append), listener, Patience(most=64, request_s=30, answer_s=60)):
            yield found
    finally:
        service.queue.stopping.set()
        thread.join()
