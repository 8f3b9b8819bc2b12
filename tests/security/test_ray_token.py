"""A Ray cluster that asks for its token, and what it keeps of a job: a real head, on ports of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.refusals import PATIENCE_S, REPOSITORY
from tests.security.planted import ENVIRONMENT, betrayed, betraying_files

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head node: its two addresses, its folder, and the environment of those who have its token."""

    gcs: str
    dashboard: str
    folder: Path
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = Path("/tmp") / f"ray-{secrets.token_hex(4)}"  # a short path, as sockets need
    folder.mkdir()
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        **ENVIRONMENT,
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    names = ("port", "ray-client-server-port", "dashboard-port")
    names += ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    words = [f"--{name}={port}" for name, port in ports.items()]
    start = [BIN / "ray", "start", "--head", "--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    try:
        words.append("--node-ip-address=127.0.0.1")
        subprocess.run([*start, *words], env=environment, check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)
        yield Head(
            gcs=f"127.0.0.1:{ports['port']}",
            dashboard=f"http://127.0.0.1:{ports['dashboard-port']}",
            folder=folder,
            environment=environment,
        )
    finally:
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def processes_of(folder: Path) -> list[int]:
    """The processes of the cluster whose sessions are in a folder: just those that this test has started."""
    mark = f"RAY_TMPDIR={folder}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it is gone, or another user's
    return found


def command_lines(folder: Path) -> str:
    files = (Path(f"/proc/{pid}/cmdline") for pid in processes_of(folder))
    return "".join(file.read_text() for file in files if file.exists())


@pytest.mark.parametrize("mode", ["disabled", "token"])
@pytest.mark.parametrize("token", [None, "a" * 64])
def test_without_the_token_it_is_said(head: Head, config: Path, tmp_path: Path, mode: str, token: str | None) -> None:
    """A minute of waiting, twenty lines of Ray's own, "no cluster answers", or a traceback."""
    environment = {"HOME": str(tmp_path), "RAY_AUTH_MODE": mode, "PYTHONPATH": str(REPOSITORY)}
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-m", "jobs.label", "--config", config, "--set", f"run.address={head.gcs}"],
        cwd=REPOSITORY,
        env={**{key: value for key, value in os.environ.items() if not key.startswith("RAY_")}, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: run.address is {head.gcs!r}, where Ray asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
        "or ~/.ray/auth_token to the token of that cluster"
    )
    assert len(done.stderr.splitlines()) == 2, done.stderr


def test_a_job_leaves_no_secret_in_ray(head: Head, config: Path, tmp_path: Path) -> None:
    """Credentials of the nodes, or the token, in Ray's logs, in the job's metadata, or in the list of processes."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    submitted = subprocess.run(
        [
            *(BIN / "ray", "job", "submit", "--address", head.dashboard, "--submission-id", "labels", "--"),
            *(sys.executable, "-m", "jobs.label", "--config", str(config), "--set", "run.workers=1"),
        ],
        env={**head.environment, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    said = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, said
    assert "1 of 1 shards are committed" in said
    metadata = asked(f"{head.dashboard}/api/jobs/", token)
    assert [job["submission_id"] for job in json.loads(metadata)] == ["labels"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        asked(f"{head.dashboard}/api/jobs/", "b" * 64)
    running = command_lines(head.folder)
    assert "raylet" in running
    for text in (said, metadata, running):
        assert betrayed(text) == []
        assert token not in text
    assert betraying_files(head.folder) == []
    assert betraying_files(tmp_path / "out") == []


def asked(url: str, token: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())
