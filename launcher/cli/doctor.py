"""``launcher doctor``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import format_option, jobs_dir_option
from launcher.cli.options.completion import spec_names
from launcher.errors import SpecError

if TYPE_CHECKING:
    from launcher.doctor import Finding, JobNeeds

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.argument("spec", required=False, shell_complete=spec_names)
@click.option("--cards", type=click.IntRange(min=1), help="How many cards the job would use; all if left out.")
@click.option("-i", "--inventory", type=click.Path(path_type=Path), help="Check the hosts of this inventory too.")
@click.option("--port", type=click.IntRange(1024, 65535), help="Port of MindSpore's scheduler, if you name one.")
@jobs_dir_option
@format_option
@click.pass_context
def doctor(
    ctx: click.Context,
    spec: str | None,
    cards: int | None,
    inventory: Path | None,
    port: int | None,
    jobs_dir: Path,
    form: str,
) -> None:
    """Check whether this host can run a job (that of SPEC, if given), and say what to type where it cannot.

    Exit code 1 when a check fails; warnings do not count.

    \b
    launcher doctor
    launcher doctor llama_7b_lora --cards 8
    """
    from launcher.doctor import all_checks, worst

    needs = _needs(spec, cards=cards, inventory=inventory, port=port, jobs_dir=jobs_dir)
    if form == "json":
        findings = list(all_checks(needs))
        click.echo(json.dumps({"status": worst(findings), "findings": [asdict(item) for item in findings]}, indent=2))
    else:
        findings = []
        for finding in all_checks(needs):
            findings.append(finding)
            _print(finding)
        click.echo(_summary(findings))
    ctx.exit(1 if worst(findings) == "fail" else 0)


def _needs(
    spec: str | None, *, cards: int | None, inventory: Path | None, port: int | None, jobs_dir: Path
) -> JobNeeds:
    from launcher.doctor import JobNeeds, needs_of_spec

    needs = JobNeeds(cards=cards, folder=jobs_dir, scheduler_port=port)
    if spec is not None:
        from launcher.runspec.checking import load_spec

        needs = needs_of_spec(load_spec(spec), cards=cards, folder=jobs_dir, port=port)
    if inventory is None:
        return needs
    from launcher.cluster.inventory import load_inventory

    try:
        return replace(needs, hosts=load_inventory(inventory))
    except SpecError as error:
        return replace(needs, inventory_fault=error.message)


def _print(finding: Finding) -> None:
    status = click.style(finding.status, fg=_COLOURS[finding.status])
    click.echo(f"{status}  {finding.id:<15} {finding.what}")
    if finding.fix:
        click.echo(f"{'':<22}-> {finding.fix}")


def _summary(findings: list[Finding]) -> str:
    from launcher.doctor import worst

    counts = Counter(finding.status for finding in findings)
    end = {
        "pass": "this host is ready",
        "warn": "this host can run it; look at the warnings",
        "fail": "this host cannot run it yet",
    }[worst(findings)]
    return f"\n{counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail: {end}"
