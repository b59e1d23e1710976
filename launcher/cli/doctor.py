"""``launcher doctor``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import format_option, jobs_dir_option
from launcher.cli.options.completion import spec_names
from launcher.cli.options.group import declared, option, takes
from launcher.cli.output.tables import print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from launcher.doctor import Finding, JobNeeds

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, kw_only=True)
class CheckedJob:
    """What is known of the job besides its spec."""

    cards: int | None = option(
        "--cards", type=click.IntRange(min=1), help="Number of cards that the job would use; all if left out."
    )
    inventory: Path | None = option(
        "-i", "--inventory", type=click.Path(path_type=Path), help="Check the hosts of this inventory too."
    )
    port: int | None = option(
        "--port", type=click.IntRange(1024, 65535), help="Port of MindSpore's scheduler, if you set one."
    )
    jobs_dir: Path = declared(jobs_dir_option)

    def needs(self, spec: str | None) -> JobNeeds:
        """Return the needs of a job of ``spec``."""
        from launcher.doctor import needs_of

        return needs_of(spec, cards=self.cards, folder=self.jobs_dir, port=self.port, inventory=self.inventory)


@click.command()
@click.argument("spec", required=False, shell_complete=spec_names)
@takes(CheckedJob, "job")
@format_option
@click.pass_context
def doctor(ctx: click.Context, spec: str | None, job: CheckedJob, form: str) -> None:
    """Check whether this host can run a job (that of SPEC, if given), and say what to type where it cannot.

    Exit code 1 when a check fails; warnings do not count.

    \b
    launcher doctor
    launcher doctor llama_7b_lora --cards 8
    """
    from launcher.doctor import all_checks, worst

    found = all_checks(job.needs(spec))
    findings = list(found) if form == "json" else _printed(found)
    if form == "json":
        print_json({"status": worst(findings), "findings": [asdict(item) for item in findings]})
    ctx.exit(1 if worst(findings) == "fail" else 0)


def _printed(found: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes: some take seconds."""
    findings = []
    for finding in found:
        findings.append(finding)
        _print(finding)
    click.echo(_summary(findings))
    return findings


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
