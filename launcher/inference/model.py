"""A model that can be asked, found but not loaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from launcher.data.templates import ChatTemplate
from launcher.inference.weights import OpenTensors, check
from launcher.runspec.sections import GenerationSection, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that can be asked, nothing of it loaded yet.

    ends: ids that end an answer beside the tokenizer's own. generation: how it answers by default.
    folded: the job whose adapters are in the weights, where they are folded in memory.
    notes: what the user should know of how it was found.
    template: None when it is not known, which is no matter for raw prompts.
    """

    name: str
    where: Path
    spec: ModelSpec
    open: OpenTensors
    tokenizer: Path | None
    template: ChatTemplate | None
    params_dtype: str = "float32"
    compute_dtype: str = "float32"
    ends: tuple[int, ...] = ()
    generation: GenerationSection = field(default_factory=GenerationSection)
    notes: tuple[str, ...] = ()
    folded: str | None = None

    @property
    def context(self) -> int:
        """Tokens that prompt and answer have together."""
        return self.spec.seq_length

    def check(self) -> None:
        """Raises CheckpointError when files are damaged, or names or shapes do not fit. Reads headers only."""
        with ExitStack() as stack:
            check(self.open(stack), self.spec, str(self.where))
