"""``launcher render``: a job as a file for a scheduler, to be looked at, kept, or applied."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from launcher.cli.options.common import jobs_dir_option, set_option
from launcher.cli.options.run import make_options, run_options
from launcher.cli.options.scheduler import counted_cluster


@click.group()
def render() -> None:
    """Write a job down for a scheduler.

    \b
    launcher render kubernetes llama_7b_lora --nodes 2 --kind A2 --image IMAGE --volume CLAIM:/shared
    """


@render.command("kubernetes")
@click.argument("spec")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Pods, one a host.")
@click.option("--cards", type=int, metavar="N", help="Cards in all; full hosts if left out.")
@click.option("--kind", type=click.Choice(["910", "A2", "A3", "950", "310P", "CPU"]), help="Cards of the hosts.")
@click.option("--image", required=True, help="An image with the launcher, MindSpore and CANN.")
@click.option(
    "--volume", "volumes", multiple=True, metavar="CLAIM:/PATH", help="A claim that all pods share, mounted here too."
)
@click.option("--namespace", default="default", show_default=True)
@click.option("--queue", default="default", show_default=True, help="Volcano's queue.")
@click.option("--no-volcano", is_flag=True, help="A plain indexed Job, for clusters without Volcano.")
@click.option("--user", metavar="UID:GID", help="Whom the pods run as, never root; you, or 1000:1000, if left out.")
@click.option("--node-selector", multiple=True, metavar="KEY=VALUE", help="Labels that a node must have.")
@click.option("--shm", default="16Gi", show_default=True, help="Size of /dev/shm.")
@click.option("--cpus", metavar="N", help="CPUs of each pod.")
@click.option("--python", default="python", show_default=True, help="The interpreter in the image.")
@set_option
@click.option("--checkpoint", metavar="PATH", help="Base weights: takes the place of the spec's model.checkpoint.")
@run_options
@click.option("--apply", "apply_it", is_flag=True, help="Create it in the cluster of your kubeconfig.")
@click.option("--context", metavar="NAME", help="With --apply: this context of the kubeconfig.")
@click.option("--dry-run", is_flag=True, help="Print the manifest, and write nothing.")
@jobs_dir_option
def kubernetes(spec: str, cards: int | None, apply_it: bool, context: str | None, dry_run: bool, **more: Any) -> None:
    """Write the job of SPEC as a Volcano Job (or, with --no-volcano, an indexed Job), and its folder.

    Everything that pods read must lie in a --volume which is mounted here at the same path.

    \b
    launcher render kubernetes llama_7b_lora --nodes 2 --kind A2 --image registry/llm:1 \\
        --volume data:/shared --jobs-dir /shared/jobs --apply
    """
    from launcher.control import prepare
    from launcher.schedulers import kubernetes as k8s

    jobs_dir: Path = more.pop("jobs_dir")
    draft_more = {name: more.pop(name) for name in ("checkpoint", "sets")}
    where = _where(more, cards)
    run = {name: more[name] for name in more if name not in _OWN}
    make_draft = partial(
        prepare.draft,
        spec,
        cards=cards,
        port=None,
        jobs_dir=jobs_dir,
        options=make_options(**run),
        where=where,
        **draft_more,
    )
    draft = make_draft()
    for note in draft.notes:
        click.echo(note, err=True)
    if draft.pending:
        click.echo(f"Data: {'would be ' if dry_run else ''}{draft.pending.describe()}", err=True)
    if draft.pending and not dry_run:
        draft.pending.make()
        told, draft = draft.notes, make_draft()
        for note in draft.more_than(told):
            click.echo(note, err=True)
    launch = draft.plan.launch
    assert launch is not None  # noqa: S101 - a draft always has one
    k8s.check_paths(k8s.options_of(launch), draft.plan.paths, draft.plan.inputs)
    file = k8s.render_manifest(launch, draft.plan.paths)
    if dry_run:
        click.echo(file.text.rstrip())
        return
    if apply_it:
        k8s.load_client()
    _write(draft.plan, file)
    click.echo(f"Job {draft.plan.paths.job_id}: {draft.plan.paths.root / file.path}")
    applied = k8s.apply(file, context=context) if apply_it else []
    for made in applied:
        click.echo(f"created {made}")
    click.echo(f"Next: {k8s.shown_next(draft.plan.paths, applied)}")


_OWN = (
    "nodes", "kind", "image", "volumes", "namespace", "queue", "no_volcano", "user", "node_selector", "shm", "cpus",
    "python",
)  # fmt: skip


def _where(options: dict[str, Any], cards: int | None) -> Any:
    from launcher.errors import SpecError
    from launcher.schedulers.kubernetes import KubernetesOptions, make_where

    mine = f"{os.getuid()}:{os.getgid()}" if os.getuid() and os.getgid() else "1000:1000"
    user, separator, group = (options["user"] or mine).partition(":")
    if not user.isdecimal() or not (group.isdecimal() or not separator):
        raise SpecError(f"--user {options['user']!r}: write UID:GID", hint="--user 1000:1000")
    given = {name: options[name] for name in ("image", "namespace", "queue", "shm", "cpus", "python")}
    wanted = KubernetesOptions(
        **given, volumes=options["volumes"], volcano=not options["no_volcano"], user=int(user),
        group=int(group or user), node_selector=options["node_selector"],
    )  # fmt: skip
    where = make_where(counted_cluster({"nodes": options["nodes"], "kind": options["kind"]}, cards), wanted)
    return replace(where, settings={**where.settings, "cards": where.cluster.kind or ""})


def _write(plan: Any, file: Any) -> None:
    from launcher import jobs
    from launcher.common.atomic import write_atomic
    from launcher.control import start
    from launcher.schedulers.kubernetes import kubernetes_name

    record = start.write_job(plan, plan.launch, host="")
    number = kubernetes_name(plan.paths.job_id)
    note = "waits for Kubernetes"
    jobs.write_record(plan.paths, replace(record, where={"kind": "kubernetes", "id": number}, note=note))
    write_atomic(plan.paths.root / file.path, file.text)
