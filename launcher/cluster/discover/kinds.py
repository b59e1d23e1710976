"""The family of a chip, from npu-smi's output."""

from __future__ import annotations

import re

from launcher.cluster.discover.npu_smi import Chip

_FIRST_910 = {"910", "910A", "910PROA", "910PREMIUMA", "910PROB"}
_A2 = re.compile(r"910B[1-9]C?(-\d+)?$")
_A3 = re.compile(r"910_?93\d*|910C")


def kind_of(chip: Chip, layout: str) -> str | None:
    """Return the key in cluster.KINDS for ``chip``, None if unknown. ``layout`` is that of NpuInfo, "" from -m.

    The trap: plain "910B" is sold as A2 but printed by first-generation 910 (32 GB, no bfloat16), whose
    Memory-Usage is a real figure; A2 prints 910B1 to 910B4 and 0 / 0.
    """
    name = chip.name.upper().replace("ASCEND", "").strip()
    if layout in ("A3", "950"):
        return layout
    if layout == "310" or name.startswith("310"):
        return "310P"
    if _A3.match(name):
        return "A3"
    if _A2.match(name):
        return "A2"
    if name.startswith("950"):
        return "950"
    if name in _FIRST_910 or name == "910B":
        return "910"
    return _by_memory(chip, layout)


def _by_memory(chip: Chip, layout: str) -> str | None:
    """Return the kind of a chip with an unknown name, by its memory: a first-generation 910 shows DDR, later ones 0."""
    if layout != "HBM" or not chip.hbm_mib:
        return None
    return "910" if chip.memory_mib else "A2"
