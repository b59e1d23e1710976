"""A model for inference, found but not loaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from launcher.data.templates import Template, get_template
from launcher.inference.weights import OpenTensors, check
from launcher.models.names import MCORE
from launcher.runspec.sections import GenerationSection, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model for inference, with nothing loaded yet.

    ends: ids that end an answer beside the tokenizer's own. generation: default sampling settings.
    folded: the job whose adapters are folded into the weights in memory.
    moment: the step (epoch, step in it) that is read of a job which has not ended; None for all else.
    notes: for the user, on how it was found.
    template_name: None when unknown, which does not matter for raw prompts.
    """

    name: str
    where: Path
    spec: ModelSpec
    open: OpenTensors
    tokenizer: Path | None
    template_name: str | None
    params_dtype: str = "float32"
    compute_dtype: str = "float32"
    ends: tuple[int, ...] = ()
    generation: GenerationSection = field(default_factory=GenerationSection)
    notes: tuple[str, ...] = ()
    folded: str | None = None
    moment: tuple[int, int] | None = None

    @cached_property
    def template(self) -> Template | None:
        """Return the chat template. Raises DataError when it is missing or invalid."""
        return get_template(self.template_name, self.tokenizer) if self.template_name else None

    @property
    def context(self) -> int:
        """Return the maximum number of tokens of prompt and answer together."""
        return self.spec.seq_length

    @property
    def longest(self) -> int:
        """Return the longest context that the model is made for."""
        return self.spec.max_position_embedding or self.spec.seq_length

    def with_context(self, context: int, longest: int) -> Model:
        """Return the model with another context, and another longest one."""
        values = {**self.spec.model_dump(), "seq_length": context, "max_position_embedding": longest}
        return replace(self, spec=ModelSpec.model_validate(values))

    def check(self) -> None:
        """Raise CheckpointError when files are damaged, or names or shapes do not fit. Reads headers only."""
        with ExitStack() as stack:
            check(self.open(stack), self.spec, str(self.where))


def is_for_cpu(model: Model) -> bool:
    """Return whether the host's processor computes ``model``, on Ascend hosts too."""
    return model.spec.architecture.route == MCORE
