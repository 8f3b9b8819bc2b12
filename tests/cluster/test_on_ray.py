"""The entrypoint of a RayJob, run as KubeRay runs it: by its shells, on nodes with a token, GPU nodes coming and going.

The nodes are processes of this machine, started from a folder like the image's, with the parameters of the YAML; their
GPUs are only said to be there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tests.fakes import draw, write_tar
from tests.security.test_ray_token import free_ports, processes_of

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/cluster/rayjob-label.yaml").read_text())["spec"]
BIN = Path(sys.executable).parent
PATIENCE_S = 240
HEAD = CLUSTER["rayClusterSpec"]["headGroupSpec"]
(GROUP,) = CLUSTER["rayClusterSpec"]["workerGroupSpecs"]
(WORKER,) = GROUP["template"]["spec"]["containers"]


class Nodes:
    """A head, and workers that join it."""

    def __init__(self, folder: Path, image: Path) -> None:
        self._image = image
        self.started: list[subprocess.Popen[str]] = []
        gcs, dashboard = free_ports(2)
        self.dashboard, self._gcs = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "HOME": str(folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),  # for the labelers of tests
            "RAY_AUTH_MODE": CLUSTER["rayClusterSpec"]["authOptions"]["mode"],
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_head(self, folder: Path) -> None:
        """The head, until it answers."""
        where = f"--port={self._gcs.rpartition(':')[2]} --dashboard-port={self.dashboard.rpartition(':')[2]}"
        self._start(f"--head --temp-dir={folder} {where}", HEAD["rayStartParams"])
        until(lambda: self.shell(f"ray job list --address {self.dashboard}").wait() == 0)

    def join(self) -> subprocess.Popen[str]:
        """Another worker, with what its pod has."""
        limits = WORKER["resources"]["limits"]
        what = f"--address={self._gcs} --num-cpus={limits['cpu']} --num-gpus={limits['nvidia.com/gpu']}"
        environment = {one["name"]: one["value"] for one in WORKER["env"]}
        return self._start(what, GROUP["rayStartParams"], **environment)

    def _start(self, what: str, params: dict[str, str], **environment: str) -> subprocess.Popen[str]:
        agent, client = free_ports(2)  # several nodes share the address of this machine
        here = {
            "node-ip-address": "127.0.0.1",
            "object-store-memory": "100000000",
            "dashboard-agent-listen-port": agent,
        }
        if "--head" in what:
            here["ray-client-server-port"] = client
        words = " ".join(f"--{name}={value}" for name, value in {**params, **here}.items())
        return self.shell(f"ulimit -n 65536; ray start --block {what} {words}", **environment)

    def shell(self, line: str, out: int | IO[str] = subprocess.DEVNULL, **environment: str) -> subprocess.Popen[str]:
        """A line as KubeRay has pods run it."""
        process = subprocess.Popen(
            ["/bin/bash", "-c", "--", line],
            cwd=self._image,
            env={**self._environment, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def submit(self, name: str, entrypoint: str) -> subprocess.Popen[str]:
        """What the submitter runs; its output is the job's log."""
        at = f"--address {self.dashboard}"
        submit = f"ray job submit {at} --no-wait --submission-id {name} -- {entrypoint}"
        return self.shell(f"{submit} ; ray job logs {at} --follow {name} ; ray job status {at} {name}", subprocess.PIPE)


def until(found: Callable[[], bool]) -> None:
    """Look again and again."""
    end = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.2)


def read_until(log: IO[str], words: str) -> str:
    """The lines of a log up to the one with these words."""
    said = ""
    for line in log:
        said += line
        if words in line:
            return said
    raise AssertionError(f"{words!r} is not in the log:\n{said}")


def entrypoint(folder: Path, *settings: str) -> str:
    """That of the YAML, with places on this machine; later settings win."""
    ours = (f"input.uri={folder / 'in'}", f"output.uri={folder / 'out'}", *settings)
    return " ".join([CLUSTER["entrypoint"], *(f"--set {one}" for one in ours)])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # a short path, as sockets need
    folder.mkdir()
    image = tmp_path_factory.mktemp("image")
    (image / "configs").symlink_to(REPOSITORY / "configs")
    started = Nodes(folder, image)
    try:
        started.start_head(folder)
        yield started
    finally:
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        for process in started.started:
            process.wait(PATIENCE_S)
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def commits(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out/commits").rglob("*.json")}


def test_a_job_waits_for_gpu_nodes_and_outlives_them(nodes: Nodes, tmp_path: Path) -> None:
    """A job that ends before a node has joined; a node that at SIGTERM dies with its shards, or counts as a failure."""
    for number in range(8):
        write_tar(tmp_path / f"in/{number}.tar", {f"{number}-{i}.png": draw(i) for i in range(12)})
    slow = ("labeler.name=tests.fakes:SlowLabeler", "labeler.config=null", "labeler.weights=null")
    job = nodes.submit("drained", entrypoint(tmp_path, *slow))
    assert job.stdout is not None
    said = read_until(job.stdout, "shards")
    first = nodes.join()
    until(lambda: len(commits(tmp_path)) >= 1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) is not None
    drained = commits(tmp_path)
    assert 2 <= len(drained) < 8, "what it held is committed, and it takes nothing new"
    nodes.join()
    said += job.stdout.read()
    assert job.wait(PATIENCE_S) == 0
    assert "8 of 8 shards are committed" in said, said
    assert "SUCCEEDED" in said.upper(), said
    assert "labelled again" not in said
    assert "tried again" not in said
    assert drained < commits(tmp_path)


def test_a_job_labels_with_a_model(nodes: Nodes, tmp_path: Path) -> None:
    """Configs that are not found from the folder of the image, or a package that only a checkout has."""
    write_tar(tmp_path / "in/0.tar", {f"{i}.png": draw(i) for i in range(2)})
    weights = f"labeler.weights={REPOSITORY / 'configs/model/patchdct_demo.pth'}"
    job = nodes.submit("labels", entrypoint(tmp_path, weights, "labeler.config=configs/model/patchdct_demo.yaml"))
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0
    assert "1 of 1 shards are committed" in said, said
