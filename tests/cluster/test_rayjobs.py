"""The RayJobs of configs/cluster: what KubeRay and Kubernetes take, and what a run on spot nodes needs."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.scripts.scripts import start

from pipeline.config import LabelConfig, TrainConfig, WorkersRange, load
from pipeline.founding import check_outlives_job, worker_needs
from tests.cluster.kuberay import refusals, schema

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "configs/cluster"
JOBS = {"rayjob-label.yaml": LabelConfig, "rayjob-train.yaml": TrainConfig}
UNITS = {"Mi": 2**20, "Gi": 2**30}


def read(name: str) -> dict[str, Any]:
    (found,) = yaml.safe_load_all((FOLDER / name).read_text())
    return copy.deepcopy(found)  # aliases of the YAML are the same object else


@pytest.fixture(params=JOBS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def job(name: str) -> dict[str, Any]:
    return read(name)


def head(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]


def gpu_group(job: dict[str, Any]) -> dict[str, Any]:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All pods that come of a RayJob by a template."""
    return {
        "head": head(job)["template"],
        "worker": gpu_group(job)["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
    }


def settings(job: dict[str, Any]) -> tuple[str, str, list[str]]:
    """The module, the config and the settings of an entrypoint."""
    python, dash_m, module, dash_config, config, *rest = shlex.split(job["spec"]["entrypoint"])
    assert (python, dash_m, dash_config) == ("python", "-m", "--config")
    assert set(rest[::2]) == {"--set"}
    return module, config, rest[1::2]


def loaded(name: str, job: dict[str, Any]) -> LabelConfig | TrainConfig:
    _, config, values = settings(job)
    return load(JOBS[name], str(REPOSITORY / config), values)


def test_kuberay_knows_its_fields(job: dict[str, Any]) -> None:
    """A misspelt or misplaced field, which the API server refuses, or a number where a text must be."""
    jsonschema.validate(job, schema("RayJob"))
    assert refusals(job) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofLimit", 2),
        ("spec.submissionMode", "JobMode"),
        ("spec.authOptions", {"mode": "token"}),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
    ],
)
def test_a_wrong_field_would_be_seen(path: str, value: object) -> None:
    """A schema that lets everything pass."""
    job = read("rayjob-label.yaml")
    *parents, last = path.split(".")
    node = job
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schema("RayJob"))


def test_ray_knows_its_start_parameters(job: dict[str, Any]) -> None:
    """A pod that ends at once, as `ray start` has no such option."""
    options = {one.removeprefix("--") for parameter in start.params for one in parameter.opts}
    for group in (head(job), gpu_group(job)):
        assert set(group["rayStartParams"]) <= options


def test_entrypoint_goes_through_shells(job: dict[str, Any]) -> None:
    """Quotes, braces and line ends, of which the submitter's shell and that of the job would each eat some."""
    assert re.fullmatch(r"[\w./:= -]+", job["spec"]["entrypoint"])


def test_entrypoint_is_accepted(name: str, job: dict[str, Any]) -> None:
    """A run that is refused once it has a cluster: an unknown key, or an output that ends with the job."""
    module, _, _ = settings(job)
    config = loaded(name, job)
    assert module == {LabelConfig: "jobs.label", TrainConfig: "jobs.train"}[type(config)]
    if isinstance(config, LabelConfig):
        check_outlives_job("output.uri", config.output.uri)
    else:
        check_outlives_job("run.storage", config.run.storage)


def test_workers_ask_for_the_gpu_of_a_pod(name: str, job: dict[str, Any]) -> None:
    """A job that begins before the first GPU has joined takes the cluster for one of CPUs, and labels without them."""
    asked = worker_needs(loaded(name, job).run, {"memory": 1.0}, in_ray_job=True)
    limits = templates(job)["worker"]["spec"]["containers"][0]["resources"]["limits"]
    assert asked == (float(limits["nvidia.com/gpu"]), float(limits["cpu"]))


def test_there_are_pods_for_all_workers(name: str, job: dict[str, Any]) -> None:
    """Workers that wait for ever, or nodes that nobody uses."""
    workers = loaded(name, job).run.workers
    assert isinstance(workers, WorkersRange)
    group = gpu_group(job)
    assert (group["minReplicas"], group["maxReplicas"]) == (0, workers.max)
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def test_no_work_on_the_head(job: dict[str, Any]) -> None:
    """A worker beside the driver, which takes it down when memory runs out; or a GPU that nobody uses."""
    assert head(job)["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head(job)["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_a_node_can_drain(job: dict[str, Any]) -> None:
    """A worker that is killed while its shard could still be committed."""
    pod = templates(job)["worker"]["spec"]
    (environment,) = (container["env"] for container in pod["containers"])
    drain = {one["name"]: one["value"] for one in environment}["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert 60 <= float(drain) <= pod["terminationGracePeriodSeconds"] - 15
    assert pod["terminationGracePeriodSeconds"] <= 120


def test_shared_memory_holds_the_object_store(job: dict[str, Any]) -> None:
    """Ray puts its objects on a disk where /dev/shm is too small; by default a pod has 64 MiB."""
    for group in (head(job), gpu_group(job)):
        pod = group["template"]["spec"]
        (path,) = {one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
        (volume,) = pod["volumes"]
        size = volume["emptyDir"]["sizeLimit"]
        assert (path, volume["emptyDir"]["medium"]) == ("/dev/shm", "Memory")
        assert int(size[:-2]) * UNITS[size[-2:]] >= int(group["rayStartParams"]["object-store-memory"]) * 1.05


def test_pods_have_few_rights(job: dict[str, Any]) -> None:
    """Pods that a namespace with the Pod Security Standard "restricted" refuses."""
    containers = [container for one in templates(job).values() for container in one["spec"]["containers"]]
    for container in (*containers, job["spec"]["rayClusterSpec"]["autoscalerOptions"]):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for template in templates(job).values():
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {key for volume in template["spec"].get("volumes", []) for key in volume} <= {"name", "emptyDir"}
    for role in ("worker", "submitter"):
        assert templates(job)[role]["spec"]["automountServiceAccountToken"] is False


def test_no_secret_is_written_down(job: dict[str, Any]) -> None:
    """Keys or a token in a file that goes into a repository, or in a job's environment, which Ray shows."""
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}  # which the operator draws
    assert "runtimeEnvYAML" not in job["spec"]
    for template in templates(job).values():
        for container in template["spec"]["containers"]:
            assert {one["name"] for one in container.get("env", [])} <= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}
            assert all(set(one) == {"secretRef"} for one in container.get("envFrom", []))


def test_it_is_the_ray_of_the_lock_file(job: dict[str, Any]) -> None:
    """An operator that treats the cluster as another version of Ray than the image has."""
    (locked,) = re.findall(r"^ray==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked


def test_all_pods_have_the_same_image(job: dict[str, Any]) -> None:
    """Nodes of different code, as where a tag was moved between their starts."""
    (image,) = {container["image"] for one in templates(job).values() for container in one["spec"]["containers"]}
    assert re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", image)


def test_the_service_account_is_there(job: dict[str, Any]) -> None:
    """Pods that are not created, as their account is called otherwise."""
    accounts = {templates(job)[role]["spec"]["serviceAccountName"] for role in ("head", "worker")}
    assert accounts == {read("service-account.yaml")["metadata"]["name"]}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_kubernetes_knows_their_parts(job: dict[str, Any], version: str) -> None:
    """A misspelt field in a pod; by the schemas of Kubernetes, where the package kubernetes-validate is installed."""
    validate = pytest.importorskip("kubernetes_validate").validate
    autoscaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    pods = templates(job)
    parts = {key: autoscaler[key] for key in ("resources", "securityContext")}
    pods["autoscaler"] = {"spec": {"containers": [{"name": "autoscaler", "image": "ray", **parts}]}}
    for role, template in pods.items():
        metadata = {**template.get("metadata", {}), "name": role}
        validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, version, strict=True
        )
    validate(read("service-account.yaml"), version, strict=True)
