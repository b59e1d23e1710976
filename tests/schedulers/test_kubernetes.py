"""Manifests held to schemas, applied to a small API server, and their pods' commands run as processes on two hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hosted import Hosted
from support.manifest import check
from support.netlab import Lab, lab
from support.supervised import marked, wait_until

from launcher import jobs
from launcher.cluster.imagined import imagined_hosts
from launcher.errors import LauncherError, SpecError
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch, Limits, NodePlace, RankPlace
from launcher.schedulers.kubernetes import (
    KubernetesOptions,
    kubernetes_name,
    operators_table,
    placement,
    render_manifest,
)

OPTIONS = KubernetesOptions(image="registry.example/llm:1", volumes=("data:/shared",), node_selector=("arch=arm64",))


def launch(options: KubernetesOptions = OPTIONS, kind: str = "A2", nodes: int = 2) -> Launch:
    placed = placement(imagined_hosts(nodes, None, kind), options)
    cluster = placed.cluster
    return Launch(
        engine="direct", target=cluster.target, address="", port=0, program="", rank_table="",
        ranks=tuple(
            RankPlace(rank_id=r.rank_id, local_rank=r.local_rank, host=r.host.name, device_id=r.device.device_id,
                      node_rank=r.node_rank)
            for r in cluster.ranks()
        ),
        scheduler="kubernetes", settings=placed.settings,
        nodes=tuple(NodePlace(node_rank=n, name=f"n{n}", address="") for n in range(nodes)),
    )  # fmt: skip


def documents(options: KubernetesOptions = OPTIONS, kind: str = "A2") -> list[dict[str, Any]]:
    paths = JobPaths(root=Path("/shared/jobs/bcdfg-Llama.7b_lora"))
    found = list(yaml.safe_load_all(render_manifest(launch(options, kind), paths).text))
    for document in found:
        check(document, "the manifest")
    return found


def test_a_volcano_job_is_a_gang_with_cards_volumes_and_no_root() -> None:
    rings, job = documents()
    pod = job["spec"]["tasks"][0]["template"]["spec"]
    (container,) = pod["containers"]

    assert (job["spec"]["minAvailable"], job["spec"]["tasks"][0]["replicas"]) == (2, 2)
    assert rings["metadata"]["name"] == "rings-config-bcdfg-llama-7b-lora"
    assert rings["metadata"]["labels"] == {"ring-controller.atlas": "ascend-910b"}
    assert json.loads(rings["data"]["hccl.json"]) == {"status": "initializing"}
    assert container["resources"]["limits"] == {"huawei.com/Ascend910": "8"}
    assert container["command"][-1] == "/shared/jobs/bcdfg-Llama.7b_lora"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["nodeSelector"] == {"arch": "arm64"}
    assert {"svc", "env"} == set(job["spec"]["plugins"])


@pytest.mark.parametrize("restarts", [0, 3])
def test_volcano_runs_a_job_once_more_than_it_is_to_be_started_again(restarts: int) -> None:
    """Its controller fails the job once it has counted maxRetry, and its webhook makes 3 of 0."""
    asked = replace(launch(), limits=Limits(max_restarts=restarts))
    job = list(yaml.safe_load_all(render_manifest(asked, JobPaths(root=Path("/shared/jobs/x"))).text))[-1]

    assert job["spec"]["maxRetry"] == restarts + 1


def test_a_plain_job_is_indexed_and_needs_nothing_of_volcano() -> None:
    (job,) = documents(replace(OPTIONS, volcano=False))

    assert (job["apiVersion"], job["spec"]["completionMode"], job["spec"]["completions"]) == ("batch/v1", "Indexed", 2)
    assert "schedulerName" not in job["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("spec", "minAvailble"), 2, "minAvailble"),
        (("spec", "minAvailable"), "2", "minAvailable"),
        (("spec", "tasks", 0, "template", "spec", "restartPolcy"), "Never", "restartPolcy"),
        (("spec", "tasks", 0, "template", "spec", "securityContext", "runAsUser"), 0, "runAsUser"),
        (("spec", "policies", 0, "action"), "RestartAll", "action"),
        (("metadata", "name"), "Not_A_Name", "name"),
    ],
)
def test_what_kubernetes_would_refuse_or_drop_is_an_error(where: tuple[Any, ...], value: Any, said: str) -> None:
    job = documents()[1]
    place: Any = job
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value

    with pytest.raises(LauncherError, match=said):
        check(job, "job")


@pytest.mark.parametrize("volcano", [True, False])
def test_the_pod_is_what_the_official_client_knows(volcano: bool) -> None:
    """Read by the client's models and written again, nothing is lost: no field that Kubernetes does not have."""
    kubernetes = pytest.importorskip("kubernetes", reason="pip install kubernetes")
    api = kubernetes.client.ApiClient()
    for document in documents(replace(OPTIONS, volcano=volcano)):
        kind, part = ("V1ConfigMap", document) if document["kind"] == "ConfigMap" else ("V1Job", document)
        if document["apiVersion"].startswith("batch.volcano.sh"):
            kind, part = "V1PodTemplateSpec", document["spec"]["tasks"][0]["template"]
        read = api._ApiClient__deserialize(part, kind)
        assert api.sanitize_for_serialization(read) == part


@pytest.mark.parametrize(
    "options",
    [
        replace(OPTIONS, image="a b"),
        replace(OPTIONS, volumes=()),
        replace(OPTIONS, volumes=("data",)),
        replace(OPTIONS, volumes=("data:relative",)),
        replace(OPTIONS, namespace="Not ok"),
        replace(OPTIONS, user=0),
        replace(OPTIONS, node_selector=("a=b c",)),
        replace(OPTIONS, node_selector=("a/b/c=d",)),
        replace(OPTIONS, node_selector=("a=-b-",)),
        replace(OPTIONS, volumes=("data.-:/shared",)),
        replace(OPTIONS, volumes=("data:/shared", "more:/shared/")),
        replace(OPTIONS, volumes=("data:/",)),
        replace(OPTIONS, volumes=("data:/a/../b",)),
        replace(OPTIONS, user=2**31),
        replace(OPTIONS, shm="lots; rm"),
        replace(OPTIONS, cpus="0"),
        replace(OPTIONS, cpus="two\nx"),
    ],
)
def test_values_that_make_no_job_are_refused(options: KubernetesOptions) -> None:
    with pytest.raises(SpecError, match="these make no Kubernetes job"):
        placement(imagined_hosts(2, None, "A2"), options)


def test_amounts_and_selectors_that_kubernetes_takes_are_taken() -> None:
    options = replace(OPTIONS, cpus="1.5", shm="500M", node_selector=("kubernetes.io/arch=arm64", "empty="))
    assert documents(options)[1]["spec"]["tasks"][0]["template"]["spec"]["nodeSelector"]["empty"] == ""


def test_a_variables_name_in_a_folder_is_not_its_value_in_the_pod() -> None:
    """Kubernetes puts HOME's value for $(HOME) in a command, unless its $ is doubled."""
    text = render_manifest(launch(), JobPaths(root=Path("/shared/$(HOME) $x/job"))).text
    job = list(yaml.safe_load_all(text))[1]
    (container,) = job["spec"]["tasks"][0]["template"]["spec"]["containers"]

    assert container["command"][-1] == "/shared/$$(HOME) $$x/job"


def test_names_of_jobs_become_names_of_kubernetes() -> None:
    assert kubernetes_name("bcdfg-Llama.7b_LoRA") == "bcdfg-llama-7b-lora"
    assert kubernetes_name("1-x") == "j-1-x"
    assert len(kubernetes_name("b" * 100)) == 50


def test_the_operators_rank_table_is_waited_for(tmp_path: Path) -> None:
    assert operators_table(tmp_path) is None
    (tmp_path / "hccl.json").write_text('{"status": "initializing"}')
    assert operators_table(tmp_path) == ""
    (tmp_path / "hccl.json").write_text('{"status":"completed"}')
    assert operators_table(tmp_path) == '{"status":"completed"}'


# ------------------------------------------------------------------------------------------------ applying


class Cluster:
    """A stand-in for the API server: keeps what is created, knows the kinds of ``volcano`` or not."""

    def __init__(self, *, volcano: bool = True) -> None:
        self.objects: dict[str, Any] = {}
        self.volcano = volcano
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, answer = cluster.create(self.path.partition("?")[0], body)
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def create(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        known = {"/api/v1/namespaces/default/configmaps": "ConfigMap", "/apis/batch/v1/namespaces/default/jobs": "Job"}
        if self.volcano:
            known["/apis/batch.volcano.sh/v1alpha1/namespaces/default/jobs"] = "Job"
        name = f"{path}/{body['metadata']['name']}"
        if known.get(path) != body["kind"]:
            return 404, {"kind": "Status", "message": "the server could not find the requested resource"}
        if name in self.objects:
            return 409, {"kind": "Status", "message": f'jobs "{body["metadata"]["name"]}" already exists'}
        self.objects[name] = body
        return 201, body


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("kubernetes", reason="pip install kubernetes")
    cluster = Cluster()
    thread = threading.Thread(target=cluster.server.serve_forever)
    thread.start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": f"http://127.0.0.1:{cluster.server.server_port}"}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
        "users": [{"name": "me", "user": {}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    yield cluster
    cluster.server.shutdown()
    thread.join()
    cluster.server.server_close()


def submit(folder: Path, *options: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
    result = submitted(folder, *options, env=env)
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


def submitted(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``launcher submit --scheduler kubernetes`` in ``folder``, which is the shared volume too."""
    argv = (
        sys.executable, "-m", "launcher", "submit", "tiny_cpu", "--scheduler", "kubernetes", "--nodes", "2",
        "--kind", "CPU", "--image", "llm:1", "--volume", f"data:{folder}",
        "--set", "data.sample={size: 64, seed: 1}", *options,
    )  # fmt: skip
    own = {"KUBECONFIG": str(folder / "kubeconfig"), "LAUNCHER_CACHE": str(folder / "cache"), **(env or {})}
    return subprocess.run(
        argv, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=120, check=False
    )


def test_apply_creates_the_job_in_the_users_cluster(tmp_path: Path, api: Cluster) -> None:
    said = submit(tmp_path)

    ((path, created),) = api.objects.items()
    assert path.startswith("/apis/batch.volcano.sh/v1alpha1/namespaces/default/jobs/")
    assert f"created Job {created['metadata']['name']}" in said
    folder = Path(created["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["command"][-1])
    assert yaml.safe_load((folder / "kubernetes.yaml").read_text()) == created
    record = jobs.read_record(JobPaths(root=folder))
    assert record is not None
    assert (record.state, record.scheduler, record.scheduler_job) == (
        jobs.PLANNED, "kubernetes", created["metadata"]["name"]
    )  # fmt: skip


def test_a_cluster_without_volcano_says_what_to_do(tmp_path: Path, api: Cluster) -> None:
    api.volcano = False
    said = submit(tmp_path, code=5)

    assert "the server could not find the requested resource" in said
    assert "--no-volcano" in said
    assert [record.state for _, record in jobs.JobStore(tmp_path / "jobs").all()] == [jobs.FAILED]
    assert "created Job" in submit(tmp_path, "--no-volcano")


def test_without_a_cluster_or_a_shared_folder_nothing_is_applied(tmp_path: Path) -> None:
    pytest.importorskip("kubernetes", reason="pip install kubernetes")
    assert "no kubeconfig can be used" in submit(tmp_path, code=5)
    said = submit(tmp_path, "--jobs-dir", "/var/tmp/jobs", env={"LAUNCHER_CACHE": "/var/tmp/cache"}, code=2)
    assert "is in none of" in said
    assert f"export LAUNCHER_CACHE={tmp_path}/cache" in said
    assert not (tmp_path / "jobs").exists()


def test_a_dry_run_prints_the_manifest_alone_and_without_apply_it_is_written(tmp_path: Path) -> None:
    shown = submitted(tmp_path, "--dry-run")
    (document,) = yaml.safe_load_all(shown.stdout)
    assert "Data: would be made first: " in shown.stderr
    assert not (tmp_path / "jobs").exists()
    said = submit(tmp_path, "--no-apply")

    ((paths, record),) = jobs.JobStore(tmp_path / "jobs").all()
    assert document["kind"] == "Job"
    assert f"Next: kubectl apply -f {paths.root / 'kubernetes.yaml'}" in said
    assert (record.state, record.note) == (jobs.PLANNED, "waits for Kubernetes")


def in_pods(root: Path, program: str, made: Lab, mark: str) -> Hosted:
    """A job whose hosts are the pods of a Kubernetes job; nothing is started yet."""
    job = Hosted(root=root, program=program, mark=mark, hosts=made.hosts, addresses=["", ""])
    options = KubernetesOptions(image="i", volumes=(f"data:{root.parent}",), python=sys.executable)
    job.scheduler, job.settings = "kubernetes", dict(placement(imagined_hosts(2, 2, "CPU"), options).settings)
    job.prepare(host="")
    return job


def run_pods(job: Hosted) -> list[int]:
    """Each pod as a process on a host of its own, as the kubelet would start it. Returns their exit codes."""
    (document,) = yaml.safe_load_all(render_manifest(job.launch(), job.paths).text)
    container = document["spec"]["tasks"][0]["template"]["spec"]["containers"][0]
    pods = []
    for number, host in enumerate(job.hosts):
        named = {"LAUNCHER_ADDRESS": host.address, "VC_TASK_INDEX": str(number), "LAUNCHER_TEST": job.mark}
        given = {item["name"]: item["value"] for item in container["env"] if "value" in item}
        argv = host.inside(*container["command"])
        pods.append(subprocess.Popen(argv, env={**os.environ, **given, **named}, cwd=container["workingDir"]))
    wait_until(lambda: job.record().is_final, "the end")
    return [pod.wait(timeout=30) for pod in pods]


def test_the_pods_commands_run_the_job(tmp_path: Path, no_survivors: str) -> None:
    with lab(2) as made:
        program = "ready(); step(1); print('on', os.uname().nodename, os.environ['MS_SCHED_HOST'], flush=True)"
        job = in_pods(tmp_path / "job", program, made, no_survivors)
        codes = run_pods(job)

    assert (job.record().state, codes) == (jobs.SUCCEEDED, [0, 0])
    assert job.paths.rank_log(1).read_text().split()[-3:] == ["on", "node2", "10.77.0.1"]
    wait_until(lambda: not marked(no_survivors), "the end of everything")


def test_a_job_that_is_stopped_before_its_pods_come_does_not_run(tmp_path: Path, no_survivors: str) -> None:
    with lab(2) as made:
        job = in_pods(tmp_path / "job", "ready(); step(1)", made, no_survivors)
        stop = [sys.executable, "-m", "launcher", "stop", "job", "--jobs-dir", str(tmp_path)]
        said = subprocess.run(stop, capture_output=True, text=True, timeout=60, check=True).stdout
        leader = [sys.executable, "-m", "launcher", "node", "--lead", "--job", str(job.root)]
        code = subprocess.run(leader, timeout=60, check=False).returncode

    assert "cancelled; it did not run" in said
    assert (job.record().state, job.record().started, code) == (jobs.CANCELLED, None, 143)


def test_a_job_that_failed_in_its_pods_goes_on_when_they_are_made_again(tmp_path: Path, no_survivors: str) -> None:
    program = "ready(); step(1)\nif rank == 1 and paths.attempt == 1: raise ValueError('in the first attempt only')"
    with lab(2) as made:
        job = in_pods(tmp_path / "job", program, made, no_survivors)
        codes = run_pods(job)
        failed = job.record()
        resume = [sys.executable, "-m", "launcher", "resume", "job", "--jobs-dir", str(tmp_path)]
        said = subprocess.run(resume, capture_output=True, text=True, timeout=60, check=True).stdout
        queued = job.record()
        codes += run_pods(job)

    assert failed.state == jobs.FAILED
    assert (failed.verdict or {})["rank_id"] == 1
    assert f"Next: kubectl replace --force -f {job.paths.root / 'kubernetes.yaml'}" in said
    assert (queued.state, queued.attempt) == (jobs.PLANNED, 1)
    assert (job.record().state, job.record().attempt) == (jobs.SUCCEEDED, 2)
    assert codes[2:] == [0, 0]
    assert 7 in codes[:2]
    wait_until(lambda: not marked(no_survivors), "the end of everything")
