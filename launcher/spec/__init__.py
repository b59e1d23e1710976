"""The run spec: what the user asks for, parsed once, every problem reported at once with its place.

A spec is a YAML file that users own. Relative paths in it are relative to the working folder.
"""

from launcher.spec.checking import load_source, load_spec, parse_spec
from launcher.spec.layers import Override, parse_sets
from launcher.spec.reading import Loc, SpecSource, find_spec, parse_text, read_source
from launcher.spec.sections import (
    LLAMA_LINEAR_LAYERS,
    DataSpec,
    EvaluationSpec,
    GenerationSection,
    LoraSpec,
    ModelSpec,
    ParallelSpec,
    PrecisionSpec,
    RunSpec,
    RuntimeSpec,
    ScheduleSpec,
)

__all__ = [
    "LLAMA_LINEAR_LAYERS",
    "DataSpec",
    "EvaluationSpec",
    "GenerationSection",
    "Loc",
    "LoraSpec",
    "ModelSpec",
    "Override",
    "ParallelSpec",
    "PrecisionSpec",
    "RunSpec",
    "RuntimeSpec",
    "ScheduleSpec",
    "SpecSource",
    "find_spec",
    "load_source",
    "load_spec",
    "parse_sets",
    "parse_spec",
    "parse_text",
    "read_source",
]
