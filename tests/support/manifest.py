"""The schema of the manifests that we write: the fields we use, and no others.

A compact schema of our own, strict where Kubernetes is lenient: a field that is misspelt is an error here and would be
dropped there. Sources: Volcano's CRD batch.volcano.sh_jobs.yaml (volcano-sh/volcano 0318bf611b5e, v1alpha1) and the
Kubernetes API (batch/v1 Job, core/v1 PodSpec and ConfigMap; release 1.31).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.errors import LauncherError

Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
DnsName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)
]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str | int, Field()]
MountPath = Annotated[str, Field(pattern=r"^/[^:]*$")]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metadata(_Part):
    name: DnsName | None = None
    namespace: DnsLabel | None = None
    labels: dict[str, Label] = {}


class FieldRef(_Part):
    fieldPath: str  # noqa: N815 - Kubernetes' own names, here and below


class ValueFrom(_Part):
    fieldRef: FieldRef  # noqa: N815


class EnvVar(_Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None  # noqa: N815


class Resources(_Part):
    limits: dict[str, Quantity]
    requests: dict[str, Quantity]


class Capabilities(_Part):
    drop: list[str]


class ContainerSecurity(_Part):
    allowPrivilegeEscalation: Literal[False]  # noqa: N815
    capabilities: Capabilities


class Mount(_Part):
    name: DnsLabel
    mountPath: MountPath  # noqa: N815
    readOnly: bool = False  # noqa: N815


class Container(_Part):
    name: DnsLabel
    image: Annotated[str, Field(pattern=r"^\S+$")]
    command: list[str]
    workingDir: str  # noqa: N815
    env: list[EnvVar]
    resources: Resources
    securityContext: ContainerSecurity  # noqa: N815
    volumeMounts: list[Mount]  # noqa: N815


class Claim(_Part):
    claimName: DnsName  # noqa: N815


class EmptyDir(_Part):
    medium: Literal["Memory"]
    sizeLimit: str  # noqa: N815


class ConfigMapVolume(_Part):
    name: DnsName


class Volume(_Part):
    name: DnsLabel
    persistentVolumeClaim: Claim | None = None  # noqa: N815
    emptyDir: EmptyDir | None = None  # noqa: N815
    configMap: ConfigMapVolume | None = None  # noqa: N815


class Seccomp(_Part):
    type: Literal["RuntimeDefault"]


class PodSecurity(_Part):
    runAsNonRoot: Literal[True]  # noqa: N815
    runAsUser: Annotated[int, Field(ge=1)]  # noqa: N815
    runAsGroup: Annotated[int, Field(ge=1)]  # noqa: N815
    fsGroup: Annotated[int, Field(ge=1)]  # noqa: N815
    seccompProfile: Seccomp  # noqa: N815


class PodSpec(_Part):
    restartPolicy: Literal["Never"]  # noqa: N815
    schedulerName: DnsName | None = None  # noqa: N815
    automountServiceAccountToken: Literal[False]  # noqa: N815
    terminationGracePeriodSeconds: Count  # noqa: N815
    nodeSelector: dict[str, Label] = {}  # noqa: N815
    securityContext: PodSecurity  # noqa: N815
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume]


class PodTemplate(_Part):
    metadata: Metadata
    spec: PodSpec


class Policy(_Part):
    """One of ``event`` and ``exitCode`` (Volcano's webhook refuses both)."""

    action: Literal["RestartJob", "TerminateJob", "AbortJob", "CompleteJob"]
    event: Literal["PodEvicted", "PodFailed", "TaskCompleted"] | None = None
    exitCode: Annotated[int, Field(ge=1)] | None = None  # noqa: N815


class Task(_Part):
    name: DnsLabel
    replicas: Count
    minAvailable: Count  # noqa: N815
    template: PodTemplate


class VolcanoSpec(_Part):
    schedulerName: Annotated[str, Field(max_length=63)]  # noqa: N815
    queue: DnsName
    minAvailable: Count  # noqa: N815
    maxRetry: Annotated[int, Field(ge=1)]  # noqa: N815
    plugins: dict[str, list[str]]
    policies: list[Policy]
    tasks: Annotated[list[Task], Field(min_length=1)]


class VolcanoJob(_Part):
    apiVersion: Literal["batch.volcano.sh/v1alpha1"]  # noqa: N815
    kind: Literal["Job"]
    metadata: Metadata
    spec: VolcanoSpec


class IndexedSpec(_Part):
    completionMode: Literal["Indexed"]  # noqa: N815
    completions: Count
    parallelism: Count
    backoffLimit: Count  # noqa: N815
    template: PodTemplate


class IndexedJob(_Part):
    apiVersion: Literal["batch/v1"]  # noqa: N815
    kind: Literal["Job"]
    metadata: Metadata
    spec: IndexedSpec


class ConfigMap(_Part):
    apiVersion: Literal["v1"]  # noqa: N815
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]


_KINDS: dict[tuple[Any, Any], type[_Part]] = {
    ("batch.volcano.sh/v1alpha1", "Job"): VolcanoJob,
    ("batch/v1", "Job"): IndexedJob,
    ("v1", "ConfigMap"): ConfigMap,
}


def check(document: Any, name: str) -> None:
    """Raises LauncherError with everything in ``document`` that is not as the schema says."""
    kind = (document.get("apiVersion"), document.get("kind")) if isinstance(document, dict) else (None, None)
    model = _KINDS.get(kind)
    if model is None:
        raise LauncherError(f"{name}: {kind[0]} {kind[1]} is not what this launcher writes")
    try:
        model.model_validate(document, strict=True)
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:20]]
        raise LauncherError(
            "\n".join([f"{name} is not a {kind[0]} {kind[1]} that Kubernetes takes", *lines])
        ) from error
