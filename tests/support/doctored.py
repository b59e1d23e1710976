"""Hosts that are ready for a job, and what ``launcher doctor`` says of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launcher.cli import main
from launcher.doctor.checks import all_checks
from launcher.doctor.findings import JobNeeds
from support.fake_host import CHECKOUT, FakeHost


def ready_host(tmp_path: Path) -> FakeHost:
    """An Ascend host with software that fits the installed MindSpore, no cards yet."""
    fake = FakeHost(root=tmp_path).software()
    fake.write("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    fake.write("proc/sys/net/ipv4/ip_local_reserved_ports", "60000-60031\n")
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    fake.env["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), str(pretend_packages(tmp_path))])
    return fake


def pretend_packages(root: Path, mindspore: str = "2.9.0", mindformers: str = "1.9.0") -> Path:
    """A folder that makes importlib.metadata see this pair, whatever is installed."""
    folder = root / "site"
    for name, version in (("mindspore", mindspore), ("mindformers", mindformers)):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def doctor(host: FakeHost, *arguments: str, **env: str) -> dict[str, dict[str, Any]]:
    """The findings of ``launcher doctor``, by id; of several with one id the worst."""
    with on_host(host, **env):
        done = CliRunner().invoke(main, ["doctor", "--format", "json", *arguments])
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert done.exit_code == (1 if report["status"] == "fail" else 0)
    return by_id(report["findings"])


def found_on(host: FakeHost, **env: str) -> dict[str, dict[str, Any]]:
    """As ``doctor``, without the command line."""
    with on_host(host, **env):
        return by_id([asdict(finding) for finding in all_checks(JobNeeds(folder=host.root / "jobs"))])


@contextmanager
def on_host(host: FakeHost, **env: str) -> Iterator[None]:
    """Make this process one on ``host``: its environment, folder and packages; faster than a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        variables = {**host.variables(), **env}
        for name in set(os.environ) - set(variables):
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.syspath_prepend(host.root / "site")
        patch.chdir(host.root)
        yield


def by_id(findings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The findings by id; of several with one id the worst."""
    found: dict[str, dict[str, Any]] = {}
    for finding in findings:
        assert (finding["fix"] == "") == (finding["status"] == "pass"), finding
        if finding["id"] not in found or finding["status"] != "pass":
            found[finding["id"]] = finding
    return found


def statuses(found: dict[str, dict[str, Any]], *ids: str) -> list[str]:
    return [found[ident]["status"] for ident in ids]


def spec_text(**sections: str) -> str:
    """A small run spec; ``sections`` take the place of those of the same name."""
    return "\n".join(
        {
            "name": "name: mine",
            "model": "model: {hidden_size: 64, num_layers: 2, num_heads: 4, intermediate_size: 172, vocab_size: 256, "
            "seq_length: 64}",
            "data": "data: {sample: {size: 64}}",
            **sections,
        }.values()
    )
