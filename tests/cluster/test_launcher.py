"""The launcher of configs/cluster, by the checks of Ray and of the AWS SDK, and by moto; none reaches AWS."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "configs/cluster"


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    """The file, with Ray's own defaults for what it leaves out, as `ray up` sees it."""
    whole: dict[str, Any] = prepare_config(yaml.safe_load((FOLDER / "launcher-aws.yaml").read_text()))
    return whole


def commands(launcher: dict[str, Any], role: str) -> dict[str, Any]:
    """The options of a node's `ray start`, read by Ray's own command line."""
    ((*_, line),) = [launcher[f"{role}_start_ray_commands"]]
    words = shlex.split(line)
    assert words[:2] == ["ray", "start"]
    return start.make_context("start", words[2:]).params


def test_ray_takes_it(launcher: dict[str, Any]) -> None:
    """A misspelt or misplaced key, which `ray up` refuses."""
    validate_config(launcher)


def test_aws_takes_its_nodes(launcher: dict[str, Any]) -> None:
    """A misspelt key of an instance, which EC2 refuses once `ray up` has begun."""
    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for one in launcher["available_node_types"].values():
        asked = {**one["node_config"], "MinCount": 1, "MaxCount": 1}
        assert ParamValidator().validate(asked, shape).generate_report() == ""


def test_ray_starts_its_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What only shows when `ray up` prepares the account and starts nodes; a head on spot, or workers that are not."""
    (tmp_path / ".ssh").mkdir()
    for name, value in {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        ec2, iam = boto3.client("ec2", "us-west-2"), boto3.client("iam", "us-west-2")
        asked = yaml.safe_load((FOLDER / "launcher-aws.yaml").read_text())
        for one in asked["available_node_types"].values():
            one["node_config"]["ImageId"] = ec2.describe_images()["Images"][0]["ImageId"]
            iam.create_instance_profile(
                InstanceProfileName=one["node_config"]["IamInstanceProfile"]["Arn"].split("/")[1]
            )
        ready = _bootstrap_config(asked, no_config_cache=True)
        provider = _get_node_provider(ready["provider"], ready["cluster_name"], False)
        for name, one in ready["available_node_types"].items():
            tags = {"ray-node-type": name, "ray-node-name": name, "ray-launch-config": "x", "ray-user-node-type": name}
            provider.create_node(copy.deepcopy(one["node_config"]), tags, 1)
        found = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    assert {one["InstanceType"]: one.get("InstanceLifecycle") for one in found} == {
        "m7i.xlarge": None,
        "g6.xlarge": "spot",
    }
    assert ready["available_node_types"]["gpu_spot"]["resources"].items() >= {"CPU": 4, "GPU": 1}.items()


def test_nothing_is_installed_at_start(launcher: dict[str, Any]) -> None:
    """Ray's defaults, which install a nightly Ray over that of the image."""
    for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert launcher[key] == []


def test_workers_come_as_they_are_needed(launcher: dict[str, Any]) -> None:
    """GPUs that are paid for while there is no work, or that never come."""
    nodes = launcher["available_node_types"]
    assert launcher["head_node_type"] == "head"
    assert nodes["gpu_spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert nodes["gpu_spot"]["min_workers"] == 0
    assert launcher["max_workers"] == nodes["gpu_spot"]["max_workers"]


def test_no_work_on_the_head(launcher: dict[str, Any]) -> None:
    """A worker beside the driver, which takes it down when memory runs out."""
    assert launcher["available_node_types"]["head"]["resources"]["CPU"] == 0
    head = commands(launcher, "head")
    assert (head["head"], head["num_cpus"]) == (True, 0)
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert commands(launcher, "worker")["address"] == "$RAY_HEAD_IP:6379"


def test_each_node_asks_for_the_token(launcher: dict[str, Any]) -> None:
    """A cluster that runs whatever anybody sends to it, or a token that stands in a command."""
    options = [word for option in launcher["docker"]["run_options"] for word in option.split()]
    environment = dict(one.split("=") for one in options if one.startswith("RAY_"))
    path = environment.pop("RAY_AUTH_TOKEN_PATH")
    assert environment == {"RAY_AUTH_MODE": "token"}
    assert launcher["file_mounts"] == {path: "~/.ray/auth_token"}


def test_workers_have_a_role_of_their_own(launcher: dict[str, Any]) -> None:
    """Workers without credentials for storage, or with the right to start and end instances, which the head has."""
    nodes = launcher["available_node_types"]
    profiles = [nodes[name]["node_config"]["IamInstanceProfile"]["Arn"] for name in ("head", "gpu_spot")]
    assert len(set(profiles)) == 2
    assert all(one["node_config"]["MetadataOptions"] == {"HttpTokens": "required"} for one in nodes.values())


def test_it_has_the_image_of_the_rayjobs(launcher: dict[str, Any]) -> None:
    """An image that was changed in one of the files."""
    assert launcher["docker"]["image"] in (FOLDER / "rayjob-label.yaml").read_text()
