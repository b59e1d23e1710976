"""Kubernetes: a Volcano Job (all pods or none), or a plain indexed Job; one pod per host, and all share one volume.

Pod 0 leads, so nothing outside is needed while the job runs. The job's folder must lie in a volume that is mounted at
the same path here and in the pods: paths in it are absolute. Pods run without root.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from launcher import jobs
from launcher.cluster.model import Cluster
from launcher.common import resources
from launcher.common.rendering import RenderedFile, environment, render
from launcher.errors import HostError, JobFailed, LauncherError, SpecError
from launcher.jobs import REQUEUED, JobPaths, JobRecord
from launcher.plan.launch import Launch
from launcher.plan.placement import Placement
from launcher.schedulers.base import KIND, NODES, NoAnswer, Option, Scheduler, asked_to_stop, counted_hosts

if TYPE_CHECKING:
    from launcher.plan.launch_plan import Inputs, LaunchPlan

MANIFEST = "kubernetes.yaml"

# Mount point of the Ascend operator's config map in a pod (MindCluster; Volcano's job plugins have the same).
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
    """The user's options for the pods. ``volumes``: CLAIM:/PATH, at least one. ``user``, ``group``: never 0.

    ``apply``: create the job, in the cluster of the kubeconfig's ``context`` (its current one if None).
    """

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
    apply: bool = True
    context: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> KubernetesOptions:
        """Return the options from the command line. Raises SpecError for a missing image or a malformed user."""
        if not values.get("image"):
            raise SpecError("--scheduler kubernetes needs an image", hint="--image registry/llm:1")
        user, group = _user(values.get("user"))
        names = ("image", "namespace", "shm", "cpus", "python", "context")
        given = {name: values[name] for name in names if values.get(name) is not None}
        return cls(
            **given,
            volumes=tuple(values.get("volume", ())),
            node_selector=tuple(values.get("node_selector", ())),
            volcano=not values.get("no_volcano"),
            queue=values.get("volcano_queue") or "default",
            apply=not values.get("no_apply"),
            user=user,
            group=group,
        )


def _user(asked: str | None) -> tuple[int, int]:
    """Return UID and GID from UID:GID; by default the user's own, but never root."""
    own = f"{os.getuid()}:{os.getgid()}" if os.getuid() and os.getgid() else "1000:1000"
    user, separator, group = (asked or own).partition(":")
    if not user.isdecimal() or not (group.isdecimal() or not separator):
        raise SpecError(f"--user {asked!r}: write UID:GID", hint="--user 1000:1000")
    return int(user), int(group or user)


class Kubernetes(Scheduler):
    name = "kubernetes"
    takes_hosts_away = True
    restarts_agents = False  # Volcano starts the pods again
    is_followed = False
    rank_variables = ("LAUNCHER_NODE_RANK", "VC_TASK_INDEX", "JOB_COMPLETION_INDEX")
    instead = MappingProxyType({
        "--spare-hosts": "the cluster has the spare nodes: Volcano runs the pods again by its restart policy "
        "(--max-restarts); kubectl cordon NODE keeps a bad node out",
    })  # fmt: skip
    dry_run_file = MANIFEST
    options = (
        NODES,
        KIND,
        Option(flag="--image", metavar="NAME", help="an image with the launcher, MindSpore and CANN."),
        Option(
            flag="--volume", multiple=True, metavar="CLAIM:/PATH", help="a claim that all pods share, mounted here too."
        ),
        Option(flag="--namespace", metavar="NAME", help='namespace; "default" if left out.'),
        Option(flag="--volcano-queue", metavar="NAME", help='Volcano\'s queue; "default" if left out.'),
        Option(flag="--no-volcano", is_flag=True, help="a plain indexed Job, for clusters without Volcano."),
        Option(
            flag="--user",
            metavar="UID:GID",
            help="user and group of the pods, never root; yours, or 1000:1000, if left out.",
        ),
        Option(flag="--node-selector", multiple=True, metavar="KEY=VALUE", help="labels that a node must have."),
        Option(flag="--shm", metavar="SIZE", help="size of /dev/shm; 16Gi if left out."),
        Option(flag="--cpus", metavar="N", help="CPUs of each pod."),
        Option(flag="--python", metavar="PATH", help='the interpreter in the image; "python" if left out.'),
        Option(flag="--context", metavar="NAME", help="this context of the kubeconfig."),
        Option(flag="--no-apply", is_flag=True, help="write the job and its manifest, and create nothing."),
    )

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        return placement(counted_hosts(values, cards), KubernetesOptions.of(values))

    def files(self, plan: LaunchPlan) -> Sequence[RenderedFile]:
        check_paths(options_of(plan.launch), plan.paths, plan.inputs)
        return [render_manifest(plan.launch, plan.paths)]

    def ready(self, launch: Launch) -> None:
        """Load the user's kubeconfig."""
        if options_of(launch).apply:
            load_client(options_of(launch).context)

    def submit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        """Create the objects of the manifest in the job's folder, unless the user wants to do that."""
        manifest, options = paths.root / MANIFEST, options_of(launch)
        waiting = replace(record, scheduler_job=kubernetes_name(paths.job_id), note="waits for Kubernetes")
        # Before the pods exist: pod 0 reads the record as soon as it starts.
        jobs.write_record(paths, waiting)
        written = f"Job {paths.job_id}: {manifest}"
        if not options.apply:
            return [written, f"Next: kubectl apply -f {manifest}"]
        made = apply(manifest.read_text(encoding="utf-8"), context=options.context)
        return [written, *(f"created {name}" for name in made), f"Next: launcher status {paths.job_id} --watch"]

    def resubmit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        """Return the command that makes the pods again: those of the last attempt still exist, ended."""
        command = f"kubectl replace --force -f {paths.root / MANIFEST}"
        jobs.write_record(paths, replace(record, note=command))
        return ["Its pods will go on from the newest step that is complete on all ranks.", f"Next: {command}"]

    def unstarted_note(self, paths: JobPaths) -> str:
        manifest = paths.root / MANIFEST
        pods = f"; kubectl delete -f {manifest} takes its pods away" if manifest.exists() else ""
        return f"it did not run{pods}"

    def rank_table(self) -> str | None:
        return operators_table()

    def requeue_note(self, launch: Launch, paths: JobPaths) -> str | None:
        stopped = asked_to_stop(paths)
        return None if stopped else "Kubernetes takes a pod away; the job goes on when it is started again"


SCHEDULER = Kubernetes()


def placement(cluster: Cluster, options: KubernetesOptions) -> Placement:
    """Return the placement for ``options``.

    Raises SpecError with every value that Kubernetes would refuse or read differently.
    """
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
        for name, value in (("namespace", options.namespace), ("volcano-queue", options.queue))
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
    settings = {"options": asdict(options), "cards": cluster.kind or ""}
    return Placement(cluster=cluster, scheduler=Kubernetes.name, settings=settings, agents=True)


def _bad_paths(options: KubernetesOptions) -> list[str]:
    """Return problems of paths that no pod can mount: used twice, over its own root, or with ".." in them."""
    paths = [PurePosixPath(mount["path"]) for mount in mounts(options)]
    problems = [f"--volume ...:{path}: a folder below / and without .." for path in paths if _is_odd(path)]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    return problems + [f"--volume ...:{path} stands twice" for path in twice]


def _is_odd(path: PurePosixPath) -> bool:
    return ".." in path.parts or len(path.parts) < 2


def options_of(launch: Launch) -> KubernetesOptions:
    """Read the options from the launch document; those that an earlier version did not write have their defaults."""
    raw = {item.name: launch.settings["options"].get(item.name, item.default) for item in fields(KubernetesOptions)}
    return KubernetesOptions(**{**raw, "volumes": tuple(raw["volumes"]), "node_selector": tuple(raw["node_selector"])})


def mounts(options: KubernetesOptions) -> list[dict[str, str]]:
    """Return name, claim and path of each volume."""
    found = [match for volume in options.volumes if (match := _VOLUME.fullmatch(volume))]
    return [
        {"name": f"shared{number}", "claim": match["claim"], "path": match["path"]}
        for number, match in enumerate(found)
    ]


def check_paths(options: KubernetesOptions, paths: JobPaths, inputs: Inputs) -> None:
    """Raise SpecError when a file of the job lies in no volume: no pod would find it."""
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
            hint=_where_to_keep(lost, shared[0]),
        )


def _where_to_keep(lost: Sequence[str], volume: PurePosixPath) -> str:
    """Return what to do; data and bases that the launcher makes itself lie in its cache."""
    cached = any(PurePosixPath(path).is_relative_to(resources.cache_root()) for path in lost)
    cache = f"; for what the launcher makes itself: export LAUNCHER_CACHE={volume}/cache" if cached else ""
    return f"pass --jobs-dir {volume}/jobs, and keep data and checkpoints below {volume}{cache}"


# ------------------------------------------------------------------------------------------------ the manifest


def render_manifest(launch: Launch, paths: JobPaths) -> RenderedFile:
    """Return the job's manifest as YAML, which is parsed again as a check."""
    options, env = options_of(launch), environment()
    context = _context(launch, paths, options)
    pod = render(env, "kubernetes_pod.yaml.j2", "pod.yaml", **context).text.rstrip()
    template = "volcano_job.yaml.j2" if options.volcano else "indexed_job.yaml.j2"
    # Several documents are one file here, which the reader of one document must not read back.
    file = render(env, template, "kubernetes.yml.txt", pod=pod, **context)
    if not all(isinstance(document, dict) for document in yaml.safe_load_all(file.text)):
        raise LauncherError(f"{template} renders no manifest:\n{file.text}")
    return RenderedFile(path=MANIFEST, text=file.text)


def _context(launch: Launch, paths: JobPaths, options: KubernetesOptions) -> dict[str, Any]:
    kind = str(launch.settings.get("cards", ""))
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
    """Return ``job_id`` as a name that a label and a host name may have: 50 lower-case letters, digits and "-" at most.

    It begins with a letter, as service names must; pods of it get a suffix.
    """
    name = re.sub(r"[^a-z0-9]+", "-", job_id.lower()).strip("-")[:50].strip("-")
    return name if name[:1].isalpha() else f"j-{name}"


# ------------------------------------------------------------------------------------------------ applying


def load_client(context: str | None = None) -> Any:
    """Return the official client with the user's kubeconfig. Raises HostError when one of them is missing."""
    try:
        kubernetes: Any = importlib.import_module("kubernetes")
    except ImportError as error:
        raise HostError(
            "creating a job needs the Kubernetes client, which is not installed",
            hint="pip install 'launcher[kubernetes]'; --no-apply writes the manifest alone",
        ) from error
    try:
        kubernetes.config.load_kube_config(context=context)
    except Exception as error:  # its own, yaml's, and OSError
        raise HostError(
            f"no kubeconfig can be used: {error}", hint="export KUBECONFIG=FILE; --no-apply needs none"
        ) from error
    return kubernetes


def apply(manifest: str, *, context: str | None = None) -> list[str]:
    """Create the objects of the manifest, with the user's kubeconfig; return "KIND NAME" of each.

    Raises HostError when the cluster refuses one or has it already, NoAnswer when it cannot be reached.
    """
    client = load_client(context).client
    with client.ApiClient() as api:
        return [_create(client, api, document) for document in yaml.safe_load_all(manifest)]


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
        raise NoAnswer(f"Kubernetes cannot be reached: {error}", hint="kubectl cluster-info") from error
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
    """Return the rank table that the Ascend operator writes, "" until it is complete; None where it writes none."""
    file = (folder or Path(os.environ.get("LAUNCHER_RINGS", RINGS_FOLDER))) / RINGS_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return None
    return text if re.search(r'"status"\s*:\s*"completed"', text) else ""
