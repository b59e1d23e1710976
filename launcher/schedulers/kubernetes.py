"""Kubernetes: a Volcano Job (all pods or none), or a plain indexed Job; one pod a host, and all share one volume.

Pod 0 leads, so nothing outside is needed while the job runs. The job's folder must lie in a volume that is mounted at
the same path here and in the pods: paths in it are absolute. Pods run without root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from launcher.cluster.model import Cluster
from launcher.common.rendering import RenderedFile, environment, render
from launcher.errors import HostError, JobFailed, SpecError
from launcher.jobs import REQUEUED, JobPaths
from launcher.plan.launch import Launch
from launcher.plan.launch_plan import Inputs
from launcher.schedulers import Where
from launcher.schedulers.manifest import check

# Where the Ascend operator's config map is looked for in a pod (MindCluster; Volcano's job plugins have the same).
RINGS_FOLDER = "/user/serverid/devindex/config"
RINGS_FILE = "hccl.json"

# Label values of ring-controller.atlas and resource names of the Ascend device plugin, by kind of card.
_RING = {"910": "ascend-910", "A2": "ascend-910b", "A3": "ascend-910b", "310P": "ascend-310P", "950": "ascend-910b"}
_RESOURCE = {"310P": "huawei.com/Ascend310P"}

_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_VOLUME = re.compile(rf"(?P<claim>{_SUBDOMAIN}):(?P<path>/[^:\n]*)")
_PAIR = re.compile(rf"(?P<key>({_SUBDOMAIN}/)?{_WORD})=(?P<value>({_WORD})?)")
# Amounts as Kubernetes writes them, without zero: "16Gi", "500m", "1.5".
_AMOUNT = re.compile(r"(?=.*[1-9])[0-9]{1,15}(\.[0-9]{1,3})?(m|k|[KMGTP]i?)?")
# The largest user id that Kubernetes takes (core/v1 SecurityContext).
_MOST_ID = 2**31 - 1
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class KubernetesOptions:
    """``volumes``: CLAIM:/PATH, one at least. ``user``, ``group``: whom pods run as; never 0."""

    image: str
    volumes: tuple[str, ...]
    namespace: str = "default"
    queue: str = "default"
    volcano: bool = True
    user: int = 1000
    group: int = 1000
    node_selector: tuple[str, ...] = ()
    shm: str = "16Gi"
    cpus: str | None = None
    python: str = "python"


def make_where(cluster: Cluster, options: KubernetesOptions) -> Where:
    """Raises SpecError with every value that Kubernetes would refuse or understand in another way."""
    problems = [
        f"--volume {volume!r}: write CLAIM:/PATH" for volume in options.volumes if not _VOLUME.fullmatch(volume)
    ]
    problems += [] if options.volumes else ["--volume CLAIM:/PATH is needed: the folder that all pods share"]
    problems += _bad_paths(options)
    problems += [f"--node-selector {p!r}: write KEY=VALUE" for p in options.node_selector if not _PAIR.fullmatch(p)]
    if not re.fullmatch(r"[^\s\x00-\x1f]+", options.image):
        problems.append(f"--image {options.image!r}: write NAME:TAG without blanks")
    problems += [
        f"--{name} {value!r}: lower-case letters, digits and -"
        for name, value in (("namespace", options.namespace), ("queue", options.queue))
        if not _DNS.fullmatch(value)
    ]
    problems += [
        f"--{name} {value!r}: write an amount, such as {example}"
        for name, value, example in (("shm", options.shm, "16Gi"), ("cpus", options.cpus, "8"))
        if value is not None and not _AMOUNT.fullmatch(value)
    ]
    if options.user < 1 or options.group < 1:
        problems.append(f"--user {options.user}:{options.group}: pods do not run as root")
    if max(options.user, options.group) > _MOST_ID:
        problems.append(f"--user {options.user}:{options.group}: {_MOST_ID} at the most")
    if problems:
        raise SpecError("these make no Kubernetes job", problems=problems)
    return Where(kind="kubernetes", cluster=cluster, settings={"kind": "kubernetes", "options": asdict(options)})


def _bad_paths(options: KubernetesOptions) -> list[str]:
    """A pod mounts nothing twice at one path, nor over its own root; and ".." would hide what a path is."""
    paths = [PurePosixPath(mount["path"]) for mount in mounts(options)]
    problems = [f"--volume ...:{path}: a folder below / and without .." for path in paths if _is_odd(path)]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    return problems + [f"--volume ...:{path} stands twice" for path in twice]


def _is_odd(path: PurePosixPath) -> bool:
    return ".." in path.parts or len(path.parts) < 2


def options_of(launch: Launch) -> KubernetesOptions:
    raw = dict(launch.where["options"])
    return KubernetesOptions(**{**raw, "volumes": tuple(raw["volumes"]), "node_selector": tuple(raw["node_selector"])})


def mounts(options: KubernetesOptions) -> list[dict[str, str]]:
    """Name, claim and path of each volume."""
    found = [match for volume in options.volumes if (match := _VOLUME.fullmatch(volume))]
    return [
        {"name": f"shared{number}", "claim": match["claim"], "path": match["path"]}
        for number, match in enumerate(found)
    ]


def check_paths(options: KubernetesOptions, paths: JobPaths, inputs: Inputs) -> None:
    """Raises SpecError when a file of the job lies in no volume: no pod would find it."""
    needed = (paths.root, inputs.dataset, inputs.tokenizer, inputs.checkpoint, inputs.evaluation)
    shared = [PurePosixPath(mount["path"]) for mount in mounts(options)]
    lost = [
        str(path)
        for path in needed
        if path is not None and not any(PurePosixPath(path).is_relative_to(s) for s in shared)
    ]
    if lost:
        raise SpecError(
            "pods find only what lies in a --volume, mounted here at the same path",
            problems=[f"{path} is in none of {', '.join(map(str, shared))}" for path in lost],
            hint="pass --jobs-dir, and keep data and checkpoints there too",
        )


# ------------------------------------------------------------------------------------------------ the manifest


def render_manifest(launch: Launch, paths: JobPaths) -> RenderedFile:
    """The job as YAML, each document held to the schema of what we write."""
    options, env = options_of(launch), environment()
    context = _context(launch, paths, options)
    pod = render(env, "kubernetes_pod.yaml.j2", "pod.yaml", **context).text.rstrip()
    template = "volcano_job.yaml.j2" if options.volcano else "indexed_job.yaml.j2"
    # Several documents are one file here, which the reader of one document must not read back.
    file = render(env, template, "kubernetes.yml.txt", pod=pod, **context)
    for document in yaml.safe_load_all(file.text):
        check(document, template)
    return RenderedFile(path="kubernetes.yaml", text=file.text)


def _context(launch: Launch, paths: JobPaths, options: KubernetesOptions) -> dict[str, Any]:
    kind = str(launch.where.get("cards", ""))
    cards = max(sum(rank.node_rank == node.node_rank for rank in launch.ranks) for node in launch.nodes)
    name = kubernetes_name(paths.job_id)
    labels = {"app.kubernetes.io/managed-by": "launcher", "launcher-job": paths.job_id[:63].rstrip("-_.")}
    ascend = launch.target == "Ascend"
    resources: dict[str, Any] = (
        {_RESOURCE.get(kind, "huawei.com/Ascend910"): str(cards)} if ascend else {"cpu": str(cards)}
    )
    if options.cpus:
        resources["cpu"] = options.cpus
    return {
        "job_id": paths.job_id,
        "name": name,
        "namespace": options.namespace,
        "queue": options.queue,
        "nodes": len(launch.nodes),
        # Volcano fails a job when it has counted maxRetry, the first run included, and reads 0 as 3.
        "most_runs": launch.limits.max_restarts + 1,
        "again_code": REQUEUED,
        "end_codes": (JobFailed.exit_code, 143),
        "labels": {**labels, **({"ring-controller.atlas": _RING[kind]} if kind in _RING else {})},
        "rings": f"rings-config-{name}" if ascend and options.volcano else None,
        "rings_folder": RINGS_FOLDER,
        "scheduler": "volcano" if options.volcano else None,
        "grace_s": int(2 * launch.limits.grace_s + 30),
        "node_selector": _selector(options),
        "user": options.user,
        "group": options.group,
        "image": options.image,
        "command": [
            # Kubernetes puts the value of a variable for $(NAME) in a command, and $ for $$.
            word.replace("$", "$$")
            for word in (options.python, "-m", "launcher", "node", "--first-leads", "--job", str(paths.root))
        ],
        "variables": {"LAUNCHER_ENGINE": launch.engine},
        "resources": resources,
        "volumes": mounts(options),
        "shm": options.shm,
    }


def _selector(options: KubernetesOptions) -> dict[str, str]:
    found = (_PAIR.fullmatch(pair) for pair in options.node_selector)
    return {match["key"]: match["value"] for match in found if match}


def kubernetes_name(job_id: str) -> str:
    """``job_id`` as a name that a label and a host name may have: 50 lower-case letters, digits and "-" at most.

    It begins with a letter, as service names must; pods of it get a suffix.
    """
    name = re.sub(r"[^a-z0-9]+", "-", job_id.lower()).strip("-")[:50].strip("-")
    return name if name[:1].isalpha() else f"j-{name}"


# ------------------------------------------------------------------------------------------------ applying


def load_client() -> Any:
    """The official client. Raises HostError when it is not installed."""
    try:
        import kubernetes
    except ImportError as error:
        raise HostError(
            "--apply needs the Kubernetes client, which is not installed", hint="pip install 'launcher[kubernetes]'"
        ) from error
    return kubernetes


def apply(file: RenderedFile, *, context: str | None = None) -> list[str]:
    """Create what the manifest holds, with the user's kubeconfig; returns "KIND NAME" of each.

    Raises HostError when the cluster cannot be asked, refuses, or has it already.
    """
    kubernetes = load_client()
    try:
        kubernetes.config.load_kube_config(context=context)
    except Exception as error:  # its own, yaml's, and OSError
        raise HostError(f"no kubeconfig can be used: {error}", hint="export KUBECONFIG=FILE") from error
    made = []
    with kubernetes.client.ApiClient() as api:
        for document in yaml.safe_load_all(file.text):
            made.append(_create(kubernetes.client, api, document))
    return made


def _create(client: Any, api: Any, document: Mapping[str, Any]) -> str:
    from urllib3.exceptions import HTTPError

    kind, meta = document["kind"], document["metadata"]
    try:
        if document["apiVersion"] == "v1":
            client.CoreV1Api(api).create_namespaced_config_map(meta["namespace"], document)
        elif document["apiVersion"] == "batch/v1":
            client.BatchV1Api(api).create_namespaced_job(meta["namespace"], document)
        else:
            group, version = document["apiVersion"].split("/")
            client.CustomObjectsApi(api).create_namespaced_custom_object(
                group, version, meta["namespace"], "jobs", document
            )
    except client.ApiException as error:
        raise HostError(
            f"Kubernetes refused {kind} {meta['name']}: {_said(error)}", hint=_hint(error.status)
        ) from error
    except HTTPError as error:
        raise HostError(f"Kubernetes cannot be reached: {error}", hint="kubectl cluster-info") from error
    return f"{kind} {meta['name']}"


def _said(error: Any) -> str:
    match = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    return match[1] if match else f"{error.status} {error.reason}"


def _hint(status: int | None) -> str:
    hints = {
        404: "is Volcano installed? --no-volcano writes a plain Job",
        409: "a job of this name is there already: kubectl delete it, or submit anew",
        401: "log in: kubectl auth whoami",
        403: "ask for the right to create it: kubectl auth can-i create jobs.batch.volcano.sh",
    }
    return hints.get(status or 0, "kubectl apply --dry-run=server -f FILE says more")


# ------------------------------------------------------------------------------------------------ in the pod


def operators_table(folder: Path | None = None) -> str | None:
    """The rank table that the Ascend operator wrote, once it is complete; None where there is none to come."""
    file = (folder or Path(os.environ.get("LAUNCHER_RINGS", RINGS_FOLDER))) / RINGS_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return None
    return text if re.search(r'"status"\s*:\s*"completed"', text) else ""


def shown_next(paths: JobPaths, applied: Sequence[str]) -> str:
    """What to type next."""
    if applied:
        return f"launcher status {paths.job_id} --watch"
    return f"kubectl apply -f {paths.root / 'kubernetes.yaml'}"
