"""``launcher doctor``."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.options.common import format_option, jobs_dir_option
from launcher.cli.options.completion import spec_names
from launcher.cli.options.group import declared, option, takes
from launcher.cli.output.tables import print_json

if TYPE_CHECKING:
    from launcher.doctor.findings import JobNeeds


@dataclass(frozen=True, kw_only=True)
class CheckedJob:
    """What is known of the job besides its spec."""

    cards: int | None = option(
        "--cards", type=click.IntRange(min=1), help="Number of cards that the job would use; all if left out."
    )
    inventory: Path | None = option(
        "-i", "--inventory", type=click.Path(path_type=Path), help="Check all hosts of this inventory, over ssh."
    )
    ssh_config: Path | None = option(
        "--ssh-config", type=click.Path(path_type=Path), help="For ssh -F; ~/.ssh/config if left out."
    )
    port: int | None = option(
        "--port", type=click.IntRange(1024, 65535), help="Port of MindSpore's scheduler, if you set one."
    )
    jobs_dir: Path = declared(jobs_dir_option)

    def needs(self, spec: str | None) -> JobNeeds:
        """Return the needs of a job of ``spec``."""
        from launcher.doctor.job import needs_of

        return needs_of(spec, cards=self.cards, folder=self.jobs_dir, port=self.port, inventory=self.inventory)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The search for slow ranks before a run."""

    probe: bool = option(
        "--probe", is_flag=True, help="Find slow ranks: two rounds of pairs (matrix product, all-reduce)."
    )
    probe_dir: Path = option(
        "--probe-dir", type=click.Path(path_type=Path), default=Path("probe"), show_default=True,
        help="Folder to write the probe of Ascend cards to.",
    )  # fmt: skip


@click.command()
@click.argument("spec", required=False, shell_complete=spec_names)
@takes(CheckedJob, "job")
@takes(ProbeOptions, "asked")
@format_option
@click.option("--serve", is_flag=True, help="Answer another host's doctor on stdin; the launcher starts it itself.")
@click.pass_context
def doctor(ctx: click.Context, spec: str | None, job: CheckedJob, asked: ProbeOptions, form: str, serve: bool) -> None:
    """Check whether this host can run a job (that of SPEC, if given), and say what to type where it cannot.

    With --inventory all its hosts are checked at a time, and what is between them. Exit code 1 when a check fails;
    warnings do not count.

    \b
    launcher doctor
    launcher doctor llama_7b_lora --cards 8
    launcher doctor llama_7b_lora --inventory hosts.yaml
    launcher doctor --probe --cards 4
    """
    from launcher.cli.output.checks import print_findings, print_fleet, summary
    from launcher.doctor.checks import all_checks, job_checks
    from launcher.doctor.findings import worst

    if serve:
        _serve()
        return
    if asked.probe:
        ctx.exit(_probe(job, asked, form))
    needs = job.needs(spec)
    if needs.hosts is not None:
        from launcher.control.checkup import check_fleet

        report = check_fleet(needs, needs.hosts, ssh_config=job.ssh_config)
        if form == "json":
            print_json(report.to_dict())
        else:
            print_fleet(report)
        ctx.exit(1 if report.status == "fail" else 0)
    found = job_checks(needs, 0) if needs.inventory_fault else all_checks(needs)
    findings = list(found) if form == "json" else print_findings(found)
    if form == "json":
        print_json({"status": worst(findings), "findings": [asdict(item) for item in findings]})
    else:
        click.echo(summary(findings))
    ctx.exit(1 if worst(findings) == "fail" else 0)


def _probe(job: CheckedJob, asked: ProbeOptions, form: str) -> int:
    """Probe for slow ranks, on CPU ranks of this host; for Ascend cards write what does. Returns the exit code."""
    from launcher.cli.output.checks import print_finding
    from launcher.common.ports import free_port
    from launcher.control.probe import probe_cpu, probed_cluster, write_probe

    cluster = probed_cluster(job.inventory, job.cards)
    if cluster.target == "Ascend" or len(cluster.hosts) > 1:
        typed = write_probe(cluster, asked.probe_dir, job.port or free_port())
        told = "Written, and not yet run on Ascend. Start it on every host; rank 0 says who is slow:"
        lines = "\n".join([told, *(f"  {line}" for line in typed)])
        print_json({"type": typed}) if form == "json" else click.echo(lines)
        return 0
    finding = probe_cpu(cluster.num_devices)
    print_json(asdict(finding)) if form == "json" else print_finding(finding)
    return 1 if finding.status == "fail" else 0


def _serve() -> None:
    """Answer on the stdout that was there at the start; what anything else prints goes to stderr."""
    from launcher.doctor.serving import serve

    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(line: str) -> None:
            answers.write(line + "\n")
            answers.flush()

        serve(sys.stdin, say)
