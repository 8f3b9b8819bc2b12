"""What KubeRay takes, for tests: the fields of its RayJob, and what its operator refuses besides.

The tables follow the Go types of KubeRay 1.6 (ray-operator/apis/ray/v1), from which its CRDs are generated; what is of
Kubernetes itself (pods and their parts) is left to the schemas of Kubernetes.
"""

from __future__ import annotations

import re
from typing import Any

#: A field that must be there ends in "!". A kind is a JSON type, an enum of words, a "map" of texts, a name of this
#: table, or "k8s"; one in brackets is a list.
TYPES: dict[str, dict[str, str]] = {
    "RayJob": {"apiVersion!": "ray.io/v1|", "kind!": "RayJob|", "metadata!": "k8s", "spec!": "RayJobSpec"},
    "RayJobSpec": {
        "activeDeadlineSeconds": "integer",
        "backoffLimit": "integer",
        "clusterSelector": "map",
        "deletionStrategy": "k8s",
        "entrypoint": "string",
        "entrypointNumCpus": "number",
        "entrypointNumGpus": "number",
        "entrypointResources": "string",
        "jobId": "string",
        "managedBy": "ray.io/kuberay-operator|kueue.x-k8s.io/multikueue",
        "metadata": "map",
        "rayClusterSpec": "RayClusterSpec",
        "runtimeEnvYAML": "string",
        "shutdownAfterJobFinishes": "boolean",
        "submissionMode": "K8sJobMode|HTTPMode|InteractiveMode|SidecarMode",
        "submitterConfig": "SubmitterConfig",
        "submitterPodTemplate": "k8s",
        "suspend": "boolean",
        "ttlSecondsAfterFinished": "integer",
    },
    "SubmitterConfig": {"backoffLimit": "integer"},
    "RayClusterSpec": {
        "authOptions": "AuthOptions",
        "autoscalerOptions": "AutoscalerOptions",
        "enableInTreeAutoscaling": "boolean",
        "gcsFaultToleranceOptions": "k8s",
        "headGroupSpec!": "HeadGroupSpec",
        "headServiceAnnotations": "map",
        "managedBy": "ray.io/kuberay-operator|kueue.x-k8s.io/multikueue",
        "rayVersion": "string",
        "suspend": "boolean",
        "upgradeStrategy": "k8s",
        "workerGroupSpecs": "[WorkerGroupSpec]",
    },
    "AuthOptions": {"enableK8sTokenAuth": "boolean", "mode": "disabled|token", "secretName": "string"},
    "AutoscalerOptions": {
        "args": "[string]",
        "command": "[string]",
        "env": "[k8s]",
        "envFrom": "[k8s]",
        "idleTimeoutSeconds": "integer",
        "image": "string",
        "imagePullPolicy": "string",
        "resources": "k8s",
        "securityContext": "k8s",
        "upscalingMode": "Default|Aggressive|Conservative",
        "version": "v1|v2",
        "volumeMounts": "[k8s]",
    },
    "HeadGroupSpec": {
        "enableIngress": "boolean",
        "headService": "k8s",
        "labels": "map",
        "rayStartParams": "map",
        "resources": "map",
        "serviceType": "string",
        "template!": "k8s",
    },
    "WorkerGroupSpec": {
        "groupName!": "string",
        "idleTimeoutSeconds": "integer",
        "labels": "map",
        "maxReplicas!": "integer",
        "minReplicas!": "integer",
        "numOfHosts": "integer",
        "rayStartParams": "map",
        "replicas": "integer",
        "resources": "map",
        "scaleStrategy": "k8s",
        "suspend": "boolean",
        "template!": "k8s",
    },
}


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a kind of the table."""
    if kind.startswith("["):
        return {"type": "array", "items": schema(kind[1:-1])}
    if "|" in kind:
        return {"enum": [word for word in kind.split("|") if word]}
    if kind == "map":
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if kind not in TYPES:
        return {"type": "object" if kind == "k8s" else kind}
    fields = TYPES[kind]
    return {
        "type": "object",
        "properties": {name.rstrip("!"): schema(its) for name, its in fields.items()},
        "required": [name.rstrip("!") for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


def refusals(job: dict[str, Any]) -> list[str]:
    """Why the operator refuses a RayJob whose fields are right: of its ValidateRayJobSpec, what can matter here."""
    name, spec, cluster = job["metadata"]["name"], job["spec"], job["spec"]["rayClusterSpec"]
    version = tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    found = {
        "name": len(name) > 47 or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name),
        "ttl without shutdown": spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"),
        "negative": min(spec.get("ttlSecondsAfterFinished", 0), spec.get("backoffLimit", 0)) < 0,
        "backoff of interactive": spec.get("backoffLimit") and spec.get("submissionMode") == "InteractiveMode",
        "rayVersion for a token": cluster["authOptions"].get("mode") == "token" and version < (2, 52),
        "token by Kubernetes": cluster["authOptions"].get("enableK8sTokenAuth"),
        "labels": any("labels" in group.get("rayStartParams", {}) for group in groups),
        "restartPolicy": cluster.get("enableInTreeAutoscaling")
        and any(group["template"]["spec"].get("restartPolicy", "Never") != "Never" for group in groups),
        "replicas": any(not 0 <= one["minReplicas"] <= one["maxReplicas"] for one in cluster["workerGroupSpecs"]),
    }
    return [rule for rule, broken in found.items() if broken]
