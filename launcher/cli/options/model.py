"""Options that the commands which ask a model share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.options.common import Decorated, NumberRange, Text, jobs_dir_option
from launcher.cli.options.completion import job_ids

if TYPE_CHECKING:
    from launcher.inference.model import Model
    from launcher.inference.sampling import GenerationSpec
    from launcher.inference.sources import Given

_PATH = click.Path(path_type=Path)
_MODEL = (
    click.option("--adapter", metavar="JOB|PATH", help="LoRA on top of MODEL, kept apart: a job, a folder or a file."),
    click.option("--config", type=_PATH, help="launcher_model.json or config.json of a weights file."),
    click.option("--tokenizer", type=_PATH, help="tokenizer.model or tokenizer.json, when none goes with MODEL."),
    click.option("--template", help="Prompt template, when MODEL does not say which it was trained with."),
    click.option("--context", type=click.IntRange(min=2), help="Tokens of prompt and answer together."),
    click.option("--device", "device_id", type=click.IntRange(min=0), help="Ascend card to use."),
    jobs_dir_option,
)
# Without a default here: what is left out, the model says (``generation`` in its run spec).
_SAMPLING = (
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Most tokens of an answer."),
    click.option(
        "--temperature",
        type=NumberRange(min=0, max=100),
        help="0 is greedy: always the likeliest token.",
    ),
    click.option("--top-k", type=click.IntRange(min=0), help="Sample among the K likeliest; 0 is all."),
    click.option(
        "--top-p",
        type=NumberRange(min=0, max=1, min_open=True),
        help="Sample among the likeliest that make up P together.",
    ),
    click.option(
        "--repetition-penalty",
        type=NumberRange(min=0, max=100, min_open=True),
        help="Above 1, what was said becomes less likely.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same text."),
    click.option("--stop", multiple=True, type=Text(), help="Text that ends an answer; give several."),
)


def model_options(command: Decorated) -> Decorated:
    """The MODEL argument and how to complete what it does not say."""
    return _apply(
        command, (click.argument("reference", metavar="MODEL", default="last", shell_complete=job_ids), *_MODEL)
    )


def model_choices(command: Decorated) -> Decorated:
    """How to complete what a model does not say of itself."""
    return _apply(command, _MODEL)


def sampling_options(command: Decorated) -> Decorated:
    return _apply(command, _SAMPLING)


def _apply(command: Decorated, options: tuple[Callable[[Any], Any], ...]) -> Decorated:
    for option in reversed(options):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> Given:
    from launcher.inference.sources import Given

    return Given(**{name: options[name] for name in ("adapter", "config", "tokenizer", "template", "context")})


def find(reference: str, options: dict[str, Any]) -> Model:
    """The model, and on stderr what is to be known of how it was found."""
    from launcher.inference.sources import find_model

    model = find_model(reference, options["jobs_dir"], given(options))
    for note in model.notes:
        click.echo(f"note: {note}", err=True)
    return model


def generation_spec(options: dict[str, Any], model: Model) -> GenerationSpec:
    """How to answer: what the options say, else what travels with the model."""
    from launcher.inference.sampling import GenerationSpec

    own = model.generation.model_dump()
    said = {name: options[name] for name in own if options[name] not in (None, ())}
    return GenerationSpec(**{**own, **said}, seed=options["seed"])
