"""``launcher infer`` and ``launcher eval``."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.options import job_argument, jobs_dir_option


@click.command()
@job_argument
@click.option("--prompt", "prompts", multiple=True, help="A question; give several for one batch.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="A text file with one question a line.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without the template of training.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Sample among the K likeliest; 0 is all.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same text.")
@jobs_dir_option
def infer(
    job: str,
    prompts: tuple[str, ...],
    file: Path | None,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    jobs_dir: Path,
) -> None:
    """Ask the merged model of JOB, or of a folder that merge-ckpt wrote.

    \b
    launcher infer last --prompt "小明有3个苹果，妈妈又给他5个，现在有几个？"
    """
    from launcher.infer import GenerationSpec, Session, find_merged
    from launcher.prompts import collect
    from launcher.quiet import quiet

    asked = collect(prompts, file)
    spec = GenerationSpec(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    merged = find_merged(job, jobs_dir)
    with quiet():
        answers = Session(merged, batch_size=len(asked)).answer(asked, spec, raw=raw)
    for answer in answers:
        if len(asked) > 1:
            click.echo(f"> {answer.prompt}")
        click.echo(answer.text)


@click.command("eval")
@job_argument
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Held-out rows: a .mindrecord file.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows.")
@jobs_dir_option
def evaluate(job: str, data: Path, limit: int | None, jobs_dir: Path) -> None:
    """Print the loss of JOB's merged model on held-out rows: mean cross entropy (nats) of the learnt tokens.

    \b
    launcher eval last --data demo/eval.mindrecord
    """
    from launcher.errors import DataError
    from launcher.infer import Session, find_merged
    from launcher.quiet import quiet

    if not data.is_file():
        raise DataError(f"{data} does not exist", hint="launcher data preprocess makes one")
    merged = find_merged(job, jobs_dir)
    with quiet():
        loss = Session(merged).loss(data, limit=limit)
    click.echo(f"{loss:.4f}")
