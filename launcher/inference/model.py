"""A model for inference, found but not loaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from launcher.data.templates import ChatTemplate
from launcher.inference.weights import OpenTensors, check
from launcher.models.names import MCORE
from launcher.runspec.sections import GenerationSection, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model for inference, with nothing loaded yet.

    ends: ids that end an answer beside the tokenizer's own. generation: default sampling settings.
    folded: the job whose adapters are folded into the weights in memory.
    notes: for the user, on how it was found.
    template: None when unknown, which does not matter for raw prompts.
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
        """Return the maximum number of tokens of prompt and answer together."""
        return self.spec.seq_length

    def check(self) -> None:
        """Raise CheckpointError when files are damaged, or names or shapes do not fit. Reads headers only."""
        with ExitStack() as stack:
            check(self.open(stack), self.spec, str(self.where))


def is_plain(model: Model) -> bool:
    """Return whether the host's processor computes ``model``, on Ascend hosts too."""
    return model.spec.architecture.route == MCORE
