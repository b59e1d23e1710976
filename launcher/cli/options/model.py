"""Options that the commands which ask a model share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import NumberRange, Text, jobs_dir_option
from launcher.cli.options.group import declared, option

if TYPE_CHECKING:
    from launcher.inference.model import Model
    from launcher.inference.sampling import GenerationSpec
    from launcher.inference.sources import Given

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a model does not say of itself, the card, and the jobs folder."""

    adapter: str | None = option(
        "--adapter", metavar="JOB|PATH", help="LoRA adapter to apply to MODEL at run time: a job, a folder or a file."
    )
    config: Path | None = option("--config", type=_PATH, help="launcher_model.json or config.json of a weights file.")
    tokenizer: Path | None = option(
        "--tokenizer", type=_PATH, help="tokenizer.model or tokenizer.json, if MODEL has none."
    )
    template: str | None = option(
        "--template",
        help="Prompt template, when MODEL does not say which it was trained with; own is its folder's.",
    )
    context: int | None = option(
        "--context", type=click.IntRange(min=2), help="Maximum number of tokens of prompt and answer together."
    )
    device_id: int | None = option("--device", type=click.IntRange(min=0), help="Ascend card to use.")
    jobs_dir: Path = declared(jobs_dir_option)

    def given(self) -> Given:
        """Return what completes a model."""
        from launcher.inference.sources import Given

        return Given(
            adapter=self.adapter,
            config=self.config,
            tokenizer=self.tokenizer,
            template=self.template,
            context=self.context,
        )

    def find(self, reference: str) -> Model:
        """Return the model, and print on stderr the notes on how it was found."""
        from launcher.inference.sources import find_model

        model = find_model(reference, self.jobs_dir, self.given())
        for note in model.notes:
            click.echo(f"note: {note}", err=True)
        return model


# All but the seed have no default here: what is left out, the model says (``generation`` in its run spec).
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to choose the tokens of an answer."""

    max_new_tokens: int | None = option("--max-new-tokens", type=click.IntRange(min=1), help="Most tokens per answer.")
    temperature: float | None = option("--temperature", type=NumberRange(min=0, max=100), help="0 is greedy decoding.")
    top_k: int | None = option(
        "--top-k", type=click.IntRange(min=0), help="Sample from the K most likely tokens; 0 means all."
    )
    top_p: float | None = option(
        "--top-p",
        type=NumberRange(min=0, max=1, min_open=True),
        help="Sample from the most likely tokens whose probabilities add up to P.",
    )
    repetition_penalty: float | None = option(
        "--repetition-penalty",
        type=NumberRange(min=0, max=100, min_open=True),
        help="Above 1, tokens that already occurred become less likely.",
    )
    seed: int = option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same text.")
    stop: tuple[str, ...] = option("--stop", multiple=True, type=Text(), help="Text that ends an answer; repeatable.")

    def spec(self, model: Model) -> GenerationSpec:
        """Return how to answer: the options that were given, else what travels with the model."""
        from launcher.inference.sampling import GenerationSpec

        said = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return GenerationSpec(**{**model.generation.model_dump(), **said})
