"""Engines, the programs that start ranks. All have one small interface, ``launcher.engines.base.Engine``."""

from __future__ import annotations

from launcher.engines.base import Engine
from launcher.engines.direct import Direct
from launcher.engines.mpirun import Mpirun
from launcher.engines.msrun import Msrun

DEFAULT = "msrun"

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Msrun(), Direct(), Mpirun())}
