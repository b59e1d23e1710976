"""Options that say on which hosts a job runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from launcher.cluster.model import Cluster
    from launcher.schedulers import Where

_FILE = click.Path(path_type=Path)

_COUNTED = (
    click.option(
        "--nodes", type=click.IntRange(min=1), metavar="N", help="Hosts to ask a scheduler for; --cards in all."
    ),
    click.option(
        "--kind",
        type=click.Choice(["910", "A2", "A3", "950", "310P", "CPU"]),
        help="Cards of those hosts, which this one may not have.",
    ),
)

_SLURM = (
    click.option("--partition", metavar="NAME", help="Slurm: partition."),
    click.option("--account", metavar="NAME", help="Slurm: account."),
    click.option("--time", "time_limit", metavar="LIMIT", help="Slurm: time limit, as 2:00:00 or 1-12."),
    click.option("--gres", metavar="NAME:N", help="Slurm: cards of each node, as npu:8; --exclusive if left out."),
    click.option("--exclusive", is_flag=True, help="Slurm: whole nodes."),
    click.option(
        "--no-requeue", is_flag=True, help="Slurm: end at the time limit or when preempted; do not go on later."
    ),
    click.option("--sbatch", "sbatch", multiple=True, metavar="KEY=VALUE", help="Slurm: any other option of sbatch."),
)

_OPTIONS = (
    click.option(
        "--scheduler",
        type=click.Choice(["local", "ssh", "slurm", "kubernetes"]),
        default="local",
        show_default=True,
        help="What gives the hosts: this one alone; an inventory, over ssh; Slurm; or Kubernetes.",
    ),
    click.option("-i", "--inventory", type=_FILE, metavar="FILE", help="Hosts and cards, for --scheduler ssh."),
    click.option("--ssh-config", type=_FILE, metavar="FILE", help="For ssh -F; ~/.ssh/config if left out."),
    *_COUNTED,
    *_SLURM,
)

_NAMES = (
    "scheduler", "inventory", "ssh_config", "nodes", "kind", "partition", "account", "time_limit", "gres", "exclusive",
    "no_requeue", "sbatch",
)  # fmt: skip


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of ``where_options``, and the others."""
    return (
        {name: value for name, value in options.items() if name in _NAMES},
        {name: value for name, value in options.items() if name not in _NAMES},
    )


def make_where(options: dict[str, Any], cards: int | None, *, grace_s: float) -> Where | None:
    """What the options ask for; None for this host. Raises SpecError for options that do not go together."""
    kind = options["scheduler"]
    _refuse_strangers(kind, options)
    if kind == "local":
        return None
    if kind == "ssh":
        return _hosts(options, cards)
    if kind == "slurm":
        from launcher.schedulers.slurm import SlurmOptions
        from launcher.schedulers.slurm import make_where as slurm

        given = {name: options[name] for name in ("partition", "account", "time_limit", "gres", "exclusive", "sbatch")}
        asked = SlurmOptions(**given, requeue=not options["no_requeue"])
        return slurm(counted_cluster(options, cards), asked, grace_s=grace_s)
    from launcher.errors import SpecError

    raise SpecError(
        "submit does not know the image and the volume that Kubernetes needs",
        hint="launcher render kubernetes SPEC --image NAME --volume CLAIM:/PATH --apply",
    )


_BELONGS = {
    "ssh": ("inventory", "ssh_config"),
    "slurm": ("nodes", "kind", "partition", "account", "time_limit", "gres", "exclusive", "no_requeue", "sbatch"),
    "local": (),
    "kubernetes": ("nodes", "kind"),
}


def _refuse_strangers(kind: str, options: dict[str, Any]) -> None:
    from launcher.errors import SpecError

    strange = [name for name in _NAMES if name != "scheduler" and options[name] and name not in _BELONGS[kind]]
    if strange:
        option = {"time_limit": "time"}.get(strange[0], strange[0]).replace("_", "-")
        fits = next((other for other, names in _BELONGS.items() if strange[0] in names), "")
        raise SpecError(f"--{option} says nothing with --scheduler {kind}", hint=f"did you mean --scheduler {fits}?")


def _hosts(options: dict[str, Any], cards: int | None) -> Where:
    from launcher.cluster.imagined import first_cards
    from launcher.cluster.inventory import load_inventory
    from launcher.errors import SpecError
    from launcher.schedulers.hosts import make_where as hosts

    if options["inventory"] is None:
        raise SpecError("--scheduler ssh needs an inventory", hint="--inventory rank_tables/2x8.yaml")
    return hosts(first_cards(load_inventory(options["inventory"]), cards), ssh_config=options["ssh_config"])


def counted_cluster(options: dict[str, Any], cards: int | None) -> Cluster:
    """``--nodes`` hosts with ``--cards`` in all, of ``--kind``, under names that only the scheduler will replace."""
    from launcher.cluster.imagined import imagined_hosts
    from launcher.errors import SpecError

    nodes, kind = options["nodes"] or 1, options["kind"]
    if kind is None:
        raise SpecError(
            "which cards the hosts have is not known here", hint="pass --kind A2 (or 910, A3, 950, 310P; CPU for none)"
        )
    return imagined_hosts(nodes, cards, kind)
